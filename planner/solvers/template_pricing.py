"""The cheapest pipeline whose every stage keeps within a time, when each device has a price.

A template says of a pipeline which runs of layers are on which kind of device and on how many, and
which stages follow each other inside one pool; not which devices. Devices of a pool that follow
each other are bought together: ``price[t, q]`` is for ``q + 1`` of kind ``t``. For a time ``T``
between microbatches

    G[t, p, r, j] = least price of all up to cut j when the next stage is on kind t, reached by port
                    p, with 1 + r devices of a pool bought for it and for what follows there
    E[t, p, r, e] = the same when that stage ends at cut e, tensors leave it by port p, and r
                    devices are left
                  = min over modes m of t with w devices, ports x, j < e of G[t, x, r + w - 1, j]
                    where entering[m, x, j] + own[m, j, e] + send[t, p, e] <= T, apart[t, j, e] <= T
    G[u, p, q, e] = price[u, q] + min over t, r of E[t, leaves(t, u), r, e]    to another pool
    G[t, p, r, e] = E[t, leaves(t, t), r + 1, e]                               inside the pool

where a hop whose tensors take longer than ``T`` is no way. It is a shortest path over cuts; many
times are done at once, and nothing in it depends on how many devices there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.solvers.arrays import Floats
from planner.solvers.template_tables import Hop, TemplateTables

AT_ONCE = 16
"""Times that are worked on together; of like length, as their stages are."""


@dataclass(frozen=True, slots=True)
class TemplateStage:
    """A run of layers on a kind of device; ``begins`` says that it is the first in its pool.

    With a ``width`` above 1 it is divided among so many, by the mode's slicing of that ``number``.
    """

    kind: int
    start: int
    end: int
    begins: bool
    width: int = 1
    number: int = 0

    @property
    def mode(self) -> tuple[int, int]:
        """The key of its mode."""
        return self.kind, self.width


@dataclass(frozen=True)
class Template:
    """A pipeline by kinds of device; ``period_s`` is its time between microbatches.

    ``pieces`` are kind and number of the devices of each run inside a pool, in stage order; those
    of endless pools one by one.
    """

    stages: tuple[TemplateStage, ...]
    period_s: float
    pieces: tuple[tuple[int, int], ...]

    @cached_property
    def needs(self) -> Counter[tuple[int, int]]:
        """How many pieces of each kind and size it takes."""
        return Counter(self.pieces)


def pieces_of(stages: Iterable[TemplateStage], runs: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The pieces of a line of stages; ``runs[t]`` is 0 for kinds whose pools are endless."""
    found: list[tuple[int, int]] = []
    for stage in stages:
        if not runs[stage.kind]:
            found += [(stage.kind, 1)] * stage.width
        elif stage.begins:
            found.append((stage.kind, stage.width))
        else:
            found[-1] = (stage.kind, found[-1][1] + stage.width)
    return tuple(found)


class _Ways:
    """Hops as arrays, to be worked on together; ``first`` are those that a target's port begins
    with, where like ones follow each other."""

    def __init__(self, hops: Sequence[Hop]) -> None:
        self.hops = tuple(hops)
        self.source = np.array([hop.source for hop in hops], dtype=np.int64)
        self.target = np.array([hop.target for hop in hops], dtype=np.int64)
        self.leaves = np.array([hop.leaves for hop in hops], dtype=np.int64)
        self.enters = np.array([hop.enters for hop in hops], dtype=np.int64)
        self.path = np.array([hop.path for hop in hops], dtype=np.int64)
        ends = [(hop.target, hop.enters) for hop in hops]
        self.first = np.array(
            [i for i, end in enumerate(ends) if i == 0 or end != ends[i - 1]], dtype=np.int64
        )


