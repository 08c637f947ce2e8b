"""The cheapest pipeline whose every stage keeps within a time, when each device has a price.

A template says of a pipeline which runs of layers are on which kind of device, and which stages
follow each other inside one pool; not which devices. Devices of a pool that follow each other are
bought together: ``price[t, q]`` is for ``q + 1`` of kind ``t``. For a time ``T`` between
microbatches

    G[t, p, r, j] = least price of all up to cut j when the next stage is on a device of kind t that
                    tensors reach by port p, with r more devices of its pool bought
    E[t, p, r, e] = the same when that stage ends at cut e and tensors leave it by port p
                  = min over ports x, j < e of G[t, x, r, j]
                    where receive[t, x, j] + own[t, j, e] + send[t, p, e] <= T, apart[t, j, e] <= T
    G[u, p, q, e] = price[u, q] + min over t, r of E[t, leaves(t, u), r, e]    to another pool
    G[t, p, r, e] = E[t, leaves(t, t), r + 1, e]                               inside the pool

where a hop whose tensors take longer than ``T`` is no way. It is a shortest path over cuts; many
times are done at once, and nothing in it depends on how many devices there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.solvers.chain_segments import Floats
from planner.solvers.template_tables import Hop, TemplateTables

AT_ONCE = 16
"""Times that are worked on together; of like length, as their stages are."""


@dataclass(frozen=True, slots=True)
class TemplateStage:
    """A run of layers on a kind of device; ``begins`` says that it is the first in its pool."""

    kind: int
    start: int
    end: int
    begins: bool


@dataclass(frozen=True)
class Template:
    """A pipeline by kinds of device; ``period_s`` is its time between microbatches."""

    stages: tuple[TemplateStage, ...]
    period_s: float

    @cached_property
    def pieces(self) -> tuple[tuple[int, int], ...]:
        """Kind and number of the devices of each run inside a pool, in stage order."""
        found: list[tuple[int, int]] = []
        for stage in self.stages:
            if stage.begins:
                found.append((stage.kind, 1))
            else:
                found[-1] = (stage.kind, found[-1][1] + 1)
        return tuple(found)

    @cached_property
    def needs(self) -> Counter[tuple[int, int]]:
        """How many pieces of each kind and size it takes."""
        return Counter(self.pieces)


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
        self._outside = {(hop.source, hop.target): hop for hop in tables.outside}
        num = tables.num_kinds
        self.outside = _Ways(sorted(tables.outside, key=lambda hop: (hop.target, hop.enters)))
        self.into: dict[tuple[int, int], list[Hop]] = {}
        for hop in self.outside.hops:
            self.into.setdefault((hop.target, hop.enters), []).append(hop)
        self.inside = _Ways([hop for hop in tables.inside if hop is not None])
        self.endless = np.array([tables.runs[hop.source] == 0 for hop in self.inside.hops], bool)
        self._reach = [
            np.where(np.isfinite(tables.own[t]), np.maximum(tables.own[t], tables.apart[t]), np.inf)
            for t in range(num)
        ]
        # Least seconds of any run of a length, over kinds: how far back a stage can reach.
        size = tables.num_layers + 1
        least = np.min(self._reach, axis=0)
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
                after = stages[at + 1]
                hop = self._outside[t, after.kind] if after.begins else tables.inside[t]
                assert hop is not None
                left = float(tables.send[t, hop.leaves, e])
                arrived = float(tables.receive[hop.target, hop.enters, e])
                most = max(most, float(tables.moving[hop.path, e]))
            load = entered + float(tables.own[t, j, e]) + left
            most = max(most, load, float(tables.apart[t, j, e]))
            entered = arrived
        return most


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
        tables, times = self.tables, self.times
        load = tables.receive[:, :, first:cut] + tables.own[:, None, first:cut, cut]
        load = load[:, None] + tables.send[:, :, cut][:, :, None, None]  # [kind, out, in, start]
        load = np.maximum(load, tables.apart[:, None, None, first:cut, cut])
        can = load[None] <= times[:, None, None, None, None]
        values = self.g[:, :, :, :, first:cut]  # [time, kind, in, more, start]
        best = np.where(can[:, :, :, :, None], values[:, :, None], np.inf)
        self.e[..., cut] = best.min(axis=(3, 5))

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
        cut, stages = self.tables.num_layers, []
        left = self.e[i, :, 0, :, cut]
        t, r = divmod(int(left.argmin()), left.shape[1])
        p = 0
        while True:
            x, start = self._start(i, (t, p, r), cut)
            if start == 0:
                stages.append(TemplateStage(t, start, cut, True))
                break
            value = self.g[i, t, x, r, start]
            begins, source = self._source(i, (t, x, r), start, float(value))
            stages.append(TemplateStage(t, start, cut, begins))
            (t, p, r), cut = source, start
        stages.reverse()
        return Template(tuple(stages), self.pricing.period_s(stages))

    def _start(self, i: int, state: tuple[int, int, int], cut: int) -> tuple[int, int]:
        """Port of entry and first layer of the stage that ends at ``cut``."""
        tables, (t, p, r) = self.tables, state
        load = tables.receive[t, :, :cut] + tables.own[t, :cut, cut] + tables.send[t, p, cut]
        load = np.maximum(load, tables.apart[t, :cut, cut])
        values = np.where(load <= self.times[i], self.g[i, t, :, r, :cut], np.inf)
        x, start = np.unravel_index(int(values.argmin()), values.shape)
        assert values[x, start] == self.e[i, t, p, r, cut], "the sweep does not repeat"
        return int(x), int(start)

    def _source(
        self, i: int, state: tuple[int, int, int], cut: int, value: float
    ) -> tuple[bool, tuple[int, int, int]]:
        """Whether the stage begins a run in its pool, and the stage before: kind, port, devices
        left."""
        tables, (t, x, r) = self.tables, state
        inside = tables.inside[t]
        if (
            inside is not None
            and inside.enters == x
            and tables.moving[inside.path, cut] <= (self.times[i])
        ):
            endless = tables.runs[t] == 0
            before = 0 if endless else r + 1
            extra = float(self.prices[t, 0]) if endless else 0.0
            if before < self.pricing.most and (
                self.e[i, t, inside.leaves, before, cut] + extra == value
            ):
                return False, (t, inside.leaves, before)
        for hop in self.pricing.into.get((t, x), ()):
            if tables.moving[hop.path, cut] > self.times[i]:
                continue
            left = self.e[i, hop.source, hop.leaves, :, cut]
            if left.min() + self.prices[t, r] == value:
                return True, (hop.source, hop.leaves, int(left.argmin()))
        raise AssertionError("the sweep does not repeat")
