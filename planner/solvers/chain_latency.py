"""Least time of one batch through a line of stages: shortest path, inside a search over the period.

With one microbatch the time of a batch is the length of its path through stages and transfers, and

    A[used + n, n, e] = min over last a, cut j of
        max(A[used, a, j] + duration[a, n, j], input[n]) + compute[n, j, e]

With ``k`` microbatches it is at least (on a line without whole-batch stages and with one input:
exactly) the sum of all durations plus ``(k - 1) * max busy``. Let ``g(T)`` be the least sum with
no server busier than ``T``: the same programme with the busier ones left out. As ``g`` falls with
``T``, no plan whose busiest server lies in ``(t1, t2]`` is below ``g(t2) + (k - 1) * t1``;
intervals are split until nothing better is left. What is known by then cuts the programme short:
entries that cannot be finished below it even without transfers are dropped, be it on any devices
within the limit or on those that are left.

A stage's busy time depends on its neighbours where transfers occupy the devices; ``A`` then has one
entry per kind of neighbour. Beyond ``MAX_KINDS`` kinds the least occupied stands for all, and the
result is a bound.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.solvers.arrays import Floats, Integers
from planner.solvers.base import SolveLimits
from planner.solvers.chain_tables import ChainTables, Decode, Progress, Step

MAX_KINDS = 4
"""Kinds of neighbour that are told apart when transfers occupy devices."""
MAX_SPLITS = 300
"""Intervals of the period that are looked at; a bound is left of the rest."""

_PROOF = 1e-12


@dataclass(frozen=True)
class _Path:
    """Stages with the least sum of durations, and their busiest server."""

    sum_s: float
    steps: list[Step]
    busiest_s: float


@dataclass(frozen=True, slots=True)
class _End:
    """A last stage: the state that it completes, its option, its first layer, the path's sum."""

    state: int
    option: int
    start: int
    sum_s: float


@dataclass(frozen=True)
class LatencySurvey:
    """The least sum of durations on each group of devices under one limit on busy times."""

    run: _Run
    ends: Mapping[int, _End]

    def path(self, group: int) -> tuple[float, float, list[Step]]:
        """The sum of durations, the time of the busiest server, and the stages that have them."""
        found = self.run.path(self.ends[group])
        return found.sum_s, found.busiest_s, found.steps


