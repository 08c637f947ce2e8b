"""Latency of one sample, one job per accelerator: labels over down-sets, exact where they are few.

A schedule is a line of steps: a block on host processors, or a job on an accelerator. After each
step a down-set of blocks is done. A label at a down-set says which accelerators are used up, when
each output that is still to be read is in host memory, and when the last operator so far is done.
A label is dropped if another one at the same set is nowhere worse, or if paths from its outputs
(:mod:`~planner.placement.tails`) lead beyond the best latency known. A job from ``I`` to ``J``
starts when the last output that it reads is there; how long it takes does not depend on the label.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.placement.blocks import Blocks, Floats
from planner.placement.downsets import DownSets
from planner.placement.set_pairs import SetPairs
from planner.placement.tails import Tails
from planner.solvers.base import SolveLimits

Ints = NDArray[np.int64]

ON_HOST = -1

MAX_LABEL_TIMES = 4 * 10**7
"""Times in labels, 8 bytes each; beyond it few labels a set are kept."""

MAX_WAITING = 2 * 10**7
"""Candidates, about 40 bytes each; beyond it only the earliest job between two sets is kept."""

NARROW = 2

Candidates = tuple[Ints, Ints, Floats, Floats | None]
"""Labels they come from, states after, when their step is done, and when each live output is there
(None: at the end of the step, as for all jobs)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """The class of device of each step, with the blocks it adds; or none below the ceiling.

    ``complete``: no label was dropped that might have led to something better.
    """

    steps: tuple[tuple[int, tuple[int, ...]], ...] | None
    latency_s: float
    complete: bool


class LatencyLabels:
    """The search over ``sets``, host processors of class ``host`` (None without any)."""

    def __init__(self, blocks: Blocks, sets: DownSets, tails: Tails, *, host: int | None) -> None:
        self.blocks, self.sets, self.tails = blocks, sets, tails
        self.pairs = SetPairs(blocks, sets, most_s=math.inf)
        self.host = host
        self.host_times = blocks.times_s[host] if host is not None else np.zeros(0)
        problem = blocks.problem
        self.accelerators = [
            c for c, places in enumerate(problem.classes) if not problem.places[places[0]].is_host
        ]
        counts = [blocks.counts[c] for c in self.accelerators]
        self.used = np.array(list(itertools.product(*(range(n + 1) for n in counts))))
        self.counts = np.array(counts)
        self.stride = [math.prod([n + 1 for n in counts[k + 1 :]]) for k in range(len(counts))]
        finite = np.isfinite(blocks.times_s)
        memories = [blocks.memories[c] for c in self.accelerators]
        self.largest_memory = max((math.inf if m is None else m for m in memories), default=0.0)
        self.work = np.where(finite, blocks.times_s, 0.0) @ sets.holds
        self.misfits = (~finite).astype(np.int32) @ sets.holds
        self._flows()
        self._positions()

    def _flows(self) -> None:
        """Outputs that leave a block: producer, its block, and the blocks that read it."""
        block_of = self.blocks.block_of
        readers: dict[int, set[int]] = {}
        for producer, *others in self.blocks.problem.pins:
            outside = {block_of[r] for r in others} - {block_of[producer]}
            readers.setdefault(producer, set()).update(outside)
        kept = sorted(producer for producer, outside in readers.items() if outside)
        holds = self.sets.holds
        self.producers = kept
        self.slot = {producer: f for f, producer in enumerate(kept)}
        self.home = np.array([block_of[p] for p in kept], np.int64)
        self.readers = [np.array(sorted(readers[p]), np.int64) for p in kept]
        self.live = np.zeros((len(kept), self.sets.count), bool)
        # From when an output is there to the end of what still reads it.
        self.after, self.hosts = np.zeros(self.live.shape), np.zeros(self.live.shape)
        for f, blocks in enumerate(self.readers):
            self.live[f] = holds[self.home[f]] & ~holds[blocks].all(axis=0)
            for w in self.blocks.problem.digraph.successors(kept[f]):
                waits = ~holds[block_of[w]]
                for table, tails in (
                    (self.after, self.tails.edge_s),
                    (self.hosts, self.tails.hosts_s),
                ):
                    np.maximum(table[f], tails[kept[f], w], out=table[f], where=waits)

    def _positions(self) -> None:
        raw = np.packbits(self.sets.holds, axis=0).T
        self.position = {row.tobytes(): i for i, row in enumerate(np.ascontiguousarray(raw))}

    def search(self, *, ceiling_s: float, width: int, limits: SolveLimits) -> Labelled:
        """The best schedule below ``ceiling_s`` that keeps at most ``width`` labels a set."""
        run = _Run(self, ceiling_s, width)
        last = self.sets.count - 1
        for i in range(self.sets.count):
            if limits.expired:
                return Labelled(steps=None, latency_s=math.inf, complete=False)
            labels = run.settle(i)
            if i < last and labels.size:
                run.leave(i, labels)
        return run.result()