class Pricing:
    """Cheapest templates under prices, for one set of tables."""

    def __init__(self, tables: TemplateTables) -> None:
        self.tables = tables
        self.most = max(1, *tables.runs)
        self.least_s = tables.least_s()
        self._hops: dict[tuple[int, int, bool], list[Hop]] = {}
        for hop in tables.outside:
            self._hops.setdefault((hop.source, hop.target, True), []).append(hop)
        for t, hops in enumerate(tables.inside):
            self._hops[t, t, False] = list(hops)
        self.outside = _Ways(sorted(tables.outside, key=lambda hop: (hop.target, hop.enters)))
        self.into: dict[tuple[int, int], list[Hop]] = {}
        for hop in self.outside.hops:
            self.into.setdefault((hop.target, hop.enters), []).append(hop)
        self.inside = _Ways([hop for hops in tables.inside for hop in hops])
        self.endless = np.array([tables.runs[hop.source] == 0 for hop in self.inside.hops], bool)
        self.divided = [m for m, mode in enumerate(tables.modes) if mode.width > 1]
        self.modes_of = [
            [m for m, mode in enumerate(tables.modes) if mode.kind == t]
            for t in range(tables.num_kinds)
        ]
        # Least seconds of any run of a length, over modes: how far back a stage can reach.
        size = tables.num_layers + 1
        least = tables.busy.min(axis=0)
        self._shortest = np.array(
            [
                np.inf,
                *(least[np.arange(size - n), np.arange(n, size)].min() for n in range(1, size)),
            ]
        )

    def cheapest(
        self, prices: Floats, times: Sequence[float], *, below: Sequence[float]
    ) -> list[tuple[float, Template | None]]:
        """For each time the least price (infinite: there is no template within it), and a template
        of that price if it is ``below`` what is asked."""
        order = np.argsort(times)
        found: dict[int, tuple[float, Template | None]] = {}
        for first in range(0, len(times), AT_ONCE):
            some = order[first : first + AT_ONCE]
            run = _Run(self, prices, np.array(times)[some])
            for at, i in enumerate(map(int, some)):
                price = run.price(at)
                found[i] = price, run.template(at) if price < below[i] else None
        return [found[i] for i in range(len(times))]

    def window(self, time_s: float) -> int:
        """Layers of the longest run that any kind manages within a time."""
        return int(np.flatnonzero(self._shortest <= time_s).max(initial=0))

    def period_s(self, stages: Sequence[TemplateStage]) -> float:
        """Time between microbatches of these stages."""
        tables = self.tables
        most = entered = 0.0
        for at, stage in enumerate(stages):
            t, j, e = stage.kind, stage.start, stage.end
            left = arrived = 0.0
            if at + 1 < len(stages):
                hop = self.hop(stage, stages[at + 1])
                left = float(tables.send[t, hop.leaves, e])
                arrived = float(tables.receive[hop.target, hop.enters, e])
                most = max(most, float(tables.moving[hop.path, e]))
            load = entered + float(tables.own[tables.position[stage.mode], j, e]) + left
            most = max(most, load, float(tables.apart[t, j, e]))
            entered = arrived
        return most

    def template(self, stages: Sequence[TemplateStage]) -> Template:
        """The template of these stages."""
        return Template(tuple(stages), self.period_s(stages), pieces_of(stages, self.tables.runs))

    def hop(self, stage: TemplateStage, after: TemplateStage) -> Hop:
        """The way from a stage to the one behind."""
        ways = self._hops[stage.kind, after.kind, after.begins]
        return next(hop for hop in ways if hop.leads_to(after.width))


