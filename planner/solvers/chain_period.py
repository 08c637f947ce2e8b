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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from planner.solvers.arrays import Flags, Floats, Integers
from planner.solvers.base import SolveLimits
from planner.solvers.chain_completions import Completions
from planner.solvers.chain_tables import ChainTables, Progress, Step

NEAR = 100_000
"""Figures that are worked on together."""

REPEATS = 1e-9
"""Sums in another order may differ by this fraction."""


@dataclass(frozen=True, slots=True)
class _End:
    """A last stage: the state that it completes, its option, its first layer."""

    state: int
    option: int
    start: int


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """The arrays of one trial period: what may follow what, and how late it may be."""

    period_s: float
    within: Floats  # what a stage may be loaded with, so that sending ends in time
    receive: Floats  # what receiving costs the stage behind; infinite if the wire is too slow
    windows: Integers
    ending: Floats
    possible: Flags | None = None  # by state and cut: whether the model can be finished from there


@dataclass(frozen=True)
class PeriodSurvey:
    """Which groups of devices keep within a trial period. Holds until the search's next trial."""

    search: PeriodSearch
    trial: _Trial
    ends: Mapping[int, _End]

    def steps(self, group: int) -> list[Step]:
        """Stages on exactly the devices of ``group`` that keep within the period."""
        return self.search._trace(self.ends[group], self.trial)


