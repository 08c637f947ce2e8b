"""Latency and bandwidth of one direction of a link, fitted to measured times of messages.

The line ``t = latency + bytes / bandwidth`` is fitted to the median time of each size by least
squares of the *relative* error (so that a message of 100 bytes counts as much as one of 10 MB),
reweighted after Huber (so that one size that met a disturbance, or a step of the transport at some
size, does not bend the line; Huber 1964, "Robust estimation of a location parameter"). Neither
figure may be negative.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ROUNDS = 20
HUBER = 1.345
"""Errors up to this many standard deviations count in full (95 % efficient for normal errors)."""
MAD_SCALE = 1.4826
"""Standard deviation over median absolute deviation, for normal errors."""


@dataclass(frozen=True, kw_only=True)
class LinkFit:
    """``error_fraction``: half of the messages of a size were within this part of the line (mean
    over the sizes). ``samples`` is the number of messages timed."""

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
    points = sorted((size, statistics.median(times)) for size, times in samples.items())
    weights = [1.0] * len(points)
    for _ in range(ROUNDS):
        latency, slope = _line(points, weights)
        errors = [(latency + slope * size) / seconds - 1 for size, seconds in points]
        scale = MAD_SCALE * statistics.median(abs(error) for error in errors)
        limit = HUBER * scale
        weights = [
            1.0 if abs(error) <= limit or not limit else limit / abs(error) for error in errors
        ]
    scatter = [
        statistics.median(abs(t / (latency + slope * size) - 1) for t in times)
        for size, times in samples.items()
    ]
    return LinkFit(
        latency_s=latency,
        bytes_per_s=1 / slope,
        error_fraction=statistics.fmean(scatter),
        samples=sum(map(len, samples.values())),
    )


def _line(points: Sequence[tuple[int, float]], weights: Sequence[float]) -> tuple[float, float]:
    """Intercept >= 0 and slope > 0 with the least weighted squares of relative errors.

    Relative errors: divide the equation ``a + b n = t`` by ``t``, which gives ``a x + b y = 1``
    with ``x = 1 / t``, ``y = n / t``. The optimum within bounds lies inside or on an edge.
    """
    rows = [(1 / t, n / t, w) for (n, t), w in zip(points, weights, strict=True)]
    xx = sum(w * x * x for x, _, w in rows)
    yy = sum(w * y * y for _, y, w in rows)
    xy = sum(w * x * y for x, y, w in rows)
    sx, sy = sum(w * x for x, _, w in rows), sum(w * y for _, y, w in rows)
    determinant = xx * yy - xy * xy
    if determinant > 1e-12 * xx * yy:
        intercept = (sx * yy - sy * xy) / determinant
        slope = (sy * xx - sx * xy) / determinant
        if intercept >= 0 and slope > 0:
            return intercept, slope
        if slope <= 0:
            # Larger messages are not slower: no bandwidth shows, only that it is at least this.
            largest, seconds = points[-1]
            return sx / xx, seconds / largest / len(points)
    return 0.0, sy / yy
