"""What a rank's pieces took: the figures of a run from the times of single pieces.

A processor that is throttled or shared pauses now and then, for longer than a short piece takes.
So pieces are averaged in blocks of at least :data:`BLOCK_S` and the median is taken over blocks:
pauses count in their true proportion, single accidents do not.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from executor.schedule import Message, Schedule
from profiler.evidence import Exchange, RankEvidence, SliceEvidence, Throttling
from profiler.expressions import BATCH
from profiler.graph import SliceRegion
from profiler.profile import PRELUDE

BLOCK_S = 0.1
LEAST_BLOCKS = 3
"""With fewer blocks than this, single pieces take their place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFigures:
    """One rank's typical piece: ``items`` items, seconds of each part of it.

    ``busy_s`` is all but waiting, ``compute_s`` of it is running the stage's module and ``join_s``
    putting values together with other ranks of the stage. ``send_s``
    (handing results to the transport) and ``dispatch_s`` (all else) are the processor's time.
    ``spread`` is the distance of the quartiles of the busy time over its median. ``throttling`` is
    there if the rank's processor is rationed.
    """

    items: int
    pieces: int
    busy_s: float
    compute_s: float
    join_s: float
    dispatch_s: float
    send_s: float
    waited_s: float
    held_s: float
    spread: float
    throttling: Throttling | None = None


_COLUMNS = ("busy_s", "computed_s", "joined_s", "dispatched_s", "sent_s", "waited_s", "held_s")


def rank_figures(ran: Mapping[str, Any]) -> RankFigures | None:
    """The figures of what a rank told of a run; None for one that computed nothing."""
    items = max(ran["items"], default=0)
    full = [i for i, count in enumerate(ran["items"]) if count == items]
    # The first piece touches every weight for the first time; it is not typical.
    pieces = full[1:] or full
    if not pieces:
        return None
    columns = {name: [float(ran[name][i]) for i in pieces] for name in _COLUMNS}
    blocks = blocks_of(columns["busy_s"])
    typical = {
        name: statistics.median(statistics.mean(values[a:b]) for a, b in blocks)
        for name, values in columns.items()
    }
    return RankFigures(
        items=items,
        pieces=len(pieces),
        busy_s=typical["busy_s"],
        compute_s=typical["computed_s"],
        join_s=typical["joined_s"],
        dispatch_s=typical["dispatched_s"],
        send_s=typical["sent_s"],
        waited_s=typical["waited_s"],
        held_s=typical["held_s"],
        spread=_spread([statistics.mean(columns["busy_s"][a:b]) for a, b in blocks]),
        throttling=_throttling(ran.get("throttled")),
    )


def blocks_of(seconds: Sequence[float]) -> list[tuple[int, int]]:
    """Consecutive pieces in blocks of at least ``BLOCK_S``; one a block where that gives too few.

    >>> blocks_of([0.06] * 7), blocks_of([0.06] * 3)
    ([(0, 2), (2, 4), (4, 7)], [(0, 1), (1, 2), (2, 3)])
    """
    blocks, first, passed = [], 0, 0.0
    for i, one in enumerate(seconds):
        passed += one
        if passed >= BLOCK_S:
            blocks.append((first, i + 1))
            first, passed = i + 1, 0.0
    if len(blocks) < LEAST_BLOCKS:
        return [(i, i + 1) for i in range(len(seconds))]
    # What is left makes no block: it belongs to the last one.
    return [*blocks[:-1], (blocks[-1][0], len(seconds))]


def period_of(ends_s: Sequence[Sequence[float]], *, filling: int) -> float | None:
    """Seconds between finished batches, from when each rank was through with each of them.

    ``ends_s`` are on one clock. A batch is through when its last rank is: ranks that are ahead
    may run in bursts. The first batch fills the pipeline, ``filling`` more may end while what
    they send is still under way, and the last may be short: all are left out, as far as two are
    left. None for fewer than three batches.

    >>> period_of([[1, 2, 3, 3.5, 4], [2, 4, 5.5, 7.5, 8]], filling=1)
    1.75
    """
    through: list[float] = [max(ends) for ends in zip(*ends_s, strict=True)][:-1]
    if len(through) < 2:
        return None
    first = min(filling, len(through) - 2)
    return (through[-1] - through[first]) / (len(through) - 1 - first)


