"""The least time from a moment to the end of a sample: paths through the graph.

From when an output is in host memory to when all that depends on it is done. For an operator
``v``, with ``h`` and ``a`` its times on the fastest host and accelerator and ``c`` what its outputs
cost to move, least over devices,

    inside(v)  = a(v) + max over readers w of min(inside(w), c(v) + edge(v, w))
    edge(u, w) = min(h(w) + after(w), c(u) + inside(w))
    after(u)   = max over readers w of edge(u, w)

because on an accelerator a reader either shares the job or waits for the output to be sent. What
else a job does only makes it longer. A reader cannot share the job, which leaves out ``inside(w)``
above, if the two blocks and all between them (which a convex job holds too) exceed every memory.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import networkx as nx
import numpy as np

from planner.placement.blocks import Blocks, Floats
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
    def build(cls, blocks: Blocks) -> Tails:
        """Paths through the operators of ``blocks``; infinite where hosts alone cannot finish."""
        problem = blocks.problem
        num = len(problem.operators)
        host, fast, move = _least(problem)
        readers = [sorted(problem.digraph.successors(v)) for v in range(num)]
        apart = _apart(blocks)
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


def _apart(blocks: Blocks) -> set[tuple[int, int]]:
    """Producers and readers that no job can hold both."""
    memories = [
        blocks.memories[c]
        for c, places in enumerate(blocks.problem.classes)
        if not blocks.problem.places[places[0]].is_host
    ]
    largest = max((math.inf if m is None else m for m in memories), default=0.0)
    behind, before = [0] * blocks.num_blocks, [0] * blocks.num_blocks
    edges = sorted(blocks.order_edges)
    for b in range(blocks.num_blocks):
        before[b] |= 1 << b
        for _, second in edges[bisect_left(edges, (b, 0)) : bisect_left(edges, (b + 1, 0))]:
            before[second] |= before[b]
    for first, second in reversed(edges):
        behind[first] |= behind[second] | 1 << second
    found = set()
    for v, w in blocks.problem.digraph.edges:
        one, other = blocks.block_of[v], blocks.block_of[w]
        between = (behind[one] & before[other]) | 1 << one | 1 << other
        members = [b for b in range(blocks.num_blocks) if between >> b & 1]
        if one != other and int(blocks.sizes[members].sum()) > largest:
            found.add((v, w))
    return found


def _cheapest(problem: PlacementProblem, move: float) -> dict[tuple[int, int], float]:
    """Least cost of moving what goes from one operator to another."""
    found: dict[tuple[int, int], float] = {}
    for flow, (producer, *others) in zip(problem.flows, problem.pins, strict=True):
        for reader in others:
            before = found.get((producer, reader), 0.0)
            found[producer, reader] = before + flow.transfer_s * move
    return found
