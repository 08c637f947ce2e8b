"""How fast the machine computes at a moment: machines shared with others drift.

The same computing took 121 and 158 ms within half an hour on the machine where this was written,
without anything else running on it: more than what an estimate may be off. So before and after a
model is profiled, and before and after every run of a plan, the whole model is run by itself while
nothing else runs, and its processor time says at what pace the machine is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from profiler.bench import example_inputs
from profiler.capture import Captured
from profiler.profile import Profile

ITEMS = 4
REPEATS = 5


class Pace:
    """Seconds that one run of a model takes now, over those while it was profiled."""

    def __init__(self, captured: Captured) -> None:
        module = captured.source.module
        assert module is not None
        self._module, self._inputs = module, example_inputs(captured, ITEMS, varied=True)
        self._profiled_s: float | None = None
        self._once_s()

    @contextmanager
    def while_profiling(self) -> Iterator[None]:
        """Take note of the pace before and after; it is what later ones are compared with."""
        seconds = [self._once_s() for _ in range(REPEATS)]
        yield
        seconds += [self._once_s() for _ in range(REPEATS)]
        self._profiled_s = statistics.median(seconds)

    def now(self) -> float:
        """1 at the pace of the profile, more when the machine is slower."""
        assert self._profiled_s is not None
        return self._once_s() / self._profiled_s

    def _once_s(self) -> float:
        with torch.inference_mode():
            self._module(**self._inputs)  # whatever ran before has the caches
            begun = time.thread_time()
            self._module(**self._inputs)
            return time.thread_time() - begun


def at_pace(profile: Profile, pace: float) -> Profile:
    """``profile`` as it would have been measured at another pace."""
    timings = tuple(
        one.model_copy(
            update={
                "dispatch_s": one.dispatch_s * pace,
                "layers": {
                    twin: tuple(
                        row.model_copy(update={"median_s": row.median_s * pace}) for row in rows
                    )
                    for twin, rows in one.layers.items()
                },
            }
        )
        for one in profile.timings
    )
    return profile.replaced(timings=timings)