class PeriodSearch:
    """Runs of the dynamic programme on one problem's tables."""

    def __init__(self, tables: ChainTables) -> None:
        self.tables = tables
        hops, states = tables.hops, tables.states
        runs = np.array([tables.runs(option) for option in tables.options], dtype=float)
        self._compute = runs[:, None, None] * (tables.compute + tables.root_s)
        self._receive = runs[None, :, None, None] * hops.receive
        self._send = runs[:, None, None, None] * hops.send
        self._first = runs[:, None] * hops.first_receive
        self._last = runs[:, None] * hops.last_send
        self._ending = self._compute[:, :, -1] + self._last[:, tables.crossing.output_set[:, -1]]
        self._last_wire = hops.last_wire[:, tables.crossing.output_set[:, -1]]
        self._reach = tables.shortest(self._compute)
        self._completions = Completions(tables, self._compute)
        self._ways: dict[int, tuple[Integers, list[tuple[int, Flags]]]] = {}
        self._table = np.full(
            (states.size, len(tables.options), tables.num_output_sets, tables.num_layers), np.inf
        )

    def beside(self, root_s: float) -> PeriodSearch:
        """A search in which a stage on the root is busy for ``root_s`` a batch with what other
        pipelines read and write. It works in the table of this one."""
        if not root_s:
            return self
        other = copy(self)
        more = np.where(self.tables.on_root, root_s, 0.0)
        other._compute = self._compute + more[:, None, None]
        other._ending = self._ending + more[:, None]
        return other

    def reach(self, period_s: float, limits: SolveLimits, progress: Progress) -> list[Step] | None:
        """Stages that keep within ``period_s``, few of them, or None.

        Raises:
            TimeoutError: the deadline has passed.
        """
        states = self.tables.states
        final, trial = states.final, self._trial(period_s)
        first = [(load, end) for load, end in self._single(trial) if final[end.state]]
        if first:
            return self._trace(min(first, key=lambda x: x[0])[1], trial)
        trial = replace(
            trial,
            possible=self._completions.possible(
                trial.within, trial.receive, trial.ending, period_s
            ),
        )
        for level in range(1, len(states.levels)):
            if limits.expired:
                raise TimeoutError
            found = [x for x in self._level(level, trial, progress) if final[x[1].state]]
            if found:
                return self._trace(min(found, key=lambda x: x[0])[1], trial)
        return None

    def survey(self, period_s: float, limits: SolveLimits, progress: Progress) -> PeriodSurvey:
        """Which groups of devices can keep within ``period_s``, whatever devices are required.

        Raises:
            TimeoutError: the deadline has passed.
        """
        states = self.tables.states
        num_counts, trial = states.num_counts, self._trial(period_s)
        ends: dict[int, tuple[float, _End]] = {}

        def note(found: Iterable[tuple[float, _End]]) -> None:
            for load, end in found:
                group = end.state // num_counts
                if group not in ends or load < ends[group][0]:
                    ends[group] = load, end

        note(self._single(trial))
        for level in range(1, len(states.levels)):
            if limits.expired:
                raise TimeoutError
            note(self._level(level, trial, progress))
        return PeriodSurvey(self, trial, {group: end for group, (_, end) in ends.items()})

    def period_s(self, steps: Sequence[Step]) -> float:
        """Time between batches of these stages, as the programme counts it."""
        return max(self.busy_s(steps))

    def busy_s(self, steps: Sequence[Step]) -> tuple[float, float]:
        """Seconds a batch of the busiest stage or wire without the root's, and of its stage."""
        tables, hops = self.tables, self.tables.hops
        busy, of_root = [0.0], 0.0
        for at, (n, j, e) in enumerate((step.option, step.start, step.end) for step in steps):
            u, o = tables.crossing.input_set[j, e], tables.crossing.output_set[j, e]
            load = self._compute[n, j, e]
            if at == 0:
                load += self._first[n, u]
                busy.append(hops.first_wire[n, u])
            else:
                before = steps[at - 1].option
                load += self._receive[before, n, u, j]
                busy.append(hops.wire_in[before, n, u, j])
            if at == len(steps) - 1:
                load += self._last[n, o]
                busy.append(hops.last_wire[n, o])
            else:
                after = steps[at + 1].option
                load += self._send[n, after, o, e]
                busy.append(hops.wire_out[n, after, o, e])
            if tables.on_root[n]:
                of_root = float(load)
            else:
                busy.append(load)
        return float(max(busy)), of_root

    def _trial(self, period_s: float) -> _Trial:
        tables, hops = self.tables, self.tables.hops
        trial = _Trial(
            period_s=period_s,
            within=np.where(hops.wire_out <= period_s, period_s - self._send, -np.inf),
            receive=np.where(hops.wire_in <= period_s, self._receive, np.inf),
            windows=tables.windows(self._reach, period_s),
            ending=np.where(self._last_wire <= period_s, self._ending, np.inf),
        )
        self._table.fill(np.inf)
        self._start(period_s)
        return trial

    def _level(self, level: int, trial: _Trial, progress: Progress) -> Iterator[tuple[float, _End]]:
        """Put one more stage behind each state of ``level``; the last stages that end in time,
        with their loads."""
        tables, states = self.tables, self.tables.states
        lasts, nexts = self._steps(level)
        if not len(lasts):
            return
        used = np.array(states.levels[level])
        loads = self._table[used[:, None], lasts]
        live = (loads < trial.period_s).any(axis=(1, 2))  # [state, cut]
        if trial.possible is not None:
            live &= trial.possible[used]
        alive = live.any(axis=1)
        first = live.argmax(axis=1)
        last = live.shape[1] - live[:, ::-1].argmax(axis=1)
        for n, able in nexts:
            rows = np.flatnonzero(able & alive)
            # States whose cuts are about the same next to each other, a few at a time.
            rows = rows[np.argsort(first[rows], kind="stable")]
            step = max(1, NEAR // loads[0].size)
            for some in (rows[at : at + step] for at in range(0, len(rows), step)):
                cuts = slice(int(first[some].min()), int(last[some].max()))
                arriving = self._arriving(loads[some, :, :, cuts], (lasts, n), trial, cuts)
                if trial.possible is not None:
                    arriving = np.where(live[some, None, cuts], arriving, np.inf)
                progress.priced += arriving.size
                before = used[some]
                self._table[before + states.code[n], n] = tables.extend(
                    n, arriving, trial.windows[n], self._compute, cuts
                )
                yield from self._close(n, before, arriving, trial, cuts)

    def _steps(self, level: int) -> tuple[Integers, list[tuple[int, Flags]]]:
        """Options that some state of a level may have had last, and for each that may come next
        whether it may behind each state."""
        if level not in self._ways:
            states = self.tables.states
            num_options = len(self.tables.options)
            lasts = np.zeros(num_options, dtype=np.bool_)
            able = np.zeros((num_options, len(states.levels[level])), dtype=np.bool_)
            for row, used in enumerate(states.levels[level]):
                lasts[states.lasts[used]] = True
                if len(states.lasts[used]):
                    able[states.nexts[used], row] = True
            self._ways[level] = (
                np.flatnonzero(lasts),
                [(n, able[n]) for n in range(num_options) if able[n].any()],
            )
        return self._ways[level]

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

    def _single(self, trial: _Trial) -> Iterator[tuple[float, _End]]:
        """The whole model in one stage, where that is within the period."""
        tables = self.tables
        if not tables.one_stage:
            return
        whole = tables.crossing.input_set[0, -1]
        loads = np.where(
            tables.hops.first_wire[:, whole] <= trial.period_s,
            self._first[:, whole] + trial.ending[:, 0],
            np.inf,
        )
        for n in np.flatnonzero(loads <= trial.period_s):
            yield float(loads[n]), _End(tables.states.code[n], int(n), 0)

    def _arriving(
        self, loads: Floats, pair: tuple[Integers, int], trial: _Trial, cuts: slice
    ) -> Floats:
        """``R`` of some states for one next option: least receiving time by input set and cut.

        ``loads`` are those of the options that may be last, the first of ``pair``.
        """
        lasts, n = pair
        closes = loads <= trial.within[lasts, n, :, cuts]  # [state, last, output set, cut]
        can = np.asarray(closes.any(axis=2))
        times = np.where(can[:, :, None], trial.receive[lasts, n, :, cuts], np.inf)
        return np.asarray(times.min(axis=1))

    def _close(
        self, n: int, before: Integers, arriving: Floats, trial: _Trial, cuts: slice
    ) -> Iterator[tuple[float, _End]]:
        """Last stages on option ``n``, the least loaded behind each state, that end in time."""
        tables = self.tables
        sets = tables.input_sets_to(tables.num_layers)[cuts]
        loads = arriving[:, sets, np.arange(len(sets))] + trial.ending[n][:-1][cuts]
        starts = loads.argmin(axis=1)
        least = loads[np.arange(len(loads)), starts]
        for at in np.flatnonzero(least <= trial.period_s):
            state = int(before[at]) + tables.states.code[n]
            yield float(least[at]), _End(state, n, cuts.start + int(starts[at]))

    def _trace(self, last: _End, trial: _Trial) -> list[Step]:
        """The stages that end in ``last``, by repeating each step's minimum backwards."""
        tables, states = self.tables, self.tables.states
        n, start, end = last.option, last.start, tables.num_layers
        used = last.state - states.code[n]
        steps = [Step(n, start, end)]
        if start == 0:
            return steps
        while True:
            lasts = states.lasts[used]
            u = int(tables.crossing.input_set[start, end])
            loads = self._table[used, lasts, :, start]
            times = np.where(
                loads <= trial.within[lasts, n, :, start],
                trial.receive[lasts, n, u, start][:, None],
                np.inf,
            )
            which, o = np.unravel_index(int(np.argmin(times)), times.shape)
            n, end = int(lasts[which]), start
            value = self._table[used, n, o, end]
            used -= states.code[n]
            start = self._origin(used, (n, int(o), end), value, trial)
            steps.append(Step(n, start, end))
            if start == 0:
                return steps[::-1]

    def _origin(self, used: int, last: tuple[int, int, int], value: float, trial: _Trial) -> int:
        """Where the ``last`` stage (option, outputs, end) began whose load is ``value``."""
        tables, (n, o, end) = self.tables, last
        sets, lasts = tables.input_sets_to(end), tables.states.lasts[used]
        if not len(lasts):
            return 0
        everywhere = slice(0, tables.num_layers)
        arriving = self._arriving(self._table[used, lasts][None], (lasts, n), trial, everywhere)[0]
        loads = arriving[sets, np.arange(end)] + self._compute[n, :end, end]
        loads = np.where(tables.crossing.output_set[:end, end] == o, loads, np.inf)
        start = int(np.argmin(loads))
        assert loads[start] <= value * (1 + REPEATS), "the table does not repeat"
        return start
