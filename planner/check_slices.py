"""Whether the slices of stages split by tensor divide their regions, wholly and among all ranks.

Independent of everything that makes plans.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.findings import Finding, error
from planner.layout import Reading
from planner.planfile import Slices, Stage, place
from profiler.graph import SliceRegion


def slice_findings(reading: Reading) -> Iterator[Finding]:
    """Everything wrong with the slices of all stages."""
    micro = reading.plan.spec.schedule.microbatch_size
    for p, pipeline in enumerate(reading.plan.spec.pipelines):
        home = {reading.names[i]: s for s, layers in enumerate(reading.placed[p]) for i in layers}
        for s, stage in enumerate(pipeline.stages):
            where = place(p, s)
            if stage.split == "tensor":
                yield from _ranks(stage, where, micro)
            elif stage.slices:
                yield error(
                    "slices",
                    where,
                    f"split {stage.split} divides no weights; remove the slices, or use split "
                    "tensor",
                )
                continue
            seen: set[str] = set()
            for slices in stage.slices:
                if slices.region in seen:
                    yield error("slices", where, f"{slices.region} is listed twice; keep one")
                seen.add(slices.region)
                yield from _region(reading, stage, slices, where, home, s)


def _ranks(stage: Stage, where: str, micro: int) -> Iterator[Finding]:
    if len(stage.ranks) < 2:
        yield error("split", where, "split tensor needs two ranks or more; use split none")
    if stage.whole_batch:
        yield error("split", where, "a whole_batch stage has one rank: use split none")
    if set(stage.shares) != {micro}:
        shown = " + ".join(str(share) for share in stage.shares[:8])
        yield error(
            "shares",
            where,
            f"every rank of a tensor split computes all {micro} items of a microbatch; the shares "
            f"are {shown}",
        )
    if not stage.slices:
        yield error(
            "slices",
            where,
            "nothing is divided, so every rank would compute everything: give slices of a region, "
            "or use one rank",
        )


def _region(
    reading: Reading,
    stage: Stage,
    slices: Slices,
    where: str,
    home: dict[str, int],
    number: int,
) -> Iterator[Finding]:
    known = {region.name: region for region in reading.graph.regions}
    region = known.get(slices.region)
    if region is None:
        yield error(
            "slices",
            where,
            f"the model has no region {slices.region[:80]!r}; it has {_few(list(known))}",
        )
        return
    outside = [name for name in region.layers if home.get(name) != number]
    if outside:
        holder = home.get(outside[0])
        there = "in no stage" if holder is None else f"in stage {holder}"
        yield error(
            "slices",
            where,
            f"region {region.name} is only partly in it: {outside[0]} is {there}; move the "
            f"region's {len(region.layers)} layers into one stage, or remove its slices",
        )
    yield from _units(stage, slices, region, where)


def _units(stage: Stage, slices: Slices, region: SliceRegion, where: str) -> Iterator[Finding]:
    width = len(stage.ranks)
    if region.units < width:
        yield error(
            "slices",
            where,
            f"more ranks than {region.axis}: {width} ranks, {region.units} {region.axis} in region "
            f"{region.name}; use {region.units} ranks at most, or remove its slices",
        )
    elif len(slices.units) != width:
        yield error(
            "slices",
            where,
            f"{width} ranks have {len(slices.units)} slices of region {region.name}; one each",
        )
    elif any(units < 1 for units in slices.units):
        yield error(
            "slices",
            where,
            f"slices of region {region.name} are {_few(slices.units)} {region.axis}; each rank "
            "needs one at least",
        )
    elif sum(slices.units) != region.units:
        added = " + ".join(str(units) for units in slices.units[:8])
        more = " + ..." if width > 8 else ""
        yield error(
            "slices",
            where,
            f"slices of region {region.name} are {added}{more} = {sum(slices.units)}; it has "
            f"{region.units} {region.axis}",
        )


def _few(values: list[str] | tuple[int, ...]) -> str:
    shown = ", ".join(str(value) for value in values[:8])
    return (shown + (", ..." if len(values) > 8 else "")) or "none that can be sliced"