class _Run:
    """Labels in flat tables, and candidates for labels waiting at their sets."""

    def __init__(self, search: LatencyLabels, ceiling_s: float, width: int) -> None:
        self.s, self.ceiling_s, self.width = search, ceiling_s, width
        self.complete = True
        self.waiting: dict[int, list[Candidates]] = {}
        flows = len(search.producers)
        self.times = np.zeros((1024, flows))
        self.done = np.zeros(1024)
        self.state = np.zeros(1024, np.int64)
        self.at = np.zeros(1024, np.int64)
        self.parent = np.full(1024, -1, np.int64)
        self.count = self.num_waiting = 0

    def settle(self, i: int) -> Ints:
        """Turn what waits at set ``i`` into labels, the dominated left out."""
        if i == 0:
            return self._store(0, np.array([-1]), np.array([0]), np.zeros((1, 0)), np.zeros(1))
        waiting = self.waiting.pop(i, [])
        self.num_waiting -= sum(len(w[0]) for w in waiting)
        if not waiting:
            return np.zeros(0, np.int64)
        s = self.s
        live = np.flatnonzero(s.live[:, i])
        parents, states, ends = (np.concatenate([w[k] for w in waiting]) for k in range(3))
        fresh = [
            np.broadcast_to(w[2][:, None], (len(w[2]), live.size)) if w[3] is None else w[3]
            for w in self._joined(waiting)
        ]
        old = s.sets.holds[s.home[live]][:, self.at[parents]].T
        values = np.where(old, self.times[np.ix_(parents, live)], np.concatenate(fresh))
        done = np.maximum(self.done[parents], ends)
        exhausted = (s.used[states] == s.counts).all(axis=1)
        ahead = np.where(exhausted[:, None], values + s.hosts[live, i], values + s.after[live, i])
        latest = np.maximum(done, ahead.max(axis=1, initial=0.0))
        good = np.flatnonzero(latest < self.ceiling_s)
        kept = good[self._undominated(s.used[states[good]], values[good], done[good])]
        full = self.count * len(s.producers) > MAX_LABEL_TIMES
        width = min(self.width, NARROW) if full else self.width
        if kept.size > width:
            order = np.lexsort((values[kept].sum(axis=1), latest[kept]))
            kept = kept[order[:width]]
            self.complete = False
        return self._store(i, parents[kept], states[kept], values[kept], done[kept])

    @staticmethod
    def _joined(waiting: list[Candidates]) -> Iterator[Candidates]:
        """The same candidates in the same order, neighbours from jobs in one."""
        for jobs, group in itertools.groupby(waiting, key=lambda w: w[3] is None):
            if jobs:
                own = list(group)
                parents, states, ends = (np.concatenate([w[k] for w in own]) for k in range(3))
                yield parents, states, ends, None
            else:
                yield from group

    @staticmethod
    def _undominated(used: Ints, values: Floats, done: Floats) -> Ints:
        """Positions of rows of which no other is at most as large in everything."""
        rows = np.column_stack([used.astype(np.float64), values, done])
        order = np.lexsort((rows.sum(axis=1), rows[:, : used.shape[1]].sum(axis=1)))
        kept: list[int] = []
        while order.size:
            first = order[0]
            kept.append(int(first))
            order = order[~(rows[order] >= rows[first]).all(axis=1)]
        return np.array(kept, np.int64)

    def _store(self, i: int, parents: Ints, states: Ints, values: Floats, done: Floats) -> Ints:
        first, self.count = self.count, self.count + len(parents)
        while self.count > len(self.done):
            self.times = np.concatenate([self.times, np.zeros_like(self.times)])
            for name in ("done", "state", "at", "parent"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
        labels = np.arange(first, self.count)
        live = np.flatnonzero(self.s.live[:, i])
        self.times[np.ix_(labels, live)] = values
        self.done[labels], self.state[labels] = done, states
        self.at[labels], self.parent[labels] = i, parents
        return labels

    def leave(self, i: int, labels: Ints) -> None:
        """Candidates from the labels of set ``i``: a block on a host, or a job."""
        if self.s.host is not None:
            self._to_hosts(i, labels)
        self._to_jobs(i, labels)

    def _to_hosts(self, i: int, labels: Ints) -> None:
        s = self.s
        held = s.sets.holds[:, i]
        for b in range(s.blocks.num_blocks):
            if held[b] or not math.isfinite(s.host_times[b]):
                continue
            grown = held.copy()
            grown[b] = True
            j = s.position.get(np.packbits(grown).tobytes())
            if j is None:
                continue
            finish = self._on_host(b, labels)
            live = np.flatnonzero(s.live[:, j])
            new = np.zeros((labels.size, live.size))
            for k, f in enumerate(live):
                if s.home[f] == b:
                    new[:, k] = finish[s.producers[f]]
            end = np.max(np.array(list(finish.values())), axis=0)
            entry = (labels, self.state[labels], end, new)
            self.num_waiting += len(labels)
            self.waiting.setdefault(j, []).append(entry)

    def _on_host(self, b: int, labels: Ints) -> dict[int, Floats]:
        """When each operator of a block is done on host processors, for each label."""
        s, problem = self.s, self.s.blocks.problem
        assert s.host is not None
        place = problem.classes[s.host][0]
        finish: dict[int, Floats] = {}
        members = set(s.blocks.members[b])
        for v in s.blocks.line[b]:
            start = np.zeros(labels.size)
            for u in problem.digraph.predecessors(v):
                ready = finish[u] if u in members else self.times[labels, s.slot[u]]
                start = np.maximum(start, ready)
            finish[v] = start + problem.time_s(v, place)
        return finish

    def _to_jobs(self, i: int, labels: Ints) -> None:
        s = self.s
        above = s.pairs.supersets(i, s.sets.count)
        above = above[s.pairs.size[above] - s.pairs.size[i] <= s.largest_memory]
        cut = s.pairs.cuts(i, above)
        starts = self._starts(i, above, labels)
        for k, c in enumerate(s.accelerators):
            free = np.flatnonzero(s.used[self.state[labels], k] < s.counts[k])
            memory = s.blocks.memories[c]
            fits = s.misfits[c, above] == s.misfits[c, i]
            if memory is not None:
                fits &= s.pairs.size[above] - s.pairs.size[i] <= memory
            chosen = np.flatnonzero(fits)
            if not free.size or not chosen.size:
                continue
            takes = s.work[c, above[chosen]] - s.work[c, i] + s.blocks.factors[c] * cut[chosen]
            ends = starts[np.ix_(free, chosen)] + takes
            ahead = self._ahead(i, above[chosen], (self.state[labels[free]] + s.stride[k]))
            below = ends + ahead < self.ceiling_s
            if self.num_waiting > MAX_WAITING:
                self.complete = False
                below &= ends == ends.min(axis=0)
            rows, columns = np.nonzero(below)
            self.num_waiting += len(rows)
            order = np.argsort(columns, kind="stable")
            rows, columns = rows[order], columns[order]
            breaks = np.flatnonzero(np.diff(columns)) + 1
            for group in np.split(np.arange(len(rows)), breaks):
                if not group.size:
                    continue
                j = int(above[chosen[columns[group[0]]]])
                parents = labels[free[rows[group]]]
                entry = (
                    parents,
                    self.state[parents] + s.stride[k],
                    ends[rows[group], columns[group]],
                    None,
                )
                self.waiting.setdefault(j, []).append(entry)

    def _ahead(self, i: int, above: Ints, states: Ints) -> Floats:
        """Least time from the end of a job to the end of the sample, shape (states, sets)."""
        s = self.s
        made = np.flatnonzero(~s.sets.holds[s.home, i])
        live = s.live[np.ix_(made, above)]
        usual = np.where(live, s.after[np.ix_(made, above)], 0.0).max(axis=0, initial=0.0)
        alone = np.where(live, s.hosts[np.ix_(made, above)], 0.0).max(axis=0, initial=0.0)
        exhausted = (s.used[states] == s.counts).all(axis=1)
        return np.asarray(np.where(exhausted[:, None], alone, usual), np.float64)

    def _starts(self, i: int, above: Ints, labels: Ints) -> Floats:
        """When what a job reads is there, shape (labels, sets above)."""
        s, holds = self.s, self.s.sets.holds
        starts = np.zeros((labels.size, above.size))
        for f in np.flatnonzero(s.live[:, i]):
            readers = s.readers[f]
            beyond = readers[~holds[readers, i]]
            reads = holds[np.ix_(beyond, above)].any(axis=0)
            ready = self.times[labels, f][:, None]
            np.maximum(starts, np.where(reads, ready, 0.0), out=starts)
        return starts

    def result(self) -> Labelled:
        """The best label at the last set, and the way to it."""
        at = self.at[: self.count]
        last = np.flatnonzero(at == self.s.sets.count - 1)
        if not last.size or self.s.sets.count == 1:
            return Labelled(steps=None, latency_s=math.inf, complete=self.complete)
        label = int(last[np.argmin(self.done[last])])
        latency = float(self.done[label])
        steps: list[tuple[int, tuple[int, ...]]] = []
        while self.parent[label] >= 0:
            before = int(self.parent[label])
            holds = self.s.sets.holds
            added = np.flatnonzero(holds[:, self.at[label]] & ~holds[:, self.at[before]])
            change = self.s.used[self.state[label]] - self.s.used[self.state[before]]
            which = np.flatnonzero(change)
            c = self.s.accelerators[int(which[0])] if which.size else ON_HOST
            steps.append((c, tuple(int(b) for b in added)))
            label = before
        return Labelled(steps=tuple(reversed(steps)), latency_s=latency, complete=self.complete)


def devices_of(
    blocks: Blocks, steps: Sequence[tuple[int, tuple[int, ...]]], host: int | None
) -> tuple[int, ...]:
    """The device of each block: accelerators of a class in the order of their jobs."""
    devices = [-1] * blocks.num_blocks
    taken = [0] * len(blocks.counts)
    for c, chosen in steps:
        if c == ON_HOST:
            assert host is not None
            device = blocks.problem.classes[host][0]
        else:
            device = blocks.problem.classes[c][taken[c]]
            taken[c] += 1
        for b in chosen:
            devices[b] = device
    return tuple(devices)
