"""Single figures of the profile as `check` uses them: each looked up once, however often asked.

Independent of everything that makes plans.
"""

from __future__ import annotations

from collections.abc import Sequence

from profiler import lookup
from profiler.cluster import Cluster, Link
from profiler.errors import InvalidInputError
from profiler.graph import ModelGraph
from profiler.profile import PRELUDE, DeviceTimings, Measurement, Profile


class Prices:
    """Times, sizes and links by name. Devices that were measured together share their figures."""

    def __init__(self, profile: Profile, cluster: Cluster) -> None:
        self.graph: ModelGraph = profile.model
        self.cluster = cluster
        self._timings = profile.timings_of
        self._mapped: dict[tuple[str, str, int], int] = {}
        self._sizes: dict[tuple[str, int], int] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._times: dict[tuple[str, str, int], float] = {}
        self._peaks: dict[tuple[str, str, int], int] = {}
        self._sums: dict[tuple[str, tuple[int, ...], int], float] = {}

    def timings(self, device: str) -> DeviceTimings:
        """What was measured for a device.

        Raises:
            InvalidInputError: nothing was.
        """
        if device not in self._timings:
            raise InvalidInputError(
                f"the profile has no timings of {device}; measure it, or take it out of the plan"
            )
        return self._timings[device]

    def link(self, source: str, target: str) -> Link:
        """The link from one device to another."""
        key = (source, target)
        if key not in self._links:
            self._links[key] = self.cluster.link(source, target)
        return self._links[key]

    def size(self, tensor: str, items: int) -> int:
        """Bytes of a tensor for so many items."""
        key = (tensor, items)
        if key not in self._sizes:
            symbols = self.graph.symbols_at(items)
            self._sizes[key] = self.graph.tensor[tensor].num_bytes(symbols)
        return self._sizes[key]

    def compute_s(self, device: str, layers: tuple[int, ...], items: int) -> float:
        """Seconds that a device takes to run a stage of these layers once, its prelude included."""
        measured = self.timings(device)
        key = (measured.measured_on, layers, items)
        if key not in self._sums:
            twins = [self.graph.layers[i].twin for i in layers]
            if self.uses_prelude(layers):
                twins.append(PRELUDE)
            layers_s = sum(self._time(measured, twin, items) for twin in twins)
            self._sums[key] = layers_s + (measured.dispatch_s if layers else 0.0)
        return self._sums[key]

    def layers_s(self, device: str, layers: Sequence[int], items: int) -> float:
        """Seconds of these layers alone."""
        measured = self.timings(device)
        return sum(self._time(measured, self.graph.layers[i].twin, items) for i in layers)

    def prelude_s(self, device: str, items: int) -> float:
        """Seconds of the work that stages repeat."""
        return self._time(self.timings(device), PRELUDE, items)

    def peak(self, device: str, twin: str, items: int) -> int:
        """Bytes that a layer (or the prelude) allocates beyond its inputs and weights."""
        measured = self.timings(device)
        key = (measured.measured_on, twin, items)
        if key not in self._peaks:
            rows = _rows(measured, twin)
            self._peaks[key] = lookup.peak_bytes(rows, items) if rows else 0
        return self._peaks[key]

    def mapped(self, device: str, twin: str, items: int) -> int:
        """Bytes among those of :meth:`peak` that are in large blocks."""
        measured = self.timings(device)
        key = (measured.measured_on, twin, items)
        if key not in self._mapped:
            rows = _rows(measured, twin)
            self._mapped[key] = lookup.mapped_bytes(rows, items) if rows else 0
        return self._mapped[key]

    def heap(self, device: str, items: int) -> int:
        """Thousandths of what a rank's layers need on the heap that it takes on top."""
        return lookup.heap_permille(self.timings(device).heap, items)

    def uses_prelude(self, layers: Sequence[int]) -> bool:
        """Whether a stage of these layers repeats the work that all stages share."""
        return any(self.graph.layers[i].uses_prelude for i in layers)

    def most_measured(self, device: str, layers: Sequence[int]) -> int:
        """The most items at which all of these layers were measured."""
        measured = self.timings(device)
        return min(_rows(measured, self.graph.layers[i].twin)[-1].items for i in layers)

    def _time(self, measured: DeviceTimings, twin: str, items: int) -> float:
        key = (measured.measured_on, twin, items)
        if key not in self._times:
            rows = _rows(measured, twin)
            self._times[key] = lookup.time_s(rows, items) if rows else 0.0
        return self._times[key]


def _rows(measured: DeviceTimings, twin: str) -> Sequence[Measurement]:
    # Every layer has rows (the profile sees to it); a model without prelude has none for it.
    return measured.layers.get(twin, ())
