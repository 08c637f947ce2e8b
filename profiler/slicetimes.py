"""What part of a region's time slicing really divides: measured, not only counted.

Operations alone mislead: norms and residuals of a region are computed by every rank, and kernels
are less quick on half a matrix. So each distinct region is run whole, and as a rank with half of
its units would, without the exchange; one after the other, so that drifts meet both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from profiler.bench import BuiltLayer, Call, LayerBench
from profiler.errors import InvalidInputError
from profiler.graph import SliceRegion
from profiler.measure import Effort, Progress, spread, timed_run
from profiler.profile import SliceTiming
from profiler.program import JOIN_CONCAT, Node
from profiler.sharding.slicing import sliced

SAMPLES = 9
LEAST_SAMPLES = 3
MEMORY_FRACTION = 0.25
"""Part of a device's free memory that the weights of one region, whole and halved, may take."""


@dataclass
class _Pair:
    """A region whole, and one rank's half of it."""

    region: SliceRegion
    units: int
    whole: BuiltLayer
    part: BuiltLayer
    calls: tuple[Call, Call] | None = None
    samples: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))


def measure_slices(
    bench: LayerBench,
    *,
    batch_sizes: Sequence[int],
    effort: Effort,
    free_bytes: int,
    progress: Progress,
) -> Iterator[SliceTiming]:
    """Time each distinct region of at least two units at every batch size.

    Regions too large for a part of ``free_bytes`` are left out: for them, operations count. Once a
    quarter of the effort's time has passed, fewer samples are taken.
    """
    pairs = list(_pairs(bench, free_bytes))
    if not pairs:
        return
    needed = {
        n for pair in pairs for built in (pair.whole, pair.part) for n in built.program.inputs
    }
    deadline = time.monotonic() + effort.budget_s / 4
    for number, items in enumerate(batch_sizes):
        progress("measuring slices", number / len(batch_sizes))
        values = bench.values(items, needed)
        for pair in pairs:
            pair.calls = (
                bench.call(pair.whole, values, items),
                bench.call(pair.part, values, items),
            )
            pair.samples = ([], [])
            for call in pair.calls:
                timed_run(call, bench.device)
        for count in range(min(SAMPLES, effort.max_samples)):
            if count >= LEAST_SAMPLES and time.monotonic() > deadline:
                break
            for pair in pairs:
                assert pair.calls is not None
                for call, samples in zip(pair.calls, pair.samples, strict=True):
                    samples.append(timed_run(call, bench.device))
        for pair in pairs:
            whole, part = pair.samples
            yield SliceTiming(
                region=pair.region.twin,
                items=items,
                units=pair.units,
                whole_s=statistics.median(whole),
                part_s=statistics.median(part),
                spread=max(spread(whole), spread(part)),
            )


def _pairs(bench: LayerBench, free_bytes: int) -> Iterator[_Pair]:
    captured = bench.captured
    graph, seen = captured.graph, set()
    for region in graph.regions:
        if region.twin in seen or region.units < 2:
            continue
        seen.add(region.twin)
        held = graph.weight_bytes(graph.layer_index[name] for name in region.layers)
        if 1.5 * held > MEMORY_FRACTION * free_bytes:
            continue
        whole = captured.cutter.part(region.layers, prelude=False)
        units = (region.units + 1) // 2
        try:
            part = sliced(whole, captured.sharding, {region.name: (units, region.units - units)}, 0)
        except InvalidInputError:
            continue
        yield _Pair(
            region=region,
            units=units,
            whole=bench.build(whole),
            part=bench.build(part, join=_stand_in),
        )


def _stand_in(node: Node) -> Callable[[torch.Tensor], torch.Tensor]:
    """A join without other ranks: the right shape, the wrong numbers."""

    def keep(part: torch.Tensor) -> torch.Tensor:
        return part

    def repeat(part: torch.Tensor) -> torch.Tensor:
        dim, lengths = node.args[3], node.args[4]
        needed = part.shape[dim] // lengths[0] * sum(lengths)
        times = -(-needed // part.shape[dim])
        return torch.cat([part] * times, dim=dim).narrow(dim, 0, needed)

    return repeat if node.op == JOIN_CONCAT else keep
