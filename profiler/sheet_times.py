"""Times of a model's layers on a device that is only known by its data sheet.

From the nearest measured device: each layer's time there is split into ``overhead + k * roofline``
by least squares over the measured batch sizes, ``1 / k`` being the layer's efficiency. On the new
device the layer is taken to have the same overhead and efficiency:

    t_new(n) = t(n) * (overhead + k * roofline_new(n)) / (overhead + k * roofline(n))

so that a device like the measured one gets the measured times. How far the model's total may be off
is what ``Hypothetical.low`` and ``high`` say; ``docs/what-if.md`` has the reasons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from profiler.catalogue import CatalogueDevice, entry_of, part_of
from profiler.cluster import Device
from profiler.errors import InvalidInputError
from profiler.hypothetical import Hypothetical
from profiler.profile import PRELUDE, DeviceTimings, Measurement, Profile
from profiler.roofline import Ceiling, ModelWork, reached_ceiling, sheet_ceiling

LEAST_ERROR = 0.118
"""Times are never said to be known better than this: the mean error of predicting six GPUs from one
another by their sheets and measured kernels (Yu et al., "Habitat", USENIX ATC 2021)."""

SHEET_FRACTION = 0.5
"""The best layers of a device that no sheet is known of are taken to reach between this part of
its peak and all of it: whole models of large layers reach 52 % of an A100's (Narayanan et al.,
"Efficient large-scale language model training on GPU clusters", SC 2021)."""

FLAT = 1.5
"""Rooflines that grow by less than this over the batch sizes tell nothing of overhead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reference:
    """A measured device: its timings, and its ceiling by its sheet, or else estimated."""

    timings: DeviceTimings
    device: Device
    entry: CatalogueDevice | None
    ceiling: Ceiling

    def distance(self, entry: CatalogueDevice, ceiling: Ceiling) -> tuple[bool, bool, float]:
        """How unlike ``entry`` it is: by kind, by whether its sheet is known, then by balance."""
        other = self.device.kind != entry.device_kind
        return other, self.entry is None, _apart(self.ceiling.balance, ceiling.balance)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A kind of layer on a reference: ``overhead_s + slowness * roofline``, and how many it has."""

    overhead_s: float
    slowness: float
    count: int


def sheet_timings(profile: Profile, name: str, entry: CatalogueDevice) -> DeviceTimings:
    """Hypothetical timings of the profile's model on ``entry``; ``name`` is ``host/device``.

    Raises:
        InvalidInputError: the sheet has no peak for the model's dtype, or nothing was measured.
    """
    ceiling = sheet_ceiling(entry, profile.model.dtype)
    work = ModelWork(profile.model)
    references = list(_references(profile, work))
    if not references:
        raise InvalidInputError(
            f"no device of the profile was measured, so there is no efficiency to give {entry.name}"
        )
    references.sort(key=lambda x: x.distance(entry, ceiling))
    nearest = references[0]
    alike = [x for x in references if x.distance(entry, ceiling)[:2] == _class(nearest, entry)]
    same_kind = nearest.device.kind == entry.device_kind
    low, high = _range(nearest, alike, ceiling, work, same_kind=same_kind)
    how = "" if nearest.entry else ", whose own data sheet is unknown"
    return DeviceTimings(
        measured_on=name,
        devices=(name,),
        baseline_bytes=nearest.timings.baseline_bytes,
        dispatch_s=nearest.timings.dispatch_s,
        heap=nearest.timings.heap if same_kind else (),
        layers=_predicted_rows(nearest, ceiling, work),
        hypothetical=Hypothetical(
            basis=f"data sheet of {entry.title}, efficiency of {nearest.timings.measured_on}{how}",
            low=low,
            high=high,
        ),
    )


def _class(nearest: _Reference, entry: CatalogueDevice) -> tuple[bool, bool]:
    return nearest.device.kind != entry.device_kind, nearest.entry is None


def _references(profile: Profile, work: ModelWork) -> Iterator[_Reference]:
    """Every measured device, with the ceiling of its sheet where there is one for this model."""
    dtype = profile.model.dtype
    for timings in profile.timings:
        if timings.hypothetical is not None:
            continue
        device = profile.cluster.device[timings.devices[0]]
        entry = entry_of(device)
        if entry is not None and dtype in entry.peak_flops_per_s:
            ceiling = sheet_ceiling(entry, dtype, part=part_of(device, entry))
        else:
            entry, seen = None, reached_ceiling(timings, work)
            scale = math.sqrt(SHEET_FRACTION)  # the middle of what its sheet may say
            ceiling = Ceiling(
                flops_per_s=seen.flops_per_s / scale, bytes_per_s=seen.bytes_per_s / scale
            )
        yield _Reference(timings=timings, device=device, entry=entry, ceiling=ceiling)


def _predicted_rows(
    nearest: _Reference, ceiling: Ceiling, work: ModelWork
) -> dict[str, tuple[Measurement, ...]]:
    layers = _layers(nearest, work)
    rows = {
        twin: tuple(
            row.replaced(
                median_s=row.median_s * _ratio(layer, twin, row.items, nearest, ceiling, work),
                samples=1,
            )
            for row in nearest.timings.layers[twin]
        )
        for twin, layer in layers.items()
    }
    prelude = nearest.timings.layers.get(PRELUDE)
    if prelude:
        # Nothing is known of what it does: as all layers together.
        before = _total(nearest.timings.layers, work)
        factor = _total(rows, work) / before if before else 1.0
        rows[PRELUDE] = tuple(x.replaced(median_s=x.median_s * factor, samples=1) for x in prelude)
    return rows


def _total(rows: Mapping[str, Sequence[Measurement]], work: ModelWork) -> float:
    return sum(count * row.median_s for twin, count in work.counts.items() for row in rows[twin])


def _ratio(
    layer: _Layer, twin: str, items: int, before: _Reference, after: Ceiling, work: ModelWork
) -> float:
    """What a layer's time becomes, as a multiple of what was measured."""
    done = work.of(twin, items)
    was = layer.overhead_s + layer.slowness * before.ceiling.least_s(done)
    return (layer.overhead_s + layer.slowness * after.least_s(done)) / was if was else 1.0


