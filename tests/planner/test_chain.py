from __future__ import annotations

import random
import time

import pytest

from planner.cost import CostModel
from planner.options import find_options
from planner.problem import PlanningProblem
from planner.request import Forbid, Objective, Pin, PlanRequest, Split
from planner.solvers.base import (
    Assignment,
    SolveLimits,
    SolverResult,
    SolveStatus,
    StageAssignment,
)
from planner.solvers.chain import ChainSolver
from planner.solvers.chain_segments import Segments
from planner.solvers.exhaustive import ExhaustiveSolver
from profiler.cluster import Link
from profiler.profile import Profile
from tests.support.builders import chain_graph, make_cluster, make_graph, make_profile

GIB = 2**30
LAYERS = (Split.LAYERS,)


def world(
    seconds: dict[str, list[float]],
    *,
    memory: int = GIB,
    types: dict[str, str] | None = None,
    links: tuple[Link, ...] = (),
    **options: float,
) -> Profile:
    num_layers = len(next(iter(seconds.values())))
    graph = chain_graph(num_layers, floats_per_item=25)
    cluster = make_cluster(dict.fromkeys(seconds, memory), types=types, links=links, **options)
    return make_profile(graph, cluster, seconds=seconds)


def solve(
    profile: Profile, *, microbatch: int = 1, limits: SolveLimits | None = None, **wishes: object
) -> SolverResult:
    request = PlanRequest.model_validate({"batch_size": 4, "splits": LAYERS, **wishes})
    problem = PlanningProblem.build(profile, request, microbatch=microbatch)
    return ChainSolver().solve(problem, cost=CostModel(problem), limits=limits or SolveLimits())


def shape(result: SolverResult) -> dict[str, tuple[int, ...]]:
    assert result.assignment is not None
    return {"+".join(s.devices): s.layers for s in result.assignment.stages}


def test_a_slow_device_gets_fewer_layers() -> None:
    # Six layers of 1 s on a, 2 s on b: 4 + 2 layers balance at 4 s an item, 16 s a batch.
    result = solve(world({"a": [1.0] * 6, "b": [2.0] * 6}))
    assert result.status is SolveStatus.OPTIMAL
    assert result.objective_s == result.bound_s == pytest.approx(16.0)
    assert {d: len(layers) for d, layers in shape(result).items()} == {"h/a": 4, "h/b": 2}


def test_the_batch_is_split_where_that_is_better() -> None:
    # Two layers of 3 s and 1 s on three equal devices. By layers alone: 3 s an item, 12 s a batch.
    # By items alone: 2 + 1 + 1 items, 8 s. Best: the first layer on two, 2 + 2 items, 6 s.
    profile = world({d: [3.0, 1.0] for d in "abc"}, types=dict.fromkeys("abc", "t"))
    both = solve(profile, microbatch=4, splits=(Split.LAYERS, Split.BATCH))
    assert both.objective_s == pytest.approx(6.0)
    assert [len(d.split("+")) for d in shape(both)] == [2, 1]


def test_a_slow_link_keeps_the_model_on_one_device() -> None:
    # A cut costs 1 s and more a microbatch; two layers of 0.4 s do not earn that.
    profile = world({"a": [0.4, 0.4], "b": [0.4, 0.4]}, latency_s=1.0, occupancy=0.0)
    assert list(shape(solve(profile))) == ["h/a"]


def test_memory_forces_a_cut() -> None:
    # Weights of 1000 bytes a layer, 2600 free: two layers and their buffers at most.
    profile = world({d: [1.0] * 3 for d in "ab"}, memory=4100)
    result = solve(profile, objective=Objective.LATENCY, reserve_bytes=0)
    assert sorted(len(x) for x in shape(result).values()) == [1, 2]


def test_nothing_fits() -> None:
    result = solve(world({d: [1.0] * 3 for d in "ab"}, memory=1500), reserve_bytes=0)
    assert result.status is SolveStatus.INFEASIBLE
    assert result.assignment is None


def test_pins_and_groups_are_kept() -> None:
    profile = world({"a": [1.0] * 4, "b": [1.0] * 4})
    result = solve(
        profile, pins=(Pin(layers="l0", device="h/b"),), keep_together=("l0..2",), max_stages=2
    )
    assert shape(result)["h/b"][:3] == (0, 1, 2)


def test_latency_counts_every_hop() -> None:
    # b is faster, but moving there and back costs 1.0 + 1.0 s; it saves 4 x 0.7 = 2.8 s.
    profile = world({"a": [1.0] * 4, "b": [0.3] * 4}, latency_s=1.0, bytes_per_s=1e12)
    result = solve(profile, microbatch=4, objective=Objective.LATENCY)
    assert list(shape(result)) == ["h/b"]
    assert result.objective_s == pytest.approx(4 * 4 * 0.3 + 2.0)


def test_several_microbatches_overlap_in_latency() -> None:
    # Two layers of 1 s on two devices, 4 items one by one: 2 + 3 x 1 s instead of 8 s.
    result = solve(world({"a": [1.0, 1.0], "b": [1.0, 1.0]}), objective=Objective.LATENCY)
    assert result.status is SolveStatus.OPTIMAL
    assert result.objective_s == pytest.approx(5.0)


def test_an_idle_device_can_be_demanded() -> None:
    profile = world({"a": [1.0] * 2, "b": [50.0] * 2})
    request = PlanRequest(batch_size=1, splits=LAYERS)
    problem = PlanningProblem.build(profile, request, microbatch=1).requiring(["h/b"])
    result = ChainSolver().solve(problem, cost=CostModel(problem), limits=SolveLimits())
    assert "h/b" in shape(result)
    assert result.objective_s == pytest.approx(50.0)


