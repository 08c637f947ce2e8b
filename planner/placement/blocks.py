"""Operators merged into blocks that some optimal answer keeps on one device.

What a device pays for transfers is symmetric: for each flow it pays once if it holds some of the
operators that the flow touches and not all of them (it sends if it holds the producer, receives if
not). So a flow is a *net*: a set of blocks and a cost, and the graph of blocks is a hypergraph.
Merging blocks drops nets inside one block and adds up nets with equal blocks.

Contiguous answers also know an order: devices stand in a line and tensors flow forwards only. That
makes the operators of each device a convex set (no path leaves it and comes back), and is what a
pipeline needs. Backward operators (of training) are free of the order, except that those whose
group has no forward operator flow backwards along the line.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from planner.placement.problem import Charging, PlacementProblem

Floats = NDArray[np.float64]
Net = tuple[tuple[int, ...], float]
"""Blocks in ascending order, and the cost for each device that holds some and not all of them."""

SLIGHTLY = 1e-9
"""Answers that are better by less than this fraction are not looked for."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks of a problem, in an order in which tensors flow forwards if ``ordered``.

    ``times_s[c, b]`` is what block ``b`` takes on a device of class ``c`` of
    ``problem.classes``, infinite where it does not run or does not fit.
    """

    problem: PlacementProblem
    members: tuple[tuple[int, ...], ...]
    ordered: bool

    @classmethod
    def build(cls, problem: PlacementProblem, *, ordered: bool) -> Blocks:
        """The groups of ``problem``, those on a cycle merged if ``ordered``."""
        blocks = cls(problem=problem, members=problem.groups, ordered=False)
        return cls(problem=problem, members=_in_order(blocks), ordered=True) if ordered else blocks

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return len(self.members)

    @cached_property
    def block_of(self) -> tuple[int, ...]:
        """The block of each operator."""
        found = [0] * len(self.problem.operators)
        for b, members in enumerate(self.members):
            for i in members:
                found[i] = b
        return tuple(found)

    @cached_property
    def line(self) -> tuple[tuple[int, ...], ...]:
        """Members of each block in a topological order."""
        place = {i: k for k, i in enumerate(nx.topological_sort(self.problem.digraph))}
        return tuple(tuple(sorted(members, key=place.__getitem__)) for members in self.members)

    @cached_property
    def times_s(self) -> Floats:
        """Seconds, shape (classes, blocks)."""
        problem = self.problem
        found = np.empty((len(problem.classes), self.num_blocks))
        for c, devices in enumerate(problem.classes):
            memory = problem.places[devices[0]].memory_bytes
            for b, members in enumerate(self.members):
                fits = memory is None or self.sizes[b] <= memory
                times = [problem.time_s(i, devices[0]) for i in members]
                found[c, b] = math.fsum(times) if fits and math.inf not in times else math.inf
        return found

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes, shape (blocks,)."""
        operators = self.problem.operators
        return np.array([sum(operators[i].size_bytes for i in m) for m in self.members], np.int64)

    @cached_property
    def factors(self) -> Floats:
        """Transfer factor of each class."""
        places = self.problem.places
        return np.array([places[devices[0]].transfer_factor for devices in self.problem.classes])

    @cached_property
    def memories(self) -> tuple[int | None, ...]:
        """Bytes of one device of each class, or None without a limit."""
        places = self.problem.places
        return tuple(places[devices[0]].memory_bytes for devices in self.problem.classes)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Devices of each class."""
        return tuple(len(devices) for devices in self.problem.classes)

    @cached_property
    def memory_is_ample(self) -> bool:
        """Whether every device could hold everything."""
        total = int(self.sizes.sum())
        return all(m is None or total <= m for m in self.memories)

    @cached_property
    def nets(self) -> tuple[Net, ...]:
        """Flows between blocks that cost something, those with equal blocks added up."""
        found: dict[tuple[int, ...], list[float]] = defaultdict(list)
        for flow, pins in zip(self.problem.flows, self.problem.pins, strict=True):
            touched = tuple(sorted({self.block_of[i] for i in pins}))
            if len(touched) > 1 and flow.transfer_s > 0:
                found[touched].append(flow.transfer_s)
        return tuple((touched, math.fsum(costs)) for touched, costs in sorted(found.items()))

    @cached_property
    def order_edges(self) -> frozenset[tuple[int, int]]:
        """Pairs of blocks of which the first may not stand behind the second."""
        operators = self.problem.operators
        forward = {
            self.problem.groups[g]
            for g, members in enumerate(self.problem.groups)
            if not all(operators[i].backward for i in members)
        }
        alone = {i for m in self.problem.groups if m not in forward for i in m}
        found = set()
        for producer, *readers in self.problem.pins:
            for reader in readers:
                edge = self.block_of[producer], self.block_of[reader]
                if operators[producer].backward and operators[reader].backward:
                    if producer in alone or reader in alone:
                        found.add(edge[::-1])
                elif not operators[reader].backward:
                    found.add(edge)
        return frozenset(edge for edge in found if edge[0] != edge[1])

    def merged(self, pairs: Iterable[tuple[int, int]]) -> Blocks:
        """Blocks in which each pair, and what lies on a cycle then, is one."""
        graph: nx.Graph[int] = nx.Graph()
        graph.add_nodes_from(range(self.num_blocks))
        graph.add_edges_from(pairs)
        parts = sorted(
            tuple(sorted(i for b in part for i in self.members[b]))
            for part in nx.connected_components(graph)
        )
        coarse = Blocks(problem=self.problem, members=tuple(parts), ordered=False)
        if self.ordered:
            return Blocks(problem=self.problem, members=_in_order(coarse), ordered=True)
        return coarse

    def spread(self, devices: Sequence[int]) -> tuple[int, ...]:
        """The device of each operator, given that of each block."""
        return tuple(devices[b] for b in self.block_of)

    def load_s(self, chosen: Iterable[int], cls: int) -> float:
        """The load of a device of class ``cls`` that holds the blocks ``chosen``."""
        own = frozenset(chosen)
        work = math.fsum(self.times_s[cls, b] for b in own)
        crossing = [c for pins, c in self.nets if 0 < len(own.intersection(pins)) < len(pins)]
        wire = float(self.factors[cls]) * math.fsum(crossing)
        return work + wire if self.problem.charging is Charging.DEVICE else max(work, wire)


def _in_order(blocks: Blocks) -> tuple[tuple[int, ...], ...]:
    """Members of the strongly connected parts, in a topological order by least operator."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(blocks.num_blocks))
    graph.add_edges_from(blocks.order_edges)
    parts = nx.condensation(graph)
    members = {
        part: tuple(sorted(i for b in parts.nodes[part]["members"] for i in blocks.members[b]))
        for part in parts
    }
    return tuple(members[p] for p in nx.lexicographical_topological_sort(parts, key=members.get))


