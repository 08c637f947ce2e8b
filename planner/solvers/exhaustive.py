"""Every assignment, priced one by one: the oracle of the tests, for tiny problems.

It uses nothing but the options and ``CostModel.evaluate``, and knows no device classes. Fewest
devices and least price come before the period, limits are kept by leaving plans out. Every
order of every choice of single devices is tried; side by side, every choice of pipelines without a
common device, with every way to part the items among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import ClassVar

from planner.cost import CostModel, PlanCost
from planner.flows import Routing
from planner.options import Option, find_options, stage_on
from planner.problem import PlanningProblem
from planner.slices import slices_within
from planner.solvers.base import (
    Assignment,
    PipelineAssignment,
    SolveLimits,
    SolverResult,
    SolveStatus,
    StageAssignment,
)

MAX_LAYERS = 8
MAX_DEVICES = 4
MAX_LAYERS_SIDE_BY_SIDE = 6

Placed = tuple[tuple[str, ...], Option]
"""Devices, and what a stage on them does with its work."""


class ExhaustiveSolver:
    """Brute force over all partitions of the layers and all placements of the parts."""

    name: ClassVar[str] = "exhaustive"

    def rejects(self, problem: PlanningProblem) -> str | None:
        """Why this solver cannot take ``problem``, or None."""
        if problem.num_layers > MAX_LAYERS or len(problem.devices) > MAX_DEVICES:
            return f"more than {MAX_LAYERS} layers or {MAX_DEVICES} devices"
        if problem.one_pipeline() is None and problem.num_layers > MAX_LAYERS_SIDE_BY_SIDE:
            return f"more than {MAX_LAYERS_SIDE_BY_SIDE} layers in pipelines side by side"
        return None

    def solve(
        self, problem: PlanningProblem, *, cost: CostModel, limits: SolveLimits
    ) -> SolverResult:
        """The best of all assignments."""
        found = find_options(problem, cost.figures)
        best: tuple[tuple[float, float], Assignment] | None = None
        priced, complete = 0, True
        for assignment in every_plan(problem, cost):
            if limits.expired:
                complete = False
                break
            if problem.must_use is not None and not assignment.uses(problem.must_use):
                continue
            priced += 1
            price = cost.evaluate(assignment)
            objective = _total(problem, price), price.objective_s(problem.request.objective)
            if price.allowed and (best is None or objective < best[0]):
                best = objective, assignment
        count = "one pipeline" if problem.one_pipeline() else "pipelines side by side"
        space = (
            f"{count}; {'consecutive runs' if problem.graph.is_chain else 'any stages'}, "
            f"{found.describe(problem)}"
        )
        if best is None:
            status = SolveStatus.INFEASIBLE if complete else SolveStatus.UNKNOWN
        else:
            status = SolveStatus.OPTIMAL if complete else SolveStatus.FEASIBLE
        return SolverResult(
            status=status,
            assignment=best[1] if best else None,
            objective_s=best[0][1] if best else None,
            bound_s=best[0][1] if best and complete else None,
            space=space,
            candidates=priced,
        )


def _total(problem: PlanningProblem, price: PlanCost) -> float:
    """What the devices come to, where that goes before the time; else nothing."""
    if not problem.request.objective.of_devices:
        return 0.0
    budget = problem.targets.budget(problem.request.objective.value)
    assert budget is not None
    return round(budget.total(rank.device for rank in price.ranks), 9)


def every_plan(problem: PlanningProblem, cost: CostModel) -> Iterator[Assignment]:
    """All plans of the space, whether they fit and keep the limits or not."""
    found = find_options(problem, cost.figures)
    placed = [p for option in found.options for p in _placements(problem, option)]
    routing = Routing.RELAY if problem.graph.is_chain else Routing.DIRECT
    yield from _assignments(problem, placed, routing)


def _placements(problem: PlanningProblem, option: Option) -> Iterator[Placed]:
    """The option on every choice of devices of its classes, in the cluster's order."""

    def choose(c: int, chosen: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if c == len(problem.classes):
            yield chosen
            return
        count = sum(member == c for member, _ in option.members)
        for devices in combinations(problem.classes[c], count):
            yield from choose(c + 1, chosen + devices)

    for devices in choose(0, ()):
        yield devices, option


def _assignments(
    problem: PlanningProblem, placed: Sequence[Placed], routing: Routing
) -> Iterator[Assignment]:
    """One pipeline, then several, in every way; required devices always have a stage."""
    for stages in _pipelines(problem, placed):
        if problem.required <= _devices(stages):
            yield Assignment.single(stages, items=problem.items, routing=routing)
    if problem.one_pipeline() is not None:
        return
    single = list(_pipelines(problem, placed))

    def beside(
        after: int, taken: frozenset[str], chosen: tuple[tuple[StageAssignment, ...], ...]
    ) -> Iterator[tuple[tuple[StageAssignment, ...], ...]]:
        if len(chosen) > 1 and problem.required <= taken:
            yield chosen
        for at in range(after, len(single)):
            devices = _devices(single[at])
            if taken.isdisjoint(devices):
                yield from beside(at + 1, taken | devices, (*chosen, single[at]))

    for chosen in beside(0, frozenset(), ()):
        for items in _items(problem, len(chosen)):
            yield Assignment(
                pipelines=tuple(
                    PipelineAssignment(items=count, stages=stages, routing=routing)
                    for count, stages in zip(items, chosen, strict=True)
                )
            )


def _items(problem: PlanningProblem, parts: int) -> Iterator[tuple[int, ...]]:
    """Ways to part the items of a batch, one for each list of microbatch counts."""
    seen = set()
    for cuts in combinations(range(1, problem.batch), parts - 1):
        items = tuple(b - a for a, b in pairwise((0, *cuts, problem.batch)))
        counts = tuple(-(-n // problem.microbatch) for n in items)
        if counts not in seen:
            seen.add(counts)
            yield items


def _devices(stages: Sequence[StageAssignment]) -> frozenset[str]:
    return frozenset(device for stage in stages for device in stage.devices)


def _pipelines(
    problem: PlanningProblem, placed: Sequence[Placed]
) -> Iterator[tuple[StageAssignment, ...]]:
    """Each part of each partition on each placement that may hold it, no device twice."""
    for parts in _partitions(problem):
        choices = [[p for p in placed if _may_hold(problem, part, p)] for part in parts]
        yield from _extend(problem, parts, choices, frozenset(), ())


def _extend(
    problem: PlanningProblem,
    parts: Sequence[tuple[int, ...]],
    choices: Sequence[Sequence[Placed]],
    taken: frozenset[str],
    stages: tuple[StageAssignment, ...],
) -> Iterator[tuple[StageAssignment, ...]]:
    at = len(stages)
    if at == len(parts):
        yield stages
        return
    for devices, option in choices[at]:
        if taken.isdisjoint(devices):
            stage = stage_on(problem, option, devices, parts[at])
            yield from _extend(problem, parts, choices, taken | set(devices), (*stages, stage))


def _may_hold(problem: PlanningProblem, part: tuple[int, ...], placed: Placed) -> bool:
    devices, option = placed
    if any(not set(devices) <= problem.allowed[i] for i in part):
        return False
    if len(devices) > 1 and not problem.one_device.isdisjoint(part):
        return False
    if option.is_tensor and not slices_within(problem, option.slicing, part):
        return False
    return option.whole_batch == (not problem.whole_batch.isdisjoint(part))


def _partitions(problem: PlanningProblem) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Partitions into stages in a topological order that respect what stays together."""
    most = problem.max_stages
    parts = _runs(problem.num_layers) if problem.graph.is_chain else _stage_graphs(problem)
    for partition in parts:
        home = {i: p for p, part in enumerate(partition) for i in part}
        if len(partition) <= most and all(
            len({home[i] for i in group}) == 1 for group in problem.together
        ):
            yield partition


def _runs(num_layers: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    for pattern in range(2 ** (num_layers - 1)):
        cuts = [i + 1 for i in range(num_layers - 1) if pattern >> i & 1]
        edges = [0, *cuts, num_layers]
        yield tuple(tuple(range(start, end)) for start, end in pairwise(edges))


def _stage_graphs(problem: PlanningProblem) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Set partitions whose quotient graph has no cycle, in one of its topological orders."""
    edges = list(problem.graph.digraph.edges)
    for labels in _labels(problem.num_layers):
        count = max(labels) + 1
        before: list[set[int]] = [set() for _ in range(count)]
        for a, b in edges:
            if labels[a] != labels[b]:
                before[labels[b]].add(labels[a])
        order: list[int] = []
        while len(order) < count:
            ready = [s for s in range(count) if s not in order and before[s] <= set(order)]
            if not ready:
                break
            order.append(ready[0])
        if len(order) == count:
            yield tuple(tuple(i for i, label in enumerate(labels) if label == s) for s in order)


def _labels(length: int) -> Iterator[tuple[int, ...]]:
    """Restricted growth strings: one per set partition."""

    def extend(prefix: tuple[int, ...], top: int) -> Iterator[tuple[int, ...]]:
        if len(prefix) == length:
            yield prefix
            return
        for label in range(top + 2):
            yield from extend((*prefix, label), max(top, label))

    yield from extend((), -1)
