"""Timing messages from one rank to another, as the executor sends them.

Each message is an asynchronous send of a contiguous byte tensor with a tag, its receive posted
beforehand; what is timed is the way there and an answer of a few bytes, on the sender's clock. Both
ranks call the same function of this module; the sender decides what comes next and announces it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import timedelta

import torch
import torch.distributed as dist

from profiler.environment import first_line
from profiler.errors import RankFailedError
from profiler.linkfit import LinkFit, fit_link, one_way
from profiler.units import format_bytes

TINY_BYTES = 64
SIZES = tuple(TINY_BYTES * 4**power for power in range(10))
"""Sizes tried, 64 B to 16 MiB; the larger ones only where they do not take too long."""
LONGEST_S = 0.25
"""A message that is expected to take longer is not sent."""
TRIES = 3
"""Before a size counts as too long, it is tried so often."""
QUICK_REPEATS = 5
"""How often the smaller half of the sizes is sent in each pass."""
MIN_PASSES = 5
MAX_PASSES = 40
SETTLED_FRACTION = 0.005
"""Passes end when the largest size's median is known this well."""

DATA_TAG = 2**21
ANSWER_TAG = DATA_TAG + 1
PLAN_TAG = DATA_TAG + 2
_PLAN_LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class Wire:
    """Messages between this rank and rank ``peer``; every wait is bounded and names the step.

    ``own`` and ``other`` name the two ranks in messages. ``group`` None is the default group.
    """

    group: dist.ProcessGroup | None = None
    peer: int
    own: str
    other: str
    step: str
    timeout_s: float

    def send(self, tensor: torch.Tensor, tag: int) -> dist.Work:
        """Start sending a contiguous tensor of bytes."""
        return self._started(lambda: dist.isend(tensor, self.peer, group=self.group, tag=tag))

    def receive(self, buffer: torch.Tensor, tag: int) -> dist.Work:
        """Start receiving into a contiguous tensor of bytes."""
        return self._started(lambda: dist.irecv(buffer, self.peer, group=self.group, tag=tag))

    def wait(self, work: dist.Work, num_bytes: int) -> None:
        """Wait for a message.

        Raises:
            RankFailedError: it did not come through in time, or the other rank is gone.
        """
        try:
            work.wait(timedelta(seconds=self.timeout_s))
        except (RuntimeError, dist.DistError) as error:
            raise self._failure(error, f" at a message of {format_bytes(num_bytes)}") from error

    def _started(self, start: Callable[[], dist.Work | None]) -> dist.Work:
        try:
            work = start()
        except (RuntimeError, dist.DistError) as error:
            raise self._failure(error, "") from error
        assert work is not None, "both ranks are in the group"
        return work

    def _failure(self, error: BaseException, where: str) -> RankFailedError:
        late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        why = f"nothing came through in {self.timeout_s:g} s" if late else first_line(error)
        return RankFailedError(f"{self.own} lost {self.other} while {self.step}{where}: {why}")


def send_probe(wire: Wire, *, budget_s: float) -> LinkFit:
    """Time messages to the other rank, which calls :func:`answer_probe`, and fit the line.

    Takes about ``budget_s`` seconds, on very slow links a little longer.

    Raises:
        RankFailedError: the other rank is gone, or nothing came through in time.
    """
    started = time.monotonic()
    found: dict[int, list[float]] = defaultdict(list)
    buffer = torch.zeros(SIZES[-1], dtype=torch.uint8)
    _send_pass(wire, buffer, [TINY_BYTES] * 3)  # the first messages of a pair are slow
    sizes = _fitting_sizes(wire, buffer)
    order = _pass_order(sizes)
    for number in range(MAX_PASSES):
        seconds = _send_pass(wire, buffer, order)
        # The first message is not counted: it takes what the wire has saved up (token buckets).
        for size, one in list(zip(order, seconds, strict=True))[1:]:
            found[size].append(one)
        late = time.monotonic() - started > budget_s
        if number + 1 >= MIN_PASSES and (late or _settled(found[max(sizes)])):
            break
    _announce(wire, [])
    fit = fit_link(one_way(found, ack_bytes=TINY_BYTES))
    figures = torch.tensor(astuple(fit), dtype=torch.float64)
    wire.wait(wire.send(figures.view(torch.uint8), PLAN_TAG), 8 * len(figures))
    return fit


