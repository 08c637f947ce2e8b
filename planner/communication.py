"""What joining partial results costs the ranks of a stage that is split by tensor.

Each rank computes a part of a tensor, terms of a sum or a run of units, and every rank needs the
whole. The ranks exchange it directly, in phases; in a phase a rank sends to its peers one after
another while they send to it:

    concat                          one phase: its own part to everyone
    sum, two ranks or little data   one phase: its whole partial to everyone
    sum, more                       two phases of pieces, the tensor over the ranks: each sums up
                                    its piece, then sends it to everyone

These are the formulas of ``docs/cost-model.md``, section "A join".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.figures import Figures
from profiler.graph import Join

MAX_WHOLE_BYTES = 32 * 1024
"""Partials to sum up to this size go whole to everyone: one phase is quicker than two."""


@dataclass(frozen=True, slots=True)
class JoinMessage:
    """What one rank (by its position in the stage) sends to another in a phase."""

    source: int
    target: int
    num_bytes: float


def join_phases(how: str, num_bytes: int, units: Sequence[int]) -> list[list[JoinMessage]]:
    """The messages of each phase of a join of ``num_bytes`` among ranks with these ``units``.

    >>> [[m.num_bytes for m in phase] for phase in join_phases("concat", 120, [1, 2])]
    [[40, 80]]
    """
    width = len(units)
    if how == "concat":
        return [_to_everyone([num_bytes * n // sum(units) for n in units])]
    if width == 2 or num_bytes <= MAX_WHOLE_BYTES:
        return [_to_everyone([num_bytes] * width)]
    return [_to_everyone([num_bytes / width] * width)] * 2


def join_messages(
    figures: Figures, join: Join, devices: Sequence[str], units: Sequence[int], items: int
) -> Iterator[list[tuple[str, str, float]]]:
    """Source, target and seconds of the messages of each phase; ``devices`` in rank order."""
    size = figures.problem.graph.join_bytes(join, items)
    for phase in join_phases(join.how, size, units):
        yield [
            (
                devices[m.source],
                devices[m.target],
                figures.message_s(devices[m.source], devices[m.target], m.num_bytes),
            )
            for m in phase
        ]


def join_s(
    figures: Figures, join: Join, devices: Sequence[str], units: Sequence[int], items: int
) -> float:
    """Seconds of a join: in each phase, those of the rank that sends longest."""
    total = 0.0
    for phase in join_messages(figures, join, devices, units, items):
        sending = dict.fromkeys(devices, 0.0)
        for source, _, seconds in phase:
            sending[source] += seconds
        total += max(sending.values())
    return total


def join_pieces(how: str, num_bytes: int, units: Sequence[int], rank: int) -> list[int]:
    """Bytes that ``rank`` receives at once from each peer."""
    width = len(units)
    if how == "concat":
        return [num_bytes * n // sum(units) for r, n in enumerate(units) if r != rank]
    whole = width == 2 or num_bytes <= MAX_WHOLE_BYTES
    return [num_bytes if whole else -(-num_bytes // width)] * (width - 1)


def _to_everyone(sizes: Sequence[float]) -> list[JoinMessage]:
    """Each rank sends as much as ``sizes`` says to each of the others."""
    return [
        JoinMessage(a, b, size) for a, size in enumerate(sizes) for b in range(len(sizes)) if a != b
    ]
