"""A good plan quickly, with nothing proved: rules, even loads, then small changes.

Cuts the layers' order for several orders of the devices so that no device is busier than a trial
time, then moves single layers between neighbours and exchanges devices while that helps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from planner.bounds import objective_bound_s
from planner.cost import CostModel
from planner.problem import PlanningProblem
from planner.rules import apply_rules, best_routing, broken_wish, line
from planner.solvers.base import (
    Assignment,
    SolveLimits,
    SolverResult,
    SolveStatus,
    StageAssignment,
)

MAX_ROUNDS = 20
"""Rounds of small changes."""


@dataclass
class _Best:
    assignment: Assignment | None = None
    objective_s: float = float("inf")
    priced: int = 0


class GreedySolver:
    """One pipeline: consecutive runs of layers on single devices, by trying what usually works."""

    name: ClassVar[str] = "greedy"

    def rejects(self, problem: PlanningProblem) -> str | None:
        """Takes everything but a way to split the work that plans must use."""
        return "it cannot be told how to split the work" if problem.must_use else None

    def solve(
        self, problem: PlanningProblem, *, cost: CostModel, limits: SolveLimits
    ) -> SolverResult:
        """The best plan it comes across."""
        best = _Best()
        for outcome in apply_rules(problem, cost):
            if outcome.assignment is not None and len(outcome.assignment.pipelines) == 1:
                _keep(problem, cost, outcome.assignment.stages, best)
        for order in _orders(problem, cost):
            if limits.expired:
                break
            for counts in _balanced(problem, cost, order):
                _keep(problem, cost, line(problem, order, counts), best)
        for _ in range(MAX_ROUNDS):
            before = best.objective_s
            if best.assignment is None or limits.expired:
                break
            for stages in _changes(problem, best.assignment.stages):
                if not limits.expired:
                    _keep(problem, cost, stages, best)
            if not best.objective_s < before:
                break
        return SolverResult(
            status=SolveStatus.UNKNOWN if best.assignment is None else SolveStatus.FEASIBLE,
            assignment=best.assignment,
            objective_s=None if best.assignment is None else best.objective_s,
            bound_s=objective_bound_s(problem, cost.figures),
            space="any plan at all (the bound leaves out transfers and memory)",
            candidates=best.priced,
        )


def _keep(
    problem: PlanningProblem, cost: CostModel, stages: Sequence[StageAssignment], best: _Best
) -> None:
    if broken_wish(problem, stages) is not None:
        return
    assignment, price = best_routing(problem, cost, stages)
    best.priced += 1
    objective = price.objective_s(problem.request.objective)
    if price.allowed and objective < best.objective_s:
        best.assignment, best.objective_s = assignment, objective


def _orders(problem: PlanningProblem, cost: CostModel) -> list[tuple[str, ...]]:
    """The cluster's order, the fastest first, the slowest first; the roomiest first."""
    everything = tuple(range(problem.num_layers))
    seconds = {
        device: cost.figures.compute_s(everything, device, problem.microbatch)
        for device in problem.devices
    }
    given = problem.devices
    fastest = tuple(sorted(given, key=lambda d: (seconds[d], given.index(d))))
    roomiest = tuple(sorted(given, key=lambda d: (-problem.capacity_bytes(d), given.index(d))))
    return list(dict.fromkeys((given, fastest, fastest[::-1], roomiest)))


def _balanced(
    problem: PlanningProblem, cost: CostModel, order: Sequence[str]
) -> Iterator[list[int]]:
    """Layer counts in ``order`` such that the busiest device computes least, for every number of
    devices used."""
    every = [
        [cost.figures.time_s(i, device, problem.microbatch) for i in range(problem.num_layers)]
        for device in order
    ]
    for used in range(1, min(len(order), problem.max_stages, problem.num_layers) + 1):
        times = every[:used]
        low, high = 0.0, max(sum(row) for row in times)
        counts = None
        for _ in range(30):
            middle = (low + high) / 2
            filled = _fill(times, middle)
            if filled is None:
                low = middle
            else:
                counts, high = filled, middle
        if counts is not None:
            yield counts + [0] * (len(order) - used)


def _fill(times: Sequence[Sequence[float]], limit: float) -> list[int] | None:
    """As many layers as stay within ``limit``, device by device; None if some are left over."""
    counts, at, num_layers = [], 0, len(times[0])
    for row in times:
        load, start = 0.0, at
        while at < num_layers and load + row[at] <= limit:
            load += row[at]
            at += 1
        counts.append(at - start)
    return counts if at == num_layers else None


def _changes(
    problem: PlanningProblem, stages: tuple[StageAssignment, ...]
) -> Iterator[tuple[StageAssignment, ...]]:
    """Plans one step away: a cut moved by a layer, two devices exchanged, an idle one used."""
    if any(len(stage.devices) > 1 for stage in stages):
        return
    devices = [stage.devices[0] for stage in stages]
    counts = [len(stage.layers) for stage in stages]
    for s in range(len(stages) - 1):
        for step in (1, -1, 2, -2):
            moved = list(counts)
            moved[s] += step
            moved[s + 1] -= step
            if min(moved) >= 0:
                yield line(problem, devices, moved)
    for a in range(len(devices)):
        for b in range(a + 1, len(devices)):
            exchanged = list(devices)
            exchanged[a], exchanged[b] = exchanged[b], exchanged[a]
            yield line(problem, exchanged, counts)
        for idle in problem.devices:
            if idle not in devices:
                yield line(problem, [*devices[:a], idle, *devices[a + 1 :]], counts)
