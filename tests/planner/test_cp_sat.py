from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

from planner.cost import CostModel
from planner.problem import PlanningProblem
from planner.request import Objective, Pin, PlanRequest, Split
from planner.solvers.base import SolveLimits, SolverResult, SolveStatus
from planner.solvers.cp_sat import CpSatSolver, _Search
from planner.solvers.greedy import GreedySolver
from planner.solvers.integer_model import IntegerModel
from planner.solvers.integer_solving import LARGEST_SUM, solve_integer
from profiler.graph import ModelGraph
from profiler.profile import Profile
from tests.support.builders import make_cluster, make_graph, make_profile

GIB = 2**30

DIAMOND = make_graph([(0, 1), (0, 2), (1, 3), (2, 3)], 4, floats_per_item=25)


def profile_of(graph: ModelGraph, devices: str = "abc", *, memory: int = GIB) -> Profile:
    cluster = make_cluster(
        dict.fromkeys(devices, memory), types=dict.fromkeys(devices, "t"), bytes_per_s=1e4
    )
    return make_profile(
        graph,
        cluster,
        seconds={d: [1.0 + i % 2 for i in range(len(graph.layers))] for d in devices},
    )


def problem_of(profile: Profile, *, microbatch: int = 1, **wishes: object) -> PlanningProblem:
    request = PlanRequest.model_validate(
        {"batch_size": 1, "splits": (Split.LAYERS,), "reserve_bytes": 0, **wishes}
    )
    return PlanningProblem.build(profile, request, microbatch=microbatch)


def solve(problem: PlanningProblem, seconds: float = 20.0) -> SolverResult:
    limits = SolveLimits(deadline=time.monotonic() + seconds)
    return CpSatSolver().solve(problem, cost=CostModel(problem), limits=limits)


def test_parallel_branches_run_on_different_devices() -> None:
    # Layers take 1, 2, 1, 2 s: 6 s on one device; with l2 beside l1, 1 + 2 + 2 s and two hops of
    # 100 bytes at 10 kB/s. A stage sends when all of it is done, so this takes four.
    result = solve(problem_of(profile_of(DIAMOND, "abcd"), objective=Objective.LATENCY))
    assert result.status is SolveStatus.OPTIMAL
    assert result.assignment is not None
    home = {i: s.devices[0] for s in result.assignment.stages for i in s.layers}
    assert home[1] != home[2]
    assert result.objective_s == pytest.approx(5.02, abs=0.011)


def test_stages_never_wait_for_each_other() -> None:
    # Three devices for 0 -> 1 -> 3 and 0 -> 2 -> 3: {0, 3} would wait for {1, 2} and be waited for.
    result = solve(problem_of(profile_of(DIAMOND)))
    assert result.assignment is not None
    order = [set(s.layers) for s in result.assignment.stages]
    position = {i: s for s, layers in enumerate(order) for i in layers}
    assert all(position[a] <= position[b] for a, b in DIAMOND.digraph.edges)


def test_pins_and_groups_are_kept() -> None:
    problem = problem_of(
        profile_of(DIAMOND),
        pins=(Pin(layers="l3", device="h/c"),),
        keep_together=("l0..1",),
        max_stages=2,
    )
    result = solve(problem)
    assert result.assignment is not None
    home = {i: s.devices[0] for s in result.assignment.stages for i in s.layers}
    assert home[3] == "h/c"
    assert home[0] == home[1]
    assert len(result.assignment.stages) <= 2


def test_answers_that_do_not_fit_in_full_are_cut_off() -> None:
    # Activations between layers are not in the integer model: memory so small that they decide.
    graph = make_graph([(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4)], 5, floats_per_item=100)
    for memory in range(3000, 9000, 500):
        problem = problem_of(profile_of(graph, "ab", memory=memory))
        result = solve(problem)
        if result.assignment is not None:
            assert CostModel(problem).evaluate(result.assignment).fits


def test_nothing_fits() -> None:
    result = solve(problem_of(profile_of(DIAMOND, memory=900)))
    assert result.status is SolveStatus.INFEASIBLE


def test_never_worse_than_greedy_and_never_below_its_bound() -> None:
    edges = [(i, i + 1) for i in range(9)] + [(0, 4), (2, 7), (3, 9)]
    graph = make_graph(edges, 10)
    for objective in (Objective.THROUGHPUT, Objective.LATENCY):
        problem = problem_of(profile_of(graph), objective=objective)
        cost = CostModel(problem)
        greedy = GreedySolver().solve(problem, cost=cost, limits=SolveLimits())
        result = solve(problem)
        assert result.objective_s is not None
        assert greedy.objective_s is not None
        assert result.objective_s <= greedy.objective_s * (1 + 1e-9)
        assert result.bound_s is not None
        assert result.bound_s <= result.objective_s


def test_a_huge_spread_of_times_keeps_its_small_figures() -> None:
    # l1 takes 1e6 times as long as the rest: the rest must still leave its device.
    graph = make_graph([(0, 1), (0, 2), (2, 3)], 4, floats_per_item=1)
    cluster = make_cluster({"a": GIB, "b": GIB}, bytes_per_s=1e15)
    seconds = [1e-6, 1.0, 1e-6, 1e-6]
    profile = make_profile(graph, cluster, seconds={"a": seconds, "b": seconds})
    result = solve(problem_of(profile))
    assert result.status is SolveStatus.OPTIMAL
    assert result.assignment is not None
    alone = next(s for s in result.assignment.stages if 1 in s.layers)
    assert alone.layers == (1,)


def test_sums_stay_within_what_the_solver_handles() -> None:
    edges = [(i, i + 1) for i in range(19)] + [(0, 10)]
    profile = profile_of(make_graph(edges, 20, weight_bytes=10**10), memory=10**11)
    problem = problem_of(profile)
    search = _Search(problem, CostModel(problem), SolveLimits())
    search.warm_start()
    graphs, _ = search._model(10**9)
    assert graphs.model.largest_sum() <= LARGEST_SUM


def test_an_interrupt_reaches_the_caller() -> None:
    # A market split problem: 5 sums of 50 numbers to be met at once takes hours.
    rng = random.Random(1)
    model = IntegerModel()
    model.objective = model.integer(10**6)
    choices = [model.boolean() for _ in range(50)]
    for _ in range(5):
        row = [(rng.randrange(100), x) for x in choices]
        half = sum(c for c, _ in row) // 2
        model.at_most([*row, (-1, model.objective)], half)
        model.at_most([*((-c, x) for c, x in row), (-1, model.objective)], -half)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    start = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        solve_integer(model, SolveLimits(deadline=start + 60.0), presolve=True)
    assert time.monotonic() - start < 10.0
    timer.join()
