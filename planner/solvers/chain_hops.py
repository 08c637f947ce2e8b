"""Figures of the transfers between neighbouring stages, as arrays for the chain solver.

Axes: ``a`` the option of the sending stage, ``n`` that of the receiving one, ``j`` the cut between
them (0 is unused), ``u`` the set of model inputs that the receiver reads, ``o`` the set of model
outputs that the sender writes. Times are for one microbatch, or one batch where ``runs`` is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.figures import Figures
from planner.options import Option
from planner.problem import PlanningProblem
from planner.solvers.arrays import Flags, Floats
from planner.solvers.chain_segments import Crossing
from profiler.cluster import Link


@dataclass(frozen=True)
class Hops:
    """Transfers into, between and out of stages.

    ``duration[a, n, j]``, ``receive[a, n, u, j]``, ``send[a, n, o, j]``: seconds of the slowest
    rank. ``receive`` and ``send`` count all messages of what a stage handles at a time (the whole
    batch, for whole-batch stages). ``wire_in[a, n, u, j]`` and ``wire_out[a, n, o, j]``: seconds a
    batch on the busiest wire, with the inputs, or the outputs, that use the same one. ``first_*``
    and ``last_*`` are the same without a neighbour. ``separate[a, n]`` says whether microbatches
    move one by one.
    """

    duration: Floats
    receive: Floats
    send: Floats
    wire_in: Floats
    wire_out: Floats
    first_duration: Floats
    first_receive: Floats
    first_wire: Floats
    last_duration: Floats
    last_send: Floats
    last_wire: Floats
    separate: Flags


@dataclass(frozen=True, slots=True)
class _Ends:
    """Messages from the model's input to each rank, or from each rank to its output, per set."""

    seconds: Floats  # [set, rank]
    occupied: Floats  # [set, rank]
    shares: tuple[str | None, ...]  # [rank] what the wire is shared under

    @property
    def longest(self) -> Floats:
        """The slowest rank's messages, or all on the slowest shared wire: [set]."""
        wires = _shared(self.shares, self.seconds.T)
        return np.asarray(np.concatenate([self.seconds.T, wires]).max(axis=0))


def find_hops(
    problem: PlanningProblem, figures: Figures, options: Sequence[Option], crossing: Crossing
) -> Hops:
    """All arrays for these options."""
    return _Builder(problem, figures, options, crossing).build()


