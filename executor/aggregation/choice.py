"""``max`` and ``vote``: one of the parts' values is taken, element by element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from planner.planfile import Combining


class MaxAggregator:
    """The largest value."""

    name: ClassVar[str] = "max"

    def __init__(self, wanted: Combining) -> None:
        pass

    def join(self, parts: Sequence[torch.Tensor], items: Sequence[int]) -> torch.Tensor:
        """The largest of each element."""
        largest = parts[0]
        for part in parts[1:]:
            largest = torch.maximum(largest, part)
        return largest.clone() if largest is parts[0] else largest


class VoteAggregator:
    """The value that most parts have; of several that as many have, the smallest.

    The outcome does not depend on the order of the parts.
    """

    name: ClassVar[str] = "vote"

    def __init__(self, wanted: Combining) -> None:
        pass

    def join(self, parts: Sequence[torch.Tensor], items: Sequence[int]) -> torch.Tensor:
        """The winner of each element."""
        winner = parts[0].clone()
        most = torch.zeros(winner.shape, dtype=torch.int64, device=winner.device)
        for candidate in parts:
            votes = torch.zeros_like(most)
            for part in parts:
                votes += part == candidate
            better = (votes > most) | ((votes == most) & (candidate < winner))
            winner = torch.where(better, candidate, winner)
            most = torch.maximum(most, votes)
        return winner
