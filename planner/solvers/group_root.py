"""What groups with the root's device can do between batches, of ``k`` microbatches out of ``M``.

What the other pipelines read and write takes ``f`` seconds a microbatch from a stage on the root,
whatever they are (``planner.root_work``). With ``A`` the time for a microbatch of the busiest other
stage or wire of a group's pipeline, and ``B`` that of the stage on the root,

    period(k) = max(k * A, k * B + (M - k) * f)

A trial asks of all groups at once for ``A <= t`` and ``B <= t - e``. Where that cannot be, no ``k``
microbatches take less than ``k * min(t, t - e + (M / k - 1) * f)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.solvers.arrays import Flags, Floats, Integers
from planner.solvers.chain_tables import Step


@dataclass(frozen=True, slots=True)
class RootedPlan:
    """A pipeline with a stage on the root: ``A`` and ``B``, and its stages."""

    others_s: float
    of_root_s: float
    steps: list[Step]


class RootedGroups:
    """Bounds and plans of the groups that ``rooted`` marks, by microbatches.

    ``least_s`` bounds each group's time for a microbatch, ``each_s`` is ``f``.
    """

    def __init__(
        self, rooted: Flags, least_s: Floats, num_microbatches: int, *, each_s: float
    ) -> None:
        self.groups = np.flatnonzero(rooted)
        self.row = {int(group): row for row, group in enumerate(self.groups)}
        self.each_s, self._most = each_s, num_microbatches
        self._counts = np.arange(1, num_microbatches + 1)
        self._below = self._counts * least_s[self.groups][:, None]  # exactly so many
        self._least = self._below  # so many or more: of fewer, there may be more to do for others
        self._known = np.full(self._below.shape, np.inf)
        self._plans: dict[int, list[RootedPlan]] = {}

    def beside_s(self, count: int) -> float:
        """``e`` of a trial for pipelines with ``count`` microbatches."""
        return (self._most / count - 1) * self.each_s

    def refuse(self, groups: Flags, trial_s: float, beside_s: float) -> None:
        """Note that groups cannot keep a trial. ``groups`` are marked among all."""
        rest_s = trial_s - beside_s + (self._most / self._counts - 1) * self.each_s
        rows = groups[self.groups]
        bound = self._counts * np.minimum(trial_s, rest_s)
        self._below[rows] = np.maximum(self._below[rows], bound)

    def note(self, group: int, plan: RootedPlan) -> None:
        """One more plan of a group."""
        row = self.row[group]
        self._plans.setdefault(row, []).append(plan)
        self._known[row] = np.minimum(self._known[row], self._seconds(plan))

    def close(self, slack: float) -> None:
        """Ends a trial: where bounds and plans meet but for rounding, they are the same."""
        met = self._below * (1 + slack) >= self._known
        self._below = np.where(met, self._known, self._below)
        self._least = np.minimum.accumulate(self._below[:, ::-1], axis=1)[:, ::-1]

    def capacity(self, within_s: float) -> Integers:
        """The most microbatches that each group may be able to take in time."""
        return _most_of(np.isfinite(self._least) & (self._least <= within_s))

    def known_capacity(self, within_s: float) -> Integers:
        """The most microbatches that a plan of each group takes in time."""
        return _most_of(np.isfinite(self._known) & (self._known <= within_s))

    def least_s(self, group: int, count: int) -> float:
        """No pipeline on the group takes so many microbatches, or more, in less."""
        return float(self._least[self.row[group], count - 1])

    def known_s(self, group: int, count: int) -> float:
        """What the best known plan takes."""
        return float(self._known[self.row[group], count - 1])

    def steps(self, group: int, count: int) -> list[Step]:
        """The stages of the best known plan."""
        plans = self._plans[self.row[group]]
        return min(plans, key=lambda plan: self._seconds(plan)[count - 1]).steps

    def plans(self) -> list[tuple[int, list[Step]]]:
        """The stages of every known plan, with its group."""
        return [
            (int(self.groups[row]), plan.steps)
            for row, plans in sorted(self._plans.items())
            for plan in plans
        ]

    def _seconds(self, plan: RootedPlan) -> Floats:
        given = (self._most - self._counts) * self.each_s
        own = self._counts * plan.of_root_s + given
        return np.asarray(np.maximum(self._counts * plan.others_s, own))


def _most_of(can: Flags) -> Integers:
    """The largest count that can be, by row; 0 if none."""
    last = can.shape[1] - can[:, ::-1].argmax(axis=1)
    return np.where(can.any(axis=1), last, 0)