def answer_probe(wire: Wire) -> LinkFit:
    """Receive and answer until the other rank, in :func:`send_probe`, has enough; its result.

    Raises:
        RankFailedError: the other rank is gone, or nothing came through in time.
    """
    answer = torch.zeros(TINY_BYTES, dtype=torch.uint8)
    buffers = [torch.zeros(SIZES[-1], dtype=torch.uint8) for _ in range(2)]
    while sizes := _announced(wire):
        # Two receives are posted ahead, as the executor does.
        posted = [
            wire.receive(buffer[:size], DATA_TAG)
            for size, buffer in zip(sizes, buffers, strict=False)
        ]
        wire.wait(wire.send(answer, ANSWER_TAG), TINY_BYTES)
        for index, size in enumerate(sizes):
            wire.wait(posted[index], size)
            wire.wait(wire.send(answer, ANSWER_TAG), TINY_BYTES)
            if index + 2 < len(sizes):
                into = buffers[index % 2][: sizes[index + 2]]
                posted.append(wire.receive(into, DATA_TAG))
    figures = torch.zeros(len(fields(LinkFit)), dtype=torch.float64)
    wire.wait(wire.receive(figures.view(torch.uint8), PLAN_TAG), 8 * len(figures))
    latency_s, bytes_per_s, error_fraction, samples = figures.tolist()
    return LinkFit(
        latency_s=latency_s,
        bytes_per_s=bytes_per_s,
        error_fraction=error_fraction,
        samples=int(samples),
    )


def _send_pass(wire: Wire, buffer: torch.Tensor, sizes: Sequence[int]) -> list[float]:
    """Seconds of each message of one pass, with its answer."""
    answer = torch.zeros(TINY_BYTES, dtype=torch.uint8)
    ready = wire.receive(answer, ANSWER_TAG)
    _announce(wire, sizes)
    wire.wait(ready, TINY_BYTES)
    seconds = []
    for size in sizes:
        answered = wire.receive(answer, ANSWER_TAG)
        begun = time.perf_counter()
        sent = wire.send(buffer[:size], DATA_TAG)
        wire.wait(answered, size)
        seconds.append(time.perf_counter() - begun)
        wire.wait(sent, size)
    return seconds


def _announce(wire: Wire, sizes: Sequence[int]) -> None:
    plan = torch.zeros(_PLAN_LENGTH, dtype=torch.int64)
    plan[0] = len(sizes)
    plan[1 : 1 + len(sizes)] = torch.tensor(list(sizes), dtype=torch.int64)
    wire.wait(wire.send(plan.view(torch.uint8), PLAN_TAG), 8 * _PLAN_LENGTH)


def _announced(wire: Wire) -> list[int]:
    plan = torch.zeros(_PLAN_LENGTH, dtype=torch.int64)
    wire.wait(wire.receive(plan.view(torch.uint8), PLAN_TAG), 8 * _PLAN_LENGTH)
    num, *sizes = plan.tolist()
    return sizes[:num]


def _fitting_sizes(wire: Wire, buffer: torch.Tensor) -> list[int]:
    """The sizes that do not take too long, at least two; each is tried, in rising order."""
    fitting: list[int] = []
    before = 0.0
    for size in SIZES:
        fitting.append(size)
        # One message that something held up must not hide the larger sizes: the quickest of some.
        seconds = math.inf
        for _ in range(TRIES):
            seconds = min(seconds, *_send_pass(wire, buffer, [size]))
            # The next size is four times as large; of its time only the growing part is.
            too_long = seconds + 4 * max(0.0, seconds - before) > LONGEST_S
            if not too_long:
                break
        if too_long and len(fitting) > 1:
            break
        before = seconds
    return fitting


def _pass_order(sizes: Sequence[int]) -> list[int]:
    """Largest first, quick ones several times, and before all one that is not counted."""
    falling = sorted(sizes, reverse=True)
    small = len(falling) // 2
    return [
        falling[1],
        *falling[:small],
        *(size for size in falling[small:] for _ in range(QUICK_REPEATS)),
    ]


def _settled(samples: Sequence[float]) -> bool:
    middle = statistics.median(samples)
    deviation = statistics.median(abs(s - middle) for s in samples)
    # 1.4826 MAD estimates the standard deviation, 1.2533 sigma / sqrt(n) the median's error.
    error = 1.2533 * 1.4826 * deviation / math.sqrt(len(samples))
    return error <= SETTLED_FRACTION * middle
