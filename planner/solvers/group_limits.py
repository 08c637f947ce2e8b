"""What groups of devices can do as pipelines where both times of a batch matter.

As ``group_values`` for the time of one batch, with trials ``t1 > t2 > ..`` of how busy the busiest
server may be. For plans whose busiest server lies in ``(t2, t1]``, ``k`` microbatches take

    latency  at least  least sum at t1 + (k - 1) * t2
    period   at least  k * t2 / spread

so one time limits ``k`` and the other is made small. ``spread`` is how much longer a transfer into
a stage can take than its busiest wire: 1 unless stages are split by batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.solvers.arrays import Floats, Integers
from planner.solvers.base import SolveLimits
from planner.solvers.chain_latency import LatencySearch
from planner.solvers.chain_tables import ChainTables, Progress, Step
from planner.solvers.group_values import (
    PROOF,
    WIDE,
    Part,
    Tables,
    Trial,
    between,
    lowered,
    most_in,
)
from planner.targets import KEPT

BEYOND = 1 + 3 * KEPT
"""Times a limit: surely more than is allowed."""

MAX_TRACED = 64
"""Groups whose plans are all worked out after a trial; of more, only those that were asked for."""


class NothingMoreError(Exception):
    """No trial tells more about what is open."""


@dataclass(frozen=True, slots=True)
class LimitedPlan:
    """Stages whose ``k`` microbatches take ``first_s + (k - 1) * again_s``, and ``k * each_s``
    between batches."""

    first_s: float
    again_s: float
    each_s: float
    steps: list[Step]

    def latency_s(self, count: int) -> float:
        """The time of one batch."""
        return self.first_s + (count - 1) * self.again_s

    def period_s(self, count: int) -> float:
        """The time between batches."""
        return count * self.each_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which time is made small (``by_latency``), what is allowed of the other, and the least sum
    of durations of any plan."""

    by_latency: bool
    limit_s: float
    path_s: float


