"""How much memory a rank really takes: the pages that hold its tensors, not their bytes alone.

A heap has holes that no later tensor fits into, kernels keep scratch memory, and libraries' pages
are loaded when their code first runs. None of that follows from shapes. So some runs of layers are
built in a process made like a rank (``profiler.rankprobe``), and the growth of its heap is compared
with the bytes alive at once: the ratio goes to the layers of the run, as ``heap_permille``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import save_file

from profiler.allocator import heap_environment
from profiler.bench import LayerBench, Values, example_inputs
from profiler.expressions import evaluate
from profiler.graph import ModelGraph
from profiler.profile import PRELUDE, Measurement
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
"""Below this, what a run keeps alive says nothing about the heap."""
MOST_PERMILLE = 3000

Rows = Mapping[str, Sequence[Measurement]]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Residency:
    """What was found: bytes of a rank without weights, and per twin and item count the part of the
    bytes alive that its heap takes beyond them, in thousandths."""

    baseline_bytes: int
    permille: Mapping[tuple[str, int], int]

    def applied(self, rows: Rows) -> dict[str, tuple[Measurement, ...]]:
        """The measurements with their ``heap_permille``, between the sizes tried on a line."""
        return {
            twin: tuple(
                row.model_copy(update={"heap_permille": self._at(twin, row.items)})
                for row in measured
            )
            for twin, measured in rows.items()
        }

    def _at(self, twin: str, items: int) -> int:
        known = {n: value for (name, n), value in self.permille.items() if name == twin}
        if not known:
            return 0
        sizes = sorted(known)
        return round(float(np.interp(items, sizes, [known[n] for n in sizes])))


def measure_residency(
    bench: LayerBench, *, rows: Rows, threads: int, free_bytes: int
) -> Residency | None:
    """Run parts of the model as ranks would; None where the system does not tell a process's pages.

    ``rows`` are the measurements of all twins; runs are tried at the smallest, the middle and the
    largest batch size in them.
    """
    baseline = 0
    found = _Ratios()
    with _Probe(threads) as probe:
        for items in _sizes(rows):
            now = {t: row for t, measured in rows.items() for row in measured if row.items == items}
            values = _values(bench, items)
            for first, last in _runs(bench.captured.graph, now, free_bytes):
                with tempfile.TemporaryDirectory(prefix="apportion-probe-") as directory:
                    _write_run(Path(directory), bench, (first, last), values, items)
                    answer = probe.ask(directory)
                if answer is None:
                    return None
                baseline = max(baseline, answer["empty_bytes"] + answer["library_bytes"])
                alive = alive_bytes(bench.captured.graph, (first, last), now)
                twins = {x.twin for x in bench.captured.graph.layers[first : last + 1]}
                found.note({twin: now[twin] for twin in twins}, alive, answer["grown_bytes"])
    return Residency(baseline_bytes=baseline, permille=found.permille())


class _Probe:
    """The process that measures runs; a context manager."""

    def __init__(self, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "profiler.rankprobe", "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
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


class _Ratios:
    """What was seen of each twin: in runs where it is a great part of what is alive, above all."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int], tuple[float, float]] = {}

    def note(self, rows: Mapping[str, Measurement], alive: int, grown: int) -> None:
        """A run with these twins had ``alive`` bytes at most, and its heap grew by ``grown``."""
        if alive < LEAST_BYTES:
            return
        beyond = min(MOST_PERMILLE, max(0, grown - alive) * 1000 // alive)
        for twin, row in rows.items():
            part = max(row.peak_bytes / alive, 1e-6) ** 2
            total, parts = self._sums.get((twin, row.items), (0.0, 0.0))
            self._sums[twin, row.items] = total + part * beyond, parts + part

    def permille(self) -> dict[tuple[str, int], int]:
        """The mean for each twin and item count."""
        return {key: round(total / parts) for key, (total, parts) in self._sums.items()}


def alive_bytes(graph: ModelGraph, run: tuple[int, int], now: Mapping[str, Measurement]) -> int:
    """The most bytes alive at once on a rank that runs layers ``run[0]`` to ``run[1]``.

    Activations and buffers of the section on memory in ``docs/cost-model.md``.
    """
    first, last = run
    symbols = graph.symbols_at(next(iter(now.values())).items)
    size = {tensor.name: tensor.num_bytes(symbols) for tensor in graph.tensors}
    change = [0] * (last + 2)
    moved = 0
    own = {name for layer in graph.layers[first : last + 1] for name in layer.writes}
    read = {name for layer in graph.layers[first : last + 1] for name in layer.reads}
    for name in sorted(own | read):
        readers = graph.readers[name]
        leaves = name in own and (name in graph.outputs or any(i > last for i in readers))
        moved += size[name] if leaves or name not in own else 0
        since = graph.layer_index[graph.tensor[name].producer or ""] + 1 if name in own else first
        until = last if leaves else max((i for i in readers if i <= last), default=-1)
        if until >= since:
            change[since] += size[name]
            change[until + 1] -= size[name]
    most = alive = 0
    for at in range(first, last + 1):
        alive += change[at]
        most = max(most, alive + now[graph.layers[at].twin].peak_bytes)
    if PRELUDE in now and any(x.uses_prelude for x in graph.layers[first : last + 1]):
        most += now[PRELUDE].peak_bytes
    return most + DEPTH * moved


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