def without_appendages(blocks: Blocks) -> Blocks:
    """Merge blocks that may as well be where a neighbour is: the optimum stays what it is.

    Block ``v`` joins ``u`` if a net of just these two costs at least as much as the nets of ``v``
    that ``u`` is not in and the time of ``v``: wherever ``v`` was, moving it to the device of ``u``
    raises the load of no device (a net that holds both was cut by both devices before). With an
    order, ``u`` is the only block directly before ``v`` or the only one directly behind it, so
    that the order still holds. ``v`` takes no memory, or memory is ample.
    """
    while True:
        pairs = _appendages(blocks)
        if not pairs:
            return blocks
        blocks = blocks.merged(pairs)


def _appendages(blocks: Blocks) -> list[tuple[int, int]]:
    """Pairs to merge at once: no block is in two of them."""
    touching: dict[int, list[Net]] = defaultdict(list)
    for net in blocks.nets:
        for b in net[0]:
            touching[b].append(net)
    before, behind = defaultdict(set), defaultdict(set)
    for first, second in blocks.order_edges:
        before[second].add(first)
        behind[first].add(second)
    found, taken = [], set[int]()
    for v in range(blocks.num_blocks):
        if v in taken or not (blocks.sizes[v] == 0 or blocks.memory_is_ample):
            continue
        for u in _neighbours(v, touching[v], before[v] | behind[v]):
            if blocks.ordered and before[v] != {u} and behind[v] != {u}:
                continue
            saved = math.fsum(c for pins, c in touching[v] if set(pins) == {u, v})
            paid = math.fsum(c for pins, c in touching[v] if u not in pins)
            if u not in taken and _better_there(blocks, v, u, saved, paid):
                found.append((u, v))
                taken |= {u, v}
                break
    return found


