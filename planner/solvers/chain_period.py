"""Least time between batches of a line of stages: dynamic programme inside a bisection.

For a trial period ``T`` let ``A[used, n, o, j]`` be the least load (receiving and computing,
seconds a batch) of a last stage on option ``n`` that ends at cut ``j``, over all ways to run the
layers before ``j`` on the devices ``used`` such that every earlier stage and every wire stays
within ``T``; ``o`` is the set of model outputs that the last stage writes. Then

    R[used, n, u, j]      = min over last a, o of receive[a, n, u, j]
                            where A[used, a, o, j] + send[a, n, o, j] <= T, wires <= T
    A[used + n, n, o, e]  = min over j of R[used, n, u(j, e), j] + compute[n, j, e]

Only the least load matters, because a stage's load and what follows it are independent. ``T`` is
reachable when some last stage ends within ``T``. Wires shared by several pairs of devices are
charged per pair, so a period found infeasible is infeasible, but one found feasible may not be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.solvers.base import SolveLimits
from planner.solvers.chain_segments import Floats
from planner.solvers.chain_tables import ChainTables, Progress, Step


@dataclass(frozen=True)
class _Found:
    """Where the best last stage begins: devices used before it, its option, its first layer."""

    used: int
    option: int
    start: int


class PeriodSearch:
    """Runs of the dynamic programme on one problem's tables."""

    def __init__(self, tables: ChainTables) -> None:
        self.tables = tables
        hops, states = tables.hops, tables.states
        runs = np.array([tables.runs(option) for option in tables.options], dtype=float)
        self._compute = runs[:, None, None] * tables.compute
        self._receive = runs[None, :, None, None] * hops.receive
        self._send = runs[:, None, None, None] * hops.send
        self._first = runs[:, None] * hops.first_receive
        self._ending = (
            self._compute[:, :, -1]
            + ((runs[:, None] * hops.last_send)[:, tables.crossing.output_set[:, -1]])
        )
        self._last_wire = hops.last_wire[:, tables.crossing.output_set[:, -1]]
        self._reach = tables.shortest(self._compute)
        self._table = np.full(
            (states.size, len(tables.options), tables.num_output_sets, tables.num_layers), np.inf
        )

    def reach(self, period_s: float, limits: SolveLimits, progress: Progress) -> list[Step] | None:
        """Stages that keep within ``period_s``, few of them, or None.

        Raises:
            TimeoutError: the deadline has passed.
        """
        tables, states = self.tables, self.tables.states
        within = np.where(tables.hops.wire_out <= period_s, period_s - self._send, -np.inf)
        receive = np.where(tables.hops.wire_in <= period_s, self._receive, np.inf)
        windows = tables.windows(self._reach, period_s)
        ending = np.where(self._last_wire <= period_s, self._ending, np.inf)
        self._table.fill(np.inf)
        self._start(period_s)
        best = self._single(ending, period_s)
        if best is not None:
            return [best]
        for level in states.levels[1:]:
            if limits.expired:
                raise TimeoutError
            rows: dict[int, list[tuple[int, Floats]]] = {}
            found: tuple[float, _Found] | None = None
            for used in level:
                lasts, nexts = states.lasts[used], states.nexts[used]
                if not len(lasts) or not len(nexts):
                    continue
                loads = self._table[used, lasts]
                if not (loads < period_s).any():
                    continue
                pairs = np.ix_(lasts, nexts)
                arriving = self._arriving(loads, within[pairs], receive[pairs])
                progress.priced += arriving.size
                for at, n in enumerate(nexts):
                    rows.setdefault(int(n), []).append((used, arriving[at]))
            for n, group in rows.items():
                stacked = np.stack([row for _, row in group])
                targets = np.array([used for used, _ in group]) + states.code[n]
                self._table[targets, n] = tables.extend(n, stacked, windows[n], self._compute)
                candidate = self._close(n, group, stacked, ending, period_s)
                if candidate is not None and (found is None or candidate[0] < found[0]):
                    found = candidate
            if found is not None:
                return self._trace(found[1], within, receive)
        return None

    def _start(self, period_s: float) -> None:
        """First stages."""
        tables = self.tables
        sets = tables.crossing.input_set[0]
        for n, code in enumerate(tables.states.code):
            fits = tables.hops.first_wire[n][sets] <= period_s
            load = np.where(fits, self._first[n][sets] + self._compute[n, 0], np.inf)
            for o in range(tables.num_output_sets):
                mine = tables.crossing.output_set[0] == o
                self._table[code, n, o] = np.where(mine, load, np.inf)[: tables.num_layers]

    def _single(self, ending: Floats, period_s: float) -> Step | None:
        """The whole model in one stage, if that is within the period."""
        tables = self.tables
        whole = tables.crossing.input_set[0, -1]
        loads = np.where(
            tables.hops.first_wire[:, whole] <= period_s,
            self._first[:, whole] + ending[:, 0],
            np.inf,
        )
        loads = np.where([tables.states.final[c] for c in tables.states.code], loads, np.inf)
        best = int(np.argmin(loads))
        return Step(best, 0, tables.num_layers) if loads[best] <= period_s else None

    def _arriving(self, loads: Floats, within: Floats, receive: Floats) -> Floats:
        """``R`` of one state: least receiving time of each next option, input set and cut."""
        closes = loads[:, None] <= within  # [last, next, output set, cut]
        if closes.shape[2] == 1:
            return np.asarray(np.where(closes, receive, np.inf).min(axis=0))
        can = np.asarray(closes.any(axis=2))[:, :, None]
        return np.asarray(np.where(can, receive, np.inf).min(axis=0))

    def _close(
        self,
        n: int,
        group: list[tuple[int, Floats]],
        stacked: Floats,
        ending: Floats,
        period_s: float,
    ) -> tuple[float, _Found] | None:
        """The least loaded last stage on option ``n`` that ends the model in time."""
        tables, states = self.tables, self.tables.states
        sets = tables.input_sets_to(tables.num_layers)
        loads = stacked[:, sets, np.arange(tables.num_layers)] + ending[n][:-1]
        allowed = [states.final[used + states.code[n]] for used, _ in group]
        loads[~np.array(allowed)] = np.inf
        at, start = np.unravel_index(int(np.argmin(loads)), loads.shape)
        if not loads[at, start] <= period_s:
            return None
        return float(loads[at, start]), _Found(group[at][0], n, int(start))

    def _trace(self, found: _Found, within: Floats, receive: Floats) -> list[Step]:
        """The stages behind ``found``, by repeating each step's minimum backwards."""
        tables, states = self.tables, self.tables.states
        used, n, start, end = found.used, found.option, found.start, tables.num_layers
        steps = [Step(n, start, end)]
        while True:
            lasts = states.lasts[used]
            u = int(tables.crossing.input_set[start, end])
            loads = self._table[used, lasts, :, start]
            times = np.where(
                loads <= within[lasts, n, :, start], receive[lasts, n, u, start][:, None], np.inf
            )
            which, o = np.unravel_index(int(np.argmin(times)), times.shape)
            n, end = int(lasts[which]), start
            value = self._table[used, n, o, end]
            used -= states.code[n]
            start = self._origin(used, (n, int(o), end), value, within, receive)
            steps.append(Step(n, start, end))
            if start == 0:
                return steps[::-1]

    def _origin(
        self, used: int, last: tuple[int, int, int], value: float, within: Floats, receive: Floats
    ) -> int:
        """Where the ``last`` stage (option, outputs, end) began whose load is ``value``."""
        tables, (n, o, end) = self.tables, last
        sets, lasts = tables.input_sets_to(end), tables.states.lasts[used]
        if not len(lasts):
            return 0
        arriving = self._arriving(
            self._table[used, lasts], within[lasts, n][:, None], receive[lasts, n][:, None]
        )[0]
        loads = arriving[sets, np.arange(end)] + self._compute[n, :end, end]
        loads = np.where(tables.crossing.output_set[:end, end] == o, loads, np.inf)
        start = int(np.argmin(loads))
        assert loads[start] == value, "the table does not repeat"
        return start
