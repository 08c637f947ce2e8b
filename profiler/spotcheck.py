"""Whether a device is like the one of its type whose figures it is given.

Some runs of layers are timed by the clock on the twins and, once more and in the same way, on the
device that was measured in full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from profiler.cluster import Cluster
from profiler.errors import InvalidInputError
from profiler.profile import DeviceTimings, TwinCheck
from profiler.segments import measure_segments
from profiler.session import Observed, device_bench

TOLERATED_FRACTION = 0.05
"""A twin that differs by more is warned of."""


def measure_spot(observed: Observed, cluster: Cluster, name: str, like: DeviceTimings) -> float:
    """How many times as long as by ``like`` some runs of layers take on a device of this machine.

    Raises:
        InvalidInputError: the device has no room for any layer.
    """
    rows = {twin: (measured[-1],) for twin, measured in like.layers.items()}
    with device_bench(observed, cluster, name) as (bench, load):
        found = list(
            measure_segments(
                bench,
                rows=rows,
                free_bytes=cluster.device[name].usable_bytes,
                load=load,
                progress=lambda _what, _done: None,
            )
        )
    predicted = sum(segment.predicted_s for segment in found)
    if not predicted:
        raise InvalidInputError(
            f"{name} has no room for a layer of the model: no spot check of it can be made"
        )
    return sum(segment.median_s for segment in found) / predicted


def compare(times: Mapping[str, float], *, of: str, names: Sequence[str]) -> tuple[TwinCheck, ...]:
    """Time on each device over that on device ``of``, from what :func:`measure_spot` gave.

    >>> compare({"a/cpu:0": 2.0, "b/cpu:0": 2.2}, of="a/cpu:0", names=["b/cpu:0"])
    (TwinCheck(device='b/cpu:0', ratio=1.1),)
    """
    return tuple(TwinCheck(device=name, ratio=round(times[name] / times[of], 4)) for name in names)


def differing(timings: Sequence[DeviceTimings]) -> tuple[str, ...]:
    """Warnings about twins that take another time than the device that stands for them."""
    return tuple(
        f"{check.device} takes {check.ratio:.3g} times as long as {one.measured_on}, whose figures "
        f"it was given (more than {100 * TOLERATED_FRACTION:.0f} % apart in a spot check): measure "
        "without --by-type, or give it a type of its own in the cluster file"
        for one in timings
        for check in one.checks
        if abs(check.ratio - 1) > TOLERATED_FRACTION
    )
