"""The memory ledger of one rank: weights, state, activations, buffers, reserve, against capacity.

The formulas are those of ``docs/cost-model.md``, section "Memory of a rank".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from planner.communication import join_pieces
from planner.figures import Figures
from planner.planfile import RankMemory
from planner.problem import PlanningProblem
from planner.slices import RegionUnits, Slicing, divided_layers
from profiler.allocator import MAPPED_BYTES

BUFFER_DEPTH = 2
"""Microbatches that a rank receives ahead while it computes: double buffering."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one rank of a stage holds.

    ``received`` and ``leaving`` are the tensors that enter and leave the stage; ``incoming`` and
    ``outgoing`` those of them that this rank gets from, or sends to, another device. Of the regions
    of ``slices`` it has the units that are for ``rank``, its position in the stage.
    """

    layers: Sequence[int]
    device: str
    items: int
    whole_batch: bool
    received: frozenset[str]
    leaving: frozenset[str]
    incoming: frozenset[str]
    outgoing: frozenset[str]
    slices: Slicing = ()
    rank: int = 0


def stage_rank_memory(figures: Figures, holding: Holding) -> RankMemory:
    """The ledger of a rank that runs a stage."""
    problem = figures.problem
    weights = state = 0
    for name in {name for i in holding.layers for name in problem.graph.layers[i].weights}:
        weight = problem.graph.weight[name]
        if weight.state:
            state += weight.num_bytes
        else:
            weights += weight.num_bytes
    for whole, shard in shard_bytes(problem, holding.layers, holding.slices, holding.rank):
        weights += shard - whole
    buffers = buffer_bytes(figures, holding) + join_bytes(figures, holding)
    return RankMemory(
        weights_bytes=weights,
        state_bytes=state,
        activations_bytes=activation_bytes(figures, holding),
        buffers_bytes=buffers + root_bytes(figures, holding.device),
        reserve_bytes=problem.reserve_bytes(holding.device),
        capacity_bytes=problem.capacity_bytes(holding.device),
    )


def shard_bytes(
    problem: PlanningProblem, layers: Iterable[int], slices: Slicing, rank: int
) -> Iterator[tuple[int, int]]:
    """Whole and own bytes of each weight of which a rank holds a shard only."""
    by_region = {x.region: x for x in slices}
    for region, whole in sliced_weights(problem, layers, slices):
        yield whole, shard_of(whole, by_region[region], rank)


def sliced_weights(
    problem: PlanningProblem, layers: Iterable[int], slices: Slicing
) -> Iterator[tuple[int, int]]:
    """Region and bytes of each weight that ranks with these slices hold shards of.

    A weight that another layer of the stage reads too (a tied one) is held whole.
    """
    if not slices:
        return
    graph = problem.graph
    divided = divided_layers(problem, slices)
    kept = {name for i in layers if i not in divided for name in graph.layers[i].weights}
    holders: dict[str, set[int]] = {}
    for x in slices:
        for i in problem.region_layers[x.region]:
            for name in graph.layers[i].weights:
                holders.setdefault(name, set()).add(x.region)
    for x in slices:
        for sliced in graph.regions[x.region].weights:
            if sliced.weight not in kept and holders.get(sliced.weight) == {x.region}:
                yield x.region, graph.weight[sliced.weight].num_bytes


def shard_of(num_bytes: int, slices: RegionUnits, rank: int) -> int:
    """A rank's part of a weight that a region slices; units are equal in size."""
    return num_bytes * slices.units[rank] // sum(slices.units)


def empty_root_memory(figures: Figures) -> RankMemory:
    """The ledger of a root rank without a stage, which only feeds and gathers."""
    root = figures.problem.cluster.root
    return RankMemory(
        weights_bytes=0,
        state_bytes=0,
        activations_bytes=0,
        buffers_bytes=root_bytes(figures, root),
        reserve_bytes=figures.problem.reserve_bytes(root),
        capacity_bytes=figures.problem.capacity_bytes(root),
    )


def root_bytes(figures: Figures, device: str) -> int:
    """What one batch of inputs and outputs takes, if ``device`` is the root; and of what it keeps
    of them."""
    problem = figures.problem
    ends = dict.fromkeys(problem.keeps(device))
    if device == problem.cluster.root:
        ends.update(dict.fromkeys((*problem.graph.inputs, *problem.graph.outputs)))
    return sum(figures.tensor_bytes(name, problem.batch) for name in ends)


def on_heap(num_bytes: int, permille: int) -> int:
    """What ``num_bytes`` alive take on a heap that needs ``permille`` thousandths more.

    >>> on_heap(1000, 500)
    1500
    """
    return num_bytes + num_bytes * permille // 1000


