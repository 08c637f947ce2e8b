"""Pipelines side by side on devices that are too many, or too unlike, to search: dealt like cards.

The devices of each class are dealt in turn to a number of pipelines, so that these are alike; each
is planned as one pipeline, and takes microbatches by its speed. Also tried: a whole copy on every
device that has room for one. The bound is that of all plans.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from planner.bounds import objective_bound_s
from planner.cost import CostModel
from planner.problem import PlanningProblem
from planner.rules import line
from planner.solvers.base import (
    Assignment,
    PipelineAssignment,
    SolveLimits,
    Solver,
    SolverResult,
    SolveStatus,
    StageAssignment,
)
from planner.solvers.chain import ChainSolver
from planner.solvers.greedy import GreedySolver
from planner.solvers.partitions import share_items

SIDE_BY_SIDE = "two or more pipelines that share the microbatches of a batch"
"""How a space of several pipelines begins."""

MAX_DEALS = 5
"""Numbers of pipelines that are tried."""

MAX_STATES = 500
"""Sets of devices up to which a pipeline is planned exactly."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A pipeline's plan; ``count`` microbatches take it ``first_s + (count - 1) * again_s``."""

    pipeline: PipelineAssignment
    first_s: float
    again_s: float

    def count(self, within_s: float) -> int:
        """The most microbatches within a time."""
        if within_s < self.first_s:
            return 0
        return 1 + int((within_s - self.first_s) / self.again_s) if self.again_s else 2**40


class DealtPipelines:
    """Good divisions of many devices, with the bound of all plans."""

    def solve(
        self, problem: PlanningProblem, *, cost: CostModel, limits: SolveLimits
    ) -> SolverResult:
        """The best of a few divisions."""
        best: Assignment | None = None
        ceiling_s = math.inf if limits.cutoff_s is None else limits.cutoff_s
        priced = 0
        for lines in _divisions(problem, cost, limits):
            assignment = _shared(problem, lines)
            if assignment is None or not problem.required <= set(assignment.devices):
                continue
            priced += 1
            price = cost.evaluate(assignment)
            objective_s = price.objective_s(problem.request.objective)
            if price.allowed and objective_s < ceiling_s:
                best, ceiling_s = assignment, objective_s
        bound_s = min(objective_bound_s(problem, cost.figures), ceiling_s)
        return SolverResult(
            status=SolveStatus.UNKNOWN if best is None else SolveStatus.FEASIBLE,
            assignment=best,
            objective_s=None if best is None else ceiling_s,
            bound_s=bound_s,
            space=f"{SIDE_BY_SIDE}; any of them (the bound leaves out transfers and memory)",
            candidates=priced,
        )


def _divisions(
    problem: PlanningProblem, cost: CostModel, limits: SolveLimits
) -> Iterator[list[_Line]]:
    """Pipelines without a common device."""
    yield _copies(problem, cost)
    deals = _deals(problem)
    for left, number in zip(range(len(deals), 0, -1), deals, strict=True):
        if limits.expired:
            return
        known: dict[tuple[int, ...], _Line | None] = {}
        lines = []
        part = replace(limits, deadline=time.monotonic() + limits.remaining_s() / left)
        for hand in _hands(problem, number):
            kinds = tuple(problem.class_of[device] for device in hand)
            if kinds not in known:
                known[kinds] = _planned(problem, hand, part)
            found = known[kinds]
            if found is None:
                break
            lines.append(replace(found, pipeline=_on(problem, found.pipeline, hand)))
        else:
            yield lines


def _copies(problem: PlanningProblem, cost: CostModel) -> list[_Line]:
    """The whole model on every device that may hold it and has room for it."""
    lines = []
    everything = range(problem.num_layers)
    for members in problem.classes:
        stages = line(problem, [members[0]], [problem.num_layers])
        if all(members[0] in problem.allowed[i] for i in everything):
            found = _line(problem, cost, PipelineAssignment(items=problem.items, stages=stages))
            if found is not None:
                lines += [
                    replace(found, pipeline=_on(problem, found.pipeline, [device]))
                    for device in members
                ]
    return lines


