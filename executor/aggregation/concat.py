"""``concat``: parts lie one after another along the batch dim, in item order."""

from __future__ import annotations

from typing import ClassVar

import torch


class ConcatAggregator:
    """Joins parts in item order, whatever the order they arrive in and however long each is.

    The whole is allocated once; a part along dim 0 is received straight into its place.
    """

    name: ClassVar[str] = "concat"

    def __init__(
        self, *, shape: tuple[int, ...], dtype: torch.dtype, batch_dim: int | None, rows: int
    ) -> None:
        """Allocate the whole."""
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
