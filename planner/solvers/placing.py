"""Templates of pipelines put onto devices, and the batch shared among what comes of it.

Pools are cut into pieces as the master says. Templates advance through the cluster together, each
in proportion to how many of its copies there are, so that the pieces of one copy stand close to
each other. What a copy then takes depends on the links it really has, by the cost model.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise, permutations

import numpy as np

from planner.cost import CostModel
from planner.flows import Routing
from planner.pools import Path, Pools
from planner.problem import PlanningProblem
from planner.rules import best_routing
from planner.slices import slices_within
from planner.solvers.base import Assignment, PipelineAssignment, StageAssignment
from planner.solvers.partitions import share_items
from planner.solvers.template_pricing import Template
from planner.solvers.template_tables import TemplateTables

Devices = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlacedPipeline:
    """A pipeline on devices, and its time between microbatches by the cost model."""

    pipeline: PipelineAssignment
    period_s: float


class Placing:
    """Puts templates onto the devices of one problem."""

    def __init__(
        self, problem: PlanningProblem, pools: Pools, tables: TemplateTables, cost: CostModel
    ) -> None:
        self.problem, self.pools, self.cost = problem, pools, cost
        self.runs, self._slicings = tables.runs, {m.key: m.slicings for m in tables.modes}
        self._priced: dict[tuple[object, ...], tuple[float, Routing] | None] = {}

    def place(
        self,
        templates: Sequence[Template],
        counts: Sequence[int],
        splits: Mapping[tuple[int, int, int], int],
    ) -> list[PlacedPipeline]:
        """So many pipelines of each template, as far as they fit into their devices' memory."""
        pieces = {
            (t, s): iter(found)
            for t in range(len(self.pools.kinds))
            for s, found in self._pieces(t, splits).items()
        }
        copies = sorted(
            ((i + 0.5) / count, at) for at, count in enumerate(counts) for i in range(count)
        )
        found = []
        for _, at in copies:
            devices = [d for piece in templates[at].pieces for d in next(pieces[piece])]
            placed = self._price(templates[at], devices)
            if placed is not None:
                found.append(placed)
        return found

    def _pieces(
        self, t: int, splits: Mapping[tuple[int, int, int], int]
    ) -> dict[int, list[Devices]]:
        """The pools of a kind in pieces, by size, in the order of the cluster."""
        pools = self.pools.kinds[t].pools
        if self.runs[t] <= 1:
            return {1: [(device,) for pool in pools for device in pool]}
        held: dict[int, list[tuple[int, Devices]]] = {}
        position = {device: i for i, device in enumerate(d for pool in pools for d in pool)}
        for pool in pools:
            held.setdefault(len(pool), []).append((position[pool[0]], pool))
        for size in range(max(held), 1, -1):
            whole = sorted(held.get(size, []))
            cuts = [
                (a, n) for (u, a, b), n in sorted(splits.items()) if (u, a + b) == (t, size) and n
            ]
            # Those that are cut lie evenly among those that stay whole.
            order = np.argsort(np.arange(len(whole)) * 0.6180339887498949 % 1.0, kind="stable")
            taken = iter([whole[i] for i in order])
            for a, n in cuts:
                for _ in range(n):
                    _, devices = next(taken)
                    for part in (devices[:a], devices[a:]):
                        held.setdefault(len(part), []).append((position[part[0]], part))
            held[size] = sorted(taken)
        return {size: [devices for _, devices in sorted(found)] for size, found in held.items()}

    def _price(self, template: Template, devices: Sequence[str]) -> PlacedPipeline | None:
        """One copy on these devices; alike ones with like links are priced once."""
        links, root = self.problem.links, self.problem.cluster.root
        stages = self._stages(template, devices)
        ways = [pair for d in devices for pair in ((root, d), (d, root))]
        for before, after in pairwise(stage.devices for stage in stages):
            ways += [(before[0], d) for d in after]
        ways += [pair for stage in stages for pair in permutations(stage.devices, 2)]
        key = (
            template.stages,
            *(Path.of(links[a, b]) if a != b else None for a, b in ways),
        )
        items = self.problem.microbatch
        if key not in self._priced:
            one = replace(self.problem, items=items)
            assignment, price = best_routing(one, self.cost, stages)
            routing = assignment.pipelines[0].routing
            self._priced[key] = (price.period_s, routing) if price.fits else None
        known = self._priced[key]
        if known is None:
            return None
        period_s, routing = known
        pipeline = PipelineAssignment(items=items, stages=stages, routing=routing)
        return PlacedPipeline(pipeline, period_s)

    def _stages(self, template: Template, devices: Sequence[str]) -> tuple[StageAssignment, ...]:
        found, left = [], iter(devices)
        for stage in template.stages:
            layers = tuple(range(stage.start, stage.end))
            slicing = self._slicings[stage.mode][stage.number]
            found.append(
                StageAssignment(
                    layers=layers,
                    devices=tuple(islice(left, stage.width)),
                    shares=(self.problem.microbatch,) * stage.width,
                    slices=slices_within(self.problem, slicing, layers),
                )
            )
        return tuple(found)


def shared(problem: PlanningProblem, placed: Sequence[PlacedPipeline]) -> Assignment | None:
    """The batch shared among pipelines such that the slowest is done soonest; some may get none."""
    wanted = problem.num_microbatches
    times = np.array([max(p.period_s, 1e-300) for p in placed])
    if not len(times):
        return None
    low, high = 0.0, float(times.min()) * wanted
    for _ in range(80):
        middle = (low + high) / 2
        if np.floor(middle / times * (1 + 1e-12)).sum() >= wanted:
            high = middle
        else:
            low = middle
    counts = np.minimum(np.floor(high / times * (1 + 1e-12)), wanted).astype(np.int64)
    # What is too many comes off those that would be done last.
    last = [(-n * t, at) for at, (n, t) in enumerate(zip(counts, times, strict=True)) if n]
    heapq.heapify(last)
    for _ in range(int(counts.sum()) - wanted):
        _, at = heapq.heappop(last)
        counts[at] -= 1
        if counts[at]:
            heapq.heappush(last, (-counts[at] * times[at], at))
    used = [(int(n), p.pipeline) for n, p in zip(counts, placed, strict=True) if n]
    # Like pipelines follow each other in the plan.
    used.sort(key=lambda x: (-x[0], [stage.layers[0] for stage in x[1].stages]))
    items = share_items(problem, [n for n, _ in used])
    return Assignment(
        pipelines=tuple(
            replace(pipeline, items=count) for count, (_, pipeline) in zip(items, used, strict=True)
        )
    )
