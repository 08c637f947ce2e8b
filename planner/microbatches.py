"""Which microbatch sizes are worth trying.

The rule looks at the batch and at what was measured, never at the devices: with one more device the
same sizes are tried, so that a better plan cannot be lost by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from planner.request import PlanRequest
from profiler.profile import Profile

MAX_COUNT = 8
"""Numbers of microbatches for which the smallest sufficient size is tried: shares such as 3 : 1 : 1
of pipelines side by side come out even with five microbatches, whatever was measured."""

MAX_BETWEEN = 8
"""Sizes between the measured ones that are tried, at most."""


@dataclass(frozen=True, slots=True)
class MicrobatchSizes:
    """Sizes to try, ascending: those that times were measured for, and some ``between`` them."""

    measured: tuple[int, ...]
    between: tuple[int, ...] = ()

    @property
    def smallest(self) -> int:
        """The size that needs least memory."""
        return min(*self.measured, *self.between) if self.between else min(self.measured)


def microbatch_sizes(profile: Profile, request: PlanRequest) -> MicrobatchSizes:
    """The size that was asked for; else measured sizes that divide the batch, the batch itself,
    and between them its other divisors and what cuts it into few microbatches.

    Nothing but the batch itself exceeds what was measured. Where there are too many between, those
    nearest to the size below go first.
    """
    batch = request.batch_size
    if request.microbatch_size is not None:
        return MicrobatchSizes((request.microbatch_size,))
    if profile.model.static_batch is not None:
        return MicrobatchSizes((batch,))
    most = min(batch, max(profile.batch_sizes))
    measured = {n for n in profile.batch_sizes if n <= batch and batch % n == 0} | {batch}
    divisors = {n for n in range(1, most + 1) if batch % n == 0}
    few = {-(-batch // count) for count in range(1, MAX_COUNT + 1)}
    between = {n for n in divisors | few if n <= most} - measured
    while len(between) > MAX_BETWEEN:
        sizes = sorted(measured | between)
        steps = {size: size / below for below, size in pairwise(sizes)}
        between.remove(min(between - {1}, key=lambda size: (steps[size], size)))
    return MicrobatchSizes(tuple(sorted(measured)), tuple(sorted(between)))
