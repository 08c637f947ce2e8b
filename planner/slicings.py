"""Ways for a group of devices to divide the regions of a model among them.

At most ``MAX_SLICINGS`` are offered: by speed only where that saves time; and, unless each device
has room for the whole model, every region, by speed, and by speed as far as the memory for the
whole model allows. Regions of one twin are divided alike.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from planner.figures import Figures
from planner.problem import PlanningProblem
from planner.room import ModelRoom
from planner.slices import RegionUnits, Slicing, joins_s, slice_times

MAX_SLICINGS = 3
"""Ways to divide the regions among one group of devices."""

MAX_WIDTH = 64
"""Ranks of a tensor split, at most: each sends to each of the others at every join."""

MAX_STEPS = 256
"""A region of more units is divided in about so many steps, not unit by unit."""


def find_slicings(
    problem: PlanningProblem,
    figures: Figures,
    devices: Sequence[str],
    room: ModelRoom | None = None,
) -> list[Slicing]:
    """Different ways for ranks on these devices, in this order; none has a rank without a unit.

    Who asks for many groups gives ``room``, so that it need not be summed up for each.
    """
    room = room or ModelRoom(figures)
    by_speed = slicing_by_speed(problem, figures, devices)
    if not by_speed:
        return []
    saves: dict[str, bool] = {}
    for x in by_speed:
        twin = problem.graph.regions[x.region].twin
        if twin not in saves:
            saves[twin] = _saves_time(figures, x, devices)
    worth = tuple(x for x in by_speed if saves[problem.graph.regions[x.region].twin])
    if all(
        room.spare_bytes(device, rank, slices) >= 0
        for slices in ((), by_speed)
        for rank, device in enumerate(devices)
    ):
        return [worth] if worth else []
    fitting = tuple(_as_far_as_fits(problem, figures, devices, by_speed, room))
    return [slicing for slicing in dict.fromkeys((by_speed, worth, fitting)) if slicing]


def slicing_by_speed(problem: PlanningProblem, figures: Figures, devices: Sequence[str]) -> Slicing:
    """Every region that can be divided, so that the slowest rank takes least."""
    return tuple(_by_speed(problem, figures, devices, [1.0] * len(devices)))


def even_slicing(problem: PlanningProblem, width: int) -> Slicing:
    """Every region with units enough in parts that differ by one unit at most."""
    barred = problem.whole_batch | problem.one_device
    return tuple(
        RegionUnits(
            r,
            tuple(
                (region.units * (k + 1)) // width - region.units * k // width for k in range(width)
            ),
        )
        for r, region in enumerate(problem.graph.regions)
        if region.units >= width and barred.isdisjoint(problem.region_layers[r])
    )


def balance_units(
    times: Sequence[Callable[[int], float]], units: int, most: Sequence[int]
) -> tuple[int, ...] | None:
    """Units for each rank so that the slowest takes least; None if they do not go round.

    ``times[r]`` gives rank r's seconds for so many units and never falls; a rank gets one unit at
    least and ``most[r]`` at most. Each step goes to the rank that has it done soonest.

    >>> balance_units([lambda n: n, lambda n: 3 * n], 8, [8, 8])
    (6, 2)
    """
    if units < len(times) or min(most) < 1 or sum(most) < units:
        return None
    given = [1] * len(times)
    step, left = -(-units // MAX_STEPS), units - len(times)
    heap = [(seconds(1 + step), r) for r, seconds in enumerate(times)]
    heapq.heapify(heap)
    while left:
        _, r = heapq.heappop(heap)
        more = min(step, left, most[r] - given[r])
        if more:
            given[r] += more
            left -= more
            heapq.heappush(heap, (times[r](given[r] + step), r))
    return tuple(given)


def _by_speed(
    problem: PlanningProblem, figures: Figures, devices: Sequence[str], most: Sequence[float]
) -> Iterator[RegionUnits]:
    """Units of each region that can be divided; no rank has more than its fraction ``most``."""
    known: dict[str, tuple[int, ...] | None] = {}
    barred = problem.whole_batch | problem.one_device
    for r, region in enumerate(problem.graph.regions):
        if not barred.isdisjoint(problem.region_layers[r]):
            continue
        if region.twin not in known:
            times = [partial(figures.slice_s, r, d, problem.microbatch) for d in devices]
            limits = [int(fraction * region.units) for fraction in most]
            known[region.twin] = balance_units(times, region.units, limits)
        units = known[region.twin]
        if units is not None:
            yield RegionUnits(r, units)


def _saves_time(figures: Figures, slices: RegionUnits, devices: Sequence[str]) -> bool:
    """Whether dividing a region takes less than every rank's computing all of it."""
    items = figures.problem.microbatch
    divided = max(slice_times(figures, slices, devices, items))
    undivided = max(figures.region_s(slices.region, device, items) for device in devices)
    return divided + joins_s(figures, slices, devices, items) < undivided


def _as_far_as_fits(
    problem: PlanningProblem,
    figures: Figures,
    devices: Sequence[str],
    by_speed: Slicing,
    room: ModelRoom,
) -> Iterator[RegionUnits]:
    """Slices with which each rank has room for its part of the whole model."""
    most, short = [], False
    for rank, device in enumerate(devices):
        full, taken = room.shard_bytes(by_speed, rank)
        spare = room.spare_bytes(device, rank, by_speed)
        short |= spare < 0
        most.append(min(1.0, max(0.0, (taken + spare) / full)) if full else 1.0)
    if short:
        yield from _by_speed(problem, figures, devices, most)
