"""What slicing saves, corrected by what ranks that divide a stage took.

Such a rank computes some layers in full and slices of regions. How long its layers take in full is
known from ranks that ran them so; what is left of its time was its slices. A profile keeps this as
``SliceTiming``: beside ``whole_s`` of a region, ``part_s`` of a rank with ``units`` of its units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from profiler import lookup
from profiler.graph import SliceRegion
from profiler.profile import DeviceTimings, SliceTiming

UNCHANGED = 1e-6
"""A factor this close to 1 says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSlice:
    """``units`` of a region of this twin, ``count`` times in a stage; its layers by twin."""

    region: SliceRegion
    twins: Mapping[str, int]
    units: int
    count: int

    def whole_s(self, timings: DeviceTimings, items: int) -> float:
        """Seconds of all of one such region."""
        return sum(
            count * lookup.time_s(timings.layers[twin], items)
            for twin, count in self.twins.items()
            if twin in timings.layers
        )

    def expected_s(self, timings: DeviceTimings, items: int) -> float:
        """Seconds of the slices, by the profile."""
        part = timings.divided(self.region, items)
        fraction = (1 - part) + part * self.units / self.region.units
        return self.count * self.whole_s(timings, items) * fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicesSeen:
    """What a rank's slices took together, for ``items`` items; its whole layers are taken off."""

    slices: tuple[RunSlice, ...]
    items: int
    seconds: float
    pieces: int
    spread: float


def refit_slices(timings: DeviceTimings, seen: Sequence[SlicesSeen]) -> tuple[SliceTiming, ...]:
    """The ``slices`` of ``timings``, whose layers are corrected already.

    All slices of a rank are off by the same factor. Where several ranks had slices of like regions,
    the mean of what they say of the part that slicing divides, weighted by pieces, counts.
    """
    parts: dict[tuple[str, int], list[tuple[int, float, SlicesSeen, RunSlice]]] = defaultdict(list)
    for one in seen:
        expected_s = sum(x.expected_s(timings, one.items) for x in one.slices)
        if expected_s <= 0:
            continue
        factor = one.seconds / expected_s
        if abs(factor - 1) < UNCHANGED:
            continue
        for x in one.slices:
            if x.units >= x.region.units:
                continue
            part = timings.divided(x.region, one.items)
            fraction = factor * ((1 - part) + part * x.units / x.region.units)
            divided = (1 - fraction) * x.region.units / (x.region.units - x.units)
            found = min(max(divided, 0.0), 1.0)
            parts[x.region.twin, one.items].append((one.pieces, found, one, x))
    rows = {(row.region, row.items): row for row in timings.slices}
    for (twin, items), found_here in parts.items():
        weight = sum(pieces for pieces, *_ in found_here)
        mean = sum(pieces * divided for pieces, divided, *_ in found_here) / weight
        x = found_here[0][3]
        whole_s = x.whole_s(timings, items)
        rows[twin, items] = SliceTiming(
            region=twin,
            items=items,
            units=x.units,
            whole_s=whole_s,
            part_s=whole_s * ((1 - mean) + mean * x.units / x.region.units),
            spread=max(one.spread for _, _, one, _ in found_here),
        )
    return tuple(rows.values())
