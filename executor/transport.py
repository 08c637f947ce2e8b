"""Moving tensors between ranks: point to point, asynchronous, every wait bounded.

Shapes are known at both ends, so a message is nothing but the tensor's bytes. Tensors on an
accelerator pass through host memory: that works between any two devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from executor.schedule import Message
from executor.wirelog import Receipt, TransferLog
from profiler.errors import RankFailedError
from profiler.units import format_bytes


@dataclass(slots=True)  # not frozen: that would cost a microsecond a message
class Pending:
    """A transfer under way; ``tensor`` is kept alive until it is done."""

    work: dist.Work | None
    tensor: torch.Tensor
    message: Message
    receipt: Receipt | None = None


class Transport:
    """The messages of one rank; to be made once it has joined the process group.

    ``log`` takes note of them. Talks to the group itself: ``dist.isend`` and ``dist.irecv`` check
    on every call what is known here, which takes longer than a short message on a fast link.
    """

    def __init__(self, *, rank: int, timeout_s: float, log: TransferLog | None = None) -> None:
        self.rank = rank
        self.timeout_s = timeout_s
        self.log = log or TransferLog()
        self._timeout = timedelta(seconds=timeout_s)
        group = dist.group.WORLD
        assert group is not None
        self._group = group

    def send(self, tensor: torch.Tensor, message: Message) -> Pending:
        """Start sending ``tensor`` (any device, any strides).

        Raises:
            RankFailedError: the other rank is gone.
        """
        host = tensor
        if not (tensor.is_cpu and tensor.is_contiguous()):
            host = tensor.detach().to("cpu").contiguous()
        work = None
        if host.numel():
            ready_s = self.log.now()
            try:
                work = self._group.send([_plain(host)], message.target, message.tag)
            except RuntimeError as error:
                raise RankFailedError(self._explain(message, host, error)) from error
            self.log.sent(message, ready_s)
        return Pending(work=work, tensor=host, message=message)

    def receive(self, buffer: torch.Tensor, message: Message) -> Pending:
        """Start receiving into ``buffer`` (contiguous, on the host).

        Raises:
            RankFailedError: the other rank is gone.
        """
        work = receipt = None
        if buffer.numel():
            ready_s = self.log.now()
            try:
                work = self._group.recv([_plain(buffer)], message.source, message.tag)
            except RuntimeError as error:
                raise RankFailedError(self._explain(message, buffer, error)) from error
            receipt = self.log.asked(message, ready_s, num_bytes=buffer.nbytes)
        return Pending(work=work, tensor=buffer, message=message, receipt=receipt)

    def finish(self, pending: Pending) -> torch.Tensor:
        """Wait for a transfer.

        Raises:
            RankFailedError: it did not end in time, or the other rank is gone.
        """
        if pending.work is not None:
            begun = self.log.now()
            try:
                pending.work.wait(self._timeout)
            except RuntimeError as error:
                raise RankFailedError(
                    self._explain(pending.message, pending.tensor, error)
                ) from error
            if pending.receipt is not None:
                self.log.arrived(pending.receipt, begun_s=begun)
        return pending.tensor

    def _explain(self, message: Message, tensor: torch.Tensor, error: RuntimeError) -> str:
        first = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        why = f"nothing came through in {self.timeout_s:g} s" if late else first[:200]
        return explain(message, tensor, rank=self.rank, why=why)


def explain(message: Message, tensor: torch.Tensor, *, rank: int, why: str) -> str:
    """What ``rank`` says about a message that failed."""
    sending = message.source == rank
    other = message.target if sending else message.source
    verb, preposition = ("sending", "to") if sending else ("receiving", "from")
    items = f" for items {message.items[0]} to {message.items[1] - 1}" if message.items else ""
    size = format_bytes(tensor.numel() * tensor.element_size())
    return (
        f"rank {rank} failed {verb} {message.tensor}{items} ({size}) "
        f"{preposition} rank {other}: {why}"
    )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a contiguous tensor as a tensor of a dtype that every backend moves."""
    if tensor.dtype in _MOVED:
        return tensor
    flat = tensor.reshape(-1) if tensor.ndim else tensor.reshape(1)
    return flat.view(torch.uint8)


_MOVED = frozenset(
    {
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int8,
        torch.uint8,
    }
)
