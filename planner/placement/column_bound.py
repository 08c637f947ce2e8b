"""A bound on the largest load by columns: sets of blocks that one device can hold below a ceiling.

A placement whose loads stay below ``T`` picks one such set for each device and covers each block
once. Relaxed to fractions, with ``n_c`` devices of class ``c``,

    minimise q   with   sum over sets S with b in S of x(c, S) = 1      for each block b
                        sum over S of x(c, S) <= n_c q                  for each class c

and ``q > 1`` shows that no placement stays below ``T``. By duality this is so as soon as prices
``p`` of the blocks are found with ``sum p > sum_c n_c max_S p(S)``; the maxima come from
:class:`~planner.placement.pricing.Pricer`, the prices from a linear program over the sets found
so far, smoothed towards the best prices yet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from planner.placement.blocks import Blocks, Floats
from planner.placement.or_tools import LinearMaster
from planner.placement.pricing import Pricer
from planner.solvers.base import SolveLimits, SolveStatus

SMOOTHING = 0.6
CONVERGED = 1e-6


class Refutation:
    """The attempt to show that no placement of ``blocks`` stays below ``ceiling_s``.

    Sets from one attempt are a start for the next (:attr:`columns`).
    """

    def __init__(self, blocks: Blocks, *, ceiling_s: float, ticks: int) -> None:
        self.blocks = blocks
        self.columns: list[tuple[int, tuple[int, ...]]] = []
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

    def add(self, columns: Iterable[tuple[int, tuple[int, ...]]]) -> None:
        """Sets to start from, each with the class of device that holds it."""
        for c, chosen in columns:
            entries = dict.fromkeys(chosen, 1.0) | {self.blocks.num_blocks + c: 1.0}
            self._master.add(0.0, entries)
            self.columns.append((c, chosen))

    def run(self, limits: SolveLimits) -> SolveStatus:
        """INFEASIBLE: no placement. FEASIBLE: not to be shown this way. UNKNOWN: out of time."""
        if not self.possible:
            return SolveStatus.FEASIBLE
        num, centre = self.blocks.num_blocks, None
        smoothing = SMOOTHING
        while not limits.expired:
            solved = self._master.solve()
            if solved is None:
                return SolveStatus.UNKNOWN
            quotient, prices, _ = solved
            if quotient <= 1 - CONVERGED:
                return SolveStatus.FEASIBLE
            own = np.array(prices[:num])
            tried = own if centre is None else smoothing * centre + (1 - smoothing) * own
            found, ratio = self._price(tried)
            if ratio > 1 + 1e-9:
                self.ratio = ratio
                return SolveStatus.INFEASIBLE
            if ratio > self.ratio:
                self.ratio, centre = ratio, tried
            new = [
                (c, chosen)
                for c, chosen in found
                if sum(own[b] for b in chosen) > -prices[num + c] + CONVERGED * 1e-2
            ]
            if new:
                self.add(new)
                smoothing = SMOOTHING
            elif smoothing == 0.0 or centre is None:
                return SolveStatus.FEASIBLE
            else:
                smoothing = 0.0
        return SolveStatus.UNKNOWN

    def _price(self, prices: Floats) -> tuple[list[tuple[int, tuple[int, ...]]], float]:
        """The best set of each class, and how far the prices exceed what devices can hold."""
        found, held = [], 0.0
        for c, (pricer, count) in enumerate(zip(self.pricers, self.blocks.counts, strict=True)):
            value, chosen = pricer.best(prices)
            held += count * max(value, 0.0)
            if chosen:
                found.append((c, chosen))
        total = math.fsum(prices)
        return found, total / held if held > 0 else (math.inf if total > 0 else 0.0)
