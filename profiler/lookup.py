"""Time and memory of a layer at a batch size that was not measured.

**Time** at a measured size is what was measured, also where fewer items take longer: libraries
choose other kernels for other sizes, and 16 items can take a fifth of what 8 take. Between measured
sizes it is on the line between them where it rises, and the larger of the two where it falls:
nobody knows where in between it does. **Memory** never falls with items (a monotone envelope): too
much is better than too little.

Below the smallest: the smallest (a fixed cost is not extrapolated away). Above the largest: linear
from the last two sizes, in proportion if the last takes no longer than the one before; and the
caller is told (``extrapolates``), because no figure backs it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from profiler.profile import HeapMeasurement, Measurement


def time_s(rows: Sequence[Measurement], items: int) -> float:
    """Seconds for ``items`` items; zero items take no time.

    >>> from profiler.profile import Measurement as M
    >>> fixed = {"spread": 0, "samples": 3, "peak_bytes": 8}
    >>> rows = [M(items=1, median_s=1.0, **fixed), M(items=4, median_s=2.0, **fixed)]
    >>> time_s(rows, 1), time_s(rows, 2), time_s(rows, 7)
    (1.0, 1.3333333333333333, 3.0)
    >>> rows = [M(items=8, median_s=5.0, **fixed), M(items=16, median_s=1.0, **fixed)]
    >>> time_s(rows, 8), time_s(rows, 12), time_s(rows, 16), time_s(rows, 32)
    (5.0, 5.0, 1.0, 2.0)
    """
    points = [(row.items, row.median_s) for row in rows]
    if len(points) > 1 and points[-1][1] <= points[-2][1] and items > points[-1][0]:
        return points[-1][1] * items / points[-1][0]
    return _between(points, items)


def peak_bytes(rows: Sequence[Measurement], items: int) -> int:
    """Bytes a layer allocates beyond its inputs and weights, for ``items`` items."""
    return round(_rising([(row.items, float(row.peak_bytes)) for row in rows], items))


def mapped_bytes(rows: Sequence[Measurement], items: int) -> int:
    """How many of :func:`peak_bytes` are in large blocks."""
    return round(_rising([(row.items, float(row.mapped_bytes)) for row in rows], items))


def heap_permille(rows: Sequence[HeapMeasurement], items: int) -> int:
    """What the heap takes on top, in thousandths of what layers need on it.

    As at the nearest size outside of what was measured, nothing without measurements.

    >>> from profiler.profile import HeapMeasurement as H
    >>> rows = [H(items=1, permille=900), H(items=4, permille=600)]
    >>> heap_permille(rows, 1), heap_permille(rows, 2), heap_permille(rows, 7)
    (900, 800, 600)
    """
    if not rows:
        return 0
    right = bisect_left([row.items for row in rows], items)
    if right == 0 or right == len(rows):
        return rows[min(right, len(rows) - 1)].permille
    low, high = rows[right - 1], rows[right]
    rise = (high.permille - low.permille) * (items - low.items)
    return low.permille + rise // (high.items - low.items)


def extrapolates(rows: Sequence[Measurement], items: int) -> bool:
    """Whether ``items`` lies beyond what was measured."""
    return items > rows[-1].items


def _rising(points: Sequence[tuple[int, float]], items: int) -> float:
    """Between points on a line that never falls: each is at least the one before."""
    highest = accumulate((value for _, value in points), max)
    return _between(
        [(size, value) for (size, _), value in zip(points, highest, strict=True)], items
    )


def _between(points: Sequence[tuple[int, float]], items: int) -> float:
    """On the line between two points where it rises, else their larger one."""
    if items <= 0:
        return 0.0
    sizes = [size for size, _ in points]
    values = [value for _, value in points]
    if items <= sizes[0]:
        return values[0]
    if items > sizes[-1]:
        if len(sizes) == 1:
            return values[0] * items / sizes[0]
        slope = (values[-1] - values[-2]) / (sizes[-1] - sizes[-2])
        return values[-1] + slope * (items - sizes[-1])
    right = bisect_left(sizes, items)
    if sizes[right] == items:
        return values[right]
    left = right - 1
    if values[right] <= values[left]:
        return values[left]
    weight = (items - sizes[left]) / (sizes[right] - sizes[left])
    return values[left] + weight * (values[right] - values[left])
