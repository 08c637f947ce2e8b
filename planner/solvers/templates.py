"""Pipelines side by side on many devices of few kinds: the work depends on kinds, not on devices.

Templates of pipelines by kind of device (``template_pricing``), how many of each by a linear
master with column generation (``template_master``), whole numbers by CP-SAT (``master``), then
devices (``placing``). Twice: as if tensors always travelled as well as anywhere in the cluster,
which gives the bound; and as badly, which gives plans that keep wherever they stand. Of both, the
plan that is best by the cost model.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from planner.bounds import objective_bound_s
from planner.cost import CostModel
from planner.pools import Paths, Pools, find_pools
from planner.problem import PlanningProblem
from planner.solvers.base import (
    TOLERANCE,
    Assignment,
    SolveLimits,
    SolverResult,
    SolveStatus,
)
from planner.solvers.placing import Placing, shared
from planner.solvers.template_master import PROOF, SETTLED, Columns, Trial, settle
from planner.solvers.template_pricing import Pricing, Template
from planner.solvers.template_tables import StageFigures

MAX_KINDS = 48
"""Kinds of device; of more, a sweep takes too long."""

MAX_FIGURES = 5e7
"""Kinds times layers squared; tables take about fifty bytes for each."""

ENDLESS_S = 1e300
"""A time between microbatches that any pipeline keeps."""

SLACK = (2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
"""Fractions by which the least period in real numbers is stretched until whole ones suffice."""

EFFORTS_S = (0.15, 1.5)
"""Of one rounding: first a moment, then, if the plan is not good enough, ten times as much."""

ENOUGH = 3e-3
"""A plan this close to the bound is not worth rounding again."""


ALONE_FRACTION = 0.6
"""Of the time for plans without divided stages, where there may be any."""

PROVED = 0.02
"""A bound for plans with divided stages that is weaker by more than this is not stated; then it is
said that they are left out."""


@dataclass(frozen=True, slots=True)
class _Known:
    """The templates that a search ended with, and the least period that they keep."""

    templates: tuple[Template, ...]
    period_s: float


class TemplateSolver:
    """Plans of one pipeline or more for many devices of few kinds, and a bound."""

    name: ClassVar[str] = "templates"

    def rejects(self, problem: PlanningProblem) -> str | None:
        """Why this solver cannot take ``problem``, or None."""
        reason = problem.one_pipeline()
        if reason is not None:
            return f"one pipeline only: {reason}"
        if problem.request.objective.counts_latency:
            return "it plans for throughput only"
        targets = problem.targets
        if targets.max_latency_s < math.inf or any(x.most < math.inf for x in targets.budgets):
            return "the request limits the latency, or what the devices come to"
        if problem.required:
            return "it cannot be told to use a device"
        if problem.must_use:
            return "it cannot be told how to split the work"
        if problem.request.max_stages is not None:
            return "the request limits the number of stages"
        kinds = len(find_pools(problem).kinds)
        if kinds > MAX_KINDS:
            return f"there are {kinds} kinds of device; at most {MAX_KINDS} are taken"
        if kinds * problem.num_layers**2 > MAX_FIGURES:
            return f"{problem.num_layers} layers on {kinds} kinds of device are too many"
        return None

    def solve(
        self, problem: PlanningProblem, *, cost: CostModel, limits: SolveLimits
    ) -> SolverResult:
        """The best plan it can find, and a bound for those in ``space``."""
        return _Search(problem, cost, limits).run()


class _Search:
    """The best plan so far and what is proved of all."""

    def __init__(self, problem: PlanningProblem, cost: CostModel, limits: SolveLimits) -> None:
        self.problem, self.cost, self.limits = problem, cost, limits
        self.pools: Pools = find_pools(problem)
        self.figures = StageFigures(problem, cost.figures, self.pools)
        self.best: Assignment | None = None
        self.ceiling_s = math.inf if limits.cutoff_s is None else limits.cutoff_s
        self.bound_s = objective_bound_s(problem, cost.figures)
        self.divided = False
        self.priced = 0

    def run(self) -> SolverResult:
        """Stages on one device first; then, from what was found, those that several divide too."""
        divisible = bool(self.figures.modes.widths)
        if not self.figures.root_can_stay_empty or not self._possible(divided=divisible):
            self.divided = divisible
            return self._result(nothing=True)
        anything_s, known = self.bound_s, None
        if not divisible or self._possible(divided=False):
            fraction = ALONE_FRACTION if divisible else 1.0
            known = self._look(self._part(fraction), divided=False, known=None)
        if divisible and not self.limits.expired:
            alone_s, before = self.bound_s, self.best
            self.bound_s, self.divided = anything_s, True
            self._look(self.limits, divided=True, known=known)
            better = self.best is not before
            if self.bound_s < alone_s * (1 - PROVED) and not better:
                # Not enough is proved of divided stages: what is known holds without them.
                self.bound_s, self.divided = alone_s, False
        return self._result(nothing=False)

    def _look(self, limits: SolveLimits, *, divided: bool, known: _Known | None) -> _Known | None:
        """Bound and plan at best, then plans that keep at worst, then at best with more effort.

        ``known`` is what a search without divided stages found.
        """
        part = _sooner(limits, 0.5)
        columns, proved_s, kept = self._settle(self.pools.best, part, divided, known)
        if self.problem.graph.is_chain:
            self.bound_s = max(self.bound_s, proved_s)
        if kept is None:
            return None
        if known is None or kept.period_s < known.period_s * (1 - 2 * SETTLED):
            self._round(columns, kept, _sooner(limits, 0.4), EFFORTS_S[0])
            if self._open and self.pools.worst != self.pools.best and not limits.expired:
                safe, _, sound = self._settle(self.pools.worst, limits, divided, None)
                if sound is not None and sound.period_s < self.ceiling_s:
                    self._round(safe, sound, limits, EFFORTS_S[0])
            self._round(columns, kept, limits, EFFORTS_S[1])
        self._ask(columns)
        return _Known(tuple(columns.templates), kept.period_s)

    def _part(self, fraction: float) -> SolveLimits:
        return _sooner(self.limits, fraction)

    def _possible(self, *, divided: bool) -> bool:
        """Whether there is any template at all, however slow."""
        pricing = Pricing(self.figures.tables(self.pools.best, divided=divided))
        ones = np.ones((len(self.pools.kinds), pricing.most))
        ((price, _),) = pricing.cheapest(ones, [ENDLESS_S], below=[0.0])
        return price < math.inf

    @property
    def _open(self) -> bool:
        """Whether a better plan is worth looking for."""
        return self.ceiling_s > max(self.bound_s * (1 + ENOUGH), self.limits.goal_s)

    def _ask(self, columns: Columns) -> None:
        """Whether even real numbers of pipelines could do better than the best plan."""
        if self.best is None or not self.problem.graph.is_chain:
            return
        with suppress(TimeoutError):
            trial = columns.trial(self.ceiling_s * (1 - PROOF))
            if trial.at_most < columns.wanted * (1 - PROOF):
                self.bound_s = self.ceiling_s

    def _settle(
        self, paths: Paths, limits: SolveLimits, divided: bool, known: _Known | None
    ) -> tuple[Columns, float, Trial | None]:
        """The templates for these paths, a proved bound, and the least period that is kept."""
        tables = self.figures.tables(paths, divided=divided)
        columns = Columns(tables, self.pools, self.problem.num_microbatches, limits)
        for template in known.templates if known else ():
            columns.add(columns.pricing.template(template.stages))
        near_s = known.period_s if known else None
        proved, kept = settle(columns, self.bound_s, self.ceiling_s, near_s)
        self.priced += columns.priced
        return columns, proved, kept

    def _round(self, columns: Columns, kept: Trial, limits: SolveLimits, effort_s: float) -> None:
        """Whole numbers of pipelines for periods a little longer and longer."""
        placing = Placing(self.problem, self.pools, columns.tables, self.cost)
        for slack in SLACK:
            period_s = kept.period_s * (1 + slack)
            if limits.expired or period_s >= self.ceiling_s or not self._open:
                return
            values = columns.values(period_s)
            hint = columns.master.relax(values).counts
            counts, splits = columns.master.round_down(
                values, columns.wanted, hint, limits, effort_s
            )
            placed = placing.place(columns.templates, counts, splits)
            assignment = shared(self.problem, placed)
            self.priced += len(placed)
            if assignment is None:
                continue
            price = self.cost.evaluate(assignment)
            if price.allowed and price.period_s < self.ceiling_s:
                self.best, self.ceiling_s = assignment, price.period_s

    def _result(self, *, nothing: bool) -> SolverResult:
        order = "" if self.problem.graph.is_chain else " in the captured order"
        modes = self.figures.modes.describe(divided=self.divided)
        space = (
            "one pipeline, or several side by side that share the microbatches of a batch, each a "
            f"line of consecutive runs of layers{order}, {modes} "
            f"({len(self.pools.kinds)} kinds of device)"
        )
        if nothing and not self.problem.tensor_splits:
            status = SolveStatus.INFEASIBLE
        elif self.best is None:
            status = SolveStatus.UNKNOWN
        elif self.ceiling_s <= self.bound_s * (1 + TOLERANCE):
            status = SolveStatus.OPTIMAL
        else:
            status = SolveStatus.FEASIBLE
        return SolverResult(
            status=status,
            assignment=self.best,
            objective_s=None if self.best is None else self.ceiling_s,
            bound_s=None if nothing else min(self.bound_s, self.ceiling_s),
            space=space,
            candidates=self.priced,
        )


def _sooner(limits: SolveLimits, fraction: float) -> SolveLimits:
    """Limits with a part of the time that is left."""
    return replace(limits, deadline=time.monotonic() + fraction * limits.remaining_s())
