"""How much memory a rank really takes: the pages that hold its tensors, not their bytes alone.

A heap has holes that no later tensor fits into, kernels keep scratch memory, and libraries' pages
are loaded when their code first runs. None of that follows from shapes. So some runs of layers are
built in a process made like a rank (``profiler.rankprobe``), and the growth of its heap is compared
with the bytes alive at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from typing import NamedTuple, Self

import torch
from safetensors.torch import save_file

from profiler.allocator import MAPPED_BYTES, heap_environment
from profiler.bench import LayerBench, Values, example_inputs
from profiler.expressions import evaluate
from profiler.graph import ModelGraph
from profiler.profile import PRELUDE, HeapMeasurement, Measurement
from profiler.program import StageProgram
from profiler.rankprobe import DEPTH

NUM_RUNS = 3
"""Runs of layers: from the beginning, the middle and the end of the model."""
LONGEST_S = 0.5
LEAST_LAYERS = 6
"""A run has this many layers, and more while they take no longer than ``LONGEST_S`` together."""
MEMORY_FRACTION = 0.25
"""Part of a device's free memory that a run's weights may take."""
LEAST_BYTES = 2**20
"""Below this, what runs keep alive says nothing about the heap."""
ARRIVALS_PERMILLE = 200
"""What a real rank's heap takes on top of that: messages come and go in another order each step,
and the heap still grows after ten of them. A rank that is about to take more than that gives the
pages of holes back (``executor.footprint``), which takes time: this much keeps it rare."""
MOST_PERMILLE = 3000
"""What the heap takes on top at most: more is not its doing."""

Rows = Mapping[str, Sequence[Measurement]]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Residency:
    """Bytes of a rank without weights, and what its heap takes beyond the bytes alive on it."""

    baseline_bytes: int
    heap: tuple[HeapMeasurement, ...]


def measure_residency(
    bench: LayerBench, *, rows: Rows, threads: int, free_bytes: int
) -> Residency | None:
    """Run parts of the model as ranks would; None where the system does not tell a process's pages.

    ``rows`` are the measurements of all twins; runs are tried at the smallest, the middle and the
    largest batch size in them.
    """
    baseline = 0
    heap = []
    with _Probe(threads) as probe:
        for items in _sizes(rows):
            now = {t: row for t, measured in rows.items() for row in measured if row.items == items}
            values = _values(bench, items)
            needed = holes = 0
            for first, last in _runs(bench.captured.graph, now, free_bytes):
                with tempfile.TemporaryDirectory(prefix="apportion-probe-") as directory:
                    _write_run(Path(directory), bench, (first, last), values, items)
                    answer = probe.ask(directory)
                if answer is None:
                    return None
                baseline = max(baseline, answer["empty_bytes"] + answer["library_bytes"])
                alive = alive_bytes(bench.captured.graph, (first, last), now)
                needed += alive.needed
                holes += max(0, answer["grown_bytes"] - sum(alive))
            # Of all runs together: what differs between them is chance as much as their layers.
            permille = holes * 1000 // needed if needed >= LEAST_BYTES else 0
            permille += ARRIVALS_PERMILLE
            heap.append(HeapMeasurement(items=items, permille=min(MOST_PERMILLE, permille)))
    return Residency(baseline_bytes=baseline, heap=tuple(heap))


class _Probe:
    """The process that measures runs; a context manager."""

    def __init__(self, threads: int) -> None:
        self._process = Popen(
            [sys.executable, "-m", "profiler.rankprobe", "--threads", str(threads)],
            stdin=PIPE,
            stdout=PIPE,
            text=True,
            env=heap_environment(os.environ),
            start_new_session=True,  # Ctrl-C is for the caller, which then ends it
        )

    def ask(self, directory: str) -> dict[str, int] | None:
        """What it measured of the run in ``directory``; None if it failed, which is logged."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(directory + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        answer: dict[str, int] = json.loads(line) if line else {"failed": 1}
        if "failed" in answer:
            _logger.warning("a rank's memory could not be measured; its messages stand above")
            return None
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Its group: a run may be under way in a process of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


def _sizes(rows: Rows) -> list[int]:
    sizes = sorted({row.items for measured in rows.values() for row in measured})
    return sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]})


