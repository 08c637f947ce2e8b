"""Figures of every run of consecutive layers on every option, as arrays for the chain solver.

``[j, e]`` of an array is the run of layers ``j .. e - 1``; an infinite entry cannot be a stage.
The numbers repeat ``planner.cost`` and ``planner.memory`` for stages that relay what passes
through; tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np

from planner.figures import Figures
from planner.memory import (
    BUFFER_DEPTH,
    Part,
    empty_root_memory,
    peak_part,
    root_bytes,
    tensor_part,
)
from planner.options import Option
from planner.problem import PlanningProblem
from planner.solvers.arrays import Flags, Floats, Integers
from planner.solvers.chain_slices import RegionsWithin

Sends = Literal["all", "cut", "nothing"]
"""What a rank sends of what leaves its stage: a first rank everything, another its items of what
can be cut, or nothing where every rank has everything."""


class Crossing:
    """What crosses each cut, and which inputs and outputs belong to each run.

    ``input_sets`` are the different sets of model inputs that some run reads; ``input_set[j, e]``
    is the position of a run's set. Outputs likewise. The sets of runs behind a cut come first
    (``num_inner_inputs`` of them), and those of runs before one (``num_inner_outputs``).
    """

    def __init__(self, problem: PlanningProblem) -> None:
        graph = problem.graph
        self.num_layers = problem.num_layers
        self.outputs = [
            name for name in dict.fromkeys(graph.outputs) if graph.tensor[name].producer is not None
        ]
        self.inner = []
        for tensor in graph.tensors:
            if tensor.producer is not None:
                written = graph.layer_index[tensor.producer]
                read = max(graph.readers[tensor.name], default=-1)
                self.inner.append((tensor.name, written, read))
        self.inputs = list(dict.fromkeys(graph.inputs))
        size = self.num_layers + 1
        runs = np.triu(np.ones((size, size), dtype=np.bool_), 1)
        first, last = runs.copy(), runs.copy()
        first[1:], last[:, :-1] = False, False
        reads = [[name in layer.reads for layer in graph.layers] for name in self.inputs]
        writes = [[name in layer.writes for layer in graph.layers] for name in self.outputs]
        self.input_set, self.input_sets, self.num_inner_inputs = _sets(
            reads, self.inputs, runs & ~first, first
        )
        self.output_set, self.output_sets, self.num_inner_outputs = _sets(
            writes, self.outputs, runs & ~last, last
        )

    def at(self, cut: int) -> list[str]:
        """Tensors that are written before ``cut`` and read behind it."""
        return [name for name, written, read in self.inner if written < cut <= read]


def _sets(
    holds: Sequence[Sequence[bool]], names: Sequence[str], inner: Flags, outer: Flags
) -> tuple[Integers, list[tuple[str, ...]], int]:
    """Position of each run's set, the sets (those of ``inner`` runs first), how many are inner.

    ``holds[x][l]`` says whether layer ``l`` has the name ``x``.
    """
    which = np.zeros(inner.shape, dtype=np.int64)
    # Runs with the same names get the same number, name by name.
    for marks in holds:
        before = np.cumsum([0, *marks])
        numbers = 2 * which + (before[None, :] > before[:, None])
        which = np.unique(numbers, return_inverse=True)[1].reshape(which.shape)
    seen: list[int] = []
    for runs in (inner, outer):
        numbers, places = np.unique(which[runs], return_index=True)
        seen += [int(n) for n in numbers[np.argsort(places)] if int(n) not in seen]
        if runs is inner:
            num_inner = max(1, len(seen))
    position = np.zeros(int(which.max()) + 1, dtype=np.int64)
    position[seen] = np.arange(len(seen))
    sets = []
    for number in seen:
        j, e = np.argwhere((which == number) & (inner | outer))[0]
        sets.append(
            tuple(name for name, marks in zip(names, holds, strict=True) if any(marks[j:e]))
        )
    return np.where(inner | outer, position[which], 0), sets, num_inner


class Segments:
    """Seconds and feasibility of every run of layers on every option."""

    def __init__(
        self, problem: PlanningProblem, figures: Figures, options: Sequence[Option]
    ) -> None:
        self.problem, self.figures, self.options = problem, figures, options
        self.crossing = Crossing(problem)
        self._times: dict[tuple[int, int], Floats] = {}
        self._regions = RegionsWithin(problem, figures)
        self._rooms: dict[tuple[int, int, bool, Sends], Flags] = {}
        self._sizes: dict[int, tuple[Integers, ...]] = {}
        self._activations: dict[tuple[int, int], Integers] = {}

    def compute_s(self, option: Option) -> Floats:
        """Seconds of the slowest rank for a microbatch (a batch); infinite where it cannot be."""
        seconds = np.zeros_like(self._possible)
        if option.is_tensor:
            items = self.problem.microbatch
            seconds = self._regions.seconds(option, lambda c: self._seconds(c, items))
        else:
            for c, share in dict.fromkeys(option.members):
                seconds = np.maximum(seconds, self._seconds(c, share))
        for c in {c for c, _ in option.members}:
            seconds = seconds + self._barred(c)
        alike: set[object] = set()
        for r, (c, share) in enumerate(option.members):
            if option.is_tensor:
                # What a rank holds depends on its own units, and on whether it sends.
                key = c, r == 0, tuple(x.units[r] for x in option.slicing)
                if key in alike:
                    continue
                alike.add(key)
                fits = self._fits_sliced(option, r)
            else:
                sends: Sends = "all" if r == 0 else "cut"
                fits = self._fits(c, share, option.whole_batch, sends)
            seconds = np.where(fits, seconds, np.inf)
        if option.whole_batch:
            return np.asarray(np.where(self._waiting, seconds, np.inf) + self._possible)
        seconds = np.where(self._waiting, np.inf, seconds)
        if option.is_group:
            seconds = np.where(self._holds(self.problem.one_device), np.inf, seconds)
        return np.asarray(seconds + self._possible)

    @cached_property
    def root_can_stay_empty(self) -> bool:
        """Whether the root has room for a batch of inputs and outputs and nothing else."""
        memory = empty_root_memory(self.figures)
        return memory.total_bytes <= memory.capacity_bytes

    @cached_property
    def _possible(self) -> Floats:
        """Zero for runs that respect what must stay together, else infinite."""
        size = self.problem.num_layers + 1
        cut = np.zeros(size)
        for group in self.problem.together:
            cut[group[0] + 1 : group[-1] + 1] = np.inf
        below = np.tri(size, dtype=bool)  # e <= j is no run
        return np.where(below, np.inf, np.maximum(cut[:, None], cut[None, :]))

    @cached_property
    def _waiting(self) -> Flags:
        return self._holds(self.problem.whole_batch)

    def _holds(self, layers: frozenset[int]) -> Flags:
        """Whether each run holds any of ``layers``."""
        marks = np.zeros(self.problem.num_layers + 1, dtype=np.int64)
        for i in layers:
            marks[i + 1] = 1
        before = np.cumsum(marks)
        return np.asarray((before[None, :] - before[:, None]) > 0)

    def _barred(self, c: int) -> Floats:
        """Infinite for runs with a layer that may not be on the class's devices."""
        device = self.problem.classes[c][0]
        barred = frozenset(i for i, here in enumerate(self.problem.allowed) if device not in here)
        return np.where(self._holds(barred), np.inf, 0.0)

    def _seconds(self, c: int, items: int) -> Floats:
        if (c, items) not in self._times:
            problem, figures = self.problem, self.figures
            device, num_layers = problem.classes[c][0], problem.num_layers
            times = np.array([figures.time_s(i, device, items) for i in range(num_layers)])
            total = np.zeros((num_layers + 1, num_layers + 1))
            total[:-1, 1:] = np.cumsum(np.triu(np.tile(times, (num_layers, 1))), axis=1)
            using = frozenset(i for i, x in enumerate(problem.graph.layers) if x.uses_prelude)
            if using:
                total = total + np.where(self._holds(using), figures.prelude_s(device, items), 0.0)
            self._times[c, items] = total + figures.dispatch_s(device)
        return self._times[c, items]

    # --- memory --------------------------------------------------------------------------------

    def _fits(self, c: int, items: int, whole_batch: bool, sends: Sends) -> Flags:
        """Whether each run fits a rank."""
        key = (c, items, whole_batch, sends)
        if key not in self._rooms:
            total = self._used_bytes(c, items, whole_batch, sends)
            capacity = self.problem.capacity_bytes(self.problem.classes[c][0])
            self._rooms[key] = total <= capacity
        return self._rooms[key]

    def _fits_sliced(self, option: Option, rank: int) -> Flags:
        """Whether each run fits a rank that has its slices of the regions in it."""
        c, items = option.members[rank]
        device = self.problem.classes[c][0]
        total = self._used_bytes(c, items, False, "all" if rank == 0 else "nothing")
        total = total - self._regions.saved_bytes(option, rank)
        for part in Part:
            joined = self._regions.joined_bytes(option, rank, part)
            total = total + self._taken(device, items, part, joined)
        return np.asarray(total <= self.problem.capacity_bytes(device))

    def _used_bytes(self, c: int, items: int, whole_batch: bool, sends: Sends) -> Integers:
        """What a rank needs for all of each run."""
        device = self.problem.classes[c][0]
        remote = device != self.problem.cluster.root
        depth = 1 if whole_batch else BUFFER_DEPTH
        entering, leaving, uncut, results, uncut_results = self._moved(items)
        moved = np.tile(entering[:, None], (1, len(leaving)))
        if sends != "nothing":
            moved += (leaving if sends == "all" else leaving - uncut)[None, :]
        if remote:
            for part in Part:
                moved += self._inputs(items, part)
            if sends != "nothing":
                moved += results if sends == "all" else results - uncut_results
        return np.asarray(
            self._weights
            + self._active(c, items)
            + depth * moved
            + root_bytes(self.figures, device)
            + self.problem.reserve_bytes(device)
        )

    @cached_property
    def _weights(self) -> Integers:
        graph, size = self.problem.graph, self.problem.num_layers + 1
        each = np.zeros(size, dtype=np.int64)
        holders: dict[str, list[int]] = {}
        for i, layer in enumerate(graph.layers):
            for name in dict.fromkeys(layer.weights):
                each[i + 1] += graph.weight[name].num_bytes
                holders.setdefault(name, []).append(i)
        before = np.cumsum(each)
        total = before[None, :] - before[:, None]
        for name, layers in holders.items():
            for one, other in pairwise(layers):  # tied: held once by runs with both
                total[: one + 1, other + 1 :] -= graph.weight[name].num_bytes
        return np.asarray(np.where(np.tri(size, dtype=np.bool_), 0, total))

    def _taken(self, device: str, items: int, part: Part, alive: Integers) -> Integers:
        """What bytes that layers need take of a rank's memory; see ``planner.memory.on_heap``."""
        if part is Part.MAPPED:
            return alive
        return alive + alive * self.figures.heap_permille(device, items) // 1000

    def _moved(self, items: int) -> tuple[Integers, ...]:
        """Bytes of ``items`` items: relayed in at a cut, relayed out, of that what cannot be cut;
        per run: outputs that are not relayed as well, of that what cannot be cut."""
        if items in self._sizes:
            return self._sizes[items]
        crossing, graph = self.crossing, self.problem.graph
        size = self.problem.num_layers + 1
        entering, uncut = (np.zeros(size, dtype=np.int64) for _ in range(2))
        for name, written, read in crossing.inner:
            num_bytes = self.figures.tensor_bytes(name, items)
            entering[written + 1 : read + 1] += num_bytes
            if not graph.tensor[name].in_parts:
                uncut[written + 1 : read + 1] += num_bytes
        results, uncut_results = (np.zeros((size, size), dtype=np.int64) for _ in range(2))
        last_read = {name: read for name, _, read in crossing.inner}
        for name in crossing.outputs:
            written = graph.layer_index[graph.tensor[name].producer or ""]
            num_bytes = self.figures.tensor_bytes(name, items)
            # Runs that write it and end behind its last reader do not also relay it.
            ends = max(written, last_read[name]) + 1
            results[: written + 1, ends:] += num_bytes
            if not graph.tensor[name].in_parts:
                uncut_results[: written + 1, ends:] += num_bytes
        self._sizes[items] = (entering, entering, uncut, results, uncut_results)
        return self._sizes[items]

    def _inputs(self, items: int, part: Part) -> Integers:
        """Bytes of the model's inputs that each run reads, in one part of the memory."""
        sizes = [
            sum(tensor_part(self.figures, part, name, items) for name in names)
            for names in self.crossing.input_sets
        ]
        return np.array(sizes, dtype=np.int64)[self.crossing.input_set]

    def _active(self, c: int, items: int) -> Integers:
        """Peak activations of every run on one rank; see ``planner.memory.activation_bytes``."""
        if (c, items) in self._activations:
            return self._activations[c, items]
        device = self.problem.classes[c][0]
        figures, graph = self.figures, self.problem.graph
        most = np.zeros_like(self._weights)
        for part in Part:
            most = most + self._taken(device, items, part, self._most_alive(device, items, part))
        using = frozenset(i for i, x in enumerate(graph.layers) if x.uses_prelude)
        if using:
            extra = figures.prelude_peak_bytes(device, items)
            most = most + np.where(self._holds(using), extra, 0)
        self._activations[c, items] = most
        return most

    def _most_alive(self, device: str, items: int, part: Part) -> Integers:
        """The most bytes alive in one part of the memory while some layer of each run computes."""
        figures, crossing = self.figures, self.crossing
        graph, num_layers = self.problem.graph, self.problem.num_layers
        passing = np.zeros(num_layers + 1, dtype=np.int64)
        for name, written, read in crossing.inner:
            passing[written + 1 : read + 1] += tensor_part(figures, part, name, items)
        # kept[j, l]: outputs written in j .. l - 1 that no layer from l on reads.
        kept = np.zeros((num_layers + 1, num_layers + 1), dtype=np.int64)
        last_read = {name: read for name, _, read in crossing.inner}
        for name in crossing.outputs:
            written = graph.layer_index[graph.tensor[name].producer or ""]
            behind = max(written, last_read[name]) + 1
            kept[: written + 1, behind:] += tensor_part(figures, part, name, items)
        # waiting[l, e]: inputs that some layer of l .. e - 1 reads.
        waiting = self._inputs(items, part)
        peaks = [peak_part(figures, part, at, device, items) for at in range(num_layers)]
        alive = passing[:-1] + np.array(peaks, dtype=np.int64)
        return _largest(alive, kept, waiting)