def rank_evidence(
    schedule: Schedule,
    rank: int,
    figures: RankFigures,
    *,
    step_items: int,
    symbols: Mapping[str, int],
    alone: bool,
) -> RankEvidence:
    """What a refit needs of one rank; ``step_items`` are those of the run's first step, ``alone``
    if it was the only one."""
    binding = next(b for b in schedule.plan.spec.ranks if b.rank == rank)
    role = schedule.role(rank)
    assert role is not None
    here = set(role.layers)
    units = _own_units(schedule, rank)
    divided = {name for region in units for name in region.layers}
    twins: dict[str, int] = {}
    for layer in schedule.graph.layers:
        if layer.name in here and layer.uses_prelude:
            twins[PRELUDE] = 1
        if layer.name in here - divided:
            twins[layer.twin] = twins.get(layer.twin, 0) + 1
    slices = Counter((region.twin, own) for region, own in units.items())
    receives, sends = _exchanges(schedule, rank, step_items, symbols, alone=alone)
    return RankEvidence(
        rank=rank,
        device=binding.device,
        device_type=binding.device_type,
        twins=twins,
        items=figures.items,
        pieces=figures.pieces,
        busy_s=figures.busy_s - figures.join_s,
        compute_s=figures.compute_s,
        dispatch_s=figures.dispatch_s,
        send_s=figures.send_s,
        spread=figures.spread,
        slices=tuple(
            SliceEvidence(region=twin, units=own, count=count)
            for (twin, own), count in slices.items()
        ),
        joined_s=figures.join_s,
        receives=receives,
        sends=sends,
        throttling=figures.throttling,
    )


def _throttling(told: Sequence[float] | None) -> Throttling | None:
    return None if told is None else Throttling(period_s=told[0], fraction=told[1])


def _own_units(schedule: Schedule, rank: int) -> dict[SliceRegion, int]:
    """The regions that the rank's stage divides, with the rank's units."""
    stage = schedule.stages[schedule.stage_of[rank]]
    region = {one.name: one for one in schedule.graph.regions}
    at = stage.ranks.index(rank)
    return {region[one.region]: one.units[at] for one in stage.slices}


def _exchanges(
    schedule: Schedule, rank: int, step_items: int, symbols: Mapping[str, int], *, alone: bool
) -> tuple[tuple[Exchange, ...], tuple[Exchange, ...]]:
    """The messages that come and go with a full piece of the rank.

    On the root, unless a step is alone, with a piece's part of what it feeds and collects.
    """
    step = schedule.step(rank, (0, step_items))
    piece = max(step.pieces, key=lambda one: one.items[1] - one.items[0])
    part = 0.0 if alone else 1 / len(step.pieces)
    device = {b.rank: b.device for b in schedule.plan.spec.ranks}

    def counted(
        own: Sequence[Message], root: Sequence[Message], *, received: bool
    ) -> tuple[Exchange, ...]:
        found: dict[tuple[str, int], float] = {}
        for message, times in [*((x, 1.0) for x in own), *((x, part) for x in root)]:
            if message.source == message.target or not times:
                continue
            low, high = message.items or (0, step_items)
            sizes = {**schedule.graph.symbols, **symbols, BATCH: high - low}
            size = schedule.graph.tensor[message.tensor].num_bytes(sizes)
            other = device[message.source if received else message.target]
            found[other, size] = found.get((other, size), 0.0) + times
        return tuple(
            Exchange(device=other, num_bytes=size, count=n) for (other, size), n in found.items()
        )

    return (
        counted(piece.receives, step.collects, received=True),
        counted(piece.sends, step.feeds, received=False),
    )


def _spread(values: Sequence[float]) -> float:
    middle = statistics.median(values)
    if len(values) < 2 or not middle:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle
