"""What an aggregation strategy does: turns the parts of an output into the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch

from planner.planfile import Combining


class Aggregator(Protocol):
    """Puts the parts of one output together; made from the plan's parameters.

    A strategy of your own is such a class with one attribute more, ``strategy``: the
    :class:`planner.strategies.Strategy` that says when it is right.
    """

    name: ClassVar[str]

    def __init__(self, wanted: Combining) -> None:
        """``wanted`` holds the plan's parameters."""

    def join(
        self, parts: Sequence[torch.Tensor], items: Sequence[int]
    ) -> torch.Tensor | list[torch.Tensor]:
        """The whole, from parts in an order that does not depend on when they arrived.

        ``items`` counts the items that each part answers for. Members of an ensemble all answer
        for the same ones.
        """


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums of this one are formed: short floats lose digits at every step."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
