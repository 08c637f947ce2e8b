"""What each group of devices can do as one pipeline of ``k`` microbatches: bounds, and plans.

Both objectives are surveyed for all groups at once, by one run of the chain solver's programme per
trial, and only as far as the search over groups asks. For a group ``S``

    throughput  k * T(S): the time between microbatches, between ``below`` and ``known``
    latency     sum + (k - 1) * busiest: the least sum of durations falls as the busiest server may
                be busier, so trials ``t1 > t2 > ..`` leave, for plans whose busiest server lies in
                ``(t2, t1]``, a bound of least sum at ``t1`` plus ``(k - 1) * t2``

Wires that pairs of devices share count per pair here, as in the chain solver: bounds hold, and
plans may cost more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from planner.solvers.arrays import Flags, Floats, Integers
from planner.solvers.base import SolveLimits
from planner.solvers.chain_latency import LatencySearch
from planner.solvers.chain_period import PeriodSearch
from planner.solvers.chain_tables import ChainTables, Progress, Step
from planner.solvers.group_root import RootedGroups, RootedPlan

ENDLESS_S = 1e300
"""A time that any plan keeps: finite, to tell it from what cannot be."""

PROOF = 1e-12
"""A plan better by less than this fraction is not better: rounding."""

WIDE = 0.02
"""Relative width of an interval that is halved rather than asked about at its end."""

MAX_TRACED = 64
"""Groups whose plans are all worked out after a trial; of more, only those that were asked for."""


Tables = Callable[[], ChainTables]
"""Builds the chain solver's tables; only called if a trial is needed."""

Part = tuple[int, int]
"""A group, and the microbatches that it is to take."""


class GroupValues(Protocol):
    """Bounds and plans of all groups for one objective."""

    def capacity(self, within_s: float) -> Integers:
        """The most microbatches, up to all, that each group may be able to take in time."""

    def known_capacity(self, within_s: float) -> Integers:
        """The most microbatches that a known plan of each group takes in time."""

    def least_s(self, part: Part) -> float:
        """No pipeline does ``part`` in less."""

    def known_s(self, part: Part) -> float:
        """What the best known plan takes; infinite if there is none."""

    def steps(self, part: Part) -> list[Step]:
        """The stages of the best known plan."""

    def plans(self) -> Iterator[tuple[int, list[Step]]]:
        """The stages of every known plan, with its group."""

    def refine(
        self,
        parts: Sequence[Part],
        between_s: tuple[float, float],
        limits: SolveLimits,
        progress: Progress,
    ) -> None:
        """Narrow what is known of some of ``parts``, and with it of others, by one trial.

        The best division lies between two times: what is proved, and what is of use.

        Raises:
            TimeoutError: the deadline has passed.
        """