def _deals(problem: PlanningProblem) -> list[int]:
    """Numbers of pipelines to try: as many as memory and microbatches allow, half of that, ..."""
    room = sum(
        max(0, problem.capacity_bytes(device) - problem.reserve_bytes(device))
        for device in problem.devices
    )
    weight = problem.graph.weight_bytes(range(problem.num_layers))
    most = min(len(problem.devices) // 2, problem.num_microbatches)
    number = min(most, room // weight) if weight else most
    found: list[int] = []
    while number >= 2 and len(found) < MAX_DEALS:
        found.append(number)
        number //= 2
    return found


def _hands(problem: PlanningProblem, number: int) -> list[list[str]]:
    """The devices, class by class, dealt in turn."""
    cards = [device for members in problem.classes for device in members]
    return [cards[start::number] for start in range(number)]


def _planned(problem: PlanningProblem, hand: Sequence[str], limits: SolveLimits) -> _Line | None:
    """One pipeline on these devices, for the microbatches that are its part."""
    count = -(-problem.num_microbatches * len(hand) // len(problem.devices))
    part = problem.limited_to(hand, items=count * problem.microbatch)
    if part is None:
        return None
    cost = CostModel(part)
    small = prod(len(members) + 1 for members in part.classes) <= MAX_STATES
    solver: Solver = ChainSolver() if small else GreedySolver()
    found = solver.solve(part, cost=cost, limits=replace(limits, cutoff_s=None))
    if found.assignment is None:
        return None
    return _line(part, cost, found.assignment.pipelines[0])


def _line(problem: PlanningProblem, cost: CostModel, pipeline: PipelineAssignment) -> _Line | None:
    """A pipeline with its times, or None if it does not fit."""
    times = []
    for count in (1, 2):
        alone = replace(pipeline, items=count * problem.microbatch)
        price = cost.evaluate(Assignment(pipelines=(alone,)))
        if not price.fits:
            return None
        times.append(price.objective_s(problem.request.objective))
    return _Line(pipeline, times[0], times[1] - times[0])


def _on(
    problem: PlanningProblem, pipeline: PipelineAssignment, hand: Sequence[str]
) -> PipelineAssignment:
    """The pipeline on other devices of the same classes."""
    unused: dict[int, list[str]] = {}
    for device in hand:
        unused.setdefault(problem.class_of[device], []).append(device)
    stages: list[StageAssignment] = []
    for stage in pipeline.stages:
        devices = tuple(unused[problem.class_of[device]].pop(0) for device in stage.devices)
        stages.append(replace(stage, devices=devices))
    return replace(pipeline, stages=tuple(stages))


def _shared(problem: PlanningProblem, lines: Sequence[_Line]) -> Assignment | None:
    """The lines with microbatches such that the slowest is done soonest; at least two of them."""
    total = problem.num_microbatches
    if not 2 <= len(lines) <= problem.batch:
        return None
    low, high = 0.0, max(line.first_s + total * line.again_s for line in lines)
    for _ in range(60):
        middle = (low + high) / 2
        if sum(line.count(middle) for line in lines) >= total:
            high = middle
        else:
            low = middle
    counts = [min(line.count(high), total) for line in lines]
    if problem.required:
        counts = [max(1, count) for count in counts]
    for at in sorted(range(len(lines)), key=lambda i: -counts[i]):
        counts[at] -= min(counts[at] - (counts[at] > 0), sum(counts) - total)
    taking = [(line, count) for line, count in zip(lines, counts, strict=True) if count]
    if len(taking) < 2:
        return None
    taking.sort(key=lambda pair: -pair[1])
    items = share_items(problem, [count for _, count in taking])
    return Assignment(
        pipelines=tuple(
            replace(line.pipeline, items=n) for (line, _), n in zip(taking, items, strict=True)
        )
    )
