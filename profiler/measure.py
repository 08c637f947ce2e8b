"""Time and peak memory of each distinct layer on one device, repeated until stable.

Repeats go round all layers and batch sizes in turn, so that slow drifts of the machine meet all of
them alike (measuring one after the other gave 20 to 30 % of error from drift alone). A figure is
the median; its spread is the distance of the quartiles over the median.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.profiler import ProfilerActivity, profile

from profiler.allocator import MAPPED_BYTES
from profiler.bench import Call, LayerBench
from profiler.profile import Measurement

MIN_SAMPLES = 7
MAX_SAMPLES = 60
STABLE_FRACTION = 0.01
"""A median is settled when its standard error is below this fraction of it."""
UNSTABLE_SPREAD = 0.25
"""Above this spread, a layer that matters is reported as unstable."""
WARM_UP = 2


@dataclass(frozen=True)
class Effort:
    """How long to measure: samples per figure, and seconds for all of one device."""

    min_samples: int = MIN_SAMPLES
    max_samples: int = MAX_SAMPLES
    budget_s: float = 120.0


@dataclass(frozen=True)
class Load:
    """How the host is shared while ranks work.

    ``companions`` processes compute beside the measured one, so that no core is idle.
    ``core_sharing`` is threads over cores where ranks have more threads than the host has cores:
    they take turns then, each layer takes that much longer on average, and times are multiplied
    by it. (Measured directly, a short layer either has a core to itself or waits for milliseconds;
    no median shows the average of the two.)
    """

    companions: int = 0
    core_sharing: float = 1.0


@dataclass
class _Series:
    call: Call
    items: int
    peak_bytes: int = 0
    mapped_bytes: int = 0
    samples: list[float] = field(default_factory=list)

    def settled(self, effort: Effort) -> bool:
        count = len(self.samples)
        if count < effort.min_samples:
            return False
        if count >= effort.max_samples:
            return True
        middle = statistics.median(self.samples)
        deviation = statistics.median(abs(s - middle) for s in self.samples)
        # 1.4826 MAD estimates the standard deviation, 1.2533 sigma / sqrt(n) the median's error.
        error = 1.2533 * 1.4826 * deviation / math.sqrt(count)
        return error <= STABLE_FRACTION * middle

    def measurement(self, core_sharing: float) -> Measurement:
        return Measurement(
            items=self.items,
            median_s=statistics.median(self.samples) * core_sharing,
            spread=spread(self.samples),
            samples=len(self.samples),
            peak_bytes=self.peak_bytes,
            mapped_bytes=self.mapped_bytes,
        )


def spread(samples: Sequence[float]) -> float:
    """Distance of the quartiles over the median; 0 for samples of no time."""
    ordered = sorted(samples)
    middle = statistics.median(ordered)
    quarter = (len(ordered) - 1) // 4
    return round((ordered[-1 - quarter] - ordered[quarter]) / middle, 4) if middle else 0.0


Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction done."""


def measure_layers(
    bench: LayerBench,
    *,
    batch_sizes: Sequence[int],
    effort: Effort,
    load: Load,
    progress: Progress,
    done: Mapping[str, Mapping[int, Measurement]],
) -> Iterator[tuple[str, Measurement]]:
    """Yield ``(twin, measurement)`` for every distinct layer and batch size not in ``done``.

    Measurements come as soon as they are settled, so that a caller can keep what it has when it
    is interrupted.
    """
    series: list[_Series] = []
    for items in batch_sizes:
        for call in bench.calls(items):
            if items not in done.get(call.built.twin, {}):
                made = _Series(call=call, items=items)
                made.peak_bytes, made.mapped_bytes = peak_bytes(call, bench.device)
                for _ in range(WARM_UP):
                    timed_run(call, bench.device)
                series.append(made)
        progress(f"warm-up, {items} items", 0.0)
    waiting, total = list(series), len(series)
    deadline = time.monotonic() + effort.budget_s
    while waiting:
        for one in waiting:
            one.samples.append(timed_run(one.call, bench.device))
        late = time.monotonic() > deadline
        still = []
        for one in waiting:
            enough = late and len(one.samples) >= min(3, effort.min_samples)
            if one.settled(effort) or enough:
                yield one.call.built.twin, one.measurement(load.core_sharing)
            else:
                still.append(one)
        waiting = still
        progress("measuring layers", 1 - len(waiting) / total)


def timed_run(call: Call, device: torch.device) -> float:
    """Seconds of one run of a layer (or a run of layers) on ``device``.

    With one thread the processor's time: a throttled or shared processor stops now and then, for
    longer than most layers take, and no median of single layers shows that on average. What the
    clock says beyond it, ``profiler.segments`` adds.
    """
    # Changes in place must not accumulate over repeats; the copies are not part of the time.
    fresh = Call(built=call.built, tensors=tuple(_detached(call)), sizes=call.sizes)
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    _synchronize(device)
    start = clock()
    fresh.run()
    _synchronize(device)
    return clock() - start


def _detached(call: Call) -> Iterator[torch.Tensor]:
    for name, tensor in zip(call.built.program.inputs, call.tensors, strict=True):
        yield tensor.clone() if name in call.built.changes else tensor


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(call: Call, device: torch.device) -> tuple[int, int]:
    """The most memory a layer allocates while it runs, beyond what was there before; and how much
    of it in blocks of ``MAPPED_BYTES`` and more, which only processors hold apart.

    On a processor by the allocator's own events, scratch buffers of the kernels included.
    """
    fresh = Call(built=call.built, tensors=tuple(t.clone() for t in call.tensors), sizes=call.sizes)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        fresh.run()
        torch.cuda.synchronize(device)
        return max(0, torch.cuda.max_memory_allocated(device) - before), 0
    with (
        _quiet_stderr(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen,
    ):
        fresh.run()
    events = [
        (event.start_ns(), event.nbytes())
        for event in seen.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = most = mapped = most_mapped = 0
    for _, change in sorted(events, key=lambda event: event[0]):
        held += change
        mapped += change if abs(change) >= MAPPED_BYTES else 0
        most, most_mapped = max(most, held), max(most_mapped, mapped)
    return most, min(most, most_mapped)


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """The profiler's C++ side writes trace lines to file descriptor 2; keep them off the screen."""
    sys.stderr.flush()
    saved = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(sink)
        os.close(saved)