def _layers(reference: _Reference, work: ModelWork) -> dict[str, _Layer]:
    found = {}
    for twin, count in work.counts.items():
        points = [
            (reference.ceiling.least_s(work.of(twin, row.items)), row.median_s)
            for row in reference.timings.layers[twin]
        ]
        overhead_s, slowness = split_time(points)
        found[twin] = _Layer(overhead_s=overhead_s, slowness=slowness, count=count)
    return found


def split_time(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """``overhead`` and ``k``, neither below 0, so that ``overhead + k * roofline`` is as near as
    can be to each time, relative to it; ``points`` are rooflines and times of one layer.

    >>> split_time([(1.0, 2.5), (2.0, 4.5), (4.0, 8.5)])
    (0.5, 2.0)
    >>> split_time([(1.0, 3.0), (1.1, 3.3)])
    (0.0, 3.0)
    """
    timed = [(least, time) for least, time in points if time > 0]
    useful = [(least / time, 1 / time) for least, time in timed]
    squares = sum(b * b for b, _ in useful)
    if not squares:  # no work that the roofline sees: all of it is overhead
        return (max((time for _, time in timed), default=0.0), 0.0)
    leasts = [least for least, _ in timed]
    alone = sum(b for b, _ in useful) / squares
    if min(leasts) * FLAT > max(leasts):
        return 0.0, _tidy(alone)
    ones = sum(a * a for _, a in useful)
    mixed = sum(a * b for b, a in useful)
    # Normal equations of min sum (a * overhead + b * k - 1)^2 with a = 1 / time, b = least / time.
    determinant = ones * squares - mixed * mixed
    if determinant <= 1e-12 * ones * squares:
        return 0.0, _tidy(alone)
    sum_a, sum_b = sum(a for _, a in useful), sum(b for b, _ in useful)
    overhead = (sum_a * squares - sum_b * mixed) / determinant
    slowness = (ones * sum_b - mixed * sum_a) / determinant
    if overhead < 0:
        return 0.0, _tidy(alone)
    if slowness < 0:
        return _tidy(sum_a / ones), 0.0
    return _tidy(overhead), _tidy(slowness)


def _tidy(value: float) -> float:
    """Without the last digits, in which equal fits may differ."""
    return float(f"{value:.10g}")


def _range(
    nearest: _Reference,
    alike: Sequence[_Reference],
    ceiling: Ceiling,
    work: ModelWork,
    *,
    same_kind: bool,
) -> tuple[float, float]:
    """How much less and how much more than predicted the model's layers may take in all.

    Over every measured batch size, the widest of: all layers as efficient as the better, or the
    worse, quarter of them; each equally near measured device in place of the nearest. Then as much
    again as is unknown: a device whose sheet is unknown, a device of another kind.
    """
    layers = _layers(nearest, work)
    lows, highs = [1 / (1 + LEAST_ERROR)], [1 + LEAST_ERROR]
    for items in _sizes(nearest.timings):
        least = {twin: ceiling.least_s(work.of(twin, items)) for twin in layers}
        likely = _sum(layers, least)
        if not likely:
            continue
        better, worse = _quartiles(layers, least)
        # Overhead is the host's share; where a device of another kind takes it, little is known.
        lows.append(_sum(layers, least, at_most=better, overhead=float(same_kind)) / likely)
        highs.append(_sum(layers, least, at_least=worse, overhead=2.0 - same_kind) / likely)
        for other in alike[1:]:
            ratio = _sum(_layers(other, work), least) / likely
            lows.append(ratio)
            highs.append(ratio)
    unknown = math.sqrt(1 / SHEET_FRACTION) ** ((nearest.entry is None) + (not same_kind))
    floor = 1e-6  # a range, however wide, has two ends above zero
    return max(min(lows) / unknown, floor), max(highs) * unknown


def _sizes(timings: DeviceTimings) -> Iterable[int]:
    return sorted({row.items for rows in timings.layers.values() for row in rows})


def _sum(
    layers: Mapping[str, _Layer],
    least: Mapping[str, float],
    *,
    at_most: float = math.inf,
    at_least: float = 0.0,
    overhead: float = 1.0,
) -> float:
    """Seconds of all layers, none slower than ``at_most`` and none faster than ``at_least``."""
    return sum(
        x.count * (x.overhead_s * overhead + max(min(x.slowness, at_most), at_least) * least[twin])
        for twin, x in layers.items()
    )


def _quartiles(layers: Mapping[str, _Layer], least: Mapping[str, float]) -> tuple[float, float]:
    """The slowness that a quarter and three quarters of the roofline's time stay below."""
    order = sorted((x.slowness, x.count * least[twin]) for twin, x in layers.items())
    total = sum(weight for _, weight in order)
    found: list[float] = []
    passed = 0.0
    for slowness, weight in order:
        passed += weight
        while len(found) < 2 and passed >= total * (0.25, 0.75)[len(found)]:
            found.append(slowness)
    return found[0], found[1]


def _apart(one: float, other: float) -> float:
    """How many times one is the other, as a distance; endless figures say nothing."""
    if not (0 < one < math.inf and 0 < other < math.inf):
        return math.inf
    return abs(math.log(one / other))
