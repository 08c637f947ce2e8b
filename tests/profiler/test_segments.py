"""The correction of layer times by measured runs of layers."""

from __future__ import annotations

import pytest
import torch

from profiler.bench import LayerBench
from profiler.measure import Load
from profiler.profile import Measurement, SegmentTiming
from profiler.segments import corrected, corrections, dispatch_s, measure_segments
from tests.support.captures import captured


def timing(items: int, predicted_s: float, median_s: float) -> SegmentTiming:
    return SegmentTiming(
        first=0, last=1, items=items, predicted_s=predicted_s, median_s=median_s, spread=0.0
    )


def row(items: int, seconds: float) -> Measurement:
    return Measurement(items=items, median_s=seconds, spread=0.1, samples=5, peak_bytes=7)


def test_the_factor_is_the_ratio_of_the_sums_at_each_batch_size() -> None:
    found = corrections([timing(1, 1.0, 1.5), timing(1, 3.0, 4.5), timing(8, 4.0, 4.0)])
    assert found == {1: 1.5, 8: 1.0}


def test_segments_that_take_no_time_correct_nothing() -> None:
    assert corrections([timing(1, 0.0, 0.1)]) == {}


def test_every_time_is_multiplied_and_nothing_else_changes() -> None:
    found = corrected({"a": [row(1, 2.0), row(8, 4.0)]}, {1: 1.5})
    assert found == {"a": (row(1, 3.0), row(8, 4.0))}


@pytest.mark.parametrize("name", ["mlp", "llama", "counter"])
def test_segments_are_runs_of_the_models_own_layers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("profiler.segments.BLOCK_S", 0.005)  # which layers, not how long
    bench = LayerBench(captured(name), device=torch.device("cpu"))
    rows = {twin: (row(2, 1e-4), row(4, 2e-4)) for twin in bench.built}
    found = list(
        measure_segments(bench, rows=rows, free_bytes=2**30, load=Load(), progress=lambda *_: None)
    )
    layers = bench.captured.graph.layers
    here = [segment for segment in found if segment.items == 4]
    covered = [i for segment in here for i in range(segment.first, segment.last + 1)]
    assert covered == list(range(len(layers)))
    assert all(segment.median_s > 0 for segment in found)
    uses = [any(layers[i].uses_prelude for i in range(s.first, s.last + 1)) for s in here]
    for segment, prelude in zip(here, uses, strict=True):
        assert segment.predicted_s == pytest.approx(
            (segment.last - segment.first + 1 + prelude) * 2e-4
        )


def test_a_device_without_room_for_any_weight_gives_no_segment() -> None:
    bench = LayerBench(captured("mlp"), device=torch.device("cpu"))
    rows = {twin: (row(1, 1e-4),) for twin in bench.built}
    arguments = {"rows": rows, "load": Load(), "progress": lambda *_: None}
    assert all(bench.captured.graph.weight_bytes([i]) > 1 for i in range(len(rows)))
    assert list(measure_segments(bench, free_bytes=1, **arguments)) == []  # type: ignore[arg-type]


def test_dispatch_takes_some_microseconds() -> None:
    assert 1e-6 < dispatch_s() < 1e-2
