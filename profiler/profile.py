"""What was measured, on what, how surely: the Profile document.

A profile holds the model graph, the cluster and, per kind of device, the times and memory of each
distinct layer at several batch sizes. The planner needs nothing else.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from profiler.cluster import Cluster
from profiler.documents import Document, Record
from profiler.graph import ModelGraph, SliceRegion
from profiler.hypothetical import Hypothetical

PRELUDE = "(prelude)"
"""Twin name under which the work that every stage repeats is measured."""


class Measurement(Record):
    """One distinct layer, one device, one batch size.

    ``median_s`` over ``samples`` repeats; ``spread`` is the distance of the quartiles over it;
    ``peak_bytes`` is the most memory the layer allocates beyond its inputs and weights,
    its outputs included. ``mapped_bytes`` is how much of that was in large blocks, from
    ``profiler.allocator.MAPPED_BYTES`` on, which a rank holds outside of its heap.
    """

    items: int = Field(ge=1)
    median_s: float = Field(ge=0)
    spread: float = Field(ge=0)
    samples: int = Field(ge=1)
    peak_bytes: int = Field(ge=0)
    mapped_bytes: int = Field(default=0, ge=0)


class HeapMeasurement(Record):
    """At ``items`` items, a rank's heap takes ``permille`` thousandths of its activations on top.

    The heap has holes that no later tensor fits into, and kernels keep scratch memory on it. Layers
    make them: a run leaves much the same with none or two of its inputs and outputs on their way.
    """

    items: int = Field(ge=1)
    permille: int = Field(ge=0)


class SegmentTiming(Record):
    """A run of layers (positions ``first`` to ``last``) timed as one stage, for ``items`` items.

    ``predicted_s`` is the sum of the layers' own times; the ratio of ``median_s`` to it, over all
    segments of a batch size, is in the layers' times already. ``spread`` is the distance of the
    quartiles of the blocks that were timed, over their median.
    """

    first: int = Field(ge=0)
    last: int = Field(ge=0)
    items: int = Field(ge=1)
    predicted_s: float = Field(ge=0)
    median_s: float = Field(ge=0)
    spread: float = Field(ge=0)


class SliceTiming(Record):
    """A region of twin ``region`` at ``items`` items: ``whole_s`` for all of it, ``part_s`` for a
    rank with ``units`` of its units, joins left out. ``spread`` is the larger of the two."""

    region: str
    items: int = Field(ge=1)
    units: int = Field(ge=1)
    whole_s: float = Field(ge=0)
    part_s: float = Field(ge=0)
    spread: float = Field(ge=0)


class TwinCheck(Record):
    """A few layers on ``device`` took ``ratio`` times as long as where they were measured."""

    device: str
    ratio: float = Field(gt=0)


class DeviceTimings(Record):
    """The measurements of one device; ``measured_on`` names it, ``devices`` all it stands for.

    ``layers`` maps a layer's ``twin`` (or ``(prelude)``) to measurements by ascending ``items``.
    ``baseline_bytes`` is the resident memory of a rank before it holds any weight. ``dispatch_s``
    is what running a stage once costs a rank beside its layers: taking inputs, handing on results.
    ``heap`` is by ascending ``items``. ``segments`` are the runs of layers by which the layers'
    times were corrected. ``slices`` say what dividing regions saves. ``checks``: devices of other
    hosts that were given these figures and tried by a spot check. ``hypothetical``: the devices
    are not there as given, and these figures are no measurements.
    """

    measured_on: str
    devices: tuple[str, ...]
    baseline_bytes: int = Field(default=0, ge=0)
    dispatch_s: float = Field(default=0.0, ge=0)
    checks: tuple[TwinCheck, ...] = ()
    heap: tuple[HeapMeasurement, ...] = ()
    layers: dict[str, tuple[Measurement, ...]]
    segments: tuple[SegmentTiming, ...] = ()
    slices: tuple[SliceTiming, ...] = ()
    hypothetical: Hypothetical | None = None

    def divided(self, region: SliceRegion, items: int) -> float:
        """The part of a region's time that slicing divides: a rank with u of its units takes
        ``1 - divided + divided * u / units`` of what the whole region takes.

        Measured, between batch sizes in proportion; what operations say where nothing was measured.
        """
        rows = self._measured_parts(region)
        if not rows:
            return region.divided
        for (low, first), (high, last) in pairwise(rows):
            if low <= items <= high:
                return first + (last - first) * (items - low) / (high - low)
        return rows[0][1] if items < rows[0][0] else rows[-1][1]

    def most_divided(self, region: SliceRegion) -> float:
        """The most that :meth:`divided` says at any batch size."""
        return max((part for _, part in self._measured_parts(region)), default=region.divided)

    def _measured_parts(self, region: SliceRegion) -> list[tuple[int, float]]:
        found = []
        for row in self.slices:
            if row.region == region.twin and row.whole_s > 0 and row.units < region.units:
                saved = (1 - row.part_s / row.whole_s) * region.units / (region.units - row.units)
                found.append((row.items, min(max(saved, 0.0), 1.0)))
        return sorted(found)

    @model_validator(mode="after")
    def _ascending(self) -> DeviceTimings:
        for twin, rows in self.layers.items():
            sizes = [row.items for row in rows]
            if not rows or sizes != sorted(set(sizes)):
                raise ValueError(f"layer {twin!r}: batch sizes {sizes} are empty or not ascending")
        return self


class Refit(Record):
    """A run report that was folded back: its digest and plan, and how much of it was used."""

    report: str
    plan_id: str
    ranks: int = Field(ge=0)
    links: int = Field(ge=0)


class Conditions(Record):
    """What the numbers depend on.

    ``core_sharing`` above 1: ranks of one host have that many times more threads than it has
    cores, and times were multiplied by it. ``refits`` are the runs by which times and links were
    corrected since they were measured.
    """

    torch: str
    python: str
    dtype: str
    processor: str
    load_average: float = Field(ge=0)
    concurrent_ranks: int = Field(default=1, ge=1)
    core_sharing: float = Field(default=1.0, ge=1)
    unstable: tuple[str, ...] = ()
    refits: tuple[Refit, ...] = ()


class Profile(Document):
    """A model measured on a cluster."""

    kind: Literal["Profile"] = "Profile"
    format_version: str = "1.0"
    model: ModelGraph
    cluster: Cluster
    batch_sizes: tuple[int, ...]
    timings: tuple[DeviceTimings, ...]
    conditions: Conditions

    @model_validator(mode="after")
    def _complete(self) -> Profile:
        covered = [name for t in self.timings for name in t.devices]
        if len(set(covered)) != len(covered):
            raise ValueError(
                f"device {next(n for n in covered if covered.count(n) > 1)!r} is timed twice"
            )
        unknown = sorted(set(covered) - set(self.cluster.device))
        missing = sorted(set(self.cluster.device) - set(covered))
        if unknown or missing:
            raise ValueError(
                f"profile and cluster disagree: not timed {missing}, not in the cluster {unknown}"
            )
        twins = {layer.twin for layer in self.model.layers}
        for timings in self.timings:
            lacking = sorted(twins - set(timings.layers))
            if lacking:
                layer = next(x for x in self.model.layers if x.twin == lacking[0])
                raise ValueError(f"layer {layer.name!r} has no timing on {timings.measured_on}")
        return self

    @cached_property
    def timings_of(self) -> dict[str, DeviceTimings]:
        """Measurements by full device name."""
        return {name: t for t in self.timings for name in t.devices}

    @property
    def error_fraction(self) -> float:
        """How uncertain times are: half the mean spread of the layers, weighted by their time."""
        weighted = total = 0.0
        for timings in self.timings:
            for rows in timings.layers.values():
                for row in rows:
                    weighted += row.spread * row.median_s
                    total += row.median_s
        return weighted / total / 2 if total else 0.0
