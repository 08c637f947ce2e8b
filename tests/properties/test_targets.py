"""Limits on times and devices: every exact solver against brute force, on random small problems."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar

from planner.cost import CostModel
from planner.portfolio import solve
from planner.problem import PlanningProblem
from planner.request import Split
from planner.solvers.base import TOLERANCE, SolveLimits, Solver, SolverResult, SolveStatus
from planner.solvers.chain import ChainSolver
from planner.solvers.cp_sat import CpSatSolver
from planner.solvers.exhaustive import ExhaustiveSolver, every_plan
from planner.targets import DEVICES, Budget, Targets
from profiler.errors import InvalidInputError
from tests.support.worlds import World, random_branching, random_chain, random_sliced

SECONDS = 5.0
"""For one solve; only what is not proved takes so long."""

Make = Callable[[random.Random], World]


def limited(rng: random.Random, problem: PlanningProblem) -> PlanningProblem:
    """The problem with limits that some plans keep and others do not."""
    cost = CostModel(problem)
    prices = [p for a in every_plan(problem, cost) if (p := cost.evaluate(a)).fits]
    if not prices:
        return problem
    budgets = []
    if rng.random() < 0.6:
        each = {d: rng.choice((1.0, 1.0, 2.5)) for d in problem.cluster.device}
        for members in problem.classes:
            each.update(dict.fromkeys(members, each[members[0]]))
        budget = Budget(what=DEVICES, each=each, root=problem.cluster.root)
        totals = sorted({budget.total(r.device for r in p.ranks) for p in prices})
        budgets.append(replace(budget, most=rng.choice(totals) * rng.choice((1.0, 1.0, 0.99))))
    chosen = rng.choice(prices)
    return replace(
        problem,
        targets=Targets(
            max_period_s=chosen.period_s * rng.choice((0.95, 1.0, 1.3)),
            max_latency_s=chosen.latency_s * rng.choice((0.97, 1.0, 1.1, 1.3)),
            budgets=tuple(budgets),
        ),
    )


def problems(make: Make, count: int) -> Iterator[PlanningProblem]:
    """Valid problems with limits, by ascending seed."""
    seed = found = 0
    while found < count:
        rng = random.Random(seed)
        profile, request, microbatch = make(rng)
        seed += 1
        try:
            problem = PlanningProblem.build(profile, request, microbatch=microbatch)
        except InvalidInputError:
            continue
        found += 1
        yield limited(rng, problem)


def side_by_side(rng: random.Random) -> World:
    """A small chain whose copies may take parts of a batch."""
    profile, request, microbatch = random_chain(rng, max_layers=4, max_devices=3)
    splits = rng.choice(((Split.LAYERS, Split.PIPELINES), tuple(Split)))
    return profile, request.replaced(splits=splits, keep_together=()), microbatch


def claims(one: SolverResult, truth: SolverResult, problem: PlanningProblem) -> str:
    """What is wrong with a solver's claim, given the true optimum; nothing if it holds."""
    most = problem.targets.most_of(problem.request.objective) * (1 + 2 * TOLERANCE)
    if truth.objective_s is None:
        if one.assignment is not None:
            return "a plan where there is none"
        return ""
    if one.status is SolveStatus.INFEASIBLE:
        return "infeasible, but there is a plan"
    if one.bound_s is not None and one.bound_s > min(most, truth.objective_s) * (1 + TOLERANCE):
        return "the bound is above the optimum"
    if one.objective_s is not None and one.objective_s < truth.objective_s * (1 - 3 * TOLERANCE):
        return "better than the optimum"
    proved = one.status is SolveStatus.OPTIMAL
    if proved and (one.objective_s or 0.0) > truth.objective_s * (1 + 3 * TOLERANCE):
        return "not the optimum, but it says so"
    return ""


def limits() -> SolveLimits:
    """Limits of one solve."""
    return SolveLimits(deadline=time.monotonic() + SECONDS)


class Portfolio:
    """All that suits a problem, as one solver."""

    name: ClassVar[str] = "portfolio"

    def rejects(self, problem: PlanningProblem) -> str | None:
        """It takes what brute force does."""
        return ExhaustiveSolver().rejects(problem)

    def solve(
        self, problem: PlanningProblem, *, cost: CostModel, limits: SolveLimits
    ) -> SolverResult:
        """The joined result."""
        return solve(problem, cost=cost, name=None, limits=limits)[1]


def compare(make: Make, solver: Callable[[], Solver], count: int) -> Counter[str]:
    """Statuses of a solver's answers; fails where one is not true."""
    wrong, statuses = [], Counter[str]()
    for number, problem in enumerate(problems(make, count)):
        cost = CostModel(problem)
        if solver().rejects(problem) is not None:
            statuses["rejected"] += 1
            continue
        one = solver().solve(problem, cost=cost, limits=limits())
        truth = ExhaustiveSolver().solve(problem, cost=cost, limits=SolveLimits())
        why = claims(one, truth, problem)
        known = truth.objective_s is None and one.assignment is None
        statuses["nothing" if known else str(one.status)] += 1
        if why:
            wrong.append((number, why, one, truth.objective_s, problem.targets))
        if one.assignment is not None:
            assert cost.evaluate(one.assignment).allowed
    assert wrong == []
    return statuses


def test_the_chain_solver_equals_brute_force() -> None:
    statuses = compare(random_chain, ChainSolver, 160)
    assert statuses["optimal"] + statuses["nothing"] >= 0.95 * 160
    assert statuses["optimal"] >= 60


def test_tensor_splits_equal_brute_force() -> None:
    statuses = compare(random_sliced, ChainSolver, 60)
    assert statuses["optimal"] + statuses["nothing"] >= 0.9 * 60
    assert statuses["optimal"] >= 30


def test_pipelines_side_by_side_equal_brute_force() -> None:
    """Side by side and one line together, as the portfolio joins them."""
    statuses = compare(side_by_side, Portfolio, 60)
    assert statuses["optimal"] + statuses["nothing"] >= 0.85 * 60
    assert statuses["optimal"] >= 20


def test_cp_sat_equals_brute_force_on_branching_models() -> None:
    statuses = compare(random_branching, CpSatSolver, 40)
    assert statuses["optimal"] + statuses["nothing"] >= 0.8 * (40 - statuses["rejected"])
    assert statuses["optimal"] >= 10
