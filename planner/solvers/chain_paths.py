"""Shortest paths through stages and transfers under limits on busy times, for ``chain_latency``.

A stage's busy time depends on its neighbours where transfers occupy the devices; the programme's
table then has one entry per kind of neighbour. Beyond ``MAX_KINDS`` kinds the least occupied stands
for all, and the result is a bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.solvers.arrays import Flags, Floats, Integers
from planner.solvers.base import SolveLimits
from planner.solvers.chain_tables import ChainTables, Progress, Step

_PROOF = 1e-12

MAX_KINDS = 4
"""Kinds of neighbour that are told apart when transfers occupy devices."""


@dataclass(frozen=True)
class LinePath:
    """Stages with the least sum of durations, and their busiest server."""

    sum_s: float
    steps: list[Step]
    busiest_s: float


@dataclass(frozen=True, slots=True)
class PathEnd:
    """A last stage: the state that it completes, its option, its first layer, the path's sum."""

    state: int
    option: int
    start: int
    sum_s: float


@dataclass(frozen=True)
class LatencySurvey:
    """The least sum of durations on each group of devices under one limit on busy times."""

    run: ShortestPath
    ends: Mapping[int, PathEnd]

    def path(self, group: int) -> tuple[float, float, list[Step]]:
        """The sum of durations, the time of the busiest server, and the stages that have them."""
        found = self.run.path(self.ends[group])
        return found.sum_s, found.busiest_s, found.steps


class PathTables:
    """What all shortest paths on one problem's tables have in common."""

    def __init__(self, tables: ChainTables) -> None:
        self.tables = tables
        hops = tables.hops
        self.repeats = tables.problem.num_microbatches - 1
        # Servers that handle microbatches one by one; whole-batch ones never repeat.
        self.piecewise = np.array([not o.whole_batch for o in tables.options])
        self.separate = hops.separate & (self.repeats > 0)
        # The least over the outputs a stage writes on the way: a bound where they differ.
        self.send = hops.send.min(axis=2)
        self.sends, self.send_kind = _kinds(self.send)
        receive = np.moveaxis(hops.receive, 0, 1)
        self.receives, self.receive_kind = _kinds(receive.reshape(*receive.shape[:2], -1))
        self.receives = self.receives.reshape(
            len(tables.options), -1, tables.num_input_sets, tables.num_layers
        )
        # Seconds a batch on the busiest wire between two stages, at least.
        self.wire = np.maximum(hops.wire_in.min(axis=2), hops.wire_out.min(axis=2))
        self.runs = np.array([tables.runs(option) for option in tables.options], dtype=float)
        self.last_set = tables.crossing.output_set[:-1, -1]
        self.first_set = tables.crossing.input_set[0]
        self._completions = np.full((tables.states.size, tables.num_layers), np.nan)

    def empty(self) -> Floats:
        """A table by state, option, send kind and cut."""
        tables = self.tables
        size = (tables.states.size, len(tables.options), self.sends.shape[1], tables.num_layers)
        return np.full(size, np.inf)

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
        passed = tables.hops.last_duration[nexts][:, self.last_set]
        last = (tables.compute[nexts, :-1, -1] + passed).min(axis=0)
        return _to_the_end(tables.compute[nexts].min(axis=0), last)

    def busiest_s(self, steps: list[Step]) -> float:
        """Time of the busiest server among stages and transfers, as the programme counts it."""
        if not self.repeats:
            return 0.0
        tables, hops = self.tables, self.tables.hops
        busy = [0.0]
        for at, step in enumerate(steps):
            n, piecewise = step.option, self.piecewise[step.option]
            u = tables.crossing.input_set[step.start, step.end]
            o = tables.crossing.output_set[step.start, step.end]
            load = tables.compute[n, step.start, step.end]
            if at == 0:
                load += hops.first_receive[n, u]
                busy.append(hops.first_duration[n, u] if piecewise else 0.0)
            else:
                a = steps[at - 1].option
                load += hops.receive[a, n, u, step.start]
                busy.append(hops.duration[a, n, step.start] if self.separate[a, n] else 0.0)
            if at == len(steps) - 1:
                load += hops.last_send[n, o]
                busy.append(hops.last_duration[n, o] if piecewise else 0.0)
            else:
                load += self.send[n, steps[at + 1].option, step.end]
            busy.append(load if piecewise else 0.0)
        return float(max(busy))


