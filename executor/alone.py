"""Stages without their messages: how fast each would be if it never waited for another.

What a pipeline can reach at best is what its stages reach alone; whatever a run takes beyond that
went into messages and into waiting. Measured on the same ranks and in the same minutes as a run,
the two can be divided by each other even where a machine's speed changes by the hour.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from executor.schedule import Message
from executor.transport import Pending, Transport


class NoMessages(Transport):
    """A transport that moves nothing: what is sent has left, what is received is there, as zeros.

    Zeros are valid for every input: indices, masks, values.
    """

    def send(self, tensor: torch.Tensor, message: Message) -> Pending:
        """Nothing leaves."""
        return Pending(work=None, tensor=tensor, message=message)

    def receive(self, buffer: torch.Tensor, message: Message) -> Pending:
        """Zeros have come."""
        return Pending(work=None, tensor=buffer.zero_(), message=message)


def batch_s(step_ends_s: Sequence[float], wall_s: float) -> float | None:
    """Seconds a batch of a rank that did nothing but compute: from the first's end to the last's,
    if there are several; None for a rank without a step."""
    if not step_ends_s:
        return None
    if len(step_ends_s) == 1:
        return wall_s
    return (step_ends_s[-1] - step_ends_s[0]) / (len(step_ends_s) - 1)
