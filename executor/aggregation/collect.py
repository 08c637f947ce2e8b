"""Collecting the parts of one output that hold different items, as they arrive on a rank."""

from __future__ import annotations

from typing import Protocol

import torch

from executor.aggregation.base import Aggregator


class Collector(Protocol):
    """Takes the parts of one output in any order.

    A part holds the items from ``low`` up to but not including ``high``.
    """

    def buffer(self, low: int, high: int) -> torch.Tensor | None:
        """Contiguous memory for a part to be received into, or None if there is none."""

    def place(self, part: torch.Tensor, low: int, high: int) -> None:
        """Take a part. Its memory may be one that :meth:`buffer` gave, or any other."""

    def result(self) -> torch.Tensor:
        """The whole output, once every part has been placed."""


class InPlace:
    """Parts end to end along the batch dim, in item order: ``concat`` without a copy.

    The whole is allocated once; a part along dim 0 is received straight into its place.
    """

    def __init__(
        self, *, shape: tuple[int, ...], dtype: torch.dtype, batch_dim: int | None, rows: int
    ) -> None:
        """Allocate the whole, of ``shape``; items take ``rows`` rows of ``batch_dim``."""
        self._whole = torch.empty(shape, dtype=dtype)
        self._dim = batch_dim
        self._rows = rows

    def _slot(self, low: int, high: int) -> torch.Tensor:
        if self._dim is None:
            return self._whole
        return self._whole.narrow(self._dim, low * self._rows, (high - low) * self._rows)

    def buffer(self, low: int, high: int) -> torch.Tensor | None:
        """The part's own place, where that is contiguous."""
        slot = self._slot(low, high)
        return slot if slot.is_contiguous() else None

    def place(self, part: torch.Tensor, low: int, high: int) -> None:
        """Copy the part to its place, unless it was received there."""
        slot = self._slot(low, high)
        if part.data_ptr() != slot.data_ptr() or part.stride() != slot.stride():
            slot.copy_(part)

    def result(self) -> torch.Tensor:
        """The whole."""
        return self._whole


class KeptApart:
    """Parts that a strategy joins once all are there, in item order."""

    def __init__(self, aggregator: Aggregator) -> None:
        self._aggregator = aggregator
        self._parts: dict[tuple[int, int], torch.Tensor] = {}

    def buffer(self, low: int, high: int) -> torch.Tensor | None:
        """None: parts are kept in the memory they arrived in."""
        return None

    def place(self, part: torch.Tensor, low: int, high: int) -> None:
        """Keep the part."""
        self._parts[low, high] = part.clone()

    def result(self) -> torch.Tensor:
        """What the strategy makes of the parts."""
        spans = sorted(self._parts)
        whole = self._aggregator.join(
            [self._parts[span] for span in spans], [high - low for low, high in spans]
        )
        assert isinstance(whole, torch.Tensor)
        return whole
