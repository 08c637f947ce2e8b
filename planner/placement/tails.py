"""The least time from a moment to the end of a sample: paths through the graph.

From when an output is in host memory to when all that depends on it is done. For an operator
``v``, with ``h`` and ``a`` its times on the fastest host and accelerator and ``c`` what its outputs
cost to move, least over devices,

    inside(v)  = a(v) + max over readers w of min(inside(w), c(v) + edge(v, w))
    edge(u, w) = min(h(w) + after(w), c(u) + inside(w))
    after(u)   = max over readers w of edge(u, w)

because on an accelerator a reader either shares the job or waits for the output to be sent. What
else a job does only makes it longer. A reader cannot share the job, which leaves out ``inside(w)``
above, if the two, all between them and the groups of these exceed every memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx
import numpy as np

from planner.placement.blocks import Floats
from planner.placement.problem import PlacementProblem


@dataclass(frozen=True, kw_only=True)
class Tails:
    """Seconds from when an output is in host memory, by producer and reader.

    ``edge_s`` with accelerators at hand, ``hosts_s`` without. ``total_s`` is from the start: a
    bound on the latency.
    """

    edge_s: dict[tuple[int, int], float]
    hosts_s: dict[tuple[int, int], float]
    total_s: float

    @classmethod
    def build(cls, problem: PlacementProblem) -> Tails:
        """Paths through ``problem``; infinite where hosts alone cannot finish."""
        num = len(problem.operators)
        host, fast, move = _least(problem)
        readers = [sorted(problem.digraph.successors(v)) for v in range(num)]
        apart = _apart(problem)
        inside, after, hosts = np.zeros(num), np.zeros(num), np.zeros(num)
        out = _cheapest(problem, move)
        edge: dict[tuple[int, int], float] = {}
        alone: dict[tuple[int, int], float] = {}
        for v in reversed(list(nx.topological_sort(problem.digraph))):
            inside[v] = fast[v]
            for w in readers[v]:
                edge[v, w] = float(min(host[w] + after[w], out[v, w] + inside[w]))
                alone[v, w] = float(host[w] + hosts[w])
                shared = math.inf if (v, w) in apart else inside[w]
                path = fast[v] + min(shared, out[v, w] + edge[v, w])
                inside[v] = max(inside[v], path)
                after[v] = max(after[v], edge[v, w])
                hosts[v] = max(hosts[v], alone[v, w])
        sources = [v for v in range(num) if problem.digraph.in_degree(v) == 0]
        total = max(min(host[v] + after[v], inside[v]) for v in sources)
        return cls(edge_s=edge, hosts_s=alone, total_s=float(total))


def _least(problem: PlacementProblem) -> tuple[Floats, Floats, float]:
    """Least time per operator on a host and on an accelerator, and the least transfer factor."""
    num = len(problem.operators)
    host, fast, move = np.full(num, math.inf), np.full(num, math.inf), math.inf
    for p, place in enumerate(problem.places):
        times = np.array([problem.time_s(i, p) for i in range(num)])
        if place.is_host:
            host = np.minimum(host, times)
        else:
            fast = np.minimum(fast, times)
            move = min(move, place.transfer_factor)
    return host, fast, 0.0 if math.isinf(move) else move


def _apart(problem: PlacementProblem) -> set[tuple[int, int]]:
    """Producers and readers that no job can hold both.

    A job holds whole groups, and every operator on a path between two of its own. Not more than
    that: operators of a group may run at different times if the group is on hosts.
    """
    memories = [p.memory_bytes for p in problem.places if not p.is_host]
    largest = max((math.inf if m is None else m for m in memories), default=0.0)
    order = list(nx.topological_sort(problem.digraph))
    num = len(order)
    before, behind, group = [0] * num, [0] * num, [0] * num
    for v in order:
        before[v] |= 1 << v
        for w in problem.digraph.successors(v):
            before[w] |= before[v]
    for v in reversed(order):
        behind[v] |= 1 << v
        for w in problem.digraph.successors(v):
            behind[v] |= behind[w]
    for members in problem.groups:
        mask = sum(1 << i for i in members)
        for i in members:
            group[i] = mask
    sizes = [o.size_bytes for o in problem.operators]
    found = set()
    for v, w in problem.digraph.edges:
        held, grown = 0, group[v] | group[w]
        while grown != held:
            held = grown
            after = until = 0
            for i in _bits(held):
                after |= behind[i]
                until |= before[i]
            for i in _bits(after & until & ~held):
                grown |= group[i]
        if group[v] != group[w] and sum(sizes[i] for i in _bits(held)) > largest:
            found.add((v, w))
    return found


def _bits(mask: int) -> Iterator[int]:
    """Positions of the bits of ``mask``, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _cheapest(problem: PlacementProblem, move: float) -> dict[tuple[int, int], float]:
    """Least cost of moving what goes from one operator to another."""
    found: dict[tuple[int, int], float] = {}
    for flow, (producer, *others) in zip(problem.flows, problem.pins, strict=True):
        for reader in others:
            before = found.get((producer, reader), 0.0)
            found[producer, reader] = before + flow.transfer_s * move
    return found
