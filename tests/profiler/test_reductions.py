"""Which outputs are a mean, sum or largest over items: observed, and never by accident."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from profiler.bench import LayerBench
from profiler.capture import capture
from profiler.graph import ModelGraph
from profiler.itemwise import with_itemwise
from profiler.sources import Example, load_model


class Pooled(nn.Module):
    """A layer, and something of what it gives that has no batch dim."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.pool = pool

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.pool(self.b(torch.tanh(self.a(x))), y)


def observed(pool: Any, y: torch.Tensor | None = None) -> ModelGraph:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Pooled(pool).eval()
        x = torch.randn(2, 8)
        y = torch.randn(2, 8) if y is None else y
    made = capture(load_model(module, Example(args=(x, y))))
    return with_itemwise(made.graph, LayerBench(made, device=torch.device("cpu")))


def found(graph: ModelGraph) -> tuple[str | None, bool]:
    """What the last output is, and whether every layer may work on part of a batch."""
    reduction = graph.tensor[graph.outputs[-1]].reduction
    return reduction, all(layer.itemwise for layer in graph.layers)


@pytest.mark.parametrize(
    ("pool", "reduction"),
    [
        (lambda x, y: x.mean(), "mean"),
        (lambda x, y: x.mean(0), "mean"),
        (lambda x, y: F.mse_loss(x, y), "mean"),
        (lambda x, y: (x - y).abs().sum(1).mean(), "mean"),
        (lambda x, y: x.sum(0), "sum"),
        (lambda x, y: F.l1_loss(x, y, reduction="sum"), "sum"),
        (lambda x, y: x.amax(0), "max"),
    ],
    ids=["mean", "mean_of_columns", "mse", "mean_of_sums", "sum", "sum_of_errors", "max"],
)
def test_reductions_are_found(pool: Any, reduction: str) -> None:
    assert found(observed(pool)) == (reduction, True)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x, y: F.mse_loss(x, y).sqrt(),
        lambda x, y: x.std(0),
        lambda x, y: x.median(0).values,
        lambda x, y: x.amin(0),
        lambda x, y: x.mean(0) + 1e-3 * x.var(0),
        lambda x, y: (x * y.sigmoid()).sum() / y.sigmoid().sum(),
        lambda x, y: torch.zeros(3) * x.mean(),
        lambda x, y: x[0],
        lambda x, y: F.normalize(x.mean(0), dim=0),
    ],
    ids=["rmse", "std", "median", "min", "nearly", "weighted", "zero", "first", "normalised"],
)
def test_what_only_looks_like_a_reduction_belongs_to_the_whole_batch(pool: Any) -> None:
    reduction, itemwise = found(observed(pool))
    assert reduction is None
    assert not itemwise


def test_a_mean_over_some_of_the_items_is_not_one_over_all_of_them() -> None:
    """The example leaves nothing out; data that is padded would."""

    def masked(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x.sum(1) * y).sum() / y.sum()

    for mask in (torch.ones(2), torch.ones(2, dtype=torch.int64)):
        assert found(observed(masked, mask)) == (None, False)

    def labelled(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(x, y)

    assert found(observed(labelled, torch.tensor([3, 5]))) == (None, False)


def test_a_reduction_that_a_layer_reads_belongs_to_the_whole_batch() -> None:
    def used(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = x.mean(0)
        return x - mean, mean

    assert found(observed(used))[0] is None
