"""Placement solvers against every placement of tiny problems; what must hold of every answer."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from planner.placement import Place, PlacementProblem, PlacementResult
from planner.placement.check import check_latency, check_loads
from planner.placement.exhaustive import best_latency, best_loads
from planner.placement.latency import place_latency
from planner.placement.loads import place_any, place_contiguous
from planner.solvers.base import SolveStatus
from tests.support.placements import limits, random_problem, random_problems, slower

COUNT = 300
CLOSE = 1e-6


def agrees(result: PlacementResult, best: float) -> bool:
    """Whether a claim is true, given the true optimum."""
    if math.isinf(best):
        return result.status is SolveStatus.INFEASIBLE
    if result.objective_s is None or result.bound_s is None:
        return False
    allowance = CLOSE * best + 1e-300
    return result.bound_s <= best + allowance and (
        abs(result.objective_s - best) <= allowance
        or (result.status is not SolveStatus.OPTIMAL and result.objective_s > best)
    )


def test_contiguous_equals_brute_force() -> None:
    for seed, problem in enumerate(random_problems(COUNT)):
        result = place_contiguous(problem, limits())
        best, _ = best_loads(problem, contiguous=True)
        assert agrees(result, best), (seed, result, best)
        assert result.status in (SolveStatus.OPTIMAL, SolveStatus.INFEASIBLE), seed
        if result.placement is not None:
            seen = check_loads(problem, result.placement.devices, contiguous=True)
            assert not seen.violations
            assert seen.objective_s == pytest.approx(result.objective_s, rel=1e-9, abs=0)


def test_any_placement_equals_brute_force() -> None:
    for seed, problem in enumerate(random_problems(COUNT)):
        start = place_contiguous(problem, limits())
        result = place_any(problem, limits(), start=start.placement)
        best, _ = best_loads(problem, contiguous=False)
        assert agrees(result, best), (seed, result, best)
        if result.placement is not None and result.objective_s is not None:
            assert result.objective_s <= best * (1 + CLOSE), seed
            seen = check_loads(problem, result.placement.devices, contiguous=False)
            assert not seen.violations
            assert seen.objective_s == pytest.approx(result.objective_s, rel=1e-9, abs=0)


def test_latency_equals_brute_force() -> None:
    for seed, problem in enumerate(random_problems(COUNT)):
        result = place_latency(problem, limits())
        best, _ = best_latency(problem, max_jobs=1)
        if result.status is SolveStatus.UNKNOWN:
            assert not math.isfinite(best) or result.bound_s is not None
            continue
        assert agrees(result, best), (seed, result, best)
        if result.placement is not None:
            placement = result.placement
            seen = check_latency(problem, placement.devices, placement.jobs, max_jobs=1)
            assert not seen.violations
            assert seen.objective_s == pytest.approx(result.objective_s, rel=1e-9, abs=0)


def test_more_jobs_never_beat_the_bound() -> None:
    for seed in range(60):
        problem = small(seed)
        result = place_latency(problem, limits(), max_jobs=2)
        best, _ = best_latency(problem, max_jobs=2)
        if result.bound_s is not None:
            assert result.bound_s <= best * (1 + CLOSE), seed


def small(seed: int) -> PlacementProblem:
    """A problem with equal accelerators and one host that can run everything."""
    problem = random_problem(random.Random(1000 + seed))
    operators = tuple(
        replace(o, times_s={"fast": 1.0 + i, "host": 5.0 + i})
        for i, o in enumerate(problem.operators[:5])
    )
    names = {o.name for o in operators}
    flows = tuple(
        replace(f, consumers=tuple(c for c in f.consumers if c in names))
        for f in problem.flows
        if f.producer in names
    )
    return replace(problem, operators=operators, flows=tuple(f for f in flows if f.consumers))


@pytest.mark.parametrize("seed", range(12))
def test_twice_the_times_double_every_objective(seed: int) -> None:
    problem = small(seed)
    for one, other in (
        (place_contiguous(problem, limits()), place_contiguous(slower(problem, 2), limits())),
        (place_any(problem, limits()), place_any(slower(problem, 2), limits())),
        (place_latency(problem, limits()), place_latency(slower(problem, 2), limits())),
    ):
        assert one.objective_s is not None
        assert other.objective_s == pytest.approx(2 * one.objective_s, rel=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_one_more_device_never_hurts(seed: int) -> None:
    problem = small(seed)
    more = replace(
        problem, places=(*problem.places, Place(name="more", kind="fast", memory_bytes=10))
    )
    for one, other in (
        (place_contiguous(problem, limits()), place_contiguous(more, limits())),
        (place_any(problem, limits()), place_any(more, limits())),
        (place_latency(problem, limits()), place_latency(more, limits())),
    ):
        assert one.objective_s is not None
        assert other.objective_s is not None
        assert other.objective_s <= one.objective_s * (1 + CLOSE)


@pytest.mark.parametrize("seed", range(12))
def test_new_names_and_orders_change_no_objective(seed: int) -> None:
    problem = small(seed)
    shuffled = list(problem.operators)
    random.Random(seed).shuffle(shuffled)
    other = replace(problem, operators=tuple(shuffled), places=tuple(reversed(problem.places)))
    for solve in (place_contiguous, place_any, place_latency):
        one, two = solve(problem, limits()), solve(other, limits())
        assert two.objective_s == pytest.approx(one.objective_s, rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_same_question_gets_the_same_answer(seed: int) -> None:
    problem = small(seed)
    for solve in (place_contiguous, place_any, place_latency):
        assert solve(problem, limits()) == solve(problem, limits())
