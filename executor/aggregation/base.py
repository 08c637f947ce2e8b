"""What an aggregation strategy does: turns parts of an output, as they arrive, into the whole."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch


class Aggregator(Protocol):
    """Collects the parts of one output tensor on the root rank.

    Parts come in any order and each holds the items from ``low`` up to but not including ``high``.
    """

    name: ClassVar[str]

    def __init__(
        self, *, shape: tuple[int, ...], dtype: torch.dtype, batch_dim: int | None, rows: int
    ) -> None:
        """``shape`` is that of the whole; items take ``rows`` rows of ``batch_dim``."""

    def buffer(self, low: int, high: int) -> torch.Tensor | None:
        """Contiguous memory for a part to be received into, or None if there is none."""

    def place(self, part: torch.Tensor, low: int, high: int) -> None:
        """Take a part. Its memory may be one that :meth:`buffer` gave, or any other."""

    def result(self) -> torch.Tensor:
        """The whole answer, once every part has been placed."""
