"""``profile_model``: a model and a cluster in, a Profile out.

Captures the model, finds which layers are itemwise, and measures every distinct layer on every
kind of device of this machine, its neighbours kept busy. Devices of equal kind, type and threads
are measured once.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from profiler.allocator import keep_freed_memory
from profiler.bench import LayerBench
from profiler.capture import Captured, capture
from profiler.cluster import Cluster, Device
from profiler.companion import companions, empty_rank_bytes
from profiler.discover import discover, processor_name
from profiler.documents import canonical_json, digest
from profiler.environment import Environment
from profiler.errors import InvalidInputError
from profiler.graph import ModelGraph
from profiler.itemwise import with_itemwise
from profiler.journal import Journal
from profiler.limits import available_cores
from profiler.measure import UNSTABLE_SPREAD, Effort, Load, Progress, measure_layers
from profiler.profile import Conditions, DeviceTimings, HeapMeasurement, Measurement, Profile
from profiler.residency import measure_residency
from profiler.segments import corrected, corrections, dispatch_s, measure_segments
from profiler.slicetimes import measure_slices
from profiler.sources import load_model
from profiler.threads import computing_with

LARGEST_DEFAULT = 64
SLOW_PASS_S = 3.0
"""Batch sizes are doubled from 1 until one pass over the distinct layers takes this long."""


def _no_progress(_what: str, _fraction: float) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """Where to keep partial results, whom to tell about progress, and the tokens of the example
    inputs made for a model directory."""

    journal: Path | None = None
    progress: Progress = _no_progress
    length: int | None = None


def profile_model(
    model: str | nn.Module,
    example: Any = None,
    *,
    cluster: Cluster | None = None,
    batch_sizes: Sequence[int] | None = None,
    effort: Effort | None = None,
    options: ProfileOptions | None = None,
) -> Profile:
    """Measure ``model`` on the devices of ``cluster`` (default: this machine).

    In a process that torchrun started as one of several, one a host, every host measures its own
    devices and the links between them are measured; all of them get the merged profile (see
    :func:`profiler.together.profile_together` for its options).

    ``model`` is a factory ``package.module:callable``, a model directory, a ``.pt2`` file or a
    module (then with ``example`` inputs). ``batch_sizes`` default to 1, 2, 4, ... while a pass
    stays short, 64 at most.

    Raises:
        InvalidInputError: the model, its inputs or a batch size cannot be right, or the cluster
            has devices that are not on this machine.
        UnsupportedModelError: the model cannot be captured; the message says why.
        StalePlanError: the model is not the same on every host.
        RankFailedError: another host is gone or failed.
    """
    options = options or ProfileOptions()
    environment = Environment.read()
    if environment is not None:
        # Imported late: they build on this module.
        from profiler.hosts import meet
        from profiler.together import profile_together

        with meet(environment) as world:
            return profile_together(
                world,
                model,
                example,
                cluster=cluster,
                batch_sizes=batch_sizes,
                effort=effort,
                options=options,
            ).profile
    captured = capture(load_model(model, example, length=options.length))
    return profile_captured(
        captured,
        cluster=cluster or discover(),
        batch_sizes=batch_sizes,
        effort=effort or Effort(),
        options=options,
    )


def profile_captured(
    captured: Captured,
    *,
    cluster: Cluster,
    batch_sizes: Sequence[int] | None,
    effort: Effort,
    options: ProfileOptions,
) -> Profile:
    """:func:`profile_model` for a model that has been captured already."""
    groups = measurable(cluster)
    observed = observe(captured, batch_sizes)
    timings = measure_groups(observed, groups, cluster=cluster, effort=effort, options=options)
    return Profile(
        model=observed.graph,
        cluster=cluster,
        batch_sizes=observed.batch_sizes,
        timings=timings,
        conditions=conditions_here(observed, timings, cluster=cluster),
    )


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A captured model after a first look: which layers are itemwise, which batch sizes to take."""

    captured: Captured
    graph: ModelGraph
    bench: LayerBench
    batch_sizes: tuple[int, ...]


