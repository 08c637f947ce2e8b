"""``sum``, ``mean`` and ``weighted_mean``: parts are added up, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from executor.aggregation.base import wide
from planner.planfile import Combining


def _added(parts: Sequence[torch.Tensor], weights: Sequence[float] | None = None) -> torch.Tensor:
    """The sum of the parts, each times its weight, in a dtype that keeps the digits."""
    total = torch.zeros_like(parts[0], dtype=wide(parts[0].dtype))
    for position, part in enumerate(parts):
        if weights is None:
            total += part
        elif weights[position]:  # a part of no weight counts for nothing, even if it is not finite
            total += part.to(total.dtype) * weights[position]
    return total


class SumAggregator:
    """``sum_i x_i``."""

    name: ClassVar[str] = "sum"

    def __init__(self, wanted: Combining) -> None:
        pass

    def join(self, parts: Sequence[torch.Tensor], items: Sequence[int]) -> torch.Tensor:
        """The sum."""
        return _added(parts).to(parts[0].dtype)


class MeanAggregator:
    """``sum_i x_i / n``; over items, of parts that hold equally many."""

    name: ClassVar[str] = "mean"

    def __init__(self, wanted: Combining) -> None:
        pass

    def join(self, parts: Sequence[torch.Tensor], items: Sequence[int]) -> torch.Tensor:
        """The mean."""
        return (_added(parts) / len(parts)).to(parts[0].dtype)


class WeightedMeanAggregator:
    """``sum_i w_i x_i / sum_i w_i``, weights from the plan, else the items of each part."""

    name: ClassVar[str] = "weighted_mean"

    def __init__(self, wanted: Combining) -> None:
        self._weights = wanted.weights

    def join(self, parts: Sequence[torch.Tensor], items: Sequence[int]) -> torch.Tensor:
        """The mean by weight."""
        weights = list(items) if self._weights is None else self._weights
        return (_added(parts, weights) / sum(weights)).to(parts[0].dtype)
