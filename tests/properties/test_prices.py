"""Prices of wishes and of unused splits against brute force on random small problems."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import count

import pytest

from planner import plan
from planner.check import check_plan
from planner.cost import CostModel
from planner.limits import wishes
from planner.microbatches import microbatch_sizes
from planner.planfile import Plan
from planner.problem import PlanningProblem
from planner.request import PlanRequest, Split
from planner.solvers.base import TOLERANCE, SolveLimits, Solver, SolveStatus
from planner.solvers.chain import ChainSolver
from planner.solvers.cp_sat import CpSatSolver
from planner.solvers.exhaustive import ExhaustiveSolver
from planner.solvers.pipelines import PipelinesSolver
from profiler.errors import InfeasiblePlanError, InvalidInputError
from profiler.profile import Profile
from tests.properties.test_solvers import agrees
from tests.support.wishes import best_of, lifted, with_wishes
from tests.support.worlds import World, random_branching, random_chain, random_sliced

PLANS = 30
SOLVED = 60


def truth_s(profile: Profile, asked: PlanRequest, request: PlanRequest) -> float:
    """The least objective over the microbatch sizes that the planner tries, by brute force."""
    sizes = microbatch_sizes(profile, request)
    tried = {*sizes.measured, *sizes.between}
    if asked.microbatch_size is not None and asked.microbatch_size <= request.batch_size:
        tried.add(asked.microbatch_size)
    found = [best_of((profile, request, profile.cluster), size) for size in tried]
    return min((x.objective_s for x in found if x and x.objective_s is not None), default=1e300)


def plain(profile: Profile) -> bool:
    """Whether no tensor skips a layer: relaying and sending directly are then the same."""
    graph = profile.model
    return all(
        max(graph.readers[tensor.name], default=0) <= graph.layer_index[tensor.producer] + 1
        for tensor in graph.tensors
        if tensor.producer is not None
    )


def plans() -> list[tuple[Profile, PlanRequest, Plan]]:
    found: list[tuple[Profile, PlanRequest, Plan]] = []
    for seed in count():
        if len(found) == PLANS:
            return found
        rng = random.Random(10_000 + seed)
        profile, request, _ = with_wishes(rng, random_chain(rng, max_layers=4, max_devices=3))
        if not plain(profile) or not list(wishes(request)):
            continue
        try:
            found.append((profile, request, plan(profile, request)))
        except (InvalidInputError, InfeasiblePlanError):
            continue
    raise AssertionError


def test_a_wish_costs_what_brute_force_gains_without_it() -> None:
    verdicts, kinds = Counter[str](), set()
    for profile, request, made in plans():
        ours = made.search.objective_s
        assert [x.wish for x in made.search.wishes] == [x.text for x in wishes(request)]
        for wish, price in zip(wishes(request), made.search.wishes, strict=True):
            _, without, _ = lifted(profile, request, [wish])
            least_s = truth_s(profile, request, without)
            verdicts[price.verdict] += 1
            gain_s = max(0.0, ours - least_s)
            near = 2 * TOLERANCE * ours
            if price.bound_s is not None:
                assert price.bound_s <= min(least_s, ours) * (1 + TOLERANCE), (price, least_s)
            if price.verdict == "costs":
                kinds.add(price.kind)
                assert price.gain_s is not None
                assert price.gain_s == pytest.approx(gain_s, abs=near), (request, price)
            elif price.verdict == "free":
                assert gain_s <= near, (request, price)
        assert [f for f in check_plan(made, profile) if f.code == "price"] == []
        read = Plan.parse(made.to_text(as_json=False), name="plan")
        assert [f for f in check_plan(read, profile) if f.code == "price"] == []
    assert verdicts["costs"] > 10
    assert verdicts["free"] > 10
    assert verdicts["skipped"] == 0
    assert kinds >= {"pin", "splits"}, kinds


def problems(make: Callable[[random.Random], World], split: Split) -> list[PlanningProblem]:
    """Problems where the work must be split in a way, most of them with such plans."""
    found: list[PlanningProblem] = []
    for seed in count():
        if len(found) == SOLVED:
            return found
        rng = random.Random(seed)
        profile, request, microbatch = make(rng)
        splits = tuple(dict.fromkeys((*request.splits, split)))
        wanted = request.replaced(splits=splits)
        try:
            problem = PlanningProblem.build(profile, wanted, microbatch=microbatch)
        except InvalidInputError:
            continue
        possible = split is not Split.BATCH or problem.batch_splits
        if len(problem.devices) > 1 and problem.num_layers > 1 and possible:
            found.append(problem.using(split))
    raise AssertionError


def chains(rng: random.Random) -> World:
    return random_chain(rng, max_layers=5, max_devices=3)


def branching(rng: random.Random) -> World:
    return random_branching(rng, max_layers=4, max_devices=3)


def sliced(rng: random.Random) -> World:
    return random_sliced(rng, max_layers=4, max_devices=3)


@pytest.mark.parametrize(
    ("solver", "make", "split"),
    [
        (ChainSolver(), chains, Split.LAYERS),
        (ChainSolver(), chains, Split.BATCH),
        (ChainSolver(), sliced, Split.TENSOR),
        (PipelinesSolver(), chains, Split.PIPELINES),
        (CpSatSolver(), branching, Split.LAYERS),
        (CpSatSolver(), branching, Split.BATCH),
    ],
)
def test_the_best_plan_that_must_use_a_split_equals_brute_force(
    solver: Solver, make: Callable[[random.Random], World], split: Split
) -> None:
    solved = Counter[SolveStatus]()
    for problem in problems(make, split):
        if solver.rejects(problem) is not None:
            continue
        if solver.name == "cp_sat" and problem.graph.is_chain:
            continue
        cost = CostModel(problem)
        one = solver.solve(problem, cost=cost, limits=SolveLimits())
        other = ExhaustiveSolver().solve(problem, cost=cost, limits=SolveLimits())
        assert agrees(one, other), (problem.request, one, other)
        assert one.assignment is None or one.assignment.uses(split)
        solved[one.status] += 1
    assert solved[SolveStatus.OPTIMAL] > 5, solved
    assert solved[SolveStatus.FEASIBLE] <= 0.1 * solved.total()
