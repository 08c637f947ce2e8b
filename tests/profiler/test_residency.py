from __future__ import annotations

import sys
from collections.abc import Mapping

import pytest
import torch

from profiler.allocator import MAPPED_BYTES
from profiler.bench import LayerBench
from profiler.graph import ModelGraph
from profiler.measure import peak_bytes
from profiler.profile import PRELUDE, Measurement
from profiler.residency import ARRIVALS_PERMILLE, alive_bytes, measure_residency
from tests.support.builders import GIB, make_graph
from tests.support.captures import captured

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
MIB = 2**20


def rows_of(bench: LayerBench, sizes: tuple[int, ...]) -> dict[str, list[Measurement]]:
    rows: dict[str, list[Measurement]] = {}
    for items in sizes:
        for call in bench.calls(items):
            most, mapped = peak_bytes(call, bench.device)
            rows.setdefault(call.built.twin, []).append(
                Measurement(
                    items=items,
                    median_s=1e-3,
                    spread=0.0,
                    samples=1,
                    peak_bytes=most,
                    mapped_bytes=mapped,
                )
            )
    return rows


@pytest.mark.parametrize("name", ["mlp", "bert", "cache", "dynamic_length"])
def test_a_rank_without_weights_takes_what_torch_takes(name: str) -> None:
    bench = LayerBench(captured(name), device=torch.device("cpu"))
    found = measure_residency(bench, rows=rows_of(bench, (1, 2, 4)), threads=1, free_bytes=GIB)
    assert found is not None
    assert 80 * MIB < found.baseline_bytes < 600 * MIB
    # So little is alive in these models that it says nothing about the heap.
    assert [(row.items, row.permille) for row in found.heap] == [
        (items, ARRIVALS_PERMILLE) for items in (1, 2, 4)
    ]


def test_a_run_that_cannot_be_built_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = LayerBench(captured("mlp"), device=torch.device("cpu"))
    rows = rows_of(bench, (1,))
    monkeypatch.setattr("profiler.residency._write_run", lambda *_: None)
    assert measure_residency(bench, rows=rows, threads=1, free_bytes=GIB) is None


def now(graph: ModelGraph, **peaks: tuple[int, int]) -> Mapping[str, Measurement]:
    return {
        layer.twin: Measurement(
            items=1,
            median_s=1.0,
            spread=0.0,
            samples=1,
            peak_bytes=peaks.get(layer.name, (0, 0))[0],
            mapped_bytes=peaks.get(layer.name, (0, 0))[1],
        )
        for layer in graph.layers
    }


def test_what_is_alive_is_counted_as_in_the_ledger() -> None:
    graph = make_graph([(0, 1), (1, 2)], 3, floats_per_item=25)
    # l1 takes t0 and gives t1, 100 bytes each: t0 while l1 allocates 7, and two of both buffered.
    assert alive_bytes(graph, (1, 1), now(graph, l1=(7, 0))) == (107, 2 * 200, 0)


def test_large_tensors_are_counted_apart() -> None:
    graph = make_graph([(0, 1), (1, 2)], 3, floats_per_item=MAPPED_BYTES // 4)
    alive = alive_bytes(graph, (1, 1), now(graph, l1=(MAPPED_BYTES + 9, MAPPED_BYTES)))
    assert alive == (9, 0, 2 * MAPPED_BYTES + 2 * 2 * MAPPED_BYTES)


def test_the_prelude_counts_where_it_is_used() -> None:
    made = captured("llama")
    bench = LayerBench(made, device=torch.device("cpu"))
    here = {twin: rows[0] for twin, rows in rows_of(bench, (2,)).items()}
    last = len(made.graph.layers) - 1
    using = [i for i, layer in enumerate(made.graph.layers) if layer.uses_prelude]
    assert using
    with_it = alive_bytes(made.graph, (0, last), here)
    without = alive_bytes(made.graph, (0, last), {k: v for k, v in here.items() if k != PRELUDE})
    assert sum(with_it) - sum(without) == here[PRELUDE].peak_bytes > 0
    assert with_it.needed == without.needed  # small things leave no holes
