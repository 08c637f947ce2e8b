"""Dividing devices among pipelines: groups without a common device that take most microbatches.

A *group* is a multiset of device classes, numbered in mixed radix (as in ``chain_states``). Given
how many microbatches each group can take, the most that ``g`` groups on exactly the devices ``U``
can take together is

    most[g + 1, U + S] = max over groups S of most[g, U] + capacity[S]

Where no device must be used, groups that take no more than a part of theirs are left out: a device
too many can stay idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from planner.problem import PlanningProblem
from planner.solvers.arrays import Flags, Integers

MAX_PAIRS = 600_000
"""Pairs of disjoint groups: beyond this, dividing takes longer than it is worth (12 devices, all
different, have 531441)."""

_NONE = -(2**40)


def num_pairs(sizes: Sequence[int]) -> int:
    """Pairs of disjoint groups of devices, the empty one included."""
    return prod((n + 1) * (n + 2) // 2 for n in sizes)


def share_items(problem: PlanningProblem, counts: Sequence[int]) -> list[int]:
    """Items for each pipeline: full microbatches but for the last ones, where items are short."""
    items = [n * problem.microbatch for n in counts]
    short = sum(items) - problem.batch
    for p in range(len(items)):
        fewer = min(short, problem.microbatch - 1)
        items[p] -= fewer
        short -= fewer
    assert short == 0, "a microbatch more than the items fill"
    return items


class Partitions:
    """Ways to divide devices of several classes among two groups or more.

    ``required`` counts devices of each class that must be in some group; ``most_groups`` limits
    the number of groups.
    """

    def __init__(self, sizes: Sequence[int], required: Sequence[int], most_groups: int) -> None:
        self.sizes = tuple(sizes)
        self.most_groups = min(most_groups, sum(sizes))
        self.counts: Integers = np.indices([n + 1 for n in sizes]).reshape(len(sizes), -1).T
        self.num_groups = len(self.counts)
        self._radix = np.array([prod(n + 1 for n in sizes[c + 1 :]) for c in range(len(sizes))])
        self._enough: Flags = np.all(self.counts >= np.array(required), axis=1)
        self._exact = any(required)
        self._before: dict[int, Integers] = {}

    def allow(self, groups: Flags) -> None:
        """Only these sets of devices may be used, all pipelines together; parts of one that may
        be, may be too."""
        self._enough &= groups

    def code(self, counts: Sequence[int]) -> int:
        """The number of the group with so many devices of each class."""
        return int(np.array(counts) @ self._radix)

    def best(
        self, capacity: Integers, least: int, *, most_groups: int | None = None
    ) -> list[int] | None:
        """Two groups or more that take the most together, or None if that is below ``least``."""
        number = min(self.most_groups, most_groups or self.most_groups)
        shape = (number + 1, self.num_groups)
        most = np.full(shape, _NONE, dtype=np.int64)
        last = np.zeros(shape, dtype=np.int64)
        most[0, 0] = 0
        for group in self._useful(capacity):
            before = self._without(group)
            for _ in range(self._times(group)):
                taken = most[:-1, before] + capacity[group]
                better = taken > most[1:, before + group]
                if not better.any():
                    break
                rows, columns = np.nonzero(better)
                targets = before[columns] + group
                most[rows + 1, targets] = taken[rows, columns]
                last[rows + 1, targets] = group
        ends = np.where(self._enough, most[2:], _NONE)
        if not ends.size or ends.max() < max(least, 1):
            return None
        # Of the best, those with fewest devices, then fewest groups.
        rows, columns = np.nonzero(ends == ends.max())
        devices = self.counts[columns].sum(axis=1)
        at = int(np.lexsort((columns, rows, devices))[0])
        number, used = int(rows[at]) + 2, int(columns[at])
        found = []
        while number:
            found.append(int(last[number, used]))
            number, used = number - 1, used - found[-1]
        return sorted(found, reverse=True)

    def _useful(self, capacity: Integers) -> Integers:
        """Groups that take something, and more than a part of theirs does."""
        if self._exact:
            return np.flatnonzero(capacity > 0)
        shape = [n + 1 for n in self.sizes]
        within = capacity.reshape(shape)
        for axis in range(len(shape)):
            within = np.maximum.accumulate(within, axis=axis)
        parts = np.zeros(shape, dtype=np.int64)
        for axis in range(len(shape)):
            inside = [slice(None)] * len(shape)
            outside = list(inside)
            inside[axis], outside[axis] = slice(1, None), slice(None, -1)
            smaller = within[tuple(outside)]
            parts[tuple(inside)] = np.maximum(parts[tuple(inside)], smaller)
        return np.flatnonzero(capacity > parts.reshape(-1))

    def _without(self, group: int) -> Integers:
        """Device sets to which ``group`` can be added."""
        if group not in self._before:
            rest = np.array(self.sizes) - self.counts[group]
            self._before[group] = np.flatnonzero((self.counts <= rest).all(axis=1))
        return self._before[group]

    def _times(self, group: int) -> int:
        """How many groups like this there can be at once."""
        counts = self.counts[group]
        return min(n // int(k) for n, k in zip(self.sizes, counts, strict=True) if k)
