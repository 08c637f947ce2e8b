"""The integer program of a placement by largest load.

With ``x[b, s]`` for "block ``b`` is on slot ``s``" and ``y[e, s]`` for "slot ``s`` pays for net
``e``", in whole ticks, every cost rounded down:

    minimise L  with
        sum_s x[b, s] = 1                                       (:meth:`PlacementModel._choices`)
        x[u, s] and not x[v, s] => y[e, s]   for u, v in net e  (:meth:`PlacementModel._nets`)
        sum_b t[b] x[b, s] + f sum_e c[e] y[e, s] <= L          (:meth:`PlacementModel._loads`)
        sum_b size[b] x[b, s] <= memory                         (:meth:`PlacementModel._memory`)

Without an order the slots are the devices. Equal ones are told apart by their heaviest blocks:
of the heaviest ``k`` none is on the devices behind the ``k``-th of a class
(:meth:`PlacementModel._symmetry`). With an order (:meth:`PlacementModel._line`) slots stand in a
line, any device on any slot: ``x[b, s] = z[b, s] - z[b, s - 1]`` with ``z[b, s]`` for "``b`` is on
slot ``s`` or before", ``z[v, s] => z[u, s]`` where ``u`` stands before ``v``, and a literal for
each slot and class says whose device it is; the rows of loads and memory hold under it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from planner.placement.blocks import Blocks
from planner.placement.problem import Charging
from planner.solvers.integer_model import IntegerModel, Literal, Terms, negated

SIZE_UNITS = 2**30


class PlacementModel:
    """The program for loads below ``ceiling_s``, which is ``ticks`` ticks."""

    def __init__(self, blocks: Blocks, *, ceiling_s: float, ticks: int) -> None:
        self.blocks, self.ceiling_s, self.ticks = blocks, ceiling_s, ticks
        self.scale = ticks / ceiling_s
        self.model = IntegerModel()
        self.model.objective = self.model.integer(ticks)
        problem = blocks.problem
        self.num_slots = len(problem.places)
        self.class_of = [0] * self.num_slots
        for c, devices in enumerate(problem.classes):
            for d in devices:
                self.class_of[d] = c
        self.weight = np.lexsort((np.arange(blocks.num_blocks), -blocks.times_s.min(axis=0)))
        self.owner: dict[tuple[int, int], Literal] = {}
        self.x: dict[tuple[int, int], Literal] = {}
        if blocks.ordered:
            self._line()
        else:
            self._choices()
            self._symmetry()
        self.y = self._nets()
        self._loads()
        self._memory()

    def _classes(self, slot: int) -> Iterator[tuple[int, tuple[Literal, ...]]]:
        """Classes whose devices may be on a slot, and what must hold for one of them to be."""
        if not self.owner:
            yield self.class_of[slot], ()
            return
        for c in range(len(self.blocks.counts)):
            yield c, (self.owner[slot, c],)

    def _runs(self, b: int, c: int) -> bool:
        return bool(self.blocks.times_s[c, b] <= self.ceiling_s)

    def _choices(self) -> None:
        for b in range(self.blocks.num_blocks):
            for s in range(self.num_slots):
                if self._runs(b, self.class_of[s]):
                    self.x[b, s] = self.model.boolean()
            self.model.exactly_one([self.x[b, s] for s in self._slots_of(b)])

    def _slots_of(self, b: int) -> list[int]:
        return [s for s in range(self.num_slots) if (b, s) in self.x]

    def _symmetry(self) -> None:
        for devices in self.blocks.problem.classes:
            for rank, b in enumerate(self.weight[: len(devices)]):
                for s in devices[rank + 1 :]:
                    if (int(b), s) in self.x:
                        self.model.any_of(negated(self.x[int(b), s]))

    def _line(self) -> None:
        blocks, model = self.blocks, self.model
        for s in range(self.num_slots):
            for c in range(len(blocks.counts)):
                self.owner[s, c] = model.boolean()
            model.exactly_one([self.owner[s, c] for c in range(len(blocks.counts))])
        for c, count in enumerate(blocks.counts):
            model.at_most([(1, self.owner[s, c]) for s in range(self.num_slots)], count)
        upto: dict[tuple[int, int], Literal] = {}
        for b in range(blocks.num_blocks):
            for s in range(self.num_slots):
                upto[b, s] = model.boolean()
                self.x[b, s] = model.boolean()
            model.exactly_one([self.x[b, s] for s in range(self.num_slots)])
            for s in range(self.num_slots):
                model.implies(self.x[b, s], upto[b, s])
                if s:
                    model.implies(upto[b, s - 1], upto[b, s])
                    model.implies(self.x[b, s], negated(upto[b, s - 1]))
                for c in range(len(blocks.counts)):
                    if not self._runs(b, c):
                        model.any_of(negated(self.x[b, s]), negated(self.owner[s, c]))
        for first, second in sorted(blocks.order_edges):
            for s in range(self.num_slots):
                model.implies(upto[second, s], upto[first, s])

    def _nets(self) -> dict[tuple[int, int], Literal]:
        found = {}
        for e, (pins, _) in enumerate(self.blocks.nets):
            for s in range(self.num_slots):
                if all(self.blocks.factors[c] == 0 for c, _ in self._classes(s)):
                    continue
                own = [self.x.get((b, s)) for b in pins]
                if all(x is None for x in own):
                    continue
                y = found[e, s] = self.model.boolean()
                for x, other in zip(own, own[1:] + own[:1], strict=True):
                    if x is not None and other is not None:
                        self.model.any_of(negated(x), other, y)
                    elif x is not None:
                        self.model.implies(x, y)
        return found

    def _loads(self) -> None:
        blocks, load = self.blocks, self.model.objective
        serial = blocks.problem.charging is Charging.DEVICE
        for s in range(self.num_slots):
            for c, when in self._classes(s):
                work = [
                    (self._whole(blocks.times_s[c, b]), x)
                    for (b, slot), x in self.x.items()
                    if slot == s and self._runs(b, c)
                ]
                wire = [
                    (self._whole(blocks.factors[c] * cost), self.y[e, s])
                    for e, (_, cost) in enumerate(blocks.nets)
                    if (e, s) in self.y
                ]
                for terms in ([*work, *wire],) if serial else (work, wire):
                    self.model.at_least(load, terms, when=when)

    def _whole(self, seconds: float) -> int:
        """Ticks, rounded down; more than the ceiling counts as one tick above it."""
        return min(math.floor(seconds * self.scale * (1 - 1e-15)), self.ticks + 1)

    def _memory(self) -> None:
        sizes = self.blocks.sizes
        total = int(sizes.sum())
        unit = max(1, -(-total // SIZE_UNITS))
        for s in range(self.num_slots):
            for c, when in self._classes(s):
                memory = self.blocks.memories[c]
                if memory is None or total <= memory:
                    continue
                terms: Terms = [
                    (int(sizes[b]) // unit, x) for (b, slot), x in self.x.items() if slot == s
                ]
                if not when:
                    self.model.at_most(terms, memory // unit)
                else:
                    limit = self.model.integer(memory // unit)
                    self.model.at_least(limit, terms, when=when)

    def exclude(self, chosen: Sequence[int], slot: int) -> None:
        """Forbid exactly these blocks together on a slot (they do not fit after all)."""
        own = set(chosen)
        places = self.blocks.problem.classes[self.class_of[slot]]
        for s in range(self.num_slots) if self.owner else places:
            x = {b: self.x[b, s] for b in own if (b, s) in self.x}
            if len(x) == len(own):
                self.model.any_of(*(negated(literal) for literal in x.values()))

    def hint(self, devices: Sequence[int]) -> None:
        """Start from a device for each block (not with an order)."""
        named: dict[int, int] = {}
        taken = [0] * len(self.blocks.counts)
        for b in self.weight:
            device = devices[b]
            if device not in named:
                c = self.class_of[device]
                named[device] = self.blocks.problem.classes[c][taken[c]]
                taken[c] += 1
        for (b, s), x in self.x.items():
            self.model.hints[x] = int(named[devices[b]] == s)

    def devices(self, values: Sequence[int]) -> tuple[int, ...]:
        """The device of each block in an answer."""
        slot = dict(key for key, x in self.x.items() if values[x])
        place = list(range(self.num_slots))
        if self.owner:
            taken = [0] * len(self.blocks.counts)
            for s in range(self.num_slots):
                c = next(c for c in range(len(taken)) if values[self.owner[s, c]])
                place[s] = self.blocks.problem.classes[c][taken[c]]
                taken[c] += 1
        return tuple(place[slot[b]] for b in range(self.blocks.num_blocks))
