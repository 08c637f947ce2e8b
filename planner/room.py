"""How much of the whole model a rank has room for, undivided or with its slices of regions.

The sums are those of ``planner.memory``; what does not depend on the slices is summed once, as the
same question is asked for every group of devices.
"""

from __future__ import annotations

from collections import Counter

from planner.figures import Figures
from planner.memory import Holding, join_bytes, shard_of, sliced_weights, stage_rank_memory
from planner.planfile import RankMemory
from planner.slices import RegionUnits, Slicing


class ModelRoom:
    """What ranks need for all layers of one problem's model."""

    def __init__(self, figures: Figures) -> None:
        self.figures, self.problem = figures, figures.problem
        self._undivided: dict[tuple[str, bool], RankMemory] = {}
        self._weights: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        self._shards: dict[tuple[Slicing, int], tuple[int, int]] = {}

    def spare_bytes(self, device: str, rank: int, slices: Slicing) -> int:
        """Bytes left on a device that holds its part of the whole model; negative if too few."""
        undivided = self._holds_all(device, first=rank == 0)
        spare = undivided.capacity_bytes - undivided.total_bytes
        if not slices:
            return spare
        whole, own = self.shard_bytes(slices, rank)
        return spare + whole - own - join_bytes(self.figures, self._holding(device, rank, slices))

    def shard_bytes(self, slices: Slicing, rank: int) -> tuple[int, int]:
        """Bytes of all weights that ``slices`` divide, whole and what is the rank's of them."""
        key = slices, rank
        if key not in self._shards:
            whole = own = 0
            for (sizes, x), count in self._divided(slices).items():
                whole += count * sum(sizes)
                own += count * sum(shard_of(size, x, rank) for size in sizes)
            self._shards[key] = whole, own
        return self._shards[key]

    def _divided(self, slices: Slicing) -> Counter[tuple[tuple[int, ...], RegionUnits]]:
        """How often the same weights are divided in the same way; one region stands for all."""
        regions = tuple(x.region for x in slices)
        if regions not in self._weights:
            found: dict[int, list[int]] = {region: [] for region in regions}
            for region, num_bytes in sliced_weights(
                self.problem, range(self.problem.num_layers), slices
            ):
                found[region].append(num_bytes)
            self._weights[regions] = [tuple(found[region]) for region in regions]
        alike: Counter[tuple[tuple[int, ...], RegionUnits]] = Counter()
        one: dict[tuple[int, ...], RegionUnits] = {}
        for sizes, x in zip(self._weights[regions], slices, strict=True):
            alike[sizes, one.setdefault(x.units, x)] += 1
        return alike

    def _holds_all(self, device: str, *, first: bool) -> RankMemory:
        key = device, first
        if key not in self._undivided:
            self._undivided[key] = stage_rank_memory(
                self.figures, self._holding(device, 0 if first else 1, ())
            )
        return self._undivided[key]

    def _holding(self, device: str, rank: int, slices: Slicing) -> Holding:
        problem = self.problem
        root = device == problem.cluster.root
        inputs, outputs = frozenset(problem.graph.inputs), frozenset(problem.graph.outputs)
        return Holding(
            layers=range(problem.num_layers),
            device=device,
            items=problem.microbatch,
            whole_batch=False,
            received=inputs,
            leaving=outputs,
            incoming=frozenset() if root else inputs,
            outgoing=outputs if rank == 0 and not root else frozenset(),
            slices=slices,
            rank=rank,
        )
