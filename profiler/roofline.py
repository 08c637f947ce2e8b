"""How long a layer takes at best: a device's roofline (Williams, Waterman and Patterson, 2009).

A layer that does ``F`` operations and moves ``Q`` bytes between memory and processor takes at
least ``max(F / peak, Q / bandwidth)``. ``F`` is counted by ``profiler.flops``; ``Q`` is what the
model graph knows of: the layer's weights once, and the tensors that it reads and writes. Nothing
here is measured; how far real layers are from it is the business of ``profiler.sheet_times``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from profiler.catalogue import CatalogueDevice
from profiler.errors import InvalidInputError
from profiler.graph import ModelGraph
from profiler.profile import DeviceTimings


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """What a device does at best: operations a second, and bytes of its memory a second."""

    flops_per_s: float
    bytes_per_s: float

    @property
    def balance(self) -> float:
        """Operations that it can do in the time of moving a byte (the ridge of its roofline)."""
        return self.flops_per_s / self.bytes_per_s

    def least_s(self, work: Work) -> float:
        """The least time for ``work``, in seconds."""
        return max(work.flops / self.flops_per_s, work.num_bytes / self.bytes_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a layer does for some number of items: its operations, and the bytes it moves."""

    flops: float
    num_bytes: int


class ModelWork:
    """The work of each kind of layer of a model; ``counts`` are the layers of each kind (twin)."""

    def __init__(self, graph: ModelGraph) -> None:
        self._graph = graph
        self._first: dict[str, int] = {}
        for index, layer in enumerate(graph.layers):
            self._first.setdefault(layer.twin, index)
        self.counts: Mapping[str, int] = Counter(layer.twin for layer in graph.layers)
        self._known: dict[tuple[str, int], Work] = {}

    def of(self, twin: str, items: int) -> Work:
        """The work of one layer of this kind for ``items`` items."""
        if (twin, items) not in self._known:
            index = self._first[twin]
            layer, symbols = self._graph.layers[index], self._graph.symbols_at(items)
            names = dict.fromkeys((*layer.reads, *layer.writes))
            moved = sum(self._graph.tensor[name].num_bytes(symbols) for name in names)
            self._known[twin, items] = Work(
                flops=layer.flops_per_item * items,
                num_bytes=self._graph.weight_bytes([index]) + moved,
            )
        return self._known[twin, items]


def sheet_ceiling(entry: CatalogueDevice, dtype: str, *, part: float = 1.0) -> Ceiling:
    """The ceiling by the data sheet, of ``part`` of the device, for a model of ``dtype``.

    Raises:
        InvalidInputError: the sheet gives no peak for it.
    """
    if dtype not in entry.peak_flops_per_s:
        raise InvalidInputError(
            f"{entry.name} has no data-sheet peak for {dtype}, the dtype of the model; it has "
            f"{', '.join(entry.peak_flops_per_s)}: profile the model in one of these, or ask for "
            "another device"
        )
    return Ceiling(
        flops_per_s=entry.peak_flops_per_s[dtype] * part,
        bytes_per_s=entry.memory_bytes_per_s * part,
    )


def reached_ceiling(timings: DeviceTimings, work: ModelWork) -> Ceiling:
    """The most operations and the most bytes a second that any layer was seen to reach.

    Endless where nothing says anything: no layer with operations, or none that takes time.
    """
    rates = list(_rates(timings, work))
    return Ceiling(
        flops_per_s=max((flops for flops, _ in rates), default=0.0) or math.inf,
        bytes_per_s=max((moved for _, moved in rates), default=0.0) or math.inf,
    )


def _rates(timings: DeviceTimings, work: ModelWork) -> Iterator[tuple[float, float]]:
    for twin in work.counts:
        for row in timings.layers[twin]:
            if row.median_s > 0:
                done = work.of(twin, row.items)
                yield done.flops / row.median_s, done.num_bytes / row.median_s
