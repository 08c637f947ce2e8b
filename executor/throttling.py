"""How often a rank's processor was taken away, where control groups ration it.

A quota is given by the period: who has used it up waits for the next. Work that pauses often, for
messages, may never use it up, and is as fast as without; work that never pauses gets what the quota
says. Times of pieces shorter than some periods are of the one kind or the other, and only this
tells which.
"""

from __future__ import annotations

from profiler.limits import tightest_quota


class Throttling:
    """The periods from now on in which this process's group was throttled."""

    def __init__(self) -> None:
        self._quota = tightest_quota()
        self._before = self._quota.throttled() if self._quota else 0

    def within(self, wall_s: float) -> tuple[float, float] | None:
        """Seconds of a period, and the fraction of the ``wall_s`` seconds' periods that were; None
        without a quota."""
        quota = self._quota
        if quota is None:
            return None
        times = quota.throttled() - self._before
        return quota.period_s, min(1.0, times / max(1.0, wall_s / quota.period_s))
