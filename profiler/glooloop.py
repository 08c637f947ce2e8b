"""gloo's threads and the scheduler: they come in when it is their turn, not in front of computing.

gloo moves messages in a thread of its own, its loop, which is woken for every piece that comes or
can go. Where all cores of a rank compute, the kernel lets it in at once: often in the very moment
in which the computing thread hands over a message and holds the lock of the connection. The loop
does not get that lock and asks again, without a pause, until its slice is over: up to 2.8 ms of
nothing. As batch work, which is never let in before its turn, it finds the lock free
(``benchmarks/gloo_loop.py`` measures both).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def threads_behind_computing() -> Iterator[None]:
    """Threads that start inside are batch work (``SCHED_BATCH``, sched(7)); for making a group.

    Whoever waits for a message loses nothing, since a loop runs at once on a core where nobody
    computes; beside computing it comes in when that one's slice is over, within milliseconds. Where
    the system has no such thing, or the process is under another policy already, nothing happens.
    """
    if sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    # A thread starts under the policy of the one that starts it. Afterwards it could be found by
    # its name only, which it has a moment later.
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
