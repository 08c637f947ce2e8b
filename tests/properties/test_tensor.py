"""Plans that may split by tensor: solvers against brute force, the planner against `check`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest

from planner.check import check_plan, rederive
from planner.cost import CostModel
from planner.findings import Severity
from planner.flows import Routing
from planner.problem import PlanningProblem
from planner.request import Split
from planner.slices import RegionUnits
from planner.solvers.base import TOLERANCE, Assignment, SolveLimits, SolveStatus, StageAssignment
from planner.solvers.chain import ChainSolver
from planner.solvers.cp_sat import CpSatSolver
from planner.solvers.exhaustive import ExhaustiveSolver
from planner.solvers.greedy import GreedySolver
from planner.solvers.pipelines import PipelinesSolver
from planner.solvers.slots import Slots
from profiler.errors import InfeasiblePlanError, InvalidInputError
from profiler.profile import Profile
from tests.properties.test_check_agrees import written
from tests.properties.test_solvers import agrees, attempt
from tests.support.worlds import random_branching, random_sliced, with_regions

CHAINS = 250
SIDE_BY_SIDE = 40
BRANCHING = 100


def problems(count: int, **sizes: int) -> Iterator[tuple[Profile, PlanningProblem]]:
    """Valid problems with regions, by ascending seed."""
    seed = found = 0
    while found < count:
        profile, request, microbatch = random_sliced(random.Random(seed), **sizes)
        seed += 1
        try:
            problem = PlanningProblem.build(profile, request, microbatch=microbatch)
        except InvalidInputError:
            continue
        if problem.tensor_splits and len(problem.devices) > 1:
            found += 1
            yield profile, problem


def test_the_chain_solver_equals_brute_force_with_tensor_splits() -> None:
    wrong, seen = [], Counter[str]()
    for number, (_, problem) in enumerate(problems(CHAINS)):
        cost = CostModel(problem)
        one = ChainSolver().solve(problem, cost=cost, limits=SolveLimits())
        other = ExhaustiveSolver().solve(problem, cost=cost, limits=SolveLimits())
        seen[one.status] += 1
        if other.assignment is not None:
            seen.update({stage.split for stage in other.assignment.stages})
        if not agrees(one, other):
            wrong.append((number, one, other))
    assert wrong == []
    assert seen[SolveStatus.FEASIBLE] <= 0.05 * CHAINS  # a bound only, as without tensor splits
    assert min(seen["tensor"], seen["none"], seen["batch"]) > 20, seen


def test_nothing_is_below_a_bound_of_any_solver() -> None:
    for _, problem in problems(60, max_layers=5, max_devices=3):
        cost = CostModel(problem)
        best = ExhaustiveSolver().solve(problem, cost=cost, limits=SolveLimits()).objective_s
        for solver in (GreedySolver(), ChainSolver()):
            found = solver.solve(problem, cost=cost, limits=SolveLimits())
            if best is not None and found.bound_s is not None:
                assert found.bound_s <= best * (1 + TOLERANCE)


def test_pipelines_side_by_side_equal_brute_force_with_tensor_splits() -> None:
    seen = Counter[str]()
    for number, (_, problem) in enumerate(problems(SIDE_BY_SIDE * 4, max_layers=3, max_devices=4)):
        splits = (*problem.request.splits, Split.PIPELINES)
        request = problem.request.model_copy(update={"splits": splits})
        try:
            problem = PlanningProblem.build(problem.profile, request, microbatch=problem.microbatch)
        except InvalidInputError:
            continue
        if problem.one_pipeline() is not None or seen["solved"] == SIDE_BY_SIDE:
            continue
        seen["solved"] += 1
        cost, limits = CostModel(problem), SolveLimits()
        lines = ChainSolver()
        one = lines.solve(problem, cost=cost, limits=limits)
        many = PipelinesSolver(lines).solve(problem, cost=cost, limits=limits)
        best = ExhaustiveSolver().solve(problem, cost=cost, limits=limits)
        reached = [x.objective_s for x in (one, many) if x.objective_s is not None]
        bounds = [x.bound_s for x in (one, many) if x.bound_s is not None]
        if best.objective_s is None:
            assert not reached, number
            continue
        assert min(bounds) <= best.objective_s * (1 + TOLERANCE), number
        assert best.objective_s <= min(reached) * (1 + 3 * TOLERANCE), number
        proved = all(x.status is not SolveStatus.FEASIBLE for x in (one, many))
        if proved:
            assert min(reached) <= best.objective_s * (1 + 3 * TOLERANCE), number
        if many.assignment is not None:
            seen.update({stage.split for stage in many.assignment.stages})
    assert seen["tensor"], seen


def test_cp_sat_equals_brute_force_on_branching_models_with_tensor_splits() -> None:
    seen = Counter[str]()
    seed = 0
    while seen["compared"] < BRANCHING:
        seed += 1
        profile, request, microbatch = random_branching(random.Random(seed), max_layers=4)
        chance = random.Random(seed + 10**6)
        profile = profile.model_copy(update={"model": with_regions(chance, profile.model)})
        splits = chance.choice(
            ((Split.LAYERS, Split.TENSOR), (Split.LAYERS, Split.BATCH, Split.TENSOR))
        )
        request = request.model_copy(update={"splits": splits})
        try:
            problem = PlanningProblem.build(profile, request, microbatch=microbatch)
        except InvalidInputError:
            continue
        chain = problem.graph.is_chain  # brute force would pass tensors on, not send them straight
        if chain or not problem.tensor_splits or len(problem.devices) < 2:
            continue
        cost = CostModel(problem)
        slots = Slots(problem, cost.figures)
        found = CpSatSolver().solve(problem, cost=cost, limits=SolveLimits())
        best = ExhaustiveSolver().solve(problem, cost=cost, limits=SolveLimits())
        seen["compared"] += 1
        seen["left out"] += slots.left_out
        assert slots.left_out == ("smallest" in found.space or "left out" in found.space)
        if best.objective_s is None:
            assert found.objective_s is None, seed
            continue
        seen.update({stage.split for stage in best.assignment.stages} if best.assignment else ())
        if found.objective_s is not None:
            assert found.objective_s >= best.objective_s * (1 - TOLERANCE), seed
        if slots.left_out:
            continue
        assert found.status is not SolveStatus.INFEASIBLE, seed
        assert found.bound_s is not None
        assert found.bound_s <= best.objective_s * (1 + TOLERANCE), seed
        if found.status is SolveStatus.OPTIMAL:
            seen["proved"] += 1
            assert found.objective_s is not None
            assert found.objective_s <= best.objective_s * (1 + 3 * TOLERANCE), seed
    assert seen["proved"] > 0.5 * BRANCHING, seen
    assert min(seen["tensor"], seen["none"]) > 5, seen


def test_plans_that_split_by_tensor_satisfy_the_checker() -> None:
    seen = Counter[str]()
    for seed in range(120):
        profile, request, _ = random_sliced(random.Random(10_000 + seed))
        request = request.model_copy(update={"splits": (*request.splits, Split.PIPELINES)})
        found = attempt(profile, request)
        if found is None:
            continue
        wrong = [f for f in check_plan(found, profile) if f.severity is Severity.ERROR]
        assert wrong == [], seed
        assert found.search.bound_s <= found.search.objective_s
        seen.update(s.split for p in found.spec.pipelines for s in p.stages)
    assert seen["tensor"] > 8, seen


def random_stages(
    chance: random.Random, problem: PlanningProblem
) -> tuple[StageAssignment, ...] | None:
    """Consecutive stages of any width, with any slices of the regions that lie in them."""
    devices = list(problem.devices)
    chance.shuffle(devices)
    stages, at = [], 0
    while at < problem.num_layers and devices:
        end = chance.randint(at + 1, problem.num_layers)
        layers = tuple(range(at, end))
        width = chance.randint(1, len(devices))
        inside = [
            r
            for r, region in enumerate(problem.graph.regions)
            if set(problem.region_layers[r]) <= set(layers) and region.units >= width > 1
        ]
        slices = []
        for r in inside:
            units = problem.graph.regions[r].units
            marks = sorted(chance.sample(range(1, units), k=width - 1))
            cuts = [0, *marks, units]
            slices.append(RegionUnits(r, tuple(b - a for a, b in pairwise(cuts))))
        slices = [x for x in slices if chance.random() < 0.8]
        barred = problem.whole_batch | problem.one_device
        if not slices or not barred.isdisjoint(layers):
            width, slices = 1, []
        waits = not problem.whole_batch.isdisjoint(layers)
        stages.append(
            StageAssignment(
                layers=layers,
                devices=tuple(devices.pop() for _ in range(width)),
                shares=(problem.batch if waits else problem.microbatch,) * width,
                whole_batch=waits,
                slices=tuple(slices),
            )
        )
        at = end
    return tuple(stages) if at == problem.num_layers else None


def test_random_slices_cost_the_same_in_both_programs() -> None:
    chance, seen = random.Random(2), Counter[str]()
    while seen["plans"] < 150:
        profile, request, size = random_sliced(chance)
        request = request.model_copy(
            update={"splits": tuple(Split), "pins": (), "keep_together": (), "max_stages": None}
        )
        try:
            problem = PlanningProblem.build(profile, request, microbatch=size)
        except (InvalidInputError, InfeasiblePlanError):
            continue
        stages = random_stages(chance, problem)
        if stages is None or all(not stage.slices for stage in stages):
            continue
        assignment = Assignment.single(
            stages, items=problem.items, routing=chance.choice(list(Routing))
        )
        made = written(profile, problem, assignment)
        wrong = [x for x in check_plan(made, profile) if x.severity is Severity.ERROR]
        assert {x.code for x in wrong} <= {"memory"}, wrong
        price, figures = CostModel(problem).evaluate(assignment), rederive(made, profile)
        assert price.period_s == pytest.approx(figures.period_s, rel=1e-9)
        assert price.latency_s == pytest.approx(figures.latency_s, rel=1e-9)
        assert price.fits == (not wrong)
        assert [r.memory for r in made.estimate.ranks] == [r.memory for r in figures.ranks]
        for stated, derived in zip(made.estimate.ranks, figures.ranks, strict=True):
            for name in ("compute_s", "join_s", "busy_fraction"):
                assert getattr(stated, name) == pytest.approx(getattr(derived, name), rel=1e-9)
        seen["plans"] += 1
        seen["does not fit"] += not price.fits
        seen["three ranks"] += any(len(stage.devices) > 2 for stage in stages)
        seen["several stages"] += len(stages) > 1
    assert min(seen.values()) > 10, seen
