"""Inputs of a stage's run that are put together when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch

ALIGNMENT_BYTES = 64
"""Where torch's own allocations begin."""


class LateInput:
    """One input of a piece; ``join`` waits for its parts and puts them together."""

    def __init__(self, join: Callable[[], torch.Tensor]) -> None:
        self._join = join
        self._whole: torch.Tensor | None = None

    def wait(self) -> torch.Tensor:
        """The tensor, when it is there."""
        if self._whole is None:
            self._whole = self._join()
        return self._whole


def misaligned(tensor: torch.Tensor) -> bool:
    """Whether kernels would add in another order than on memory of its own.

    Answers to the last bit must not depend on where in a file or a batch an item lies.
    """
    return tensor.data_ptr() % ALIGNMENT_BYTES != 0
