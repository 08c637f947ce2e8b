"""How much a transfer takes from computing, at its source and at its target.

One end computes small pieces of work, alone and then while a stream of messages goes out or comes
in, in turns. What the stream costs is the time by which the pieces took longer than alone; per
second of transfer it is the link's ``send_occupancy`` or ``receive_occupancy``. Both ends call the
function for their part; only one end computes at a time.

As in a rank, one thread starts the messages and computes, and looks at them when they have long
come; and they are as long as tensors between stages are. Short messages, each of which a second
thread waits for, cost a rationed processor two to four times as much a byte.

Where a core is idle, the transport's own thread works there and nearly nothing is lost; where the
processor is full or its time is rationed, what the transport takes is lost to computing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.distributed as dist

from profiler.linkfit import LinkFit
from profiler.linkprobe import ANSWER_TAG, DATA_TAG, SIZES, TINY_BYTES, Wire
from profiler.threads import computing_with

WINDOW_S = 0.15
"""Seconds of one stretch of computing: many turns of a rationed processor (10 ms)."""
MESSAGE_S = 0.05
"""Messages of the stream take up to this long, as tensors between stages do."""
COVER = 1.3
"""Computing beside a stream goes on for so many times what its messages take: whatever they cost is
within it."""
LATE_FRACTION = 0.05
"""A stream that is later than that, by this part of its time, did cost more after it."""
MAX_COVER = 4.0
SMALLEST_BYTES = 2**16
MAX_MESSAGES = 400
MIN_WINDOWS = 4
MAX_WINDOWS = 12
WINDOWS_A_SECOND = 8
"""Of the time given to a link's line; between ``MIN_WINDOWS`` and ``MAX_WINDOWS``."""
SETTLED_FRACTION = 0.03
"""No more windows are needed when the quartiles of the speed alone are this close together, and
those beside the stream."""
IN_FLIGHT = 4
"""Messages under way at a time; a stream needs no more to flow."""


@dataclass(frozen=True)
class Stream:
    """So many messages of so many bytes: one window. Both ends derive it from the same fit."""

    num_messages: int
    num_bytes: int

    @staticmethod
    def for_link(fit: LinkFit, *, seconds: float = WINDOW_S) -> Stream:
        """A stream that takes about ``seconds``.

        >>> fit = LinkFit(latency_s=0, bytes_per_s=12.5e6, error_fraction=0, samples=9)
        >>> Stream.for_link(fit)
        Stream(num_messages=7, num_bytes=262144)
        """
        fitting = [s for s in SIZES if fit.transfer_time_s(s) <= MESSAGE_S]
        size = max(SMALLEST_BYTES, *fitting) if fitting else SMALLEST_BYTES
        while size > SIZES[0] and fit.transfer_time_s(size) > seconds:
            size //= 4
        number = round(seconds / fit.transfer_time_s(size))
        return Stream(num_messages=max(1, min(MAX_MESSAGES, number)), num_bytes=size)


class Flow(StrEnum):
    """Which way a stream goes, seen from this end."""

    OUT = "out"
    IN = "in"

    def start(self, wire: Wire, buffer: torch.Tensor) -> dist.Work:
        """Start this end's part of one message."""
        if self is Flow.OUT:
            return wire.send(buffer, DATA_TAG)
        return wire.receive(buffer, DATA_TAG)


def flow_through(wire: Wire, flow: Flow, stream: Stream) -> None:
    """This end's part of a stream, a few messages under way at a time.

    Raises:
        RankFailedError: the other rank is gone, or nothing came through in time.
    """
    buffers = [torch.zeros(stream.num_bytes, dtype=torch.uint8) for _ in range(IN_FLIGHT)]
    under_way: deque[dist.Work] = deque()
    for index in range(stream.num_messages):
        if len(under_way) == IN_FLIGHT:
            wire.wait(under_way.popleft(), stream.num_bytes)
        under_way.append(flow.start(wire, buffers[index % IN_FLIGHT]))
    for work in under_way:
        wire.wait(work, stream.num_bytes)