class Alive(NamedTuple):
    """The most bytes alive on a rank: on its heap what its layers need, and what else there is; and
    in blocks too large for that."""

    needed: int
    moved: int
    mapped: int


def alive_bytes(graph: ModelGraph, run: tuple[int, int], now: Mapping[str, Measurement]) -> Alive:
    """The most bytes alive on a rank that runs layers ``run[0]`` to ``run[1]``.

    Activations and buffers of the section on memory in ``docs/cost-model.md``; what the prelude
    allocates is taken for small.
    """
    first, last = run
    layers = graph.layers[first : last + 1]
    symbols = graph.symbols_at(next(iter(now.values())).items)
    own = {name for layer in layers for name in layer.writes}
    read = {name for layer in layers for name in layer.reads}
    change = {part: [0] * (last + 2) for part in (False, True)}
    most = {False: 0, True: 0}
    moved = {False: 0, True: 0}
    for name in sorted(own | read):
        tensor, readers = graph.tensor[name], graph.readers[name]
        size = tensor.num_bytes(symbols)
        large = size >= MAPPED_BYTES
        leaves = name in own and (name in graph.outputs or any(i > last for i in readers))
        moved[large] += size if leaves or name not in own else 0
        since = graph.layer_index[tensor.producer or ""] + 1 if name in own else first
        until = last if leaves else max((i for i in readers if i <= last), default=-1)
        if until >= since:
            change[large][since] += size
            change[large][until + 1] -= size
    for large in (False, True):
        alive = 0
        for at in range(first, last + 1):
            alive += change[large][at]
            row = now[graph.layers[at].twin]
            needs = row.mapped_bytes if large else row.peak_bytes - row.mapped_bytes
            most[large] = max(most[large], alive + needs)
    rest = DEPTH * moved[False]
    if PRELUDE in now and any(layer.uses_prelude for layer in layers):
        rest += now[PRELUDE].peak_bytes
    return Alive(needed=most[False], moved=rest, mapped=most[True] + DEPTH * moved[True])


def _runs(
    graph: ModelGraph, now: Mapping[str, Measurement], free_bytes: int
) -> Iterator[tuple[int, int]]:
    """First and last layer of each run: equal parts of the model, cut where they get large."""
    room = MEMORY_FRACTION * free_bytes
    num = len(graph.layers)
    parts = min(NUM_RUNS, num)
    for part in range(parts):
        # From the end backwards: the last layers are like no others.
        first, end = num * part // parts, num * (part + 1) // parts
        at, seconds = end, 0.0
        while at > first:
            seconds += now[graph.layers[at - 1].twin].median_s
            long = seconds > LONGEST_S and end - at >= LEAST_LAYERS
            if at < end and (long or graph.weight_bytes(range(at - 1, end)) > room):
                break
            at -= 1
        if graph.weight_bytes(range(at, end)) <= room:
            yield at, end - 1


def _values(bench: LayerBench, items: int) -> Values:
    """Every tensor of the model at a batch size; twins share theirs."""
    graph = bench.captured.graph
    values = example_inputs(bench.captured, items)
    results = {call.built.twin: call.run() for call in bench.calls(items)}
    for layer in graph.layers:
        values.update(zip(layer.writes, results[layer.twin], strict=True))
    return values


def _write_run(
    directory: Path, bench: LayerBench, run: tuple[int, int], values: Values, items: int
) -> None:
    captured = bench.captured
    layers = captured.graph.layers[run[0] : run[1] + 1]
    program: StageProgram = captured.cutter.part([layer.name for layer in layers])
    symbols = captured.graph.symbols_at(items)
    data = {
        "program": program.to_data(),
        "sizes": [evaluate(size, symbols) for _, size in program.sizes],
    }
    (directory / "program.json").write_text(json.dumps(data))
    (directory / "graph.json").write_text(captured.graph.model_dump_json())
    tensors: dict[str, torch.Tensor] = {f"input {name}": values[name] for name in program.inputs}
    for port in program.weights:
        if port.constant:
            tensors[f"constant {port.weight}"] = captured.constants[port.weight]
    save_file(
        {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()},
        directory / "tensors.safetensors",
    )