class PeriodValues:
    """Time between batches: every microbatch keeps a pipeline's bottleneck busy for as long.

    ``rooted`` marks the groups with the root's device, which other pipelines' microbatches keep
    busy for ``each_s`` (``group_root``).
    """

    def __init__(
        self,
        tables: Tables,
        least_s: Floats,
        num_microbatches: int,
        *,
        rooted: Flags,
        each_s: float,
    ) -> None:
        self._tables, self._most = tables, num_microbatches
        self._below = least_s.copy()
        self._known = np.full(len(least_s), np.inf)
        self._plans: dict[int, list[Step]] = {}
        self._root = RootedGroups(rooted, least_s, num_microbatches, each_s=each_s)
        self._target_s = 0.0
        self._ask = False

    @cached_property
    def _search(self) -> PeriodSearch:
        return PeriodSearch(self._tables())

    def capacity(self, within_s: float) -> Integers:
        """See :class:`GroupValues`."""
        most = most_in(within_s, self._below, self._below, self._most)
        most[self._root.groups] = self._root.capacity(within_s * (1 + PROOF / 4))
        return most

    def known_capacity(self, within_s: float) -> Integers:
        """See :class:`GroupValues`."""
        most = most_in(within_s, self._known, self._known, self._most)
        most[self._root.groups] = self._root.known_capacity(within_s * (1 + PROOF / 4))
        return most

    def least_s(self, part: Part) -> float:
        """See :class:`GroupValues`."""
        if part[0] in self._root.row:
            return self._root.least_s(*part)
        return part[1] * float(self._below[part[0]])

    def known_s(self, part: Part) -> float:
        """See :class:`GroupValues`."""
        if part[0] in self._root.row:
            return self._root.known_s(*part)
        return part[1] * float(self._known[part[0]])

    def steps(self, part: Part) -> list[Step]:
        """See :class:`GroupValues`."""
        return self._root.steps(*part) if part[0] in self._root.row else self._plans[part[0]]

    def plans(self) -> Iterator[tuple[int, list[Step]]]:
        """See :class:`GroupValues`."""
        yield from sorted([*self._plans.items(), *self._root.plans()], key=lambda x: x[0])

    def refine(
        self,
        parts: Sequence[Part],
        between_s: tuple[float, float],
        limits: SolveLimits,
        progress: Progress,
    ) -> None:
        """See :class:`GroupValues`."""
        bound_s, useful_s = between_s
        if not bound_s * (1 + PROOF) < self._target_s <= useful_s * (1 - PROOF):
            self._target_s = self._next_target_s(bound_s, useful_s)
        late = [part for part in parts if self.known_s(part) > self._target_s * (1 + PROOF / 2)]
        if not late:  # reached, but for rounding
            self._target_s = between(bound_s, self._target_s * (1 - PROOF))
        group, count = (late or parts)[0]
        trial = min(self._target_s / count, ENDLESS_S)
        beside_s = self._root.beside_s(count) if group in self._root.row else 0.0
        search = self._search.beside(self._most * beside_s)
        survey = search.survey(self._most * trial, limits, progress)
        can = np.zeros(len(self._below), dtype=np.bool_)
        can[list(survey.ends)] = True
        impossible = np.inf if trial == ENDLESS_S else trial
        self._below = np.where(can, self._below, np.maximum(self._below, impossible))
        self._root.refuse(~can, impossible, beside_s)
        asked = count if beside_s else self._most
        for found in survey.ends:
            if found in self._root.row:
                if self._root.known_s(found, asked) > asked * trial:
                    steps = survey.steps(found)
                    others_s, of_root_s = (x / self._most for x in self._search.busy_s(steps))
                    self._root.note(found, RootedPlan(others_s, of_root_s, steps))
            elif self._known[found] > trial:
                steps = survey.steps(found)
                self._known[found] = search.period_s(steps) / self._most
                self._plans[found] = steps
        # What is left between them is rounding.
        closed = self._below * (1 + 2 * PROOF) >= self._known
        self._below = np.where(closed, self._known, self._below)
        self._root.close(2 * PROOF)

    def _next_target_s(self, bound_s: float, useful_s: float) -> float:
        """The time that all groups are asked about next, with their parts of the microbatches.

        First whether there is anything of use, for that is mostly refused; then the interval is
        halved while it is wide, and its end is asked about every other time.
        """
        first, self._target_s = self._target_s == 0.0, useful_s * (1 - PROOF)
        self._ask = first or (not self._ask and useful_s - bound_s < WIDE * useful_s)
        return self._target_s if self._ask else between(bound_s, self._target_s)


@dataclass(frozen=True, slots=True)
class LinePlan:
    """Stages that take ``first_s + (count - 1) * again_s`` for ``count`` microbatches.

    For the time of one batch: their sum of durations, and the time of their busiest server.
    """

    first_s: float
    again_s: float
    steps: list[Step]

    def seconds(self, count: int) -> float:
        """What ``count`` microbatches take."""
        return self.first_s + (count - 1) * self.again_s


class KnownPlans:
    """The best of known plans for each group and number of microbatches."""

    def __init__(self, num_groups: int, num_microbatches: int) -> None:
        self.of: dict[int, list[LinePlan]] = {}
        self._num_groups, self._most = num_groups, num_microbatches

    def add(self, group: int, plan: LinePlan) -> None:
        """Note one more plan."""
        self.of.setdefault(group, []).append(plan)

    def capacity(self, within_s: float) -> Integers:
        """The most microbatches that a plan of each group takes in time."""
        most = np.zeros(self._num_groups, dtype=np.int64)
        for group, plans in self.of.items():
            first = np.array([plan.first_s for plan in plans])
            again = np.array([plan.again_s for plan in plans])
            most[group] = most_in(within_s, first, again, self._most).max()
        return most

    def seconds(self, part: Part) -> float:
        """What the best plan takes; infinite if there is none."""
        plans = self.of.get(part[0], [])
        return min((plan.seconds(part[1]) for plan in plans), default=float("inf"))

    def steps(self, part: Part) -> list[Step]:
        """The stages of the best plan."""
        return min(self.of[part[0]], key=lambda plan: plan.seconds(part[1])).steps


@dataclass(frozen=True, slots=True)
class Trial:
    """Least sums of durations by group with no server busier than ``limit_s``."""

    limit_s: float
    sums_s: Floats


