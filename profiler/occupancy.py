"""How much a transfer takes from computing, at its source and at its target.

One end computes small pieces of work, alone and then while a stream of messages goes out or comes
in, in turns. What the stream costs is the time by which the pieces took longer than alone; per
second of transfer it is the link's ``send_occupancy`` or ``receive_occupancy``. Both ends call the
function for their part; only one end computes at a time.

Where a core is idle, the transport's own thread works there and nearly nothing is lost; where the
processor is full or its time is rationed, what the transport takes is lost to computing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from queue import SimpleQueue

import torch
import torch.distributed as dist

from profiler.linkfit import LinkFit
from profiler.linkprobe import ANSWER_TAG, DATA_TAG, SIZES, TINY_BYTES, Wire
from profiler.threads import computing_with

WINDOW_S = 0.15
"""Seconds of one stretch of computing: many turns of a rationed processor (10 ms)."""
MESSAGE_S = 0.005
"""Messages of the stream take about this long, as tensors between stages do."""
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
        Stream(num_messages=29, num_bytes=65536)
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


def flow_through(
    wire: Wire, flow: Flow, stream: Stream, *, meanwhile: Callable[[], None] | None = None
) -> int:
    """This end's part of a stream, a few messages under way at a time as in the executor.

    While they are, ``meanwhile`` is called again and again; returns how often it was. Messages are
    started between two calls, by the same thread, and waited for by another one.

    Raises:
        RankFailedError: the other rank is gone, or nothing came through in time.
    """
    buffers = [torch.zeros(stream.num_bytes, dtype=torch.uint8) for _ in range(IN_FLIGHT)]
    if meanwhile is None:
        under_way: deque[dist.Work] = deque()
        for index in range(stream.num_messages):
            if len(under_way) == IN_FLIGHT:
                wire.wait(under_way.popleft(), stream.num_bytes)
            under_way.append(flow.start(wire, buffers[index % IN_FLIGHT]))
        for work in under_way:
            wire.wait(work, stream.num_bytes)
        return 0
    waiter = _Waiter(wire, stream)
    calls = started = 0
    while waiter.num_done < stream.num_messages:
        while started < min(stream.num_messages, waiter.num_done + IN_FLIGHT):
            waiter.add(flow.start(wire, buffers[started % IN_FLIGHT]))
            started += 1
        meanwhile()
        calls += 1
        if waiter.failure is not None:
            raise waiter.failure
    return calls


class _Waiter:
    """Waits for messages in order, in a thread: gloo tells of their end only to who waits."""

    def __init__(self, wire: Wire, stream: Stream) -> None:
        self.num_done = 0
        self.failure: BaseException | None = None
        self._wire, self._stream = wire, stream
        self._works: SimpleQueue[dist.Work] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def add(self, work: dist.Work) -> None:
        """Wait for one more."""
        self._works.put(work)

    def _run(self) -> None:
        try:
            while self.num_done < self._stream.num_messages:
                self._wire.wait(self._works.get(), self._stream.num_bytes)
                self.num_done += 1
        except BaseException as error:
            self.failure = error


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
            begun = time.perf_counter()
            pieces = flow_through(wire, flow, stream, meanwhile=piece)
            beside.append(Window(elapsed_s=time.perf_counter() - begun, pieces=pieces))
        _tell(wire, more=False)
    transfer_s = stream.num_messages * fit.transfer_time_s(stream.num_bytes)
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
