"""How far the clocks of ranks are apart, so that times of different hosts can be compared.

The root asks each rank in turn for its time; the answer of the quickest of a few round trips is
taken to have been given in the middle of it (as the network time protocol does: Mills, RFC 5905,
section 8). It is off by at most half that round trip. Ranks that share a clock know it after the
first.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from executor.links import Offset
from executor.schedule import Message
from executor.transport import Pending

ROUND_TRIPS = 8
TAG = 2**20 + 1
"""Tag of these messages: far from those of transfers."""

Clock = Callable[[], int]
"""Nanoseconds since some moment of the past."""


class Mail(Protocol):
    """The part of a transport that this needs; every wait of it has a limit."""

    def send(self, tensor: torch.Tensor, message: Message) -> Pending:
        """Start sending."""

    def receive(self, buffer: torch.Tensor, message: Message) -> Pending:
        """Start receiving."""

    def finish(self, pending: Pending) -> torch.Tensor:
        """Wait for either."""


def compare_clocks(
    mail: Mail,
    *,
    rank: int,
    root: int,
    world_size: int,
    clock: Clock = time.perf_counter_ns,
    identity: int | None = None,
) -> Mapping[int, Offset]:
    """The offset of every rank's clock to the root's, on the root; nothing elsewhere.

    All ranks call this at the same point. ``identity`` tells clocks apart: equal ones are one.

    Raises:
        RankFailedError: a rank did not answer in time.
    """
    own = clock_identity() if identity is None else identity
    if rank != root:
        _answer(mail, rank, root, own, clock)
        return {}
    return {
        other: Offset(0.0, 0.0) if other == root else _ask(mail, root, other, own, clock)
        for other in range(world_size)
    }


def _ask(mail: Mail, root: int, other: int, own: int, clock: Clock) -> Offset:
    best: tuple[int, int] | None = None  # round trip, offset; nanoseconds
    for _ in range(ROUND_TRIPS):
        answer = mail.receive(torch.empty(2, dtype=torch.int64), _message(other, root))
        begun = clock()
        asked = mail.send(torch.tensor([own]), _message(root, other))
        theirs, at = mail.finish(answer).tolist()
        ended = clock()
        mail.finish(asked)
        if theirs == own:
            return Offset(0.0, 0.0)
        found = (ended - begun, at - (begun + ended) // 2)
        best = found if best is None else min(best, found)
    assert best is not None
    return Offset(best[1] / 1e9, best[0] / 2e9)


def _answer(mail: Mail, rank: int, root: int, own: int, clock: Clock) -> None:
    for _ in range(ROUND_TRIPS):
        question = torch.empty(1, dtype=torch.int64)
        theirs = int(mail.finish(mail.receive(question, _message(root, rank))))
        answer = torch.tensor([own, clock()])
        mail.finish(mail.send(answer, _message(rank, root)))
        if theirs == own:
            return


def _message(source: int, target: int) -> Message:
    return Message(
        tag=TAG,
        tensor="the time of the clock",
        source=source,
        target=target,
        source_piece=-1,
        target_piece=-1,
        items=None,
    )


def clock_identity() -> int:
    """A number that is equal for processes whose monotonic clocks are one: of one boot of one
    machine, in one time namespace (containers and network namespaces share it)."""
    parts = [platform.node()]
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        parts = [boot, str(Path("/proc/self/ns/time").readlink())]
    except OSError:  # not Linux, or an old one: the host's name must do
        pass
    digest = hashlib.sha256("\n".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], signed=True)