class LatencySearch:
    """Runs of the shortest path on one problem's tables."""

    def __init__(self, tables: ChainTables) -> None:
        self.tables = tables
        hops = tables.hops
        self.repeats = tables.problem.num_microbatches - 1
        # Servers that handle microbatches one by one; whole-batch ones never repeat.
        self._piecewise = np.array([not o.whole_batch for o in tables.options])
        self._separate = hops.separate & (self.repeats > 0)
        # The least over the outputs a stage writes on the way: a bound where they differ.
        self._send = hops.send.min(axis=2)
        self._sends, self._send_kind = _kinds(self._send)
        receive = np.moveaxis(hops.receive, 0, 1)
        self._receives, self._receive_kind = _kinds(receive.reshape(*receive.shape[:2], -1))
        self._receives = self._receives.reshape(
            len(tables.options), -1, tables.num_input_sets, tables.num_layers
        )
        self._last_set = tables.crossing.output_set[:-1, -1]
        self._first_set = tables.crossing.input_set[0]
        self._table: Floats | None = None
        self._completions = np.full((tables.states.size, tables.num_layers), np.nan)

    def run(self, decode: Decode, limits: SolveLimits, progress: Progress) -> None:
        """Find the least latency; plans and bounds go to ``progress``.

        Raises:
            TimeoutError: the deadline has passed; ``progress`` holds what is known.
        """
        path = self._shortest(float("inf"), float("inf"), limits, progress)
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
            path = self._shortest(high, useful_s, limits, progress)
            if path is None:
                continue
            self._keep(path, decode, progress)
            top, least = path.busiest_s * (1 - _PROOF), path.sum_s
            middle = (low + top) / 2
            useful_s = min(progress.relaxed_s, cutoff) - self.repeats * low
            under = None
            if low < middle < top:
                under = self._shortest(middle, useful_s, limits, progress)
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
            progress.bound_s = progress.relaxed_s

    def survey(self, period_s: float, limits: SolveLimits, progress: Progress) -> LatencySurvey:
        """What each group of devices can do with no server busier than ``period_s``.

        Raises:
            TimeoutError: the deadline has passed.
        """
        return _Run(self, period_s, self._empty()).survey(limits, progress)

    def _keep(self, path: _Path, decode: Decode, progress: Progress) -> None:
        decode.keep(path.steps, progress)
        progress.relaxed_s = min(progress.relaxed_s, path.sum_s + self.repeats * path.busiest_s)

    def _shortest(
        self, period_s: float, useful_s: float, limits: SolveLimits, progress: Progress
    ) -> _Path | None:
        """The least sum of durations, below ``useful_s``, with no server busier than
        ``period_s``."""
        if self._table is None:
            self._table = self._empty()
        else:
            self._table.fill(np.inf)
        return _Run(self, period_s, self._table).solve(useful_s, limits, progress)

    def completions(self, used: Sequence[int] | Integers) -> Floats:
        """Least seconds from each cut to the end of the model on the devices that each of ``used``
        leaves, without hops and limits: ``[state, cut]``."""
        states = np.asarray(used)
        for state in states[np.isnan(self._completions[states, 0])]:
            self._completions[state] = self._completion(int(state))
        return np.asarray(self._completions[states])

    def _completion(self, used: int) -> Floats:
        tables = self.tables
        nexts = tables.states.nexts[used]
        if not len(nexts):
            return np.full(tables.num_layers, np.inf)
        passed = tables.hops.last_duration[nexts][:, self._last_set]
        last = (tables.compute[nexts, :-1, -1] + passed).min(axis=0)
        return _to_the_end(tables.compute[nexts].min(axis=0), last)

    def _empty(self) -> Floats:
        """A table by state, option, send kind and cut."""
        tables = self.tables
        size = (tables.states.size, len(tables.options), self._sends.shape[1], tables.num_layers)
        return np.full(size, np.inf)

    def busiest_s(self, steps: list[Step]) -> float:
        """Time of the busiest server among stages and transfers, as the programme counts it."""
        if not self.repeats:
            return 0.0
        tables, hops = self.tables, self.tables.hops
        busy = [0.0]
        for at, step in enumerate(steps):
            n, piecewise = step.option, self._piecewise[step.option]
            u = tables.crossing.input_set[step.start, step.end]
            o = tables.crossing.output_set[step.start, step.end]
            load = tables.compute[n, step.start, step.end]
            if at == 0:
                load += hops.first_receive[n, u]
                busy.append(hops.first_duration[n, u] if piecewise else 0.0)
            else:
                a = steps[at - 1].option
                load += hops.receive[a, n, u, step.start]
                busy.append(hops.duration[a, n, step.start] if self._separate[a, n] else 0.0)
            if at == len(steps) - 1:
                load += hops.last_send[n, o]
                busy.append(hops.last_duration[n, o] if piecewise else 0.0)
            else:
                load += self._send[n, steps[at + 1].option, step.end]
            busy.append(load if piecewise else 0.0)
        return float(max(busy))