def _neighbours(v: int, nets: list[Net], ordered: set[int]) -> list[int]:
    """Blocks that share a net with ``v`` or stand next to it."""
    return sorted({b for pins, _ in nets for b in pins if b != v} | ordered)


def _better_there(blocks: Blocks, v: int, u: int, saved: float, paid: float) -> bool:
    """Whether joining ``u`` costs no device more, on any class that runs ``u``."""
    if paid > saved:
        return False
    runs = np.isfinite(blocks.times_s[:, u])
    extra = blocks.times_s[runs, v]
    if blocks.problem.charging is Charging.WIRE:
        return bool(np.all(extra == 0))
    return bool(np.all(extra <= blocks.factors[runs] * (saved - paid)))


def inseparable(blocks: Blocks, ceiling_s: float) -> Blocks:
    """Merge blocks that every answer below ``ceiling_s`` keeps together.

    Two blocks on different devices cut all nets that hold both. Each of the two devices then pays
    for these nets and for its block; and all devices together pay for transfers no more than what
    is left of their time after computing (:func:`transfer_budget`).
    """
    ceiling_s *= 1 - SLIGHTLY
    while True:
        pairs = _inseparable(blocks, ceiling_s)
        if not pairs:
            return blocks
        blocks = blocks.merged(pairs)


def _inseparable(blocks: Blocks, ceiling_s: float) -> list[tuple[int, int]]:
    together: dict[tuple[int, int], list[float]] = defaultdict(list)
    for pins, cost in blocks.nets:
        for pair in itertools.combinations(pins, 2):
            together[pair].append(cost)
    budget, weights = transfer_budget(blocks, ceiling_s)
    serial = blocks.problem.charging is Charging.DEVICE
    found = []
    for (u, v), costs in together.items():
        wire = blocks.factors * math.fsum(costs)
        base = wire if serial else 0.0
        fits_u = (blocks.times_s[:, u] + base <= ceiling_s) & (wire <= ceiling_s)
        fits_v = (blocks.times_s[:, v] + base <= ceiling_s) & (wire <= ceiling_s)
        apart = any(
            (a != b or blocks.counts[a] > 1)
            and (not serial or wire[a] * weights[a] + wire[b] * weights[b] <= budget)
            for a in np.flatnonzero(fits_u)
            for b in np.flatnonzero(fits_v)
        )
        if not apart:
            found.append((u, v))
    return found


def slowness(blocks: Blocks) -> tuple[Floats, Floats]:
    """Least time of each block over classes, and by how much each class is slower at least."""
    least = blocks.times_s.min(axis=0)
    ratio = np.ones(len(blocks.counts))
    for c in range(len(ratio)):
        runs = np.isfinite(blocks.times_s[c]) & (least > 0)
        if runs.any():
            ratio[c] = (blocks.times_s[c, runs] / least[runs]).min()
        elif (least > 0).any():
            ratio[c] = math.inf
    return least, ratio


def transfer_budget(blocks: Blocks, ceiling_s: float) -> tuple[float, Floats]:
    """What transfers may cost in total below a ceiling, and the weight of each class in it.

    A device of a class that is ``r`` times slower than the fastest and pays ``p`` for transfers
    does at most ``(T - p) / r`` of the work (in least times); all devices together do all of it:
    ``sum p / r <= sum T / r - work``.
    """
    least, ratio = slowness(blocks)
    weights = 1 / ratio
    capacity = ceiling_s * math.fsum(np.array(blocks.counts) * weights)
    return capacity - math.fsum(least) * (1 - SLIGHTLY), weights