class _Builder:
    def __init__(
        self,
        problem: PlanningProblem,
        figures: Figures,
        options: Sequence[Option],
        crossing: Crossing,
    ) -> None:
        self.problem, self.figures = problem, figures
        self.options, self.crossing = options, crossing
        self.cuts = [crossing.at(j) for j in range(problem.num_layers)]
        self.has_uncut = any(
            not problem.graph.tensor[name].in_parts for cut in self.cuts for name in cut
        )
        self.root = problem.class_of.get(problem.cluster.root, -1)
        self.serial = any(
            link.send_occupancy or link.receive_occupancy for _, link in problem.kinds_of_link()
        )
        self._rows: dict[tuple[int, int, int, bool], Floats] = {}

    def build(self) -> Hops:
        options, cuts = self.options, self.problem.num_layers
        num, inputs, outputs = (
            len(options),
            self.crossing.num_inner_inputs,
            self.crossing.num_inner_outputs,
        )
        arriving = [self._ends(option, incoming=True) for option in options]
        departing = [self._ends(option, incoming=False) for option in options]
        duration = np.zeros((num, num, cuts))
        # Without occupancy nothing is charged to the ranks: one broadcast zero stands for all.
        dense = (num, num) if self.serial else (1, 1)
        receive = np.zeros((*dense, inputs, cuts if self.serial else 1))
        send = np.zeros((*dense, outputs, cuts if self.serial else 1))
        wire_in = np.zeros((num, num, inputs, cuts))
        wire_out = np.zeros((num, num, outputs, cuts))
        separate = np.ones((num, num), dtype=np.bool_)
        # How regions are divided makes no difference between stages.
        like = [(option.members, option.whole_batch, option.is_tensor) for option in options]
        known: dict[object, tuple[int, int]] = {}
        for a, sender in enumerate(options):
            for n, receiver in enumerate(options):
                same = known.setdefault((like[a], like[n]), (a, n))
                if same != (a, n):
                    for array in (duration, wire_in, wire_out, separate):
                        array[a, n] = array[same]
                    if self.serial:
                        receive[a, n], send[a, n] = receive[same], send[same]
                    continue
                whole = sender.whole_batch and receiver.whole_batch
                separate[a, n] = not whole
                if not self._both_exist(sender, receiver):
                    continue
                pairs = self._pairs(sender, receiver, whole)
                moves = np.stack([row for _, _, row, _ in pairs])
                heads = _group(moves, [b for _, b, _, _ in pairs], len(receiver.members))
                wires = _shared([link.shares for *_, link in pairs], moves)
                duration[a, n] = np.concatenate([heads, wires]).max(axis=0)
                if self.serial:
                    held = moves * np.array([[link.receive_occupancy] for *_, link in pairs])
                    at_once = self._at_once(receiver, whole)
                    got = _group(held, [b for _, b, _, _ in pairs], len(receiver.members))
                    receive[a, n] = (
                        at_once * got[None] + arriving[n].occupied[:inputs, :, None]
                    ).max(axis=1)
                    held = moves * np.array([[link.send_occupancy] for *_, link in pairs])
                    at_once = self._at_once(sender, whole)
                    gave = _group(held, [r for r, _, _, _ in pairs], len(sender.members))
                    send[a, n] = (
                        at_once * gave[None] + departing[a].occupied[:outputs, :, None]
                    ).max(axis=1)
                wire_in[a, n], wire_out[a, n] = self._wires(
                    sender, receiver, pairs, arriving[n], departing[a]
                )
        if not self.serial:
            receive = np.broadcast_to(receive, (num, num, inputs, cuts))
            send = np.broadcast_to(send, (num, num, outputs, cuts))
        return Hops(
            duration=duration,
            receive=receive,
            send=send,
            wire_in=wire_in,
            wire_out=wire_out,
            first_duration=np.array([e.longest for e in arriving]),
            first_receive=np.array([e.occupied.max(axis=1) for e in arriving]),
            first_wire=self._end_wires(arriving),
            last_duration=np.array([e.seconds.sum(axis=1) for e in departing]),
            last_send=np.array([e.occupied.max(axis=1) for e in departing]),
            last_wire=self._end_wires(departing),
            separate=separate,
        )

    def _runs(self, option: Option) -> int:
        return 1 if option.whole_batch else self.problem.num_microbatches

    def _at_once(self, option: Option, whole: bool) -> int:
        """Messages that one handling of ``option``'s stage comprises, per pair of ranks."""
        return self.problem.num_microbatches if option.whole_batch and not whole else 1

    def _both_exist(self, sender: Option, receiver: Option) -> bool:
        """Whether there are enough devices for both at once."""
        classes = [c for c, _ in (*sender.members, *receiver.members)]
        return all(classes.count(c) <= len(self.problem.classes[c]) for c in set(classes))

    def _pairs(
        self, sender: Option, receiver: Option, whole: bool
    ) -> list[tuple[int, int, Floats, Link]]:
        """Sending rank, receiving rank, seconds by cut, their link."""
        items = self.problem.batch if whole else self.problem.microbatch
        found = []
        senders = _intervals(sender, items)
        if sender.is_tensor:  # every rank has everything, the first sends it
            senders = senders[:1]
        for r, (c, start, stop) in enumerate(senders):
            for b, (d, first, last) in enumerate(_intervals(receiver, items)):
                held = max(0, min(stop, last) - max(start, first))
                if held or (r == 0 and self.has_uncut):
                    row = self._row(c, d, held, r == 0, items)
                    found.append((r, b, row, self._link(c, d)))
        return found

    def _row(self, c: int, d: int, held: int, first: bool, items: int) -> Floats:
        """Seconds by cut to move ``held`` items, and what cannot be cut from a first rank."""
        key = (c, d, held if held < items else -items, first)
        if key not in self._rows:
            link, tensors = self._link(c, d), self.problem.graph.tensor
            row = np.zeros(self.problem.num_layers)
            for j, names in enumerate(self.cuts):
                for name in names:
                    cut = tensors[name].in_parts
                    count = held if cut else (items if first else 0)
                    if count:
                        row[j] += link.transfer_time_s(self.figures.tensor_bytes(name, count))
            self._rows[key] = row
        return self._rows[key]

    def _link(self, c: int, d: int) -> Link:
        classes = self.problem.classes
        other = classes[d][1] if c == d else classes[d][0]
        return self.problem.links[classes[c][0], other]

    def _ends(self, option: Option, *, incoming: bool) -> _Ends:
        sets = self.crossing.input_sets if incoming else self.crossing.output_sets
        seconds = np.zeros((len(sets), len(option.members)))
        occupied = np.zeros_like(seconds)
        shares: list[str | None] = [None] * len(option.members)
        root = self.problem.cluster.root
        items = self.problem.batch if option.whole_batch else self.problem.microbatch
        for r, (c, share) in enumerate(option.members):
            device = self.problem.classes[c][0]
            if device == root or (option.is_tensor and not incoming and r):
                continue
            link = self.problem.links[(root, device) if incoming else (device, root)]
            shares[r] = link.shares
            for x, names in enumerate(sets):
                for name in names:
                    cut = self.problem.graph.tensor[name].in_parts
                    count = share if cut else (items if incoming or r == 0 else 0)
                    if count:
                        num_bytes = self.figures.tensor_bytes(name, count)
                        seconds[x, r] += link.transfer_time_s(num_bytes)
            fraction = link.receive_occupancy if incoming else link.send_occupancy
            occupied[:, r] = fraction * seconds[:, r]
        return _Ends(seconds, occupied, tuple(shares))

    def _end_wires(self, ends: Sequence[_Ends]) -> Floats:
        """Seconds a batch on the busiest wire of the inputs, or outputs, of each option."""
        return np.array(
            [
                self._runs(option) * end.seconds.max(axis=1)
                for option, end in zip(self.options, ends, strict=True)
            ]
        )

    def _wires(
        self,
        sender: Option,
        receiver: Option,
        pairs: Sequence[tuple[int, int, Floats, Link]],
        arriving: _Ends,
        departing: _Ends,
    ) -> tuple[Floats, Floats]:
        whole = sender.whole_batch and receiver.whole_batch
        runs = 1 if whole else self.problem.num_microbatches
        into = self._runs(receiver) * arriving.seconds[: self.crossing.num_inner_inputs]
        out_of = self._runs(sender) * departing.seconds[: self.crossing.num_inner_outputs]
        busiest = runs * np.max([row for _, _, row, _ in pairs], axis=0)
        busiest_in = np.maximum(busiest[None], into.max(axis=1)[:, None])
        busiest_out = np.maximum(busiest[None], out_of.max(axis=1)[:, None])
        for r, b, row, _ in pairs:
            if sender.members[r][0] == self.root:
                busiest_in = np.maximum(busiest_in, runs * row[None] + into[:, b][:, None])
            if receiver.members[b][0] == self.root:
                busiest_out = np.maximum(busiest_out, runs * row[None] + out_of[:, r][:, None])
        return busiest_in, busiest_out


def _intervals(option: Option, items: int) -> list[tuple[int, int, int]]:
    """Class and interval of items of each rank."""
    if option.whole_batch:
        return [(option.members[0][0], 0, items)]
    if option.is_tensor:
        return [(c, 0, items) for c, _ in option.members]
    found, start = [], 0
    for c, share in option.members:
        found.append((c, start, start + share))
        start += share
    return found


def _group(rows: Floats, ranks: Sequence[int], num_ranks: int) -> Floats:
    """Sum of the rows of each rank."""
    total = np.zeros((num_ranks, rows.shape[1]))
    for row, rank in zip(rows, ranks, strict=True):
        total[rank] += row
    return total


def _shared(shares: Sequence[str | None], rows: Floats) -> Floats:
    """Sum of the rows on each wire that several links share: [wire, ...], maybe none."""
    total: dict[str, Floats] = {}
    for name, row in zip(shares, rows, strict=True):
        if name is not None:
            total[name] = total[name] + row if name in total else row
    return np.array(list(total.values())).reshape(len(total), *rows.shape[1:])
