"""How much memory a rank's process has, and what keeps it near the plan.

glibc serves a tensor from a hole that is 96 bytes longer than it, and a hole where one of the same
size was is a few bytes short of that: with a few large tensors on their way the heap comes to hold
up to twice what is alive, and how much of that is chance. A rank that is larger than its plan says
gives the pages of holes back; they come again when next used, zeroed, which costs time. So it does
that only then, and for a small part of the time.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from executor.schedule import Schedule
from profiler.allocator import MAPPED_BYTES, release_holes

_TOLERANCE = 1.02
"""How much larger than its plan a rank may get: what else a process holds differs by that."""
_PAUSES = 50
"""After each time that pages were given back, so many times as long nothing is."""
_TAKEN_AGAIN_S = 0.3e-3 / 2**20
"""For each byte given back, seconds (of a slow processor) to take it again: a page fault for 4 KiB,
which it also zeroes (``benchmarks/memory.py``, ``page_taken_again_ms_per_mib``)."""


class Footprint:
    """Keeps this process near what its plan foresees, by giving back pages of its heap's holes.

    ``foreseen_bytes`` are what the process may hold, ``next_bytes`` those of the largest tensor
    that may be put on the heap at once. ``resident`` and ``release`` are for tests.
    """

    def __init__(
        self,
        foreseen_bytes: int,
        next_bytes: int,
        *,
        resident: Callable[[], int] | None = None,
        release: Callable[[], bool] = release_holes,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.most_bytes = foreseen_bytes * _TOLERANCE - next_bytes
        self._resident, self._release, self._clock = resident or resident_bytes, release, clock
        self._not_before = 0.0
        self.given_back = 0

    @classmethod
    def of(cls, schedule: Schedule, rank: int, *, baseline_bytes: int) -> Footprint | None:
        """That of a rank with a stage whose memory the plan foresees; None for others.

        ``baseline_bytes`` are what the process had before its weights: a plan may reserve less.
        """
        estimate = next((e for e in schedule.plan.estimate.ranks if e.rank == rank), None)
        role = schedule.role(rank)
        if estimate is None or role is None:
            return None
        graph = schedule.graph
        items = schedule.batch_size if role.whole_batch else schedule.microbatch_size
        symbols = graph.symbols_at(items)
        written = {x for layer in graph.layers if layer.name in role.layers for x in layer.writes}
        sizes = [graph.tensor[name].num_bytes(symbols) for name in written]
        largest = max((size for size in sizes if size < MAPPED_BYTES), default=0)
        memory = estimate.memory
        lacking = max(0, baseline_bytes - memory.reserve_bytes)
        return cls(memory.total_bytes + lacking, largest)

    def keep(self) -> None:
        """Give back what only holes hold, if the next piece could pass what is foreseen."""
        now = self._clock()
        if now < self._not_before or (before := self._resident()) <= self.most_bytes:
            return
        self._release()
        taken_s = self._clock() - now
        given = max(0, before - self._resident())
        self.given_back += given
        self._not_before = now + _PAUSES * (taken_s + given * _TAKEN_AGAIN_S)


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def forget_peak() -> None:
    """Have the system measure this process's peak from now on, where it can.

    Importing touches pages of libraries that are given back, or the system takes when it needs
    them: with a small model more than the rank ever holds later.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_resident_bytes() -> int:
    """The most resident memory this process has had since :func:`forget_peak`, or since its start
    where that is not to be had."""
    try:
        # Not getrusage where this is: it starts from what the process that started this one had.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    scale = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