class Part(Enum):
    """Where blocks of memory lie: on the heap, or, the large ones, outside of it."""

    HEAP = auto()
    MAPPED = auto()


def tensor_part(figures: Figures, part: Part, name: str, items: int) -> int:
    """Bytes of a tensor if it lies in ``part``, else nothing."""
    size = figures.tensor_bytes(name, items)
    return size if (size >= MAPPED_BYTES) == (part is Part.MAPPED) else 0


def peak_part(figures: Figures, part: Part, layer: int, device: str, items: int) -> int:
    """What a layer allocates in ``part`` beyond its inputs and weights."""
    mapped = figures.mapped_peak_bytes(layer, device, items)
    return mapped if part is Part.MAPPED else figures.peak_bytes(layer, device, items) - mapped


def activation_bytes(figures: Figures, holding: Holding) -> int:
    """What a rank takes for what is alive while a layer runs, and for what the layer allocates.

    The heap stays as large as it once was, and large blocks come beside it: so the most of either
    counts, at whichever layer that is.
    """
    permille = figures.heap_permille(holding.device, holding.items)
    total = on_heap(_most_alive(figures, holding, Part.HEAP), permille)
    total += _most_alive(figures, holding, Part.MAPPED)
    if any(figures.problem.graph.layers[i].uses_prelude for i in holding.layers):
        total += figures.prelude_peak_bytes(holding.device, holding.items)
    return total


def least_alive(figures: Figures, layer: int, device: str, items: int) -> int:
    """What a rank takes at least for the inputs of one of its layers and what that allocates."""
    reads = set(figures.problem.graph.layers[layer].reads)
    heap, mapped = (
        peak_part(figures, part, layer, device, items)
        + sum(tensor_part(figures, part, name, items) for name in reads)
        for part in Part
    )
    return on_heap(heap, figures.heap_permille(device, items)) + mapped


def _most_alive(figures: Figures, holding: Holding, part: Part) -> int:
    graph = figures.problem.graph
    layers, items = holding.layers, holding.items
    position = {layer: at for at, layer in enumerate(layers)}
    # A tensor lives from a first to a last position in the stage: +bytes at one, -bytes behind
    # the other.
    change = [0] * (len(layers) + 1)
    born = dict.fromkeys(sorted(holding.received), 0)
    for at, layer in enumerate(layers):
        born.update(dict.fromkeys(graph.layers[layer].writes, at + 1))
    for name, first in born.items():
        needed = [position[i] for i in graph.readers[name] if i in position]
        last = len(layers) - 1 if name in holding.leaving else max(needed, default=-1)
        if last >= first:
            size = tensor_part(figures, part, name, items)
            change[first] += size
            change[last + 1] -= size
    most = live = 0
    for at, layer in enumerate(layers):
        live += change[at]
        most = max(most, live + peak_part(figures, part, layer, holding.device, items))
    return most


def buffer_bytes(figures: Figures, holding: Holding) -> int:
    """What a rank takes for what it receives ahead and is still sending."""
    depth = 1 if holding.whole_batch else BUFFER_DEPTH
    moved = (*holding.incoming, *holding.outgoing)
    return depth * sum(figures.tensor_bytes(name, holding.items) for name in moved)


def join_bytes(figures: Figures, holding: Holding) -> int:
    """What a rank takes for the parts that its peers send it, at the join that needs most."""
    permille = figures.heap_permille(holding.device, holding.items)
    most = dict.fromkeys(Part, 0)
    for parts in {_most_arriving(figures, x, holding.rank, holding.items) for x in holding.slices}:
        for part, num_bytes in zip(Part, parts, strict=True):
            most[part] = max(most[part], num_bytes)
    return on_heap(most[Part.HEAP], permille) + most[Part.MAPPED]


def arriving_bytes(figures: Figures, slices: RegionUnits, rank: int, items: int, part: Part) -> int:
    """The most bytes that a rank receives at once, into ``part``, in a join of a region."""
    most = _most_arriving(figures, slices, rank, items)
    return dict(zip(Part, most, strict=True))[part]


def _most_arriving(figures: Figures, slices: RegionUnits, rank: int, items: int) -> tuple[int, ...]:
    """The most bytes that arrive at once in one of a region's joins, by ``Part``."""
    joins = figures.joins(slices.region, items)
    key = joins, slices.units, rank
    if key not in figures.arriving:
        most = [0] * len(Part)
        for how, size in joins:
            pieces = join_pieces(how, size, slices.units, rank)
            for at, part in enumerate(Part):
                here = sum(n for n in pieces if (n >= MAPPED_BYTES) == (part is Part.MAPPED))
                most[at] = max(most[at], here)
        figures.arriving[key] = tuple(most)
    return figures.arriving[key]
