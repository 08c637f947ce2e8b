"""Whether a device is like the one of its type whose figures it is given.

A few layers that take most of the time are measured on the twins and, once more and in the same
way, on the device that was measured in full: layers measured in another sequence read differently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from profiler.cluster import Cluster
from profiler.graph import ModelGraph
from profiler.measure import Effort, measure_layers
from profiler.profile import DeviceTimings, Measurement, TwinCheck
from profiler.session import Observed, device_bench

NUM_LAYERS = 4
TOLERATED_FRACTION = 0.05
"""A twin that differs by more is warned of."""
EFFORT = Effort(min_samples=9, max_samples=40, budget_s=10.0)


@dataclass(frozen=True, kw_only=True)
class Spot:
    """The layers, by twin, and the number of items to check with."""

    twins: tuple[str, ...]
    items: int

    @staticmethod
    def choose(graph: ModelGraph, timings: DeviceTimings) -> Spot:
        """The layers that take most of a whole pass on the measured device."""
        items = max(row.items for rows in timings.layers.values() for row in rows)
        times = Counter(layer.twin for layer in graph.layers)
        total = {twin: times[twin] * timings.layers[twin][-1].median_s for twin in times}
        ranked = sorted(total, key=lambda twin: (-total[twin], twin))
        return Spot(twins=tuple(sorted(ranked[:NUM_LAYERS])), items=items)


def measure_spot(observed: Observed, cluster: Cluster, name: str, spot: Spot) -> float:
    """Seconds that the layers of ``spot`` take on a device of this machine, in all."""
    with device_bench(observed, cluster, name) as (bench, load, _):
        # Layers that are done already are not measured.
        done = Measurement(items=spot.items, median_s=0, spread=0, samples=1, peak_bytes=0)
        others = {twin: {spot.items: done} for twin in bench.built if twin not in spot.twins}
        found = dict(
            measure_layers(
                bench,
                batch_sizes=[spot.items],
                effort=EFFORT,
                load=load,
                progress=lambda _what, _done: None,
                done=others,
            )
        )
    return sum(found[twin].median_s for twin in spot.twins)


def compare(
    seconds: Mapping[str, float], *, of: str, names: Sequence[str]
) -> tuple[TwinCheck, ...]:
    """Time on each device over that on device ``of``.

    >>> compare({"a/cpu:0": 2.0, "b/cpu:0": 2.2}, of="a/cpu:0", names=["b/cpu:0"])
    (TwinCheck(device='b/cpu:0', ratio=1.1),)
    """
    return tuple(
        TwinCheck(device=name, ratio=round(seconds[name] / seconds[of], 4)) for name in names
    )


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
