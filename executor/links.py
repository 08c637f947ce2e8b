"""The time that one message takes on its way, from the notes of both ends.

Between two ranks messages leave in the order in which they were ready (sent by one, asked for by
the other), one after the other. So a message starts when it is ready and the one before it has
arrived, and

    time = end - max(ready, end of the message before)

where the end is known: where the receiver had to wait. A message that is there when its receiver
looks gives no sample, and none the one behind it unless that became ready later. A link none of
whose messages was waited for is *hidden*: no figure is made up for it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

LEAST_SAMPLES = 3
LEAST_FRACTION = 0.05
"""A link is measured if so many of its messages that are known, and this part of them, were waited
for: a rank that was merely interrupted while it looked has waited too."""

State = Literal["measured", "hidden", "unresolved"]


@dataclass(frozen=True, slots=True)
class Offset:
    """A rank's clock minus the root's, and how far off that may be; both in seconds."""

    seconds: float
    error_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """One message as its two ends noted it, on the root's clock. ``kind`` tells sizes apart."""

    kind: int
    ready_s: float
    found_s: float
    waited: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTime:
    """Messages of one tensor and size between two ranks.

    ``state``: ``measured`` (``time_s`` is the median over ``samples``), ``hidden`` (the receiver
    did not wait for them) or ``unresolved`` (they are faster than the clocks of their hosts can
    be compared). ``spread`` is the distance of the quartiles over the median.
    """

    source: int
    target: int
    tensor: str
    num_bytes: int
    messages: int
    state: State
    time_s: float | None
    samples: int
    spread: float


def link_times(
    logs: Sequence[Mapping[str, Any]], offsets: Mapping[int, Offset]
) -> tuple[LinkTime, ...]:
    """Every kind of message of a run, by source, target and tensor.

    ``logs`` are what the ranks' :class:`executor.wirelog.TransferLog` noted, in rank order.
    """
    sent = {
        (source, target, tag, number): at
        for source, log in enumerate(logs)
        for target, tag, number, at in log["sent"]
    }
    found = []
    for target, log in enumerate(logs):
        pairs: dict[int, list[Noted]] = defaultdict(list)
        for source, tag, number, asked, at, waited, kind in log["received"]:
            handed = sent.get((source, target, tag, number))
            if handed is None:  # forgotten at the other end
                continue
            ready = max(handed - offsets[source].seconds, asked - offsets[target].seconds)
            here = at - offsets[target].seconds
            pairs[source].append(Noted(kind=kind, ready_s=ready, found_s=here, waited=waited))
        kinds = log["kinds"]
        total: dict[int, int] = defaultdict(int)
        for source, _, _, count in kinds:
            total[source] += count
        samples: dict[int, list[float]] = defaultdict(list)
        known: dict[int, int] = defaultdict(int)
        for source, noted in pairs.items():
            for kind, value in transfer_times(noted, complete=len(noted) == total[source]):
                known[kind] += 1
                if value is not None:
                    samples[kind].append(value)
        for kind, (source, tensor, num_bytes, count) in enumerate(kinds):
            error_s = offsets[source].error_s + offsets[target].error_s
            state, time_s, spread = _verdict(samples[kind], known[kind], error_s)
            found.append(
                LinkTime(
                    source=source,
                    target=target,
                    tensor=tensor,
                    num_bytes=num_bytes,
                    messages=count,
                    state=state,
                    time_s=time_s,
                    samples=len(samples[kind]) if state == "measured" else 0,
                    spread=spread,
                )
            )
    return tuple(sorted(found, key=lambda x: (x.source, x.target, x.tensor, -x.num_bytes)))


def transfer_times(
    noted: Sequence[Noted], *, complete: bool = True
) -> list[tuple[int, float | None]]:
    """Kind and seconds of each message from one rank to another; None where they are not known.

    ``complete``: nothing was on the way before the first of them.

    >>> known = {"kind": 0, "waited": True}
    >>> noted = [Noted(ready_s=0.0, found_s=1.0, **known), Noted(ready_s=0.0, found_s=3.0, **known)]
    >>> transfer_times(noted)
    [(0, 1.0), (0, 2.0)]
    """
    times: list[tuple[int, float | None]] = []
    # The message before had arrived at this time; or at an unknown one, no later than that.
    free_s, certain = (float("-inf"), True) if complete else (float("inf"), False)
    for one in sorted(noted, key=lambda x: x.ready_s):
        begins = certain or free_s <= one.ready_s
        if not one.waited:
            times.append((one.kind, None))
            free_s, certain = one.found_s, False
            continue
        times.append((one.kind, one.found_s - max(one.ready_s, free_s) if begins else None))
        free_s, certain = one.found_s, True
    return times


def _verdict(
    samples: Sequence[float], known: int, error_s: float
) -> tuple[State, float | None, float]:
    if len(samples) < max(LEAST_SAMPLES, LEAST_FRACTION * known):
        return "hidden", None, 0.0
    middle = statistics.median(samples)
    if middle <= 2 * error_s:
        return "unresolved", None, 0.0
    low, _, high = statistics.quantiles(samples, n=4)
    return "measured", middle, (high - low) / middle
