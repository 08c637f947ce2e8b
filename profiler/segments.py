"""What runs of layers take together, against the sum of what each takes: a fitted correction.

A layer is timed by the processor time it uses, again and again, its weights often still in cache.
A stage runs many layers in a row, each with weights of its own, on a processor that may be
throttled or shared. So some runs of consecutive layers are built as stages are and timed by the
clock, and the times of single layers are multiplied by the ratio of the two sums.

Blocks of at least :data:`BLOCK_S` are timed, so that pauses of a throttled processor (a quota is
enforced every 10 to 100 ms) are in every sample in their true proportion.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from profiler.bench import Call, LayerBench
from profiler.measure import Load, Progress, spread, timed_run
from profiler.profile import PRELUDE, Measurement, SegmentTiming

NUM_SEGMENTS = 3
BLOCK_S = 0.1
BLOCKS = 5
DISPATCH_SAMPLES = 50
_HANDLED = 3  # tensors that a typical stage takes and gives
LONGEST_S = 1.0
"""A segment takes about this long at most: longer ones say nothing new."""
MEMORY_FRACTION = 0.25
"""Part of a device's free memory that the weights of the segments may take."""


@dataclass(frozen=True)
class _Segment:
    first: int
    last: int
    call: Call
    predicted_s: float


def measure_segments(
    bench: LayerBench,
    *,
    rows: Mapping[str, Sequence[Measurement]],
    free_bytes: int,
    load: Load,
    progress: Progress,
) -> Iterator[SegmentTiming]:
    """Time runs of layers at every batch size in ``rows`` (measurements by twin).

    Yields one timing a segment and batch size. ``free_bytes`` is the device's free memory, a part
    of which may be taken; ``load`` is that of the measurements in ``rows``.
    """
    sizes = sorted({row.items for measured in rows.values() for row in measured})
    for number, items in enumerate(sizes):
        progress("measuring runs of layers", number / len(sizes))
        one = {twin: _at(measured, items) for twin, measured in rows.items()}
        segments = list(_segments(bench, items, one, free_bytes))
        samples: dict[int, list[float]] = {segment.first: [] for segment in segments}
        for segment in segments:
            timed_run(segment.call, bench.device)
        for _ in range(BLOCKS):
            for segment in segments:
                samples[segment.first].append(_block_s(segment, bench.device))
        for segment in segments:
            yield SegmentTiming(
                first=segment.first,
                last=segment.last,
                items=items,
                predicted_s=segment.predicted_s,
                median_s=statistics.median(samples[segment.first]) * load.core_sharing,
                spread=spread(samples[segment.first]),
            )


def corrections(segments: Sequence[SegmentTiming]) -> dict[int, float]:
    """For each batch size, what the sum of single layers has to be multiplied by."""
    found = {}
    for items in {segment.items for segment in segments}:
        here = [segment for segment in segments if segment.items == items]
        predicted = sum(segment.predicted_s for segment in here)
        if predicted > 0:
            found[items] = sum(segment.median_s for segment in here) / predicted
    return found


def corrected(
    rows: Mapping[str, Sequence[Measurement]], factors: Mapping[int, float]
) -> dict[str, tuple[Measurement, ...]]:
    """Measurements with every time multiplied by the factor of its batch size."""
    return {
        twin: tuple(
            row.model_copy(update={"median_s": row.median_s * factors.get(row.items, 1.0)})
            for row in measured
        )
        for twin, measured in rows.items()
    }


def dispatch_s() -> float:
    """Seconds that running a stage once costs beside its layers, on this processor.

    What a rank does around each run, without the run: cut and join tensors, make buffers and
    views of bytes, call an empty module. An estimate until a run report has been folded back.
    """
    empty = fx.GraphModule(torch.nn.Module(), _identity())
    part = torch.zeros(2, 64)
    samples = []
    for _ in range(DISPATCH_SAMPLES):
        start = time.perf_counter()
        for _ in range(_HANDLED):
            buffer = torch.empty(1, 64)
            buffer.reshape(-1).view(torch.uint8)
            joined = torch.cat([part.narrow(0, 0, 1), buffer])
            with torch.inference_mode():
                empty(joined)
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def _identity() -> fx.Graph:
    graph = fx.Graph()
    graph.output((graph.placeholder("value"),))
    return graph


def _at(measured: Sequence[Measurement], items: int) -> float:
    return next((row.median_s for row in measured if row.items == items), 0.0)


def _block_s(segment: _Segment, device: torch.device) -> float:
    """Seconds of one run of a segment, averaged over a block of runs."""
    runs, start = 0, time.perf_counter()
    while True:
        timed_run(segment.call, device)
        runs += 1
        passed = time.perf_counter() - start
        if passed >= BLOCK_S:
            return passed / runs


def _segments(
    bench: LayerBench, items: int, one: Mapping[str, float], free_bytes: int
) -> Iterator[_Segment]:
    """Runs of layers from the beginning, the middle and the end, ready to be timed."""
    graph = bench.captured.graph
    bounds = _bounds(bench, one, free_bytes)
    needed: set[str] = set()
    programs = []
    for first, last in bounds:
        program = bench.captured.cutter.part([x.name for x in graph.layers[first : last + 1]])
        programs.append(program)
        needed.update(program.inputs)
    values = bench.values(items, needed)
    for (first, last), program in zip(bounds, programs, strict=True):
        layers = graph.layers[first : last + 1]
        predicted = sum(one[layer.twin] for layer in layers)
        if any(layer.uses_prelude for layer in layers):
            predicted += one.get(PRELUDE, 0.0)
        yield _Segment(first, last, bench.segment(program, values, items), predicted)


def _bounds(bench: LayerBench, one: Mapping[str, float], free_bytes: int) -> list[tuple[int, int]]:
    """First and last layer of each segment: equal parts of the model, cut where they get large."""
    graph = bench.captured.graph
    room = MEMORY_FRACTION * free_bytes / NUM_SEGMENTS
    num = len(graph.layers)
    parts = min(NUM_SEGMENTS, num)
    found = []
    for part in range(parts):
        first, end = num * part // parts, num * (part + 1) // parts
        last, seconds, size = first, one[graph.layers[first].twin], graph.weight_bytes([first])
        if size > room:
            continue
        while last + 1 < end:
            seconds += one[graph.layers[last + 1].twin]
            size = graph.weight_bytes(range(first, last + 2))
            if seconds > LONGEST_S or size > room:
                break
            last += 1
        found.append((first, last))
    return found