def _largest(alive: Integers, kept: Integers, waiting: Integers) -> Integers:
    """``max over l in j .. e - 1 of alive[l] + kept[j, l] + waiting[l, e]``, zero where no run."""
    num_layers = len(alive)
    size = num_layers + 1
    runs = np.triu(np.ones((size, size), dtype=np.bool_), 1)
    own = np.diag(kept)[:-1], waiting[np.arange(num_layers), np.arange(1, size)]
    # Mostly what waits, and what is kept, does not depend on where the run ends, and begins.
    if not (kept - np.diag(kept)[None, :])[: size - 1, :-1][~runs.T[:-1, :-1]].any() and not (
        (waiting[:-1] - own[1][:, None])[runs[:-1]].any()
    ):
        layers = np.tile(alive + own[0] + own[1], (size, 1))
        layers[~np.triu(np.ones(layers.shape, dtype=np.bool_))] = 0
        most = np.zeros((size, size), dtype=np.int64)
        most[:, 1:] = np.maximum.accumulate(layers, axis=1)
        return np.where(runs, most, 0)
    most = np.zeros((size, size), dtype=np.int64)
    for at in range(num_layers):
        here = alive[at] + kept[: at + 1, at][:, None] + waiting[at, at + 1 :][None, :]
        most[: at + 1, at + 1 :] = np.maximum(most[: at + 1, at + 1 :], here)
    return most
