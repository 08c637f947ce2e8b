"""What a tensor split costs and holds, in numbers that can be followed by hand."""

from __future__ import annotations

import pytest

from planner.communication import join_phases, join_pieces, join_s
from planner.cost import CostModel
from planner.options import find_options
from planner.problem import PlanningProblem
from planner.request import Objective, PlanRequest, Split
from planner.rules import apply_rules
from planner.slices import RegionUnits
from planner.slicings import balance_units, even_slicing, find_slicings
from planner.solvers.base import Assignment, StageAssignment
from profiler.cluster import Link
from profiler.profile import Profile
from tests.support.builders import GIB, chain_graph, make_cluster, make_profile, make_region

DEVICES = ("h/a", "h/b")


def world(
    *,
    speeds: tuple[float, ...] = (1.0, 1.0),
    units: int = 4,
    divided: float = 1.0,
    how: str = "sum",
    latency_s: float = 0.5,
    bytes_per_s: float = 1024.0,
    memory: tuple[int, ...] = (GIB, GIB, GIB, GIB),
    links: tuple[Link, ...] = (),
) -> Profile:
    """l0 -> l1 -> l2, one second a layer and item, 1024 bytes each; l1 can be sliced."""
    names = "abcd"[: len(speeds)]
    graph = chain_graph(
        3,
        regions=(make_region([1], units=units, divided=divided, how=how),),  # type: ignore[arg-type]
    )
    cluster = make_cluster(
        dict(zip(names, memory, strict=False)),
        latency_s=latency_s,
        bytes_per_s=bytes_per_s,
        links=links,
    )
    return make_profile(
        graph, cluster, seconds={d: [s] * 3 for d, s in zip(names, speeds, strict=True)}
    )


def problem_of(profile: Profile, **wishes: object) -> PlanningProblem:
    request = PlanRequest.model_validate(
        {"objective": Objective.LATENCY, "batch_size": 1, "reserve_bytes": 0, **wishes}
    )
    return PlanningProblem.build(profile, request, microbatch=request.batch_size)


def whole_model(devices: tuple[str, ...], units: tuple[int, ...], *, items: int = 1) -> Assignment:
    stage = StageAssignment(
        layers=(0, 1, 2),
        devices=devices,
        shares=(items,) * len(devices),
        slices=(RegionUnits(0, units),),
    )
    return Assignment.single([stage], items=items)


def test_a_stage_takes_the_slowest_slice_the_rest_and_the_join() -> None:
    problem = problem_of(world(speeds=(1.0, 2.0)))
    price = CostModel(problem).evaluate(whole_model(DEVICES, (3, 1)))
    (stage,) = price.stages
    # The rest (l0, l2) takes b 4 s; the slices 3/4 s on a and 2/4 s on b.
    assert stage.compute_s == pytest.approx(4.75)
    assert [r.compute_s for r in price.ranks] == pytest.approx([2.75, 4.5])
    # A partial of 1024 bytes each way at once: 0.5 s + 1 s.
    assert stage.join_s == pytest.approx(1.5)
    # The input, 32 bytes, goes to b too: 0.5 + 1/32 s; the answer is on the root already.
    assert price.latency_s == pytest.approx(0.53125 + 4.75 + 1.5)


def test_what_is_not_divided_is_done_in_full_by_every_rank() -> None:
    problem = problem_of(world(divided=0.5))
    price = CostModel(problem).evaluate(whole_model(DEVICES, (2, 2)))
    assert price.stages[0].compute_s == pytest.approx(2 + 0.5 + 0.5 / 2)


def test_a_concat_sends_parts_and_the_slower_direction_counts() -> None:
    slow = Link(source="h/b", target="h/a", latency_s=1.0, bytes_per_s=128.0)
    problem = problem_of(world(how="concat", links=(slow,)))
    price = CostModel(problem).evaluate(whole_model(DEVICES, (3, 1)))
    # a sends 768 bytes in 0.5 + 0.75 s, b 256 bytes in 1 + 2 s.
    assert price.stages[0].join_s == pytest.approx(3.0)
    assert price.wires["h/a -> h/b"] == pytest.approx(1.25 + 0.53125)  # with the input
    assert price.wires["h/b -> h/a"] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("how", "num_bytes", "units", "sizes", "phases"),
    [
        ("sum", 10**6, (1, 1), {10**6}, 1),
        ("sum", 32 * 1024, (1, 1, 1), {32 * 1024}, 1),
        ("sum", 90_000, (1, 1, 1), {30_000.0}, 2),
        ("concat", 90_000, (1, 1, 1), {30_000}, 1),
    ],
)
def test_small_sums_go_whole_and_large_ones_in_two_phases_of_pieces(
    how: str, num_bytes: int, units: tuple[int, ...], sizes: set[float], phases: int
) -> None:
    found = join_phases(how, num_bytes, units)
    assert len(found) == phases
    for phase in found:
        assert {m.num_bytes for m in phase} == sizes
        assert len(phase) == len(units) * (len(units) - 1)
    assert set(join_pieces(how, num_bytes, units, 0)) == sizes


