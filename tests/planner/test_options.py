from __future__ import annotations

from planner.figures import Figures
from planner.options import OptionSet, find_options, place
from planner.problem import PlanningProblem
from planner.request import PlanRequest, Split
from tests.support.builders import chain_graph, make_cluster, make_profile


def options(
    types: dict[str, str], *, microbatch: int = 8, **wishes: object
) -> tuple[PlanningProblem, OptionSet]:
    graph = chain_graph(4)
    speed = {"fast": 1.0, "slow": 3.0}
    profile = make_profile(
        graph,
        make_cluster(dict.fromkeys(types, 10**9), types=types),
        seconds={d: [speed.get(t, 1.0)] * 4 for d, t in types.items()},
    )
    request = PlanRequest.model_validate({"batch_size": microbatch, **wishes})
    problem = PlanningProblem.build(profile, request, microbatch=microbatch)
    return problem, find_options(problem, Figures(problem))


def test_shares_follow_the_speed_of_each_device() -> None:
    _, found = options({"a": "fast", "b": "slow"})
    group = next(o for o in found.options if o.is_group)
    assert [share for _, share in group.members] == [6, 2]


def test_equal_devices_give_one_option_for_all_of_them() -> None:
    _, found = options(dict.fromkeys("abcde", "fast"))
    # The root, any of the other four; groups of 2 to 5 with or without the root.
    sizes = sorted(len(o.members) for o in found.options)
    assert sizes == [1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_no_groups_where_the_batch_may_not_be_split() -> None:
    _, found = options({"a": "fast", "b": "fast"}, splits=(Split.LAYERS,))
    assert not any(o.is_group for o in found.options)
    _, found = options({"a": "fast", "b": "fast"}, microbatch=1)
    assert not any(o.is_group for o in found.options)


def test_no_rank_is_left_without_items() -> None:
    _, found = options({"a": "fast", "b": "slow", "c": "slow"}, microbatch=2)
    assert all(min(share for _, share in o.members) > 0 for o in found.options)


def test_what_was_left_out_is_said() -> None:
    types = {f"d{i}": f"type{i}" for i in range(12)}
    problem, found = options(types)
    assert found.limited
    assert "or all 12" in found.describe(problem)
    assert max(len(o.members) for o in found.options) == found.largest_group < 12


def test_options_are_placed_on_different_devices() -> None:
    problem, found = options(dict.fromkeys("abcd", "fast"))
    single = next(o for o in found.options if not o.is_group and o.members[0][0] == 1)
    assert place(problem, [single, single, single]) == [("h/b",), ("h/c",), ("h/d",)]


def test_a_huge_microbatch_is_shared_in_units() -> None:
    _, found = options({"a": "fast", "b": "slow"}, microbatch=10**9 + 7)
    group = next(o for o in found.options if o.is_group)
    shares = [share for _, share in group.members]
    assert sum(shares) == 10**9 + 7
    assert abs(shares[0] - 3 * shares[1]) < 10**9 / 50