class _Run:
    """One sweep over the cuts for a few times."""

    def __init__(self, pricing: Pricing, prices: Floats, times: Floats) -> None:
        self.pricing, self.tables = pricing, pricing.tables
        self.prices, self.times = prices, times
        tables = self.tables
        num_t, num_k = len(times), tables.num_kinds
        ports_in, ports_out = tables.receive.shape[1], tables.send.shape[1]
        cuts = tables.num_layers + 1
        self.g = np.full((num_t, num_k, ports_in, pricing.most, cuts), np.inf)
        self.e = np.full((num_t, num_k, ports_out, pricing.most, cuts), np.inf)
        self.g[:, :, 0, :, 0] = prices
        window = pricing.window(float(times.max()))
        for cut in range(1, cuts):
            first = max(0, cut - window, int(tables.longest[cut]))
            if first < cut:
                self._end_stages(first, cut)
            if cut < tables.num_layers:
                self._hop(cut)

    def _end_stages(self, first: int, cut: int) -> None:
        tables, times, num = self.tables, self.times, self.tables.num_kinds
        load = tables.entering[:num, :, first:cut] + tables.own[:num, None, first:cut, cut]
        load = load[:, None] + tables.send[:, :, cut][:, :, None, None]  # [kind, out, in, start]
        load = np.maximum(load, tables.apart[:, None, None, first:cut, cut])
        can = load[None] <= times[:, None, None, None, None]
        values = self.g[:, :, :, :, first:cut]  # [time, kind, in, more, start]
        best = np.where(can[:, :, :, :, None], values[:, :, None], np.inf)
        self.e[..., cut] = best.min(axis=(3, 5))
        for m in self.pricing.divided:
            self._end_divided(m, first, cut)

    def _end_divided(self, m: int, first: int, cut: int) -> None:
        """Stages that several devices of a pool divide."""
        tables, times = self.tables, self.times
        t = tables.modes[m].kind
        busy = np.maximum(tables.own[m, first:cut, cut], tables.apart[t, first:cut, cut])
        near = np.flatnonzero(busy <= times[-1])
        if not len(near):
            return
        starts = slice(first + int(near[0]), cut)
        load = tables.entering[m, :, starts] + tables.own[m, starts, cut]
        load = load[None] + tables.send[t, :, cut][:, None, None]  # [out, in, start]
        load = np.maximum(load, tables.apart[t, starts, cut])
        can = load[None] <= times[:, None, None, None]
        values = self._bought(m)[..., starts]  # [time, in, more, start]
        best = np.where(can[:, :, :, None], values[:, None], np.inf).min(axis=(2, 4))
        left = self.e[:, t, :, : best.shape[2], cut]
        np.minimum(left, best, out=left)

    def _bought(self, m: int) -> Floats:
        """``g`` for stages in mode ``m``, by the devices that are left behind them."""
        mode = self.tables.modes[m]
        if self.tables.runs[mode.kind]:
            return self.g[:, mode.kind, :, mode.width - 1 :]
        # Of an endless pool each device is paid for when it is taken.
        return self.g[:, mode.kind, :, :1] + (mode.width - 1) * float(self.prices[mode.kind, 0])

    def _hop(self, cut: int) -> None:
        outside, inside = self.pricing.outside, self.pricing.inside
        moves = self.tables.moving[:, cut][None] <= self.times[:, None]  # [time, path]
        left, arriving = self.e[..., cut], self.g[..., cut]
        if outside.hops:
            done = left.min(axis=3)[:, outside.source, outside.leaves]  # [time, hop]
            done = np.where(moves[:, outside.path], done, np.inf)
            least = np.minimum.reduceat(done, outside.first, axis=1)
            target, enters = outside.target[outside.first], outside.enters[outside.first]
            arriving[:, target, enters] = least[:, :, None] + self.prices[target]
        if inside.hops:
            kind, endless = inside.source, self.pricing.endless
            arrived = left[:, kind, inside.leaves]
            arrived = np.where(moves[:, inside.path][:, :, None], arrived, np.inf)
            here = arriving[:, kind, inside.enters]
            # An endless pool: pay as you go; else one fewer is left of those bought.
            paid = arrived[:, endless, 0] + self.prices[kind[endless], 0]
            here[:, endless, 0] = np.minimum(here[:, endless, 0], paid)
            here[:, ~endless, :-1] = np.minimum(here[:, ~endless, :-1], arrived[:, ~endless, 1:])
            arriving[:, kind, inside.enters] = here

    def price(self, i: int) -> float:
        """The least price within a time."""
        return float(self.e[i, :, 0, :, -1].min())

    def template(self, i: int) -> Template:
        """The template behind the least price, by repeating each step's minimum backwards."""
        pricing, modes = self.pricing, self.tables.modes
        cut, stages = self.tables.num_layers, []
        left = self.e[i, :, 0, :, cut]
        t, r = divmod(int(left.argmin()), left.shape[1])
        p = 0
        while True:
            m, (x, start) = self._start(i, (t, p, r), cut)
            width, number = modes[m].width, int(self.tables.number[m, start, cut])
            if start == 0:
                stages.append(TemplateStage(t, start, cut, True, width, number))
                break
            bought = r + width - 1 if self.tables.runs[t] else 0
            value = self.g[i, t, x, bought, start]
            begins, source = self._source(i, (t, x, bought), start, float(value))
            stages.append(TemplateStage(t, start, cut, begins, width, number))
            (t, p, r), cut = source, start
        stages.reverse()
        return pricing.template(stages)

    def _start(self, i: int, state: tuple[int, int, int], cut: int) -> tuple[int, tuple[int, int]]:
        """Mode, port of entry and first layer of the stage that ends at ``cut``."""
        tables, (t, p, r) = self.tables, state
        for m in self.pricing.modes_of[t]:
            bought = self._bought(m)
            if r >= bought.shape[2]:
                continue
            load = tables.entering[m, :, :cut] + tables.own[m, :cut, cut] + tables.send[t, p, cut]
            load = np.maximum(load, tables.apart[t, :cut, cut])
            values = np.where(load <= self.times[i], bought[i, :, r, :cut], np.inf)
            x, start = np.unravel_index(int(values.argmin()), values.shape)
            if values[x, start] == self.e[i, t, p, r, cut]:
                return m, (int(x), int(start))
        raise AssertionError("the sweep does not repeat")

    def _source(
        self, i: int, state: tuple[int, int, int], cut: int, value: float
    ) -> tuple[bool, tuple[int, int, int]]:
        """Whether the stage begins a run in its pool, and the stage before: kind, port, devices
        left."""
        tables, (t, x, r) = self.tables, state
        endless = tables.runs[t] == 0
        before = 0 if endless else r + 1
        extra = float(self.prices[t, 0]) if endless else 0.0
        for hop in tables.inside[t]:
            if hop.enters != x or tables.moving[hop.path, cut] > self.times[i]:
                continue
            if before < self.pricing.most and (
                self.e[i, t, hop.leaves, before, cut] + extra == value
            ):
                return False, (t, hop.leaves, before)
        for hop in self.pricing.into.get((t, x), ()):
            if tables.moving[hop.path, cut] > self.times[i]:
                continue
            left = self.e[i, hop.source, hop.leaves, :, cut]
            if left.min() + self.prices[t, r] == value:
                return True, (hop.source, hop.leaves, int(left.argmin()))
        raise AssertionError("the sweep does not repeat")