def test_among_three_ranks_a_rank_sends_to_one_peer_after_the_other() -> None:
    problem = problem_of(world(speeds=(1.0, 1.0, 1.0)))
    figures = CostModel(problem).figures
    (join,) = problem.graph.regions[0].joins
    assert join_s(figures, join, ["h/a", "h/b", "h/c"], (2, 1, 1), 1) == pytest.approx(2 * 1.5)
    # 64 items are 64 KiB: two phases of two messages of a third.
    seconds = 2 * 2 * (0.5 + 64 / 3)
    assert join_s(figures, join, ["h/a", "h/b", "h/c"], (2, 1, 1), 64) == pytest.approx(seconds)


def test_a_rank_holds_its_units_of_sliced_weights_and_one_partial_of_each_peer() -> None:
    problem = problem_of(world())
    price = CostModel(problem).evaluate(whole_model(DEVICES, (3, 1)))
    first, second = (rank.memory for rank in price.ranks)
    assert (first.weights_bytes, second.weights_bytes) == (2750, 2250)
    # Joins: 1024 bytes each. a is the root (32 bytes in, 1024 out); b gets the input twice ahead.
    assert first.buffers_bytes == 1024 + 32 + 1024
    assert second.buffers_bytes == 1024 + 2 * 32


def test_units_go_to_the_rank_that_has_them_done_soonest() -> None:
    assert balance_units([lambda n: n, lambda n: 3 * n], 8, [8, 8]) == (6, 2)
    assert balance_units([lambda n: n, lambda n: 100 * n], 8, [8, 8]) == (7, 1)
    assert balance_units([lambda n: n, lambda n: 3 * n], 8, [4, 8]) == (4, 4)
    assert balance_units([lambda n: n, lambda n: 3 * n], 8, [4, 3]) is None
    assert balance_units([lambda n: n] * 3, 2, [2, 2, 2]) is None
    large = balance_units([lambda n: n, lambda n: 3 * n], 50_257, [50_257] * 2)
    assert large is not None
    assert sum(large) == 50_257
    assert large[0] == pytest.approx(0.75 * 50_257, rel=0.01)


def test_slices_keep_within_memory_where_speed_alone_does_not() -> None:
    # Three layers of 1000 bytes; a is three times faster and has room for the rest and half of l1.
    everything = 2000 + 500
    others = 1024 + 32 + 1024  # as above
    room = everything + others + 1024  # and the input of l1, or of l2, alive
    profile = world(speeds=(1.0, 3.0), memory=(room, GIB))
    problem = problem_of(profile)
    by_speed, fitting = find_slicings(problem, CostModel(problem).figures, DEVICES)
    assert by_speed == (RegionUnits(0, (3, 1)),)
    assert fitting[0].units[0] <= 2
    price = CostModel(problem).evaluate(whole_model(DEVICES, fitting[0].units))
    assert price.fits
    assert not CostModel(problem).evaluate(whole_model(DEVICES, (3, 1))).fits


def test_slices_that_save_no_time_are_offered_for_memory_only() -> None:
    # A sum takes 1.5 s, slicing l1 saves 0.5 s.
    roomy = problem_of(world())
    assert find_slicings(roomy, CostModel(roomy).figures, DEVICES) == []
    tight = problem_of(world(memory=(GIB, 4000)))
    found = find_slicings(tight, CostModel(tight).figures, DEVICES)
    assert found[0] == (RegionUnits(0, (2, 2)),)


def test_regions_with_fewer_units_than_ranks_are_not_offered() -> None:
    quick = {"latency_s": 0.0, "bytes_per_s": 1e9}
    problem = problem_of(world(speeds=(1.0, 1.0, 1.0), units=2, **quick))  # type: ignore[arg-type]
    found = find_options(problem, CostModel(problem).figures)
    assert {len(o.members) for o in found.options if o.is_tensor} == {2}


def test_rules_slice_everything_evenly_or_by_speed() -> None:
    problem = problem_of(world(speeds=(1.0, 3.0), latency_s=0.0, bytes_per_s=1e9))
    found = {x.name: x for x in apply_rules(problem, CostModel(problem))}
    even, by_speed = found["slices of all layers, even"], found["slices of all layers, by speed"]
    assert even.assignment is not None
    assert by_speed.assignment is not None
    assert even.assignment.stages[0].slices == (RegionUnits(0, (2, 2)),)
    assert by_speed.assignment.stages[0].slices == (RegionUnits(0, (3, 1)),)
    assert by_speed.price is not None
    assert even.price is not None
    assert by_speed.price.latency_s < even.price.latency_s
    refused = problem_of(world(), splits=(Split.LAYERS,))
    outcomes = {x.name: x for x in apply_rules(refused, CostModel(refused))}
    assert "no tensor split" in outcomes["slices of all layers, even"].why_not


def test_regions_are_divided_evenly_to_a_unit() -> None:
    assert even_slicing(problem_of(world(units=5)), 3) == (RegionUnits(0, (1, 2, 2)),)
    assert even_slicing(problem_of(world(units=2)), 3) == ()


def test_the_request_may_leave_tensor_splits_out() -> None:
    problem = problem_of(world(), splits=(Split.LAYERS, Split.BATCH))
    assert not any(o.is_tensor for o in find_options(problem, CostModel(problem).figures).options)
