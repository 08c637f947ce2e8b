"""Contiguous placement with the least largest load: dynamic programming over down-sets.

Minimise ``max_k load(J_k - J_{k-1})`` over chains of down-sets ``{} = J_0 < J_1 < ... = all`` and
an order of the devices. With ``F(u, J)`` the least largest load of devices that hold exactly ``J``,
where ``u`` counts the devices used of each class,

    F(u + 1_c, J) = min over I < J of max(F(u, I), load_c(J - I)).

Only pairs whose load stays below a trial ceiling are looked at, so each pass is short, and what it
finds below its ceiling is the optimum; without an answer the ceiling is a bound, and rises.
The load of a pair needs no walk over its blocks: time and memory are differences of sums over
down-sets, transfers come from :class:`~planner.placement.set_pairs.SetPairs`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.placement.blocks import SLIGHTLY, Blocks, Floats, slowness
from planner.placement.bounds import load_bound_s
from planner.placement.downsets import DownSets
from planner.placement.problem import Charging
from planner.placement.set_pairs import SetPairs
from planner.solvers.base import SolveLimits

Ints = NDArray[np.int64]

FIRST_SLACK = 0.004
SLACK_GROWTH = 16.0
"""The ceiling starts this fraction above the bound; the fraction grows by this factor."""

MAX_CELLS = 3 * 10**7
"""Down-sets times counts of used devices that are kept, about 12 bytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a search over down-sets found: a device for each block, or none, and a bound."""

    devices: tuple[int, ...] | None
    load_s: float
    bound_s: float


def best_line(
    blocks: Blocks, sets: DownSets, *, ceiling_s: float, limits: SolveLimits
) -> Line | None:
    """The best chain through ``sets`` below ``ceiling_s``, or None if the tables are too large.

    The bound is for chains through ``sets``; without an answer it is the ceiling.
    """
    table = _Table(blocks, sets, ceiling_s)
    if table.num_states * sets.count > MAX_CELLS:
        return None
    bound = load_bound_s(blocks)
    slack = FIRST_SLACK
    while True:
        trial = min(bound * (1 + slack), ceiling_s) if bound > 0 else ceiling_s
        found = table.search(trial, limits)
        if found is None:
            return Line(devices=None, load_s=math.inf, bound_s=bound)
        load, devices = found
        if devices is not None:
            return Line(devices=devices, load_s=load, bound_s=load)
        if trial >= ceiling_s:
            return Line(devices=None, load_s=math.inf, bound_s=ceiling_s)
        bound = max(bound, trial)
        slack *= SLACK_GROWTH


class _Table:
    """Sums over down-sets, and the search through them."""

    def __init__(self, blocks: Blocks, sets: DownSets, ceiling_s: float) -> None:
        self.blocks, self.sets = blocks, sets
        paying = blocks.factors[blocks.factors > 0]
        self.pairs = SetPairs(
            blocks, sets, most_s=2 * ceiling_s / paying.min() if paying.size else math.inf
        )
        _, self.ratio = slowness(blocks)
        self.memories = [math.inf if m is None else float(m) for m in blocks.memories]
        shape_of_states = [n + 1 for n in blocks.counts]
        self.num_states = math.prod(shape_of_states)
        self.used = np.array(list(itertools.product(*(range(n) for n in shape_of_states))))
        self.stride = [math.prod(shape_of_states[c + 1 :]) for c in range(len(shape_of_states))]
        self.rest = (sets.work[-1] - sets.work) * sets.unit_s

    def search(
        self, ceiling_s: float, limits: SolveLimits
    ) -> tuple[float, tuple[int, ...] | None] | None:
        """The least load up to the ceiling and its answer; None if the time runs out."""
        best = np.full((self.num_states, self.sets.count), math.inf)
        source = np.full(best.shape, -1, np.int32)
        via = np.full(best.shape, -1, np.int8)
        best[0, 0] = 0.0
        ceiling_s *= 1 + SLIGHTLY / 100
        # Blocks slower than the ceiling are left out of the sums, which keeps these exact beside
        # tiny ones; sets with such a block are recognised by counting them.
        times = self.blocks.times_s
        fine = times <= ceiling_s
        work = np.where(fine, times, 0.0) @ self.sets.holds
        misfits = (~fine).astype(np.int32) @ self.sets.holds
        left = np.array(self.blocks.counts) - self.used
        capacity = left @ (1 / self.ratio) * ceiling_s * (1 + SLIGHTLY)
        order = np.argsort(self.used.sum(axis=1), kind="stable")
        for i in range(self.sets.count - 1):
            if i % 64 == 0 and limits.expired:
                return None
            live = self._live(best[:, i], capacity >= self.rest[i], order)
            if not live:
                continue
            end = self._window(i, ceiling_s)
            above = self.pairs.supersets(i, end)
            if not above.size:
                continue
            cut = self.pairs.cuts(i, above)
            for c in range(len(self.ratio)):
                states = [s for s in live if left[s, c] > 0]
                if not states:
                    continue
                load, targets = self._loads(c, i, above, cut, (work[c], misfits[c]), ceiling_s)
                for s in states:
                    reached = s + self.stride[c]
                    value = np.maximum(load, best[s, i])
                    better = value < best[reached, targets]
                    best[reached, targets[better]] = value[better]
                    source[reached, targets[better]] = i
                    via[reached, targets[better]] = c
        last = best[:, -1]
        if not np.isfinite(last).any():
            return math.inf, None
        state = int(order[np.argmin(last[order])])
        return float(last[state]), self._answer(source, via, state)

    def _live(self, values: Floats, promising: NDArray[np.bool_], order: Ints) -> list[int]:
        """States worth leaving: able to finish, and better than any that used fewer devices."""
        kept: list[int] = []
        for s in order:
            value = values[s]
            if not promising[s] or value == math.inf:
                continue
            if any(values[k] <= value and np.all(self.used[k] <= self.used[s]) for k in kept):
                continue
            kept.append(int(s))
        return kept

    def _window(self, i: int, ceiling_s: float) -> int:
        """Sets from here on hold more work beyond set ``i`` than one device can do."""
        work = self.sets.work
        reach = min(ceiling_s / self.sets.unit_s, 2.0**51)
        return int(np.searchsorted(work, work[i] + int(reach) + 1, side="right"))

    def _loads(
        self,
        c: int,
        i: int,
        above: Ints,
        cut: Floats,
        sums: tuple[Floats, NDArray[np.int32]],
        ceiling_s: float,
    ) -> tuple[Floats, Ints]:
        """Loads up to the ceiling on a device of class ``c``, and the sets they lead to."""
        work, misfits = sums
        compute = work[above] - work[i]
        wire = self.blocks.factors[c] * cut
        serial = self.blocks.problem.charging is Charging.DEVICE
        load = compute + wire if serial else np.maximum(compute, wire)
        fits = (load <= ceiling_s) & (misfits[above] == misfits[i])
        fits &= self.pairs.size[above] - self.pairs.size[i] <= self.memories[c]
        return load[fits], above[fits]

    def _answer(
        self, source: NDArray[np.int32], via: NDArray[np.int8], state: int
    ) -> tuple[int, ...]:
        """A device of the problem for each block, found from the end."""
        holds = self.sets.holds
        devices = [-1] * self.blocks.num_blocks
        j = self.sets.count - 1
        while j:
            i, c = int(source[state, j]), int(via[state, j])
            device = self.blocks.problem.classes[c][self.used[state][c] - 1]
            for b in np.flatnonzero(holds[:, j] & ~holds[:, i]):
                devices[b] = device
            j, state = i, state - self.stride[c]
        return tuple(devices)
