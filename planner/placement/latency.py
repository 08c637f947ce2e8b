"""The least latency of one sample: host processors without number, few jobs per accelerator.

Exact by labels over down-sets (:mod:`~planner.placement.latency_labels`) where these are few; else
the best that narrow and coarse searches find, with the bound of paths
(:mod:`~planner.placement.tails`).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import networkx as nx
import numpy as np

from planner.placement.answer import Placement, PlacementResult
from planner.placement.blocks import Blocks
from planner.placement.downsets import DownSets, down_sets, prefixes
from planner.placement.latency_labels import ON_HOST, LatencyLabels, devices_of
from planner.placement.problem import PlacementProblem
from planner.placement.tails import Tails
from planner.solvers.base import TOLERANCE, SolveLimits, SolveStatus
from profiler.errors import InvalidInputError

WIDTHS = ((2, 1.0), (20000, 0.7), (16, 0.5), (128, 1.0))
"""Labels kept per down-set and the part of the time left for it: a quick answer, an attempt at a
proof, and, if that took too long, better answers."""
MAX_TABLE = 2 * 10**7
FEW = 5000
"""With more down-sets than this, quick answers are sought first."""

COARSE_SHARE = 0.3
"""Of the time, for these."""

Steps = Sequence[tuple[int, tuple[int, ...]]]


def place_latency(
    problem: PlacementProblem, limits: SolveLimits, *, max_jobs: int = 1
) -> PlacementResult:
    """The best schedule with at most ``max_jobs`` jobs per accelerator found in time, and a bound.

    Schedules with one job per accelerator are searched; the bound holds for any number.

    Raises:
        InvalidInputError: ``max_jobs`` below 1.
    """
    if max_jobs < 1:
        raise InvalidInputError(f"an accelerator runs {max_jobs} jobs, it has to run at least 1")
    return _Search(problem).run(limits, max_jobs)


def greedy_latency(problem: PlacementProblem) -> PlacementResult:
    """Accelerators filled in topological order, each up to its memory; the rest on hosts."""
    search = _Search(problem)
    search.greedy()
    return search.result(1, None)


class _Search:
    """The best schedule and the bound so far."""

    def __init__(self, problem: PlacementProblem) -> None:
        forward = tuple(replace(o, backward=False) for o in problem.operators)
        self.problem = replace(problem, operators=forward)
        self.blocks = Blocks.build(self.problem, ordered=True)
        self.tails = Tails.build(self.problem)
        self.bound_s = self.tails.total_s
        self.latency_s = math.inf
        self.steps: Steps | None = None
        hosts = [
            c
            for c, places in enumerate(self.problem.classes)
            if self.problem.places[places[0]].is_host
        ]
        self.one_kind_of_host = len(hosts) <= 1
        total = self.blocks.times_s.sum(axis=1)
        self.host = min(hosts, key=lambda c: (total[c], c)) if hosts else None
        self.proved = self.impossible = False

    def run(self, limits: SolveLimits, max_jobs: int) -> PlacementResult:
        """Greedy, then wider and wider searches until one is complete."""
        self.greedy()
        if not np.isfinite(self.blocks.times_s.min(axis=0)).all():
            self._all_searched(max_jobs)
            return self.result(max_jobs, None)
        if self.bound_s == math.inf:
            return self.result(max_jobs, None)
        sets = down_sets(self.blocks, limit=MAX_TABLE // self.blocks.num_blocks)
        if sets is None or sets.count > FEW:
            self._coarsely(limits)
        chosen = prefixes(self.blocks) if sets is None else sets
        if self._searched(self.blocks, chosen, WIDTHS, limits) and sets is not None:
            self._all_searched(max_jobs)
        return self.result(max_jobs, chosen.count)

    def _coarsely(self, limits: SolveLimits) -> None:
        """Quick answers where down-sets are many: along one line, then with fewer blocks."""
        part = _part(limits, COARSE_SHARE)
        self._searched(self.blocks, prefixes(self.blocks), WIDTHS[:1], part)
        for coarse in _coarser(self.blocks):
            sets = down_sets(coarse, limit=FEW)
            if sets is not None:
                self._searched(coarse, sets, WIDTHS, part)
                return

    def _searched(
        self,
        blocks: Blocks,
        sets: DownSets,
        widths: Sequence[tuple[int, float]],
        limits: SolveLimits,
    ) -> bool:
        """Search ``sets`` more and more widely; whether a search was complete."""
        labels = LatencyLabels(blocks, sets, self.tails, host=self.host)
        for width, share in widths:
            if limits.expired or self.latency_s <= self.bound_s * (1 + TOLERANCE):
                break
            found = labels.search(
                ceiling_s=self.latency_s, width=width, limits=_part(limits, share)
            )
            if found.steps is not None:
                self.latency_s = found.latency_s
                self.steps = [step for c, own in found.steps for step in self._fine(blocks, c, own)]
            if found.complete:
                return True
        return False

    def _fine(
        self, blocks: Blocks, c: int, chosen: tuple[int, ...]
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        """A step of ``blocks`` as steps of the search's own blocks, which are no larger."""
        own = sorted({self.blocks.block_of[i] for b in chosen for i in blocks.members[b]})
        if c == ON_HOST:
            yield from ((c, (b,)) for b in own)
        else:
            yield c, tuple(own)

    def _all_searched(self, max_jobs: int) -> None:
        """What a complete search proves: nothing where blocks may have to be taken apart."""
        if max_jobs == 1 and self.one_kind_of_host and units_suffice(self.problem, self.blocks):
            if self.steps is None:
                self.impossible = True
            else:
                self.bound_s = self.latency_s

    def greedy(self) -> None:
        """Fill accelerators in topological order, each up to its memory; the rest on hosts."""
        blocks = self.blocks
        free = [
            c
            for c, places in enumerate(self.problem.classes)
            if not self.problem.places[places[0]].is_host
            for _ in places
        ]
        steps: list[tuple[int, tuple[int, ...]]] = []
        taken: list[int] = []
        for b in range(blocks.num_blocks):
            while free:
                memory = blocks.memories[free[0]]
                size = int(blocks.sizes[[*taken, b]].sum())
                if math.isfinite(blocks.times_s[free[0], b]) and (memory is None or size <= memory):
                    taken.append(b)
                    break
                if not taken:
                    break
                steps.append((free.pop(0), tuple(taken)))
                taken = []
            if b not in taken:
                if self.host is None or math.isinf(blocks.times_s[self.host, b]):
                    return
                steps.append((ON_HOST, (b,)))
        if taken:
            steps.append((free[0], tuple(taken)))
        latency = latency_of(blocks, steps, self.host)
        if latency < self.latency_s:
            self.latency_s, self.steps = latency, steps

    def result(self, max_jobs: int, count: int | None) -> PlacementResult:
        """What was found and proved."""
        space = f"one sample, at most {max_jobs} jobs per accelerator"
        method = f"labels over {count} down-sets" if count is not None else "greedy"
        if self.steps is None:
            status = SolveStatus.INFEASIBLE if self.impossible else SolveStatus.UNKNOWN
            return PlacementResult(
                status=status,
                placement=None,
                objective_s=None,
                bound_s=None if self.impossible else self.bound_s,
                space=space,
                method=method,
            )
        devices = self.blocks.spread(devices_of(self.blocks, self.steps, self.host))
        proved = self.bound_s >= self.latency_s * (1 - TOLERANCE)
        return PlacementResult(
            status=SolveStatus.OPTIMAL if proved else SolveStatus.FEASIBLE,
            placement=Placement(devices=devices, jobs=(0,) * len(devices)),
            objective_s=self.latency_s,
            bound_s=min(self.bound_s, self.latency_s),
            space=space,
            method=method,
        )