def observe(captured: Captured, batch_sizes: Sequence[int] | None) -> Observed:
    """Run each distinct layer on this machine's processor, and settle the batch sizes.

    Raises:
        InvalidInputError: the model cannot take these batch sizes.
    """
    keep_freed_memory()
    sizes = _check_batch_sizes(batch_sizes, captured)
    bench = LayerBench(captured, device=torch.device("cpu"))
    graph = with_itemwise(captured.graph, bench)
    if sizes is None:
        sizes = _default_sizes(bench)
    return Observed(captured=captured, graph=graph, bench=bench, batch_sizes=tuple(sizes))


def measure_groups(
    observed: Observed,
    groups: Sequence[Sequence[str]],
    *,
    cluster: Cluster,
    effort: Effort,
    options: ProfileOptions,
) -> tuple[DeviceTimings, ...]:
    """Measure each group of equal devices of this machine on its first one."""
    journal = Journal(
        options.journal,
        header={
            "graph": observed.graph.fingerprint,
            "cluster": _hardware_digest(cluster),
            "torch": torch.__version__,
            "symbols": observed.graph.symbols,
            "format": 2,
        },
    )
    timings = []
    for group in groups:
        name = group[0]

        def progress(what: str, done: float, where: str = name) -> None:
            options.progress(f"{where}: {what}", done)

        with device_bench(observed, cluster, name) as (bench, load):
            for twin, measurement in measure_layers(
                bench,
                batch_sizes=observed.batch_sizes,
                effort=effort,
                load=load,
                progress=progress,
                done=journal.done[name],
            ):
                journal.add(name, twin, measurement)
            rows = _rows(journal.done[name], observed.batch_sizes)
            device = cluster.device[name]
            segments = tuple(
                measure_segments(
                    bench,
                    rows=rows,
                    free_bytes=device.usable_bytes,
                    load=load,
                    progress=progress,
                )
            )
            slices = tuple(
                measure_slices(
                    bench,
                    batch_sizes=observed.batch_sizes,
                    effort=effort,
                    free_bytes=device.usable_bytes,
                    progress=progress,
                )
            )
        rows = corrected(rows, corrections(segments))
        heap: tuple[HeapMeasurement, ...] = ()
        resident: int | None = None
        if device.kind == "cpu":
            progress("measuring memory", 0.0)
            residency = measure_residency(
                bench, rows=rows, threads=device.threads, free_bytes=device.usable_bytes
            )
            if residency is not None:
                heap, resident = residency.heap, residency.baseline_bytes
        if resident is None:
            resident = empty_rank_bytes(threads=device.threads)
        timings.append(
            DeviceTimings(
                measured_on=name,
                devices=tuple(group),
                baseline_bytes=resident,
                dispatch_s=dispatch_s() * load.core_sharing,
                heap=heap,
                layers=rows,
                segments=segments,
                slices=slices,
            )
        )
    return tuple(timings)


@contextmanager
def device_bench(
    observed: Observed, cluster: Cluster, name: str
) -> Iterator[tuple[LayerBench, Load]]:
    """The bench of a device of this machine, its neighbours busy."""
    device = cluster.device[name]
    load = load_beside(cluster, name)
    bench = observed.bench
    if device.kind != "cpu":
        bench = LayerBench(observed.captured, device=_torch_device(device))
    with (
        computing_with(device.threads),
        companions(load.companions, threads=device.threads),
    ):
        yield bench, load


def conditions_here(
    observed: Observed, timings: Sequence[DeviceTimings], *, cluster: Cluster
) -> Conditions:
    """What figures measured on this machine depend on."""
    loads = [load_beside(cluster, timing.measured_on) for timing in timings]
    return Conditions(
        torch=torch.__version__,
        python=platform.python_version(),
        dtype=observed.graph.dtype,
        processor=processor_name(),
        load_average=round(os.getloadavg()[0], 2),
        concurrent_ranks=max((1 + load.companions for load in loads), default=1),
        core_sharing=max((load.core_sharing for load in loads), default=1.0),
        unstable=_unstable(timings, observed.graph.layers),
    )


def _hardware_digest(cluster: Cluster) -> str:
    """Of what times depend on: not of links, nor of memory that happens to be free."""
    hosts = [
        host.model_copy(
            update={
                "devices": tuple(d.model_copy(update={"free_bytes": None}) for d in host.devices)
            }
        )
        for host in cluster.hosts
    ]
    return digest(canonical_json([host.model_dump(mode="json") for host in hosts]))


