"""Which processors of this machine an emulated host runs on: as many as it has cores.

A host with a part of a core stands for a machine with one slow processor, on which the thread that
moves messages stops the one that computes. Left to the kernel, it would work on any processor that
is idle at the moment, and be woken there from rest for every frame that comes: that costs the host
three times as much (``lost_receiving`` of ``benchmarks/emulation.py``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence

Share = tuple[tuple[int, float], ...]
"""A host's processors, and the part of each that it may take; none: the kernel chooses."""


def free_processors(taken: Iterable[Share]) -> dict[int, float]:
    """The processors that this process may use, and the part of each that is left beside
    ``taken``."""
    free = dict.fromkeys(sorted(os.sched_getaffinity(0)), 1.0)
    for share in taken:
        for processor, part in share:
            if processor in free:
                free[processor] -= part
    return free


def share_out(cores: Sequence[float | None], free: Mapping[int, float]) -> tuple[Share, ...]:
    """The processors of each host: the largest host first, on those that have most left.

    Where they do not fit so, all hosts are left to the kernel: two of them on one processor that is
    too small for both would be slower than their quotas. So are hosts that may take all (None).

    >>> share_out([0.35, 0.8, 0.35], {0: 1.0, 1: 1.0})
    (((1, 0.35),), ((0, 0.8),), ((1, 0.35),))
    >>> share_out([1.5, None], {0: 1.0, 1: 1.0})
    (((0, 0.75), (1, 0.75)), ())
    >>> share_out([0.8, 0.8, 0.3], {0: 1.0, 1: 1.0})
    ((), (), ())
    """
    left = dict(free)
    found: dict[int, Share] = {}
    for host in sorted(range(len(cores)), key=lambda i: -(cores[i] or 0)):
        asked = cores[host]
        if asked is None:
            continue
        number = math.ceil(asked)
        part = asked / number
        chosen = sorted(left, key=lambda processor: -left[processor])[:number]
        if len(chosen) < number or any(left[x] < part - _ROUNDING for x in chosen):
            return tuple(() for _ in cores)
        found[host] = tuple((x, part) for x in sorted(chosen))
        for processor in chosen:
            left[processor] -= part
    return tuple(found.get(host, ()) for host in range(len(cores)))


_ROUNDING = 1e-6