def _coarser(blocks: Blocks) -> Iterator[Blocks]:
    """Fewer and fewer blocks: ends joined to their only neighbour, then whole chains as one."""
    before, behind = _neighbours(blocks)
    ends = [
        (u, w)
        for w, producers in before.items()
        for u in producers
        if (len(producers) == 1 and not behind[w]) or (not before[u] and len(behind[u]) == 1)
    ]
    without_ends = blocks.merged(ends)
    yield without_ends
    before, behind = _neighbours(without_ends)
    yield without_ends.merged(
        (u, w) for u, readers in behind.items() for w in readers if len(readers | before[w]) == 2
    )


def _neighbours(blocks: Blocks) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
    """What stands directly before and directly behind each block."""
    before: dict[int, set[int]] = {b: set() for b in range(blocks.num_blocks)}
    behind: dict[int, set[int]] = {b: set() for b in range(blocks.num_blocks)}
    for first, second in blocks.order_edges:
        before[second].add(first)
        behind[first].add(second)
    return before, behind


def _part(limits: SolveLimits, share: float) -> SolveLimits:
    """A share of the time that is left."""
    end = time.monotonic() + share * limits.remaining_s()
    return replace(limits, deadline=min(limits.deadline, end))


def units_suffice(problem: PlacementProblem, blocks: Blocks) -> bool:
    """Whether placing whole blocks loses no schedule.

    On hosts the members of a block start each on its own, so a job might have to run between two
    of them. It cannot if from each member that reads from outside a path leads to each other
    member that is read outside. And a block of several groups (on a cycle) may be taken apart.
    """
    if set(blocks.members) != set(problem.groups):
        return False
    graph = problem.digraph
    for b, members in enumerate(blocks.members):
        if len(members) == 1:
            continue
        own = set(members)
        reads = [v for v in members if any(blocks.block_of[u] != b for u in graph.predecessors(v))]
        read = [v for v in members if any(blocks.block_of[w] != b for w in graph.successors(v))]
        for v in reads:
            reached = nx.descendants(graph.subgraph(own), v)
            if any(u != v and u not in reached for u in read):
                return False
    return True


def latency_of(blocks: Blocks, steps: Steps, host: int | None) -> float:
    """When the last operator is done, for steps in the order in which they may start."""
    problem = blocks.problem
    ready: dict[int, float] = {}
    cost: dict[int, list[tuple[frozenset[int], float]]] = defaultdict(list)
    for flow, (producer, *readers) in zip(problem.flows, problem.pins, strict=True):
        cost[producer].append((frozenset(readers), flow.transfer_s))
    latest = 0.0
    for c, chosen in steps:
        if c == ON_HOST:
            assert host is not None
            place = problem.classes[host][0]
            for b in chosen:
                for v in blocks.line[b]:
                    start = max((ready[u] for u in problem.digraph.predecessors(v)), default=0.0)
                    ready[v] = start + problem.time_s(v, place)
                    latest = max(latest, ready[v])
            continue
        own = {i for b in chosen for i in blocks.members[b]}
        outside = {u for v in own for u in problem.digraph.predecessors(v)} - own
        start = max((ready[u] for u in outside), default=0.0)
        moved = [t for u in outside for readers, t in cost[u] if readers & own]
        moved += [t for v in own for readers, t in cost[v] if readers - own]
        work = math.fsum(blocks.times_s[c, b] for b in chosen)
        end = start + work + float(blocks.factors[c]) * math.fsum(moved)
        ready.update(dict.fromkeys(own, end))
        latest = max(latest, end)
    return latest
