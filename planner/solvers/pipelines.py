"""Two pipelines or more side by side: which devices form each, and how many microbatches it takes.

A pipeline that takes ``k`` microbatches of a batch is as good as the best single pipeline on its
devices for ``k`` (``group_values``); pipelines differ only in their devices, so the rest is a
division of devices into groups (``partitions``) and of microbatches among them:

    minimise    max over pipelines p of value(group_p, k_p)
    subject to  groups without a common device, sum of k_p >= microbatches of the batch, k_p >= 1

It is solved on bounds of the groups' values; of the groups in its answer the least known one is
looked at more closely, until the answer rests on plans or nothing better than the best plan is
left. Wires that several pipelines share are left to the price of the whole plan: they only add.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np

from planner.bounds import WorkBound, latency_bound_s
from planner.cost import CostModel
from planner.memory import empty_root_memory
from planner.options import place, stage_on
from planner.problem import PlanningProblem
from planner.request import Split
from planner.rules import best_routing
from planner.solvers import load_solver
from planner.solvers.arrays import Integers
from planner.solvers.base import (
    TOLERANCE,
    Assignment,
    SolveLimits,
    SolverResult,
    SolveStatus,
)
from planner.solvers.chain import ChainSolver, describe_lines, options_of
from planner.solvers.chain_tables import Progress, Step
from planner.solvers.dealt import SIDE_BY_SIDE, DealtPipelines
from planner.solvers.group_limits import LimitedValues, NothingMoreError, Wanted
from planner.solvers.group_values import (
    PROOF,
    GroupValues,
    KnownPlans,
    LatencyValues,
    LinePlan,
    Part,
    PeriodValues,
)
from planner.solvers.partitions import MAX_PAIRS, Partitions, num_pairs, share_items

MAX_TRIALS = 120
"""Trials of one solve; a bound is left if they do not suffice."""

MAX_WORK = 1.5e8
"""As ``options.MAX_WORK``, for one trial: there are more of them than for one pipeline."""

MAX_DIVISIONS = 60
"""Better and better divisions that one look at the bounds may take."""

_HALVINGS = 45  # of an interval of seconds: to the precision of a float


class PipelinesSolver:
    """The best plan of two pipelines or more, each a line of stages in the captured order.

    ``lines`` may be a chain solver that has worked on the same cost model: its tables are used.
    """

    name: ClassVar[str] = "pipelines"

    def __init__(self, lines: ChainSolver | None = None) -> None:
        self.lines = lines or ChainSolver()

    def rejects(self, problem: PlanningProblem) -> str | None:
        """Why this solver cannot take ``problem``, or None."""
        if problem.must_use not in (None, Split.PIPELINES):
            return "it cannot be told how to split what each pipeline does"
        reason = problem.one_pipeline()
        return reason if reason is None else f"one pipeline only: {reason}"

    def solve(
        self, problem: PlanningProblem, *, cost: CostModel, limits: SolveLimits
    ) -> SolverResult:
        """The best division of devices and items, and a bound for those in ``space``."""
        memory = empty_root_memory(cost.figures)
        if memory.total_bytes > memory.capacity_bytes:
            return SolverResult(
                status=SolveStatus.INFEASIBLE,
                assignment=None,
                objective_s=None,
                bound_s=None,
                space=SIDE_BY_SIDE,
                candidates=0,
            )
        pairs = num_pairs([len(members) for members in problem.classes])
        if pairs > MAX_PAIRS or self.lines.too_large(problem):
            templates = load_solver("templates")
            if templates.rejects(problem) is None:
                result = templates.solve(problem, cost=cost, limits=limits)
                if result.assignment is not None or limits.expired:
                    return result
            return DealtPipelines().solve(problem, cost=cost, limits=limits)
        return _Search(problem, cost, limits, self.lines).run()


@dataclass(frozen=True, slots=True)
class _Division:
    """Groups with their microbatches, and what the slowest of them takes."""

    seconds: float
    parts: list[Part]


class _Search:
    """The best division so far, and what is proved of all."""

    def __init__(
        self, problem: PlanningProblem, cost: CostModel, limits: SolveLimits, lines: ChainSolver
    ) -> None:
        self.problem, self.cost, self.limits, self.lines = problem, cost, limits, lines
        self.best: Assignment | None = None
        self.ceiling_s = math.inf if limits.cutoff_s is None else limits.cutoff_s
        self.bound_s = 0.0
        self.progress = Progress()
        least = [0] * len(problem.classes)
        for device in problem.required:
            if device in problem.class_of:
                least[problem.class_of[device]] += 1
        wanted = any(least) or problem.must_use is Split.PIPELINES
        most = problem.batch if wanted else problem.num_microbatches
        sizes = [len(members) for members in problem.classes]
        self.partitions = Partitions(sizes, least, most)
        self.partitions.allow(problem.targets.affordable(problem.classes, self.partitions.counts))
        self.found = options_of(problem, cost, max_work=MAX_WORK)

    def run(self) -> SolverResult:
        """Look closer at the groups of the best division until nothing better is left."""
        values = self._values()
        with suppress(TimeoutError, NothingMoreError):  # ``bound_s`` holds at any time
            if self._look_closer(values) and self.bound_s < self.ceiling_s * (1 - TOLERANCE):
                self._mend(values)
        return self._result()

    def _look_closer(self, values: GroupValues) -> bool:
        """Whether the search came to its end, all it needs to know of groups being known."""
        for trial in range(MAX_TRIALS + 1):
            division = self._divide(values.capacity, values.least_s)
            if division is None:
                self.bound_s = self.ceiling_s
                return True
            self.bound_s = max(self.bound_s, division.seconds)
            unsure = _least_known(values, division)
            if not unsure:
                self._keep(values.steps, division)
                return True
            if trial == MAX_TRIALS or self.ceiling_s <= self.limits.goal_s:
                break
            between_s = self.bound_s, self.ceiling_s
            values.refine(unsure, between_s, self.limits, self.progress)
            reached = self._divide(values.known_capacity, values.known_s)
            if reached is not None:
                self._keep(values.steps, reached)
        return False

    def _mend(self, values: GroupValues) -> None:
        """Where plans cost more than the programme says: divide by the true prices of its plans,
        among ever more groups (those on one wire get in each other's way)."""
        known = KnownPlans(self.partitions.num_groups, self.problem.num_microbatches)
        for group, steps in values.plans():
            if self.limits.expired:
                return
            prices = []
            for count in (1, 2):
                alone = self._assignment([steps], [count * self.problem.microbatch])
                prices.append(self.cost.objective_s(alone))
            known.add(group, LinePlan(prices[0], prices[1] - prices[0], steps))
        for number in range(2, self.partitions.most_groups + 1):
            division = self._divide(known.capacity, known.seconds, most_groups=number)
            if division is not None:
                self._keep(known.steps, division)

    def _values(self) -> GroupValues:
        problem, figures = self.problem, self.cost.figures
        least_s = problem.microbatch * WorkBound(problem, figures).item_s(self.partitions.counts)
        least_s[0] = np.inf  # no devices
        tables = partial(self.lines.tables, problem, self.cost, self.found)
        by_latency, count = problem.request.objective.counts_latency, problem.num_microbatches
        limit_s = problem.targets.other_than(problem.request.objective)
        if not by_latency and limit_s == math.inf:
            each_s = figures.root_rates.each.total_s
            rooted = np.zeros(len(least_s), dtype=np.bool_)
            if each_s and problem.cluster.root in problem.class_of:
                root = problem.class_of[problem.cluster.root]
                rooted = self.partitions.counts[:, root] > 0
            return PeriodValues(tables, least_s, count, rooted=rooted, each_s=each_s)
        path_s = latency_bound_s(problem, figures)
        if limit_s == math.inf:
            return LatencyValues(tables, least_s, count, path_s=path_s)
        return LimitedValues(
            tables,
            least_s,
            count,
            wanted=Wanted(by_latency=by_latency, limit_s=limit_s, path_s=path_s),
            price=self._alone,
        )

    def _alone(self, steps: list[Step]) -> tuple[float, float]:
        """The time of a pipeline for one microbatch, and between microbatches."""
        price = self.cost.evaluate(self._assignment([steps], [self.problem.microbatch]))
        return price.latency_s, price.period_s

    def _divide(
        self,
        capacity: Callable[[float], Integers],
        seconds: Callable[[Part], float],
        *,
        most_groups: int | None = None,
    ) -> _Division | None:
        """The best division below the ceiling, where groups are as good as these say."""
        best: _Division | None = None
        total = self.problem.num_microbatches
        within = self.ceiling_s * (1 - 2 * PROOF)
        for _ in range(MAX_DIVISIONS):
            groups = self.partitions.best(capacity(within), total, most_groups=most_groups)
            if groups is None:
                return best
            enough = min(within, max(seconds((group, total)) for group in groups))
            counts = _shared(total, groups, capacity, enough)
            parts = list(zip(groups, counts, strict=True))
            best = _Division(max(seconds(part) for part in parts), parts)
            # What was proved before holds: nothing below it needs to be looked for.
            if best.seconds <= self.bound_s * (1 + PROOF):
                return best
            within = best.seconds * (1 - PROOF)
        return _Division(self.bound_s, best.parts) if best else None

    def _keep(self, steps_of: Callable[[Part], list[Step]], division: _Division) -> None:
        """Price the plan of a division whose groups have plans; keep it if it is the best."""
        parts = sorted(division.parts, key=lambda part: (-part[1], -part[0]))
        steps = [steps_of(part) for part in parts]
        items = share_items(self.problem, [count for _, count in parts])
        assignment = self._assignment(steps, items)
        price = self.cost.evaluate(assignment)
        objective_s = price.objective_s(self.problem.request.objective)
        if price.allowed and objective_s < self.ceiling_s:
            self.best, self.ceiling_s = assignment, objective_s

    def _assignment(self, lines: Sequence[Sequence[Step]], items: Sequence[int]) -> Assignment:
        """Stages on devices for the steps of each pipeline."""
        options = self.found.options
        devices = iter(
            place(self.problem, [options[step.option] for steps in lines for step in steps])
        )
        pipelines = []
        for steps, count in zip(lines, items, strict=True):
            stages = [
                stage_on(
                    self.problem,
                    options[step.option],
                    next(devices),
                    range(step.start, step.end),
                )
                for step in steps
            ]
            (alone,) = best_routing(self.problem, self.cost, stages)[0].pipelines
            pipelines.append(replace(alone, items=count))
        return Assignment(pipelines=tuple(pipelines))

    def _result(self) -> SolverResult:
        space = f"{SIDE_BY_SIDE}; {describe_lines(self.problem, self.found)}"
        if self.best is None:
            nothing = self.bound_s == math.inf
            return SolverResult(
                status=SolveStatus.INFEASIBLE if nothing else SolveStatus.UNKNOWN,
                assignment=None,
                objective_s=None,
                bound_s=None if nothing else self.bound_s,
                space=space,
                candidates=self.progress.priced,
            )
        bound_s = min(self.bound_s, self.ceiling_s)
        if self.ceiling_s <= bound_s * (1 + 3 * PROOF):
            bound_s = self.ceiling_s
        return SolverResult(
            status=SolveStatus.OPTIMAL if bound_s == self.ceiling_s else SolveStatus.FEASIBLE,
            assignment=self.best,
            objective_s=self.ceiling_s,
            bound_s=bound_s,
            space=space,
            candidates=self.progress.priced,
        )


def _least_known(values: GroupValues, division: _Division) -> list[Part]:
    """The parts that no known plan does in the time of the division, the least known first."""
    enough_s = division.seconds * (1 + 2 * PROOF)
    late = [p for p in dict.fromkeys(division.parts) if values.known_s(p) > enough_s]

    def ratio(part: Part) -> float:
        least_s = values.least_s(part)
        return values.known_s(part) / least_s if least_s > 0 else math.inf

    return sorted(late, key=lambda part: (-ratio(part), -part[0]))


def _shared(
    total: int, groups: Sequence[int], capacity: Callable[[float], Integers], within_s: float
) -> list[int]:
    """Microbatches for each group, at least one, such that the slowest is done soonest.

    ``within_s`` is time enough.
    """
    low, high = 0.0, within_s
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        most = capacity(middle)[groups]
        if most.min() >= 1 and most.sum() >= total:
            high = middle
        else:
            low = middle
    counts = [int(n) for n in capacity(high)[groups]]
    # What is left over is within rounding of the limit, or more than anyone needs.
    for at in sorted(range(len(counts)), key=lambda i: -counts[i]):
        counts[at] -= min(counts[at] - 1, sum(counts) - total)
    return counts