class _Run:
    """One shortest path under a limit on busy times."""

    def __init__(self, search: LatencySearch, period_s: float, table: Floats) -> None:
        self.search, self.tables = search, search.tables
        hops, tables = search.tables.hops, search.tables
        self.period_s = period_s
        self.useful_s = float("inf")
        self.hop = (
            np.where(search._separate & (period_s < np.inf), 1, 0)[:, :, None] * hops.duration
        )
        self.hop = np.where(self.hop <= period_s, hops.duration, np.inf)
        sets = tables.crossing.input_set[:-1, :]
        cuts = np.arange(tables.num_layers)[:, None]
        inner = np.minimum(sets, tables.num_input_sets - 1)
        limited = period_s < np.inf and search.repeats > 0
        self.compute: list[list[Floats]] = []  # [option][receive kind x send kind] -> [j, e]
        for n in range(len(tables.options)):
            seconds = tables.compute[n]
            entries = []
            for received in search._receives[n]:
                for sent in search._sends[n]:
                    if limited and search._piecewise[n]:
                        load = seconds.copy()
                        load[:-1] += received[inner, cuts]
                        load[:, :-1] += sent[None]
                        entries.append(np.where(load <= period_s, seconds, np.inf))
                    else:
                        entries.append(seconds)
            self.compute.append(entries)
        self.limited = limited
        self.num_kinds = search._sends.shape[1]
        self.table = table
        self.ending = self._endings()
        self.starting = self._starts()
        every = np.array(self.compute)  # [option, kinds, j, e]
        shortest = tables.shortest(every.reshape(-1, *every.shape[2:]))
        windows = tables.windows(shortest, np.finfo(float).max)
        self.reach = [[int(n) for n in row] for row in windows.reshape(every.shape[:2])]
        self._every = every

    @cached_property
    def left(self) -> Floats:
        """Least seconds from each cut to the end of the model, on any devices, without hops."""
        return _to_the_end(self._every.min(axis=(0, 1)), self.ending.min(axis=(0, 1)))

    def _endings(self) -> Floats:
        """Seconds of a last stage and the outputs' transfer, by option, receive kind and start."""
        search, tables, hops = self.search, self.tables, self.tables.hops
        sets = search._last_set
        found = []
        inner = np.minimum(tables.crossing.input_set[:-1, -1], tables.num_input_sets - 1)
        for n in range(len(tables.options)):
            seconds, passed = tables.compute[n, :-1, -1], hops.last_duration[n][sets]
            rows = []
            for received in search._receives[n]:
                total = seconds + passed
                if self.limited and search._piecewise[n]:
                    load = seconds + received[inner, np.arange(tables.num_layers)]
                    load = load + hops.last_send[n][sets]
                    total = np.where(np.maximum(load, passed) <= self.period_s, total, np.inf)
                rows.append(total)
            found.append(rows)
        return np.array(found)

    def _starts(self) -> Floats:
        """Seconds of a first stage and the inputs' transfer, by option, send kind and end."""
        search, tables, hops = self.search, self.tables, self.tables.hops
        sets = search._first_set
        found = []
        for n in range(len(tables.options)):
            seconds, passed = tables.compute[n, 0], hops.first_duration[n][sets]
            rows = []
            for sent in search._sends[n]:
                total = passed + seconds
                if self.limited and search._piecewise[n]:
                    load = seconds + hops.first_receive[n][sets]
                    load[:-1] += sent
                    load[-1] += hops.last_send[n][tables.crossing.output_set[0, -1]]
                    total = np.where(np.maximum(load, passed) <= self.period_s, total, np.inf)
                rows.append(total)
            found.append(rows)
        return np.array(found)

    def solve(self, useful_s: float, limits: SolveLimits, progress: Progress) -> _Path | None:
        """The path with the least sum, if there is one below ``useful_s``."""
        final = self.tables.states.final
        self.useful_s = useful_s
        best: _End | None = None
        for end in self._ends(limits, progress):
            if end.sum_s < self.useful_s and final[end.state]:
                self.useful_s, best = end.sum_s, end
        return None if best is None else self.path(best)

    def survey(self, limits: SolveLimits, progress: Progress) -> LatencySurvey:
        """The least sum on each group of devices, whatever devices are required."""
        num_counts = self.tables.states.num_counts
        ends: dict[int, _End] = {}
        for end in self._ends(limits, progress):
            group = end.state // num_counts
            if group not in ends or end.sum_s < ends[group].sum_s:
                ends[group] = end
        return LatencySurvey(self, ends)

    def path(self, end: _End) -> _Path:
        """The stages that end in ``end``."""
        steps = self._trace(end.state - self.tables.states.code[end.option], end.option, end.start)
        return _Path(end.sum_s, steps, self.search.busiest_s(steps))

    def _ends(self, limits: SolveLimits, progress: Progress) -> Iterator[_End]:
        """Last stages, the best for each option and state; of use only below ``useful_s``."""
        tables, states, left = self.tables, self.tables.states, self.left
        for n, code in enumerate(states.code):
            self.table[code, n] = self.starting[n, :, :-1]
            out = tables.crossing.output_set[0, -1]
            passed = tables.hops.last_duration[n, out]
            total = float(self.starting[n, :, -1].min() + passed)
            blocked = self.limited and self.search._piecewise[n] and passed > self.period_s
            if total < np.inf and not blocked:
                yield _End(code, n, 0, total)
        for level in states.levels[1:]:
            if limits.expired:
                raise TimeoutError
            rows: dict[int, list[tuple[int, Floats]]] = {}
            for used in level:
                lasts, nexts = states.lasts[used], states.nexts[used]
                if not len(lasts) or not len(nexts):
                    continue
                behind = np.maximum(left, self.search.completions([used])[0])
                if not (self.table[used, lasts] + behind < self.useful_s).any():
                    continue
                arriving = self._arriving(used, lasts, nexts)
                progress.priced += arriving.size
                for at, n in enumerate(nexts):
                    rows.setdefault(int(n), []).append((used, arriving[at]))
            for n, group in rows.items():
                stacked = np.stack([row for _, row in group])  # [state, receive kind, set, cut]
                targets = np.array([used for used, _ in group]) + states.code[n]
                self._extend(n, stacked, targets)
                at_end = stacked[:, :, tables.input_sets_to(tables.num_layers), :][
                    :, :, np.arange(tables.num_layers), np.arange(tables.num_layers)
                ]
                totals = (at_end + self.ending[n][None]).min(axis=1)
                starts = totals.argmin(axis=1)
                least = totals[np.arange(len(totals)), starts]
                for row in np.flatnonzero(least < self.useful_s):
                    yield _End(int(targets[row]), n, int(starts[row]), float(least[row]))

    def _extend(self, n: int, stacked: Floats, targets: Integers) -> None:
        tables, kinds = self.tables, self.num_kinds
        for s in range(kinds):
            for q in range(stacked.shape[1]):
                entry = q * kinds + s
                loads = tables.extend(
                    0, stacked[:, q], self.reach[n][entry], self.compute[n][entry][None]
                ).min(axis=1)
                if self.useful_s < np.inf:
                    behind = np.maximum(self.search.completions(targets), self.left)
                    loads = np.where(loads + behind < self.useful_s, loads, np.inf)
                self.table[targets, n, s] = np.minimum(self.table[targets, n, s], loads)

    def _arriving(self, used: int, lasts: Integers, nexts: Integers) -> Floats:
        """Least time at which the next stage has what it needs: [next, receive kind, set, cut]."""
        search, tables = self.search, self.tables
        pairs = np.ix_(lasts, nexts)
        times = self.table[used][lasts[:, None], search._send_kind[pairs]] + self.hop[pairs]
        kind = search._receive_kind[nexts][:, lasts].T
        num = search._receives.shape[1]
        if num == 1:
            least = times.min(axis=0)[:, None]
        else:
            least = np.stack(
                [np.where((kind == q)[:, :, None], times, np.inf).min(axis=0) for q in range(num)],
                axis=1,
            )
        least = np.repeat(least[:, :, None], tables.num_input_sets, axis=2)
        if not search.repeats:
            inputs = tables.hops.first_duration[nexts][:, None, : tables.num_input_sets, None]
            least = np.maximum(least, inputs)
        return np.asarray(least)

    def _trace(self, used: int, n: int, start: int) -> list[Step]:
        """Stages of the path whose last stage is on ``n`` from ``start`` on, behind ``used``."""
        tables, states, search = self.tables, self.tables.states, self.search
        end = tables.num_layers
        steps = [Step(n, start, end)]
        goal: int | None = None  # send kind towards the stage behind; None for the last
        while start > 0:
            u = int(tables.input_sets_to(end)[start])
            arriving = self._arriving(used, states.lasts[used], np.array([n]))[0][:, u, start]
            if goal is None:
                times = arriving + self.ending[n][:, start]
            else:
                times = arriving + np.array(
                    [
                        self.compute[n][q * self.num_kinds + goal][start, end]
                        for q in range(len(arriving))
                    ]
                )
            q = int(np.argmin(times))
            lasts = states.lasts[used]
            passed = (
                self.table[used][lasts, search._send_kind[lasts, n], start]
                + self.hop[lasts, n, start]
            )
            passed = np.where(search._receive_kind[n, lasts] == q, passed, np.inf)
            a = int(lasts[int(np.argmin(passed))])
            goal = int(search._send_kind[a, n])
            value = self.table[used, a, goal, start]
            n, end, used = a, start, used - states.code[a]
            start = self._origin(used, n, end, goal, value)
            steps.append(Step(n, start, end))
        return steps[::-1]

    def _origin(self, used: int, n: int, end: int, goal: int, value: float) -> int:
        """Where the stage on ``n`` that ends at ``end`` after ``value`` seconds began."""
        tables, lasts = self.tables, self.tables.states.lasts[used]
        if not len(lasts):
            return 0
        arriving = self._arriving(used, lasts, np.array([n]))[0]
        arriving = arriving[:, tables.input_sets_to(end), np.arange(end)]
        times = np.stack(
            [
                arriving[q] + self.compute[n][q * self.num_kinds + goal][:end, end]
                for q in range(len(arriving))
            ]
        ).min(axis=0)
        start = int(np.argmin(times))
        assert times[start] == value, "the table does not repeat"
        return start


def _to_the_end(least: Floats, last: Floats) -> Floats:
    """Least seconds from each cut to the end: stages take ``least[j, e]``, or ``last[j]`` to it."""
    found = np.array(last)
    for cut in range(len(last) - 2, 0, -1):
        between = least[cut, cut + 1 : len(last)] + found[cut + 1 :]
        found[cut] = min(float(found[cut]), float(between.min()))
    return np.asarray(found * (1 - _PROOF))  # sums in another order


def _kinds(rows: Floats) -> tuple[Floats, Integers]:
    """Different rows of ``rows[i, k, :]`` by ``i``, and which of them each ``k`` has.

    Padded to the same number for every ``i``; one row of minima where there are too many.
    """
    different = [np.unique(per, axis=0, return_inverse=True) for per in rows]
    most = max(len(values) for values, _ in different)
    if most > MAX_KINDS:
        return rows.min(axis=1)[:, None], np.zeros(rows.shape[:2], dtype=np.int64)
    values = np.stack([np.resize(per, (most, rows.shape[2])) for per, _ in different])
    return values, np.stack([which.reshape(-1) for _, which in different])
