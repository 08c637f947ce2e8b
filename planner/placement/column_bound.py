"""A bound on the largest load by columns: sets of blocks that one device can hold below a ceiling.

A placement whose loads stay below ``T`` picks one such set for each device and covers each block
once. Relaxed to fractions, with ``n_c`` devices of class ``c``,

    minimise q   with   sum over sets S with b in S of x(c, S) = 1      for each block b
                        sum over S of x(c, S) <= n_c q                  for each class c

and ``q > 1`` shows that no placement stays below ``T``. By duality this is so as soon as prices
``p`` of the blocks are found with ``sum p > sum_c n_c max_S p(S)``; the maxima come from
:class:`~planner.placement.pricing.Pricer`. Prices start as the times of the blocks (which gives the
bound of sharing out all work), and improve by a linear program over the sets found so far, within
a box around the best prices yet (Marsten, Hogan and Blankenship 1975).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from planner.placement.blocks import Blocks, Floats, slowness
from planner.placement.linear_master import LinearMaster
from planner.placement.pricing import Pricer
from planner.solvers.base import SolveLimits, SolveStatus

Column = tuple[int, tuple[int, ...]]
"""A class of devices, and blocks that a device of this class can hold."""

FIRST_BOX = 0.25
BOX_GROWTH, BOX_SHRINK = 1.5, 0.7
ENOUGH = 1e-6
MORE = 16
"""Further sets from each pricing: they cost little and make the linear program converge sooner."""

CAUTION = 0.3
"""How far the prices tried go from the best so far to those of the linear program, in turn with
all the way."""


class Refutation:
    """The attempt to show that no placement of ``blocks`` stays below ``ceiling_s``."""

    def __init__(self, blocks: Blocks, *, ceiling_s: float, ticks: tuple[int, int]) -> None:
        self.blocks = blocks
        self._known: set[Column] = set()
        self.pricers = [
            Pricer(blocks, c, ceiling_s=ceiling_s, ticks=ticks) for c in range(len(blocks.counts))
        ]
        self.possible = all(p.feasible for p in self.pricers)
        self.ratio = 0.0
        num = blocks.num_blocks
        rows = [(1.0, 1.0)] * num + [(-math.inf, 0.0)] * len(blocks.counts)
        self._master = LinearMaster(rows)
        counts = enumerate(blocks.counts)
        self._master.add(1.0, {num + c: -float(n) for c, n in counts})
        for b in range(num):
            self._master.add(1.0, {b: 1.0})
            self._master.add(1.0, {b: -1.0})

    def add(self, columns: Iterable[Column]) -> None:
        """Sets to start from."""
        for c, chosen in columns:
            entries = dict.fromkeys(chosen, 1.0) | {self.blocks.num_blocks + c: 1.0}
            self._master.add(0.0, entries)
            self._known.add((c, chosen))

    def run(self, limits: SolveLimits) -> SolveStatus:
        """INFEASIBLE: no placement. FEASIBLE: not to be shown this way. UNKNOWN: out of time."""
        if not self.possible:
            return SolveStatus.FEASIBLE
        least, _ = slowness(self.blocks)
        centre = self._try(least)
        box, careful = FIRST_BOX, False
        while not limits.expired and self.ratio <= 1 + 1e-9:
            tried, expected = self._improved(centre, box)
            if tried is None or expected <= 1 + ENOUGH:
                if tried is None or box > 1e3:
                    return SolveStatus.FEASIBLE
                box *= 4
                continue
            before = self.ratio
            careful = not careful
            scaled = self._try(centre + CAUTION * (tried - centre) if careful else tried)
            if self.ratio > before:
                centre = scaled
                box *= BOX_GROWTH if self.ratio - before > 0.3 * (expected - before) else 1.0
            else:
                box = max(box * BOX_SHRINK, 1e-3)
        return SolveStatus.INFEASIBLE if self.ratio > 1 + 1e-9 else SolveStatus.UNKNOWN

    def _improved(self, centre: Floats, box: float) -> tuple[Floats | None, float]:
        """Prices in a box around ``centre`` that sets known so far allow, and their ratio."""
        num = self.blocks.num_blocks
        reach = box * np.maximum(np.abs(centre), np.abs(centre).mean())
        for b in range(num):
            self._master.set_cost(1 + 2 * b, float(centre[b] + reach[b]))
            self._master.set_cost(2 + 2 * b, float(reach[b] - centre[b]))
        solved = self._master.solve()
        if solved is None:
            return None, 0.0
        return np.array(solved[1][:num]), solved[0]

    def _try(self, prices: Floats) -> Floats:
        """Find the best sets at these prices; the prices scaled so that devices hold 1 of them."""
        held = 0.0
        found: list[Column] = []
        for c, (pricer, count) in enumerate(zip(self.pricers, self.blocks.counts, strict=True)):
            value, sets = pricer.best(prices, more=MORE)
            held += count * max(value, 0.0)
            found += [(c, chosen) for chosen in sets if (c, chosen) not in self._known]
        self.add(found)
        total = math.fsum(prices)
        if held <= 0:
            self.ratio = math.inf if total > 0 else self.ratio
            return prices
        self.ratio = max(self.ratio, total / held)
        return np.asarray(prices / held, np.float64)
