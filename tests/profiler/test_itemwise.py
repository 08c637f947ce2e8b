"""Which layers may work on part of a batch: observed, not assumed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from profiler.bench import LayerBench
from profiler.capture import Captured, capture
from profiler.graph import ModelGraph
from profiler.itemwise import with_itemwise
from profiler.sources import load_model
from tests.support import zoo
from tests.support.captures import captured

MIXING = {
    "clip": {"matmul"},
    "batch_statistics": {"a"},
    "batch_share": {"a"},
    "batch_similarity": {"matmul"},  # the mean that c also gives is a reduction
    "counter": {"b"},
    "cache": {"b"},
    "conditional": {"a", "cond"},
    "fixed_batch": {"a", "b", "c"},
    "batch_of_one_only": {"a", "b", "c"},
    "no_batch": {"a", "b", "c"},
}
"""Layers of the zoo that look across items, keep state, or come from a fixed batch."""


def observed(made: Captured) -> ModelGraph:
    return with_itemwise(made.graph, LayerBench(made, device=torch.device("cpu")))


def mixing(graph: ModelGraph) -> set[str]:
    return {layer.name for layer in graph.layers if not layer.itemwise}


@pytest.mark.parametrize("name", zoo.CAPTURABLE)
def test_layers_that_mix_items_are_found_and_no_others(name: str) -> None:
    assert mixing(observed(captured(name))) == MIXING.get(name, set())


class Between(nn.Module):
    """Two linear layers with something between them."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.between(self.a(x))))


def between(operation: Any, *, items: int = 2) -> ModelGraph:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Between(operation).eval()
        return observed(capture(load_model(module, torch.randn(items, 8))))


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x + 1e-3 * x.mean(0),
        lambda x: x / x.abs().amax(),
        lambda x: x - x[:1],
        lambda x: x.flip(0),
        lambda x: x.cumsum(0),
        lambda x: x * (1 + 0.01 * x.shape[0]),
        lambda x: x.sort(dim=0).values,
        lambda x: torch.softmax(x, dim=0),
        lambda x: x + torch.rand_like(x),
        lambda x: x * torch.arange(x.shape[0]).unsqueeze(1),
    ],
    ids=[
        "mean",
        "largest",
        "first",
        "flip",
        "running",
        "count",
        "sort",
        "softmax",
        "noise",
        "position",
    ],
)
def test_mixing_is_seen_however_it_is_written(operation: Any) -> None:
    assert "a" in mixing(between(operation))


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: x.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8),
        lambda x: torch.where(x > 0, x, torch.full_like(x, float("-inf"))).exp(),
        lambda x: x.sort(dim=1).values,
        lambda x: torch.cat([x, x], dim=0).chunk(2, dim=0)[0],
    ],
    ids=["turned", "heads", "holes", "sorted", "doubled"],
)
def test_what_only_looks_like_mixing_is_not_mixing(operation: Any) -> None:
    assert mixing(between(operation)) == set()


def test_batch_norm_in_training_mode_mixes_and_in_evaluation_does_not() -> None:
    evaluated = between(nn.BatchNorm1d(8))
    assert mixing(evaluated) == set()
    trained = between(nn.BatchNorm1d(8, track_running_stats=False))
    assert "a" in mixing(trained)


def test_pairs_of_items_mix() -> None:
    # Takes even batches only, so trying one item fails: that counts as mixing.
    graph = between(lambda x: x.view(-1, 2, 8).flip(1).reshape(-1, 8), items=4)
    assert "a" in mixing(graph)


def test_observing_leaves_the_graph_s_identity_alone() -> None:
    before = captured("batch_statistics").graph
    after = observed(captured("batch_statistics"))
    assert after.fingerprint == before.fingerprint
    assert [layer.name for layer in after.layers] == [layer.name for layer in before.layers]


def test_observing_leaves_state_alone() -> None:
    made = captured("cache")
    observed(made)
    assert not made.constants["held"].any()
    counting = captured("counter")
    observed(counting)
    assert counting.source.module is not None
    assert float(counting.source.module.calls) == 0.0
