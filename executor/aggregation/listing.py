"""``gather`` and ``stack``: every part is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from planner.planfile import Combining


class GatherAggregator:
    """The parts as they are, in a list."""

    name: ClassVar[str] = "gather"

    def __init__(self, wanted: Combining) -> None:
        pass

    def join(self, parts: Sequence[torch.Tensor], items: Sequence[int]) -> list[torch.Tensor]:
        """All of them."""
        return list(parts)


class StackAggregator:
    """The parts side by side in a new dim, the first one if the plan does not say which."""

    name: ClassVar[str] = "stack"

    def __init__(self, wanted: Combining) -> None:
        self._dim = wanted.dim

    def join(self, parts: Sequence[torch.Tensor], items: Sequence[int]) -> torch.Tensor:
        """All of them in one tensor."""
        return torch.stack(list(parts), dim=self._dim or 0)
