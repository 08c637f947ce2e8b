"""Least time of one batch through a line of stages: shortest path, inside a search over the period.

With one microbatch the time of a batch is the length of its path through stages and transfers, and

    A[used + n, n, e] = min over last a, cut j of
        max(A[used, a, j] + duration[a, n, j], input[n]) + compute[n, j, e]

With ``k`` microbatches it is at least (on a line without whole-batch stages and with one input:
exactly) the sum of all durations plus ``(k - 1) * max busy``. Let ``g(T)`` be the least sum with
no server busier than ``T``: the same programme with the busier ones left out. As ``g`` falls with
``T``, no plan whose busiest server lies in ``(t1, t2]`` is below ``g(t2) + (k - 1) * t1``;
intervals are split until nothing better is left; what is known by then cuts the programme short.

With a limit on the time between batches the stages and wires that exceed it are left out too.
"""

from __future__ import annotations

import heapq

from planner.solvers.arrays import Floats
from planner.solvers.base import SolveLimits
from planner.solvers.chain_paths import LatencySurvey, LinePath, PathTables, ShortestPath
from planner.solvers.chain_tables import ChainTables, Decode, Progress

MAX_SPLITS = 300
"""Intervals of the period that are looked at; a bound is left of the rest."""

_PROOF = 1e-12


class LatencySearch:
    """Runs of the shortest path on one problem's tables."""

    def __init__(self, tables: ChainTables) -> None:
        self.tables, self.paths = tables, PathTables(tables)
        self.repeats = self.paths.repeats
        self._table: Floats | None = None

    def run(
        self,
        decode: Decode,
        limits: SolveLimits,
        progress: Progress,
        *,
        batch_s: float = float("inf"),
    ) -> None:
        """Find the least latency of plans with at most ``batch_s`` between batches; plans and
        bounds go to ``progress``.

        Raises:
            TimeoutError: the deadline has passed; ``progress`` holds what is known.
        """
        path = self._shortest((float("inf"), batch_s), float("inf"), limits, progress)
        if path is None:
            progress.bound_s = float("inf")
            return
        progress.bound_s = path.sum_s
        self._keep(path, decode, progress)
        cutoff = float("inf") if limits.cutoff_s is None else limits.cutoff_s
        # An interval of the busiest server's time, and the least sum for it.
        heap = [(path.sum_s, 0, 0.0, path.busiest_s * (1 - _PROOF))]
        number = 0
        while heap and progress.objective_s > limits.goal_s:
            bound, _, low, high = heap[0]
            progress.bound_s = min(bound, progress.relaxed_s)
            if bound >= min(progress.relaxed_s, cutoff) * (1 - _PROOF):
                return
            if number > MAX_SPLITS:
                return
            heapq.heappop(heap)
            # A plan of this interval is better than the best only with a sum below this.
            useful_s = min(progress.relaxed_s, cutoff) - self.repeats * low
            path = self._shortest((high, batch_s), useful_s, limits, progress)
            if path is None:
                continue
            self._keep(path, decode, progress)
            top, least = path.busiest_s * (1 - _PROOF), path.sum_s
            middle = (low + top) / 2
            useful_s = min(progress.relaxed_s, cutoff) - self.repeats * low
            under = None
            if low < middle < top:
                under = self._shortest((middle, batch_s), useful_s, limits, progress)
            if low < top:
                number += 1
                cut = max(low, middle if middle < top else low)
                heapq.heappush(heap, (least + self.repeats * cut, number, cut, top))
            if under is not None:
                self._keep(under, decode, progress)
                top = under.busiest_s * (1 - _PROOF)
                if low < top:
                    number += 1
                    heapq.heappush(heap, (under.sum_s + self.repeats * low, number, low, top))
        if not heap:
            progress.bound_s = min(progress.relaxed_s, cutoff)

    def survey(self, period_s: float, limits: SolveLimits, progress: Progress) -> LatencySurvey:
        """What each group of devices can do with no server busier than ``period_s``.

        Raises:
            TimeoutError: the deadline has passed.
        """
        return ShortestPath(self.paths, (period_s, float("inf")), self.paths.empty()).survey(
            limits, progress
        )

    def _keep(self, path: LinePath, decode: Decode, progress: Progress) -> None:
        decode.keep(path.steps, progress)
        progress.relaxed_s = min(progress.relaxed_s, path.sum_s + self.repeats * path.busiest_s)

    def _shortest(
        self,
        most_s: tuple[float, float],
        useful_s: float,
        limits: SolveLimits,
        progress: Progress,
    ) -> LinePath | None:
        """The least sum of durations, below ``useful_s``, with no server busier than the first of
        ``most_s`` for a microbatch, and none busier than the second for a batch."""
        if self._table is None:
            self._table = self.paths.empty()
        else:
            self._table.fill(float("inf"))
        return ShortestPath(self.paths, most_s, self._table).solve(useful_s, limits, progress)