class LimitedValues:
    """Bounds and plans of all groups for one time, the other limited (``GroupValues``).

    ``price`` gives the time of the stages for a microbatch alone, and between microbatches.
    """

    def __init__(
        self,
        tables: Tables,
        least_s: Floats,
        num_microbatches: int,
        *,
        wanted: Wanted,
        price: Callable[[list[Step]], tuple[float, float]],
    ) -> None:
        self._tables, self._most, self._price = tables, num_microbatches, price
        self._by_latency, self._limit_s = wanted.by_latency, wanted.limit_s
        self._below = least_s
        self._plans: dict[int, list[LimitedPlan]] = {}
        self._traced: dict[int, set[float]] = {}  # limits whose plan of a group was asked for
        self._trials = [Trial(math.inf, np.maximum(least_s, wanted.path_s))]
        self._ask = False

    @cached_property
    def _search(self) -> LatencySearch:
        return LatencySearch(self._tables())

    @cached_property
    def _spread(self) -> float:
        """How much longer than its wires a transfer can take, at most."""
        return _longest_over_wire(self._search.tables)

    def capacity(self, within_s: float) -> Integers:
        """See :class:`GroupValues`."""
        period_s, latency_s = self._times(within_s)
        each = []
        for at, trial in enumerate(self._trials):
            busy_s = self._least_busy(at)
            step_s = self._least_step(at)
            each.append(
                np.minimum(
                    most_in(latency_s, trial.sums_s, busy_s, self._most),
                    most_in(period_s, step_s, step_s, self._most),
                )
            )
        return np.asarray(np.max(each, axis=0))

    def known_capacity(self, within_s: float) -> Integers:
        """See :class:`GroupValues`."""
        period_s, latency_s = self._times(within_s)
        most = np.zeros(len(self._below), dtype=np.int64)
        for group, plans in self._plans.items():
            first = np.array([plan.first_s for plan in plans])
            again = np.array([plan.again_s for plan in plans])
            step = np.array([plan.each_s for plan in plans])
            most[group] = np.minimum(
                most_in(latency_s, first, again, self._most),
                most_in(period_s, step, step, self._most),
            ).max()
        return most

    def least_s(self, part: Part) -> float:
        """See :class:`GroupValues`."""
        return min(self._bound_s(part, at) for at in range(len(self._trials)))

    def known_s(self, part: Part) -> float:
        """See :class:`GroupValues`."""
        plans = self._plans.get(part[0], [])
        return min((self._value_s(plan, part[1]) for plan in plans), default=math.inf)

    def steps(self, part: Part) -> list[Step]:
        """See :class:`GroupValues`."""
        return min(self._plans[part[0]], key=lambda plan: self._value_s(plan, part[1])).steps

    def plans(self) -> Iterator[tuple[int, list[Step]]]:
        """See :class:`GroupValues`."""
        for group, plans in sorted(self._plans.items()):
            for plan in plans:
                yield group, plan.steps

    def refine(
        self,
        parts: Sequence[Part],
        between_s: tuple[float, float],
        limits: SolveLimits,
        progress: Progress,
    ) -> None:
        """See :class:`GroupValues`.

        Raises:
            TimeoutError: the deadline has passed.
            NothingMoreError: what is open about the first of ``parts`` stays open.
        """
        limit_s = self._next_limit_s(parts[0], between_s[1])
        survey = self._search.survey(limit_s, limits, progress)
        sums = np.full(len(self._below), np.inf)
        for group, end in survey.ends.items():
            sums[group] = end.sum_s
        self._trials = lowered([*self._trials, Trial(limit_s, sums)])
        wanted = {part[0] for part in parts}
        for found in survey.ends:
            if found in wanted or len(survey.ends) <= MAX_TRACED:
                first_s, again_s, steps = survey.path(found)
                latency_s, step_s = self._price(steps)
                plan = LimitedPlan(max(first_s, latency_s), again_s, step_s, steps)
                self._plans.setdefault(found, []).append(plan)

    def _times(self, within_s: float) -> tuple[float, float]:
        """Limits on the time between batches and on that of one."""
        limit_s = self._limit_s * (1 + KEPT)
        return (limit_s, within_s) if self._by_latency else (within_s, limit_s)

    def _value_s(self, plan: LimitedPlan, count: int) -> float:
        """The time that is made small; endless if the other is not kept."""
        period_s, latency_s = plan.period_s(count), plan.latency_s(count)
        value, other = (latency_s, period_s) if self._by_latency else (period_s, latency_s)
        return value if other <= self._limit_s * (1 + KEPT) else math.inf

    def _bound_s(self, part: Part, at: int) -> float:
        """Of the plans between a limit and the next."""
        group, count = part
        busy_s = float(self._least_busy(at)[group])
        latency_s = float(self._trials[at].sums_s[group]) + (count - 1) * busy_s
        period_s = count * float(self._least_step(at)[group])
        value, other = (latency_s, period_s) if self._by_latency else (period_s, latency_s)
        return value if other <= self._limit_s * (1 + KEPT) else math.inf

    def _least_busy(self, at: int) -> Floats:
        """Least time of the busiest server of the plans between a limit and the next."""
        return np.maximum(self._below, self._after(at))

    def _least_step(self, at: int) -> Floats:
        """Least time between microbatches of the plans between a limit and the next."""
        after = self._after(at)
        return np.maximum(self._below, after / self._spread if after else 0.0)

    def _after(self, at: int) -> float:
        return self._trials[at + 1].limit_s if at + 1 < len(self._trials) else 0.0

    def _next_limit_s(self, part: Part, useful_s: float) -> float:
        """A limit that tells more about the plans for which the bound of ``part`` is least."""
        group, count = part
        at = min(range(len(self._trials)), key=lambda i: self._bound_s(part, i))
        trial = self._trials[at]
        low, sum_s = float(self._least_busy(at)[group]), float(trial.sums_s[group])
        busiest = [
            plan.again_s
            for plan in self._plans.get(group, ())
            if plan.again_s <= trial.limit_s and plan.first_s <= sum_s * (1 + PROOF)
        ]
        if not busiest:
            if trial.limit_s in self._traced.setdefault(group, set()):
                raise NothingMoreError
            self._traced[group].add(trial.limit_s)
            return trial.limit_s  # once more, to have its plan
        period_s, latency_s = (
            (self._limit_s * BEYOND, useful_s)
            if self._by_latency
            else (useful_s, self._limit_s * BEYOND)
        )
        high = min(min(busiest), trial.limit_s) * (1 - PROOF)
        high = min(high, period_s / count * self._spread)
        if count > 1:
            high = min(high, (latency_s - sum_s) / (count - 1))
        if not low < high:
            raise NothingMoreError
        self._ask = not self._ask and high - low < WIDE * high
        return high if self._ask else between(low, high)


def _longest_over_wire(tables: ChainTables) -> float:
    """The most by which a transfer's time exceeds that of its busiest wire."""
    hops, runs = tables.hops, tables.problem.num_microbatches
    wire = np.maximum(hops.wire_in.min(axis=2), hops.wire_out.min(axis=2))
    pairs = [(runs * hops.duration, wire), (runs * hops.last_duration, hops.last_wire)]
    most = 1.0
    for whole, busiest in pairs:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(busiest > 0, whole / busiest, 1.0)
        most = max(most, float(ratio.max(initial=1.0)))
    return most * (1 + PROOF) if most > 1 + PROOF else 1.0
