from __future__ import annotations

import pytest

from planner.cost import CostModel
from planner.flows import Routing
from planner.portfolio import solve
from planner.problem import PlanningProblem
from planner.request import PlanRequest, Split
from planner.solvers.base import SolveLimits, SolveStatus
from planner.solvers.chain import ChainSolver
from planner.solvers.exhaustive import ExhaustiveSolver
from profiler.cluster import Link
from tests.support.builders import chain_graph, make_cluster, make_graph, make_profile


def on_air(rate: float) -> PlanningProblem:
    """Three devices whose messages all share one wire."""
    names = ("h/a", "h/b", "h/c")
    links = tuple(
        Link(source=a, target=b, latency_s=1e-3, bytes_per_s=rate, shares="air")
        for a in names
        for b in names
        if a != b
    )
    profile = make_profile(
        chain_graph(6, floats_per_item=64),
        make_cluster(dict.fromkeys("abc", 10**9), links=links),
        seconds={d: [5e-3, 6e-3, 9e-3, 2e-3, 7e-3, 4e-3] for d in "abc"},
    )
    request = PlanRequest(batch_size=8, splits=(Split.LAYERS,))
    return PlanningProblem.build(profile, request, microbatch=1)


@pytest.mark.parametrize("rate", [2e4, 3e4, 5e4, 1e5, 1e7])
def test_a_shared_wire_is_proved_by_the_second_solver(rate: float) -> None:
    problem = on_air(rate)
    cost = CostModel(problem)
    _, result = solve(problem, cost=cost, name=None, limits=SolveLimits())
    best = ExhaustiveSolver().solve(problem, cost=cost, limits=SolveLimits())
    assert result.status is SolveStatus.OPTIMAL
    assert result.objective_s == pytest.approx(best.objective_s, rel=1e-9)


def test_a_named_solver_answers_alone() -> None:
    problem = on_air(3e4)
    cost = CostModel(problem)
    name, result = solve(problem, cost=cost, name="chain", limits=SolveLimits())
    assert name == "chain"
    assert result == ChainSolver().solve(problem, cost=cost, limits=SolveLimits())


def test_long_skips_are_sent_past_the_stages_between() -> None:
    # l0's output is read again by the last layer. Relayed, it weighs on every wire and occupies
    # every stage; sent past, only one wire carries it.
    edges = [(i, i + 1) for i in range(5)] + [(0, 5)]
    profile = make_profile(
        make_graph(edges, 6, floats_per_item=256),
        make_cluster(dict.fromkeys("abc", 10**9), bytes_per_s=1e6, occupancy=1.0),
        seconds={d: [5e-3] * 6 for d in "abc"},
    )
    request = PlanRequest(batch_size=8, splits=(Split.LAYERS,))
    problem = PlanningProblem.build(profile, request, microbatch=1)
    cost = CostModel(problem)
    relayed = ChainSolver().solve(problem, cost=cost, limits=SolveLimits())
    names, result = solve(problem, cost=cost, name=None, limits=SolveLimits())
    assert names == "chain, cp_sat"
    assert relayed.objective_s is not None
    assert result.objective_s is not None
    assert result.objective_s < relayed.objective_s
    assert result.status is SolveStatus.OPTIMAL
    assert result.assignment is not None
    assert result.assignment.pipelines[0].routing is Routing.DIRECT
    assert "passed on" in result.space
    assert "goes straight" in result.space