def test_a_wire_shared_by_all_links_leaves_an_honest_gap() -> None:
    links = tuple(
        Link(source=a, target=b, latency_s=0.0, bytes_per_s=100.0, shares="air")
        for a in ("h/a", "h/b", "h/c")
        for b in ("h/a", "h/b", "h/c")
        if a != b
    )
    profile = world({d: [1.0] * 3 for d in "abc"}, links=links)
    result = solve(profile)
    assert result.objective_s is not None
    assert result.bound_s is not None
    assert result.bound_s <= result.objective_s
    if result.bound_s < result.objective_s:
        assert result.status is SolveStatus.FEASIBLE


def test_a_cutoff_ends_the_search_with_a_bound() -> None:
    profile = world({"a": [1.0] * 6, "b": [2.0] * 6})
    result = solve(profile, limits=SolveLimits(cutoff_s=10.0))
    assert result.status is SolveStatus.UNKNOWN
    assert result.assignment is None
    assert result.bound_s is not None
    assert result.bound_s >= 10.0


def test_a_goal_ends_the_search_early() -> None:
    profile = world({"a": [1.0] * 6, "b": [2.0] * 6})
    result = solve(profile, limits=SolveLimits(goal_s=float("inf")))
    assert result.assignment is not None


def test_no_time_at_all_is_not_called_infeasible() -> None:
    result = solve(
        world({"a": [1.0] * 6, "b": [2.0] * 6}), limits=SolveLimits(deadline=time.monotonic() - 1)
    )
    assert result.status is not SolveStatus.INFEASIBLE


def test_a_branching_model_is_not_proved() -> None:
    graph = make_graph([(0, 1), (0, 2), (1, 3), (2, 3)], 4)
    cluster = make_cluster({"a": GIB, "b": GIB})
    profile = make_profile(graph, cluster, seconds={"a": [1.0] * 4, "b": [1.0] * 4})
    request = PlanRequest(batch_size=1)
    problem = PlanningProblem.build(profile, request, microbatch=1)
    assert ChainSolver().rejects(problem)
    result = ChainSolver().solve(problem, cost=CostModel(problem), limits=SolveLimits())
    assert result.status is SolveStatus.FEASIBLE
    assert result.bound_s is None


def test_every_run_has_the_seconds_and_the_room_of_the_cost_model() -> None:
    # The arrays of the programme against the model that judges plans, run by run.
    graph = make_graph(
        [(i, i + 1) for i in range(5)] + [(0, 3)], 6, floats_per_item=40, tied=[(1, 4)]
    )
    cluster = make_cluster({"a": 4000, "b": 5600, "c": 10**6})
    profile = make_profile(
        graph,
        cluster,
        seconds={d: [0.1 * (i + 1) for i in range(6)] for d in "abc"},
        peak_bytes_per_item=30,
    )
    request = PlanRequest(batch_size=4, splits=LAYERS, reserve_bytes=0)
    problem = PlanningProblem.build(profile, request, microbatch=2)
    cost = CostModel(problem)
    options = find_options(problem, cost.figures).options
    segments = Segments(problem, cost.figures, options)
    others = {"h/a": ("h/b", "h/c"), "h/b": ("h/a", "h/c"), "h/c": ("h/a", "h/b")}
    for option in options:
        device = problem.classes[option.members[0][0]][0]
        seconds = segments.compute_s(option)
        for start in range(6):
            for end in range(start + 1, 7):
                parts = [(others[device][0], range(start)), (device, range(start, end)),
                         (others[device][1], range(end, 6))]  # fmt: skip
                stages = tuple(
                    StageAssignment(layers=tuple(part), devices=(d,), shares=(2,))
                    for d, part in parts
                    if part
                )
                price = cost.evaluate(Assignment.single(stages, items=problem.batch))
                mine = next(r for r in price.ranks if r.device == device)
                fits = mine.memory.total_bytes <= mine.memory.capacity_bytes
                assert (seconds[start, end] < float("inf")) == fits
                if fits:
                    assert seconds[start, end] == mine.compute_s


def test_plans_with_a_busy_root_in_the_middle_equal_brute_force() -> None:
    # The root a sends the input and receives the answer; every link costs another time.
    rng = random.Random(4)
    inside = 0
    for _ in range(25):
        seconds = {d: [rng.uniform(0.5, 1.5) for _ in range(5)] for d in "abcd"}
        links = tuple(
            Link(
                source=f"h/{s}",
                target=f"h/{t}",
                latency_s=rng.uniform(0.0, 0.4),
                bytes_per_s=1e4,
                send_occupancy=rng.uniform(0.2, 1.0),
                receive_occupancy=rng.uniform(0.2, 1.0),
            )
            for s in "abcd"
            for t in "abcd"
            if s != t
        )
        request = PlanRequest(
            batch_size=4,
            splits=LAYERS,
            forbids=(Forbid(layers="=l0", device="h/a"), Forbid(layers="=l4", device="h/a")),
        )
        problem = PlanningProblem.build(world(seconds, links=links), request, microbatch=1)
        cost = CostModel(problem)
        found = ChainSolver().solve(problem, cost=cost, limits=SolveLimits())
        best = ExhaustiveSolver().solve(problem, cost=cost, limits=SolveLimits())
        assert found.status is SolveStatus.OPTIMAL
        assert found.objective_s == found.bound_s == pytest.approx(best.objective_s, rel=1e-9)
        inside += "h/a" in shape(found)
    assert inside > 5