def _rows(
    done: Mapping[str, Mapping[int, Measurement]], sizes: Sequence[int]
) -> dict[str, tuple[Measurement, ...]]:
    """Measurements by twin, ascending, at the batch sizes that were asked for."""
    return {
        twin: tuple(rows[items] for items in sorted(rows) if items in set(sizes))
        for twin, rows in done.items()
    }


def measurable(cluster: Cluster) -> list[list[str]]:
    """Devices grouped by kind, type and threads; each group is measured on its first.

    Raises:
        InvalidInputError: a device that this machine does not have.
    """
    here = {(d.kind, d.type) for d in discover().device.values()}
    several = len({host.name for host in cluster.hosts}) > 1
    groups: dict[tuple[str, str, int], list[str]] = {}
    for name, device in cluster.device.items():
        if device.kind == "cuda":
            available = torch.cuda.device_count() if torch.cuda.is_available() else 0
            index = device.name.partition(":")[2] or "0"
            if not index.isdigit() or int(index) >= available:
                raise InvalidInputError(
                    f"{name} is a CUDA device; this machine has {available} of them"
                )
        if several and (device.kind, device.type) not in here:
            raise InvalidInputError(
                f"{name} of type {device.type!r} is not on this machine "
                f"({', '.join(sorted(kind_type[1] for kind_type in here))}); profile each kind of "
                "host on itself"
            )
        groups.setdefault((device.kind, device.type, device.threads), []).append(name)
    return list(groups.values())


def load_beside(cluster: Cluster, name: str) -> Load:
    """What else computes on a device's host when all of its ranks work."""
    device = cluster.device[name]
    if device.kind != "cpu":
        return Load()
    host = cluster.host_of[name]
    cores = min(host.cores or available_cores(), available_cores())
    others = [d for d in host.devices if d.kind == "cpu"]
    room = max(0, cores // device.threads - 1)
    threads = sum(d.threads for d in others)
    return Load(companions=min(len(others) - 1, room), core_sharing=max(1.0, threads / cores))


def _check_batch_sizes(sizes: Sequence[int] | None, captured: Captured) -> list[int] | None:
    static = captured.graph.static_batch
    if static is not None:
        if sizes is not None and list(sizes) != [static]:
            raise InvalidInputError(
                f"{captured.graph.name} was captured for exactly {static} items "
                f"({captured.graph.captured_by}); batch sizes {list(sizes)} cannot be measured"
            )
        return [static]
    if sizes is None:
        return None
    if not sizes or any(size < 1 for size in sizes):
        raise InvalidInputError(f"batch sizes must be 1 or more: {list(sizes)}")
    return sorted(set(sizes))


def _default_sizes(bench: LayerBench) -> list[int]:
    sizes: list[int] = []
    items = 1
    while items <= LARGEST_DEFAULT:
        start = time.monotonic()
        try:
            for call in bench.calls(items):
                call.run()
        except RuntimeError:
            # Out of memory, or a kernel that cannot take so many: smaller ones are measured.
            if not sizes:
                raise
            break
        sizes.append(items)
        if time.monotonic() - start > SLOW_PASS_S:
            break
        items *= 2
    return sizes


def _unstable(timings: Sequence[DeviceTimings], layers: Sequence[Any]) -> tuple[str, ...]:
    """Layers that take a noticeable part of the time and whose repeats scatter widely."""
    names = {layer.twin: layer.name for layer in reversed(layers)}
    found = []
    for timing in timings:
        total = sum(rows[-1].median_s for rows in timing.layers.values())
        for twin, rows in timing.layers.items():
            row = rows[-1]
            if row.spread > UNSTABLE_SPREAD and row.median_s > 0.02 * total:
                found.append(f"{names.get(twin, twin)} on {timing.measured_on}")
        for run in timing.segments:
            if run.spread > UNSTABLE_SPREAD and run.items == timing.segments[-1].items:
                where = f"{layers[run.first].name} to {layers[run.last].name}"
                found.append(f"{where} on {timing.measured_on}")
    return tuple(found)


def _torch_device(device: Device) -> torch.device:
    return torch.device(device.name if device.kind == "cuda" else "cpu")