class ShortestPath:
    """One shortest path under limits on busy times.

    ``most_s``: for a microbatch, of the servers that handle these one by one; and for a batch, of
    every stage and wire. ``table`` is an empty one (``PathTables.empty``). Entries that cannot be
    finished below what is of use, even without transfers, are dropped: be it on any devices within
    the limits or on those that are left.
    """

    def __init__(self, paths: PathTables, most_s: tuple[float, float], table: Floats) -> None:
        self.paths, self.tables = paths, paths.tables
        hops, tables = paths.tables.hops, paths.tables
        self.period_s, self.batch_s = period_s, batch_s = most_s
        self.useful_s = float("inf")
        self.hop = np.where(paths.separate & (period_s < np.inf), 1, 0)[:, :, None] * hops.duration
        self.hop = np.where((self.hop <= period_s) & (paths.wire <= batch_s), hops.duration, np.inf)
        sets = tables.crossing.input_set[:-1, :]
        cuts = np.arange(tables.num_layers)[:, None]
        inner = np.minimum(sets, tables.num_input_sets - 1)
        limited = period_s < np.inf and paths.repeats > 0
        # What one run of a stage on each option may be loaded with: by what repeats in a batch, and
        # by what each of many batches takes.
        self.most_run = np.where(paths.piecewise & limited, period_s, np.inf)
        self.most_batch = batch_s / paths.runs
        self.most = np.minimum(self.most_run, self.most_batch)
        self.compute: list[list[Floats]] = []  # [option][receive kind x send kind] -> [j, e]
        for n in range(len(tables.options)):
            seconds, work = tables.compute[n], tables.root_s[n]
            entries = []
            for received in paths.receives[n]:
                for sent in paths.sends[n]:
                    if self.most[n] < np.inf and tables.states.usable[n]:
                        load = seconds.copy()
                        load[:-1] += received[inner, cuts]
                        load[:, :-1] += sent[None]
                        entries.append(np.where(self._keeps(n, load, work), seconds, np.inf))
                    else:
                        entries.append(seconds)
            self.compute.append(entries)
        self.limited = limited
        self.num_kinds = paths.sends.shape[1]
        self.table = table
        self.ending = self._endings()
        self.starting = self._starts()
        self._every = every = np.array(self.compute)  # [option, kinds, j, e]
        shortest = tables.shortest(every.reshape(-1, *every.shape[2:]))
        windows = tables.windows(shortest, np.finfo(float).max)
        self.reach = [[int(w) for w in row] for row in windows.reshape(every.shape[:2])]

    @cached_property
    def left(self) -> Floats:
        """Least seconds from each cut to the end of the model, on any devices, without hops."""
        return _to_the_end(self._every.min(axis=(0, 1)), self.ending.min(axis=(0, 1)))

    def _endings(self) -> Floats:
        """Seconds of a last stage and the outputs' transfer, by option, receive kind and start."""
        paths, tables, hops = self.paths, self.tables, self.tables.hops
        sets = paths.last_set
        found = []
        inner = np.minimum(tables.crossing.input_set[:-1, -1], tables.num_input_sets - 1)
        for n in range(len(tables.options)):
            seconds, passed = tables.compute[n, :-1, -1], hops.last_duration[n][sets]
            rows = []
            for received in paths.receives[n]:
                total = seconds + passed
                if self.most[n] < np.inf:
                    load = seconds + received[inner, np.arange(tables.num_layers)]
                    load = load + hops.last_send[n][sets]
                    work = np.broadcast_to(tables.root_s[n], tables.compute[n].shape)[:-1, -1]
                    total = np.where(self._keeps(n, load, work), total, np.inf)
                rows.append(
                    np.where(self._passes(n, passed, hops.last_wire[n][sets]), total, np.inf)
                )
            found.append(rows)
        return np.array(found)

    def _starts(self) -> Floats:
        """Seconds of a first stage and the inputs' transfer, by option, send kind and end."""
        paths, tables, hops = self.paths, self.tables, self.tables.hops
        sets = paths.first_set
        found = []
        for n in range(len(tables.options)):
            seconds, passed = tables.compute[n, 0], hops.first_duration[n][sets]
            rows = []
            for sent in paths.sends[n]:
                total = passed + seconds
                if self.most[n] < np.inf:
                    load = seconds + hops.first_receive[n][sets]
                    load[:-1] += sent
                    load[-1] += hops.last_send[n][tables.crossing.output_set[0, -1]]
                    work = np.broadcast_to(tables.root_s[n], tables.compute[n].shape)[0]
                    total = np.where(self._keeps(n, load, work), total, np.inf)
                rows.append(
                    np.where(self._passes(n, passed, hops.first_wire[n][sets]), total, np.inf)
                )
            found.append(rows)
        return np.array(found)

    def _keeps(self, n: int, load: Floats, root_work: Floats) -> Flags:
        """Whether stages on option ``n`` with these loads are done in time."""
        return np.asarray((load <= self.most_run[n]) & (load + root_work <= self.most_batch[n]))

    def _passes(self, n: int, passed: Floats, wire: Floats) -> Flags:
        """Whether inputs or outputs of option ``n`` move in time: for a microbatch, for a batch."""
        within = np.asarray(wire <= self.batch_s)
        if self.limited and self.paths.piecewise[n]:
            within &= passed <= self.period_s
        return within

    def solve(self, useful_s: float, limits: SolveLimits, progress: Progress) -> LinePath | None:
        """The path with the least sum of durations, if there is one below ``useful_s``.

        Raises:
            TimeoutError: the deadline has passed.
        """
        final = self.tables.states.final
        self.useful_s = useful_s
        best: PathEnd | None = None
        for end in self._ends(limits, progress):
            if end.sum_s < self.useful_s and final[end.state]:
                self.useful_s, best = end.sum_s, end
        return None if best is None else self.path(best)

    def survey(self, limits: SolveLimits, progress: Progress) -> LatencySurvey:
        """The least sum on each group of devices, whatever devices are required."""
        num_counts = self.tables.states.num_counts
        ends: dict[int, PathEnd] = {}
        for end in self._ends(limits, progress):
            group = end.state // num_counts
            if group not in ends or end.sum_s < ends[group].sum_s:
                ends[group] = end
        return LatencySurvey(self, ends)

    def path(self, end: PathEnd) -> LinePath:
        """The stages that end in ``end``."""
        steps = self._trace(end.state - self.tables.states.code[end.option], end.option, end.start)
        return LinePath(end.sum_s, steps, self.paths.busiest_s(steps))

    def _ends(self, limits: SolveLimits, progress: Progress) -> Iterator[PathEnd]:
        """Last stages, the best for each option and state; of use only below ``useful_s``."""
        tables, states, left = self.tables, self.tables.states, self.left
        for n, code in enumerate(states.code):
            self.table[code, n] = self.starting[n, :, :-1]
            out = tables.crossing.output_set[0, -1]
            passed = tables.hops.last_duration[n, out]
            total = float(self.starting[n, :, -1].min() + passed)
            if (
                total < np.inf
                and tables.one_stage
                and self._passes(n, passed, tables.hops.last_wire[n, out])
            ):
                yield PathEnd(code, n, 0, total)
        for level in states.levels[1:]:
            if limits.expired:
                raise TimeoutError
            rows: dict[int, list[tuple[int, Floats]]] = {}
            for used in level:
                lasts, nexts = states.lasts[used], states.nexts[used]
                if not len(lasts) or not len(nexts):
                    continue
                behind = np.maximum(left, self.paths.completions([used])[0])
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
                    yield PathEnd(int(targets[row]), n, int(starts[row]), float(least[row]))

    def _extend(self, n: int, stacked: Floats, targets: Integers) -> None:
        tables, kinds = self.tables, self.num_kinds
        for s in range(kinds):
            for q in range(stacked.shape[1]):
                entry = q * kinds + s
                loads = tables.extend(
                    0, stacked[:, q], self.reach[n][entry], self.compute[n][entry][None]
                ).min(axis=1)
                if self.useful_s < np.inf:
                    behind = np.maximum(self.paths.completions(targets), self.left)
                    loads = np.where(loads + behind < self.useful_s, loads, np.inf)
                self.table[targets, n, s] = np.minimum(self.table[targets, n, s], loads)

    def _arriving(self, used: int, lasts: Integers, nexts: Integers) -> Floats:
        """Least time at which the next stage has what it needs: [next, receive kind, set, cut]."""
        paths, tables = self.paths, self.tables
        pairs = np.ix_(lasts, nexts)
        times = self.table[used][lasts[:, None], paths.send_kind[pairs]] + self.hop[pairs]
        kind = paths.receive_kind[nexts][:, lasts].T
        num = paths.receives.shape[1]
        if num == 1:
            least = times.min(axis=0)[:, None]
        else:
            least = np.stack(
                [np.where((kind == q)[:, :, None], times, np.inf).min(axis=0) for q in range(num)],
                axis=1,
            )
        least = np.repeat(least[:, :, None], tables.num_input_sets, axis=2)
        if not paths.repeats:
            inputs = tables.hops.first_duration[nexts][:, None, : tables.num_input_sets, None]
            least = np.maximum(least, inputs)
        return np.asarray(least)

    def _trace(self, used: int, n: int, start: int) -> list[Step]:
        """Stages of the path whose last stage is on ``n`` from ``start`` on, behind ``used``."""
        tables, states, paths = self.tables, self.tables.states, self.paths
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
                self.table[used][lasts, paths.send_kind[lasts, n], start]
                + self.hop[lasts, n, start]
            )
            passed = np.where(paths.receive_kind[n, lasts] == q, passed, np.inf)
            a = int(lasts[int(np.argmin(passed))])
            goal = int(paths.send_kind[a, n])
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