class LatencyValues:
    """Time of one batch: the first microbatch on its way, the others behind the busiest server."""

    def __init__(
        self, tables: Tables, least_s: Floats, num_microbatches: int, *, path_s: float
    ) -> None:
        self._tables, self._most = tables, num_microbatches
        self._below = least_s  # no pipeline has a busiest server less busy than its work
        self._plans = KnownPlans(len(least_s), num_microbatches)
        self._trials = [Trial(float("inf"), np.maximum(least_s, path_s))]
        self._ask = False

    @cached_property
    def _search(self) -> LatencySearch:
        return LatencySearch(self._tables())

    def capacity(self, within_s: float) -> Integers:
        """See :class:`GroupValues`."""
        each = [
            most_in(within_s, trial.sums_s, self._least_busy(at), self._most)
            for at, trial in enumerate(self._trials)
        ]
        return np.asarray(np.max(each, axis=0))

    def known_capacity(self, within_s: float) -> Integers:
        """See :class:`GroupValues`."""
        return self._plans.capacity(within_s)

    def least_s(self, part: Part) -> float:
        """See :class:`GroupValues`."""
        return min(self._bound_s(part, at) for at in range(len(self._trials)))

    def known_s(self, part: Part) -> float:
        """See :class:`GroupValues`."""
        return self._plans.seconds(part)

    def steps(self, part: Part) -> list[Step]:
        """See :class:`GroupValues`."""
        return self._plans.steps(part)

    def plans(self) -> Iterator[tuple[int, list[Step]]]:
        """See :class:`GroupValues`."""
        for group, plans in sorted(self._plans.of.items()):
            for plan in plans:
                yield group, plan.steps

    def refine(
        self,
        parts: Sequence[Part],
        between_s: tuple[float, float],
        limits: SolveLimits,
        progress: Progress,
    ) -> None:
        """See :class:`GroupValues`."""
        limit_s = self._next_limit_s(parts[0], between_s[1])
        survey = self._search.survey(limit_s, limits, progress)
        sums = np.full(len(self._below), np.inf)
        for group, end in survey.ends.items():
            sums[group] = end.sum_s
        self._trials = lowered([*self._trials, Trial(limit_s, sums)])
        wanted = {part[0] for part in parts}
        for found in survey.ends:
            if found in wanted or len(survey.ends) <= MAX_TRACED:
                self._plans.add(found, LinePlan(*survey.path(found)))

    def _next_limit_s(self, part: Part, useful_s: float) -> float:
        """A limit that tells more about the plans for which the bound of ``part`` is least."""
        group, count = part
        at = min(range(len(self._trials)), key=lambda i: self._bound_s(part, i))
        trial = self._trials[at]
        low = float(self._least_busy(at)[group])
        sum_s = float(trial.sums_s[group])
        busiest = [
            plan.again_s
            for plan in self._plans.of.get(group, ())
            if plan.first_s <= sum_s * (1 + PROOF)
        ]
        if not busiest or count == 1:
            return trial.limit_s  # once more, to have its plan
        high = min(min(*busiest, trial.limit_s) * (1 - PROOF), (useful_s - sum_s) / (count - 1))
        self._ask = not self._ask and high - low < WIDE * high
        return high if self._ask else between(low, high)

    def _bound_s(self, part: Part, at: int) -> float:
        """Of the plans between a limit and the next."""
        group, count = part
        return float(self._trials[at].sums_s[group] + (count - 1) * self._least_busy(at)[group])

    def _least_busy(self, at: int) -> Floats:
        """Least time of the busiest server of the plans between a limit and the next."""
        after = self._trials[at + 1].limit_s if at + 1 < len(self._trials) else 0.0
        return np.maximum(self._below, after)


def lowered(trials: Sequence[Trial]) -> list[Trial]:
    """Trials by falling limit, one for each: a lower limit never allows a smaller sum."""
    kept: list[Trial] = []
    for trial in sorted(trials, key=lambda t: -t.limit_s):
        if kept:
            trial = Trial(trial.limit_s, np.maximum(trial.sums_s, kept[-1].sums_s))
            if trial.limit_s == kept[-1].limit_s:
                kept.pop()
        kept.append(trial)
    return kept


def between(low: float, high: float) -> float:
    """A value between two; ``high`` if there is none."""
    middle = (low * high) ** 0.5 if low > 0 else high / 2
    return middle if low < middle < high else high


def most_in(within_s: float, first_s: Floats, again_s: Floats, most: int) -> Integers:
    """The largest ``k`` up to ``most`` with ``first + (k - 1) * again <= within``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        room = within_s * (1 + PROOF / 4) - first_s
        more = np.where(again_s > 0, room / again_s, np.inf)
    more = np.minimum(np.nan_to_num(more, nan=-1.0), most - 1)
    return np.where(room >= 0, 1 + more, 0).astype(np.int64)
