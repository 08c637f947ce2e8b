"""Templates of pipelines against brute force on tiny clusters."""

from __future__ import annotations

import random
import time

import pytest

from planner.cost import CostModel
from planner.problem import PlanningProblem
from planner.request import Objective, Split
from planner.solvers.base import TOLERANCE, SolveLimits, SolverResult, SolveStatus
from planner.solvers.exhaustive import ExhaustiveSolver
from planner.solvers.templates import TemplateSolver
from profiler.errors import InvalidInputError
from tests.support.worlds import random_chain

SEEDS = range(160)


def both(seed: int) -> tuple[SolverResult, SolverResult] | None:
    """What templates and brute force find; None where either does not apply."""
    rng = random.Random(seed)
    profile, request, microbatch = random_chain(rng, max_layers=4)
    splits = rng.choice(((Split.LAYERS, Split.PIPELINES), (Split.PIPELINES,)))
    request = request.model_copy(
        update={"objective": Objective.THROUGHPUT, "splits": splits, "max_stages": None}
    )
    try:
        problem = PlanningProblem.build(profile, request, microbatch=microbatch)
    except InvalidInputError:
        return None
    solvers = (TemplateSolver(), ExhaustiveSolver())
    if any(solver.rejects(problem) is not None for solver in solvers):
        return None
    cost, limits = CostModel(problem), SolveLimits(deadline=time.monotonic() + 300)
    one, other = (solver.solve(problem, cost=cost, limits=limits) for solver in solvers)
    return one, other


@pytest.fixture(scope="module")
def pairs() -> list[tuple[SolverResult, SolverResult]]:
    found = [pair for seed in SEEDS if (pair := both(seed)) is not None]
    assert len(found) >= 40
    return found


def test_no_bound_is_above_the_optimum(pairs: list[tuple[SolverResult, SolverResult]]) -> None:
    for one, best in pairs:
        if best.objective_s is not None:
            assert one.status is not SolveStatus.INFEASIBLE
            assert one.bound_s is not None
            assert one.bound_s <= best.objective_s * (1 + TOLERANCE)


def test_no_plan_is_better_than_the_optimum(pairs: list[tuple[SolverResult, SolverResult]]) -> None:
    for one, best in pairs:
        if best.objective_s is None:
            assert one.objective_s is None
        elif one.objective_s is not None:
            assert one.objective_s >= best.objective_s * (1 - TOLERANCE)
            if one.status is SolveStatus.OPTIMAL:
                assert one.objective_s == pytest.approx(best.objective_s, rel=1e-9)


def test_most_optima_are_found(pairs: list[tuple[SolverResult, SolverResult]]) -> None:
    there = [(one, best) for one, best in pairs if best.objective_s is not None]
    found = sum(
        one.objective_s is not None
        and one.objective_s <= (best.objective_s or 0.0) * (1 + TOLERANCE)
        for one, best in there
    )
    assert found >= 0.6 * len(there)
