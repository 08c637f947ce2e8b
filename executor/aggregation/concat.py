"""``concat``: parts lie one after another along a dim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from planner.planfile import Combining


class ConcatAggregator:
    """Joins parts in their order. Parts over items are received in place (``collect``)."""

    name: ClassVar[str] = "concat"

    def __init__(self, wanted: Combining) -> None:
        self._dim = wanted.dim

    def join(self, parts: Sequence[torch.Tensor], items: Sequence[int]) -> torch.Tensor:
        """One after another along the plan's dim; without one, the first."""
        return torch.cat(list(parts), dim=self._dim or 0)