def measure_occupancy(
    wire: Wire,
    flow: Flow,
    fit: LinkFit,
    *,
    piece: Callable[[], None],
    threads: int,
    budget_s: float,
) -> float:
    """The part of a transfer's time that this end cannot compute in, from 0 to 1.

    The other rank calls :func:`serve_occupancy` with the contrary ``flow``. ``piece`` computes for
    well under a millisecond or a few, with ``threads`` threads. ``budget_s`` is what the line of
    the link took at most: who gives little time to that gets fewer windows too.

    Raises:
        RankFailedError: the other rank is gone, or nothing came through in time.
    """
    stream = Stream.for_link(fit, seconds=WINDOW_S)
    most = max(MIN_WINDOWS, min(MAX_WINDOWS, round(WINDOWS_A_SECOND * budget_s)))
    transfer_s = stream.num_messages * fit.transfer_time_s(stream.num_bytes)
    cover = COVER
    alone: list[Window] = []
    beside: list[Window] = []
    with computing_with(threads):
        for _ in range(3):
            piece()
        while len(beside) < MIN_WINDOWS or not (
            len(beside) >= most or (_settled(alone) and _settled(beside))
        ):
            alone.append(_alone(piece))
            _tell(wire, more=True)
            window, late_s = _beside(wire, flow, stream, piece, seconds=cover * transfer_s)
            if late_s > LATE_FRACTION * transfer_s and cover < MAX_COVER:
                cover *= COVER
                beside.clear()
            else:
                beside.append(window)
        _tell(wire, more=False)
    return occupancy(alone, beside, transfer_s=transfer_s)


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of computing: so many pieces in so many seconds."""

    elapsed_s: float
    pieces: int

    @property
    def piece_s(self) -> float:
        """Seconds of one piece."""
        return self.elapsed_s / self.pieces


def occupancy(alone: Sequence[Window], beside: Sequence[Window], *, transfer_s: float) -> float:
    """Computing time lost beside a stream, per second that its messages take; 0 to 1.

    Whatever else disturbs a machine makes windows slower, never faster; so a lower quartile stands
    for each kind. A loss to the stream itself is in all windows beside it.

    >>> def windows(pieces): return [Window(elapsed_s=0.2, pieces=pieces)] * 4
    >>> round(occupancy(windows(100), windows(60), transfer_s=0.16), 3)
    0.5
    """
    piece_s = _quartile([window.piece_s for window in alone])
    beside_s = _quartile([window.piece_s for window in beside])
    elapsed_s = _quartile([window.elapsed_s for window in beside])
    lost_s = elapsed_s * (1 - piece_s / beside_s)
    return min(1.0, max(0.0, lost_s / transfer_s))


def _beside(
    wire: Wire, flow: Flow, stream: Stream, piece: Callable[[], None], *, seconds: float
) -> tuple[Window, float]:
    """A stretch of computing that starts with a stream, and how much longer the stream took."""
    # One for all messages: nobody reads what is in it.
    buffer = torch.zeros(stream.num_bytes, dtype=torch.uint8)
    begun = time.perf_counter()
    works = [flow.start(wire, buffer) for _ in range(stream.num_messages)]
    pieces = 0
    while (elapsed_s := time.perf_counter() - begun) < seconds:
        piece()
        pieces += 1
    for work in works:
        wire.wait(work, stream.num_bytes)
    late_s = time.perf_counter() - begun - elapsed_s
    return Window(elapsed_s=elapsed_s, pieces=max(1, pieces)), late_s


def _quartile(values: Sequence[float]) -> float:
    return sorted(values)[(len(values) - 1) // 4]


def _settled(windows: Sequence[Window]) -> bool:
    ordered = sorted(window.piece_s for window in windows)
    quarter = (len(ordered) - 1) // 4
    low, high = ordered[quarter], ordered[-1 - quarter]
    return high - low <= SETTLED_FRACTION * low


def serve_occupancy(wire: Wire, flow: Flow, fit: LinkFit) -> None:
    """The part of the end that does not compute, until the other has enough.

    Raises:
        RankFailedError: the other rank is gone, or nothing came through in time.
    """
    stream = Stream.for_link(fit, seconds=WINDOW_S)
    told = torch.zeros(TINY_BYTES, dtype=torch.uint8)
    while True:
        wire.wait(wire.receive(told, ANSWER_TAG), TINY_BYTES)
        if not told[0]:
            return
        flow_through(wire, flow, stream)


def processor_piece() -> Callable[[], None]:
    """A short piece of work, half arithmetic and half memory traffic, as layers are."""
    square, wide = torch.randn(160, 160), torch.randn(2**18)

    def compute() -> None:
        with torch.inference_mode():
            torch.mm(square, square)
            torch.add(wide, 1.0)

    return compute


def cuda_piece(device: torch.device) -> Callable[[], None]:
    """A short piece of work on an accelerator, waited for."""
    square = torch.randn(1024, 1024, device=device)

    def compute() -> None:
        with torch.inference_mode():
            torch.mm(square, square)
            torch.cuda.synchronize(device)

    return compute


def _tell(wire: Wire, *, more: bool) -> None:
    word = torch.full((TINY_BYTES,), int(more), dtype=torch.uint8)
    wire.wait(wire.send(word, ANSWER_TAG), TINY_BYTES)


def _alone(piece: Callable[[], None]) -> Window:
    begun = time.perf_counter()
    pieces = 0
    while (elapsed := time.perf_counter() - begun) < WINDOW_S:
        piece()
        pieces += 1
    return Window(elapsed_s=elapsed, pieces=pieces)
