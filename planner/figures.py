"""Looked-up figures of one problem: seconds and bytes of a layer, of a tensor, of a message.

Everything is remembered, because solvers ask for the same few figures millions of times. Formulas
over these figures are in ``planner.cost`` and ``planner.memory``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from planner.problem import PlanningProblem
from planner.root_work import RootRates
from profiler import lookup
from profiler.profile import PRELUDE, Measurement

Joins = tuple[tuple[str, int], ...]
"""How each join of a region puts results together, and the bytes of the whole."""


class Figures:
    """Seconds and bytes for ``problem``, each computed once.

    ``arriving`` is where ``planner.memory`` remembers what a rank (the last of the key) receives
    in joins among ranks with these units.
    """

    def __init__(self, problem: PlanningProblem) -> None:
        self.problem = problem
        self._twin = [layer.twin for layer in problem.graph.layers]
        self._rows = {
            name: problem.profile.timings_of[name].layers for name in problem.cluster.device
        }
        # Equal devices share their measurements, and so what is remembered of them.
        self._owner = {
            name: problem.profile.timings_of[name].measured_on for name in problem.cluster.device
        }
        self.tables: dict[object, object] = {}  # what solvers tabulate of these figures
        self._seconds: dict[tuple[str, str, int], float] = {}
        self._peaks: dict[tuple[str, str, int], int] = {}
        self._mapped: dict[tuple[str, str, int], int] = {}
        self._sizes: dict[tuple[str, int], int] = {}
        self._regions: dict[tuple[int, str, int], float] = {}
        self._divided: dict[tuple[str, str, int], float] = {}
        self._joins: dict[tuple[int, int], Joins] = {}
        self.arriving: dict[tuple[Joins, tuple[int, ...], int], tuple[int, ...]] = {}

    def time_s(self, layer: int, device: str, items: int) -> float:
        """Seconds of one layer."""
        return self._time(self._twin[layer], device, items)

    def prelude_s(self, device: str, items: int) -> float:
        """Seconds of what every stage that uses the prelude repeats."""
        return self._time(PRELUDE, device, items)

    def dispatch_s(self, device: str) -> float:
        """Seconds that running a stage once costs beside its layers."""
        return self.problem.profile.timings_of[device].dispatch_s

    def compute_s(self, layers: Sequence[int], device: str, items: int) -> float:
        """Seconds of a stage's computing on one rank."""
        total = self.dispatch_s(device) if layers else 0.0
        for i in layers:
            total += self._time(self._twin[i], device, items)
        if any(self.problem.graph.layers[i].uses_prelude for i in layers):
            total += self.prelude_s(device, items)
        return total

    def region_s(self, region: int, device: str, items: int) -> float:
        """Seconds of all layers of a region."""
        key = (region, self._owner[device], items)
        if key not in self._regions:
            layers = self.problem.region_layers[region]
            self._regions[key] = sum(self.time_s(i, device, items) for i in layers)
        return self._regions[key]

    def slice_s(self, region: int, device: str, items: int, units: int) -> float:
        """Seconds of ``units`` of a region's units: what slicing does not divide is done in full.
        How much that is has been measured at half the units, if the profile says so.

        The only place that says how long a slice takes.
        """
        fraction = self.slice_part(region, device, items, units)
        return self.region_s(region, device, items) * fraction

    def slice_part(self, region: int, device: str, items: int, units: int) -> float:
        """The part of a region's time that ``units`` of its units take."""
        found = self.problem.graph.regions[region]
        key = (found.twin, self._owner[device], items)
        if key not in self._divided:
            timings = self.problem.profile.timings_of[device]
            self._divided[key] = timings.divided(found, items)
        divided = self._divided[key]
        return (1 - divided) + divided * units / found.units

    def peak_bytes(self, layer: int, device: str, items: int) -> int:
        """Bytes one layer allocates beyond its inputs and weights."""
        return self._peak(self._twin[layer], device, items)

    def mapped_peak_bytes(self, layer: int, device: str, items: int) -> int:
        """How many of :meth:`peak_bytes` are in large blocks, outside of the heap."""
        key = (self._twin[layer], self._owner[device], items)
        if key not in self._mapped:
            rows = self._measured(self._twin[layer], device)
            self._mapped[key] = lookup.mapped_bytes(rows, items) if rows else 0
        return self._mapped[key]

    def heap_permille(self, device: str, items: int) -> int:
        """What a rank's heap takes on top, in thousandths of what its layers need on it."""
        return lookup.heap_permille(self.problem.profile.timings_of[device].heap, items)

    def prelude_peak_bytes(self, device: str, items: int) -> int:
        """Bytes that the prelude allocates."""
        return self._peak(PRELUDE, device, items)

    def tensor_bytes(self, name: str, items: int) -> int:
        """Bytes of a tensor for ``items`` items."""
        key = (name, items)
        if key not in self._sizes:
            graph = self.problem.graph
            self._sizes[key] = graph.tensor[name].num_bytes(graph.symbols_at(items))
        return self._sizes[key]

    def joins(self, region: int, items: int) -> Joins:
        """The joins of a region."""
        key = (region, items)
        if key not in self._joins:
            graph = self.problem.graph
            self._joins[key] = tuple(
                (join.how, graph.join_bytes(join, items)) for join in graph.regions[region].joins
            )
        return self._joins[key]

    @cached_property
    def root_rates(self) -> RootRates:
        """What feeding and collecting takes from the root's device."""
        return RootRates(self)

    def message_s(self, source: str, target: str, num_bytes: float) -> float:
        """Seconds of one message; between a device and itself, none."""
        if source == target:
            return 0.0
        return self.problem.links[source, target].transfer_time_s(num_bytes)

    def answer_s(self, device: str) -> float:
        """Seconds of sending the whole answer to a batch from the root to ``device``."""
        problem = self.problem
        return sum(
            self.message_s(problem.cluster.root, device, self.tensor_bytes(name, problem.batch))
            for name in problem.answers
        )

    def most_measured(self, layers: Sequence[int], device: str) -> int:
        """The largest item count at which every one of these layers was measured on ``device``."""
        rows = self._rows[device]
        return min(rows[self._twin[i]][-1].items for i in layers)

    def _measured(self, twin: str, device: str) -> tuple[Measurement, ...]:
        return self._rows[device].get(twin, ())

    def _time(self, twin: str, device: str, items: int) -> float:
        key = (twin, self._owner[device], items)
        if key not in self._seconds:
            rows = self._measured(twin, device)
            self._seconds[key] = lookup.time_s(rows, items) if rows else 0.0
        return self._seconds[key]

    def _peak(self, twin: str, device: str, items: int) -> int:
        key = (twin, self._owner[device], items)
        if key not in self._peaks:
            rows = self._measured(twin, device)
            self._peaks[key] = lookup.peak_bytes(rows, items) if rows else 0
        return self._peaks[key]
