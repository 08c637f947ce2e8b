"""A plan resolved against its model and cluster: layer positions, devices, item counts.

What `check` works on. It is independent of everything that makes plans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from planner.planfile import Plan, Stage, place
from planner.selection import LayerIndex, fold
from profiler.cluster import Cluster
from profiler.errors import InvalidInputError
from profiler.graph import ModelGraph, SliceRegion

_SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A plan beside the documents it must agree with.

    ``placed`` gives, for each pipeline and each stage of it, the positions of the layers that the
    stage names (repeats stay repeated); ``unknown`` the selectors that name none, with the reason.
    """

    plan: Plan
    graph: ModelGraph
    cluster: Cluster
    names: tuple[str, ...]
    placed: tuple[tuple[tuple[int, ...], ...], ...]
    unknown: tuple[tuple[str, str], ...]

    def layers_text(self, positions: Sequence[int]) -> str:
        """Layers for a message: how many, folded, cut after a few."""
        folded = fold((self.names[i] for i in positions), self.names)
        shown = ", ".join(folded[:_SHOWN]) + (", ..." if len(folded) > _SHOWN else "")
        return f"{len(positions)} layer{'s' if len(positions) != 1 else ''} ({shown})"

    def missing(self, pipeline: int) -> tuple[int, ...]:
        """Positions of the layers that no stage of a pipeline holds."""
        held = {i for layers in self.placed[pipeline] for i in layers}
        return tuple(i for i in range(len(self.names)) if i not in held)


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceView:
    """A region that a stage divides: its layers by position, its units for each rank."""

    region: SliceRegion
    layers: tuple[int, ...]
    units: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """A stage with everything looked up.

    It runs ``runs`` times a batch on ``items`` items; the rank at position ``i`` takes
    ``shares[i]`` of them, after those of the ranks before it. With ``slices`` every rank takes all
    of them, and the first sends what leaves.
    """

    place: str
    pipeline: int
    layers: tuple[int, ...]
    ranks: tuple[int, ...]
    devices: tuple[str, ...]
    shares: tuple[int, ...]
    whole_batch: bool
    items: int
    runs: int
    slices: tuple[SliceView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A plan without contradictions in its structure."""

    batch_size: int
    microbatch_size: int
    depth: int
    root: str
    pipeline_items: tuple[int, ...]
    pipelines: tuple[tuple[StageView, ...], ...]
    stages: Mapping[str, StageView]  # by place
    device_of: Mapping[int, str]  # by rank

    def runs(self, pipeline: int) -> int:
        """Microbatches that a pipeline computes of each batch."""
        return -(-self.pipeline_items[pipeline] // self.microbatch_size)


def read(plan: Plan, graph: ModelGraph, cluster: Cluster) -> Reading:
    """``plan`` with its layers looked up; nothing is judged yet."""
    index = LayerIndex([layer.name for layer in graph.layers])
    known: dict[str, tuple[int, ...]] = {}
    unknown: list[tuple[str, str]] = []

    def positions(where: str, selectors: Sequence[str]) -> Iterator[int]:
        for selector in selectors:
            if selector not in known:
                try:
                    known[selector] = tuple(index.positions([selector]))
                except InvalidInputError as problem:
                    unknown.append((where, str(problem)))
                    continue
            yield from known[selector]

    return Reading(
        plan=plan,
        graph=graph,
        cluster=cluster,
        names=index.names,
        placed=tuple(
            tuple(tuple(positions(place(p, s), stage.layers)) for s, stage in enumerate(x.stages))
            for p, x in enumerate(plan.spec.pipelines)
        ),
        unknown=tuple(unknown),
    )


def resolve(reading: Reading) -> Layout:
    """The layout of a plan whose structure is sound."""
    spec = reading.plan.spec
    micro = spec.schedule.microbatch_size
    device_of = {binding.rank: binding.device for binding in spec.ranks}
    regions = {region.name: region for region in reading.graph.regions}
    at = reading.graph.layer_index

    def sliced(stage: Stage) -> tuple[SliceView, ...]:
        return tuple(
            SliceView(
                region=regions[x.region],
                layers=tuple(sorted(at[name] for name in regions[x.region].layers)),
                units=x.units,
            )
            for x in stage.slices
        )

    pipelines = tuple(
        tuple(
            StageView(
                place=place(p, s),
                pipeline=p,
                layers=tuple(sorted(reading.placed[p][s])),
                ranks=stage.ranks,
                devices=tuple(device_of[rank] for rank in stage.ranks),
                shares=stage.shares,
                whole_batch=stage.whole_batch,
                items=pipeline.items if stage.whole_batch else micro,
                runs=1 if stage.whole_batch else -(-pipeline.items // micro),
                slices=sliced(stage),
            )
            for s, stage in enumerate(pipeline.stages)
        )
        for p, pipeline in enumerate(spec.pipelines)
    )
    return Layout(
        batch_size=reading.plan.inputs.request.batch_size,
        microbatch_size=micro,
        depth=spec.schedule.depth,
        root=reading.cluster.root,
        pipeline_items=tuple(pipeline.items for pipeline in spec.pipelines),
        pipelines=pipelines,
        stages={stage.place: stage for stages in pipelines for stage in stages},
        device_of=device_of,
    )


def needs_whole_batch(graph: ModelGraph, layer: int) -> bool:
    """Whether the layer must see every item of the batch at once."""
    return not graph.layers[layer].itemwise or any(
        graph.tensor[name].per_batch for name in graph.layers[layer].reads
    )
