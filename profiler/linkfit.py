"""Latency and bandwidth of one direction of a link, from measured times of messages by size.

The line is ``t = latency + bytes / bandwidth``. Least squares over all sizes would let small
messages bend the bandwidth: shapers and switches let them through faster than the wire's rate
(token buckets), transports change their way at some size. So each figure comes from the sizes that
it rules, by medians throughout:

* bandwidth from the four largest sizes: the median of the slopes between every two of them
  (Theil 1950, Sen 1968), which one disturbed size cannot move far;
* latency from the sizes of whose time the bandwidth makes up no large part, the smallest at
  least: the median of what is left.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

NUM_LARGE = 4
"""So many of the largest sizes rule the bandwidth."""
SHORT_FRACTION = 0.35
"""Sizes of whose time the bandwidth makes up less than this rule the latency."""


@dataclass(frozen=True, kw_only=True)
class LinkFit:
    """``error_fraction``: half of the messages of a size were within this part of the line (mean
    over the sizes it comes from). ``samples`` is the number of messages timed."""

    latency_s: float
    bytes_per_s: float
    error_fraction: float
    samples: int

    def transfer_time_s(self, num_bytes: float) -> float:
        """Seconds that a message takes."""
        return self.latency_s + num_bytes / self.bytes_per_s


def one_way(
    round_trips: Mapping[int, Sequence[float]], *, ack_bytes: int
) -> dict[int, tuple[float, ...]]:
    """Seconds of one direction by size, from those of a message and a tiny answer.

    The clocks of two hosts differ, so only the sender's is used. Its figure holds the answer's way
    back, which is as long for every size; half of a round trip of two messages of ``ack_bytes``
    (which must be among the sizes) is taken for it. What latency the two directions do not share
    evenly, no measurement without a common clock can tell.
    """
    back_s = statistics.median(round_trips[ack_bytes]) / 2
    return {
        size: tuple(max(0.1 * seconds, seconds - back_s) for seconds in samples)
        for size, samples in round_trips.items()
    }


def fit_link(samples: Mapping[int, Sequence[float]]) -> LinkFit:
    """The line through the times of messages by their size in bytes.

    ``samples`` hold at least two sizes, each with at least one time above zero.
    """
    if len(samples) < 2:
        raise ValueError(f"a line needs messages of two sizes or more, not {sorted(samples)}")
    points = [(size, statistics.median(times)) for size, times in sorted(samples.items())]
    ruling = points[-NUM_LARGE:]
    seconds_per_byte = _slope(ruling)
    smallest, *others = points
    short = [smallest, *(p for p in others if p[0] * seconds_per_byte < SHORT_FRACTION * p[1])]
    latency_s = statistics.median(max(0.0, t - size * seconds_per_byte) for size, t in short)
    scatter = [
        statistics.median(abs(t / (latency_s + seconds_per_byte * size) - 1) for t in samples[size])
        for size in sorted({size for size, _ in (*ruling, *short)})
    ]
    return LinkFit(
        latency_s=latency_s,
        bytes_per_s=1 / seconds_per_byte,
        error_fraction=statistics.fmean(scatter),
        samples=sum(map(len, samples.values())),
    )


def _slope(points: Sequence[tuple[int, float]]) -> float:
    """Seconds per byte, above zero."""
    slope = statistics.median((tb - ta) / (b - a) for (a, ta), (b, tb) in combinations(points, 2))
    # Where larger messages are not slower no bandwidth shows, only that it is at least this.
    size, seconds = points[-1]
    return slope if slope > 0 else 0.1 * seconds / size
