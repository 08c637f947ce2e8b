"""Better placements by re-sharing the blocks of two devices at a time, as well as possible.

The pair always includes the device with the largest load; a move counts if the larger load of
the pair falls. What is left in the end cannot be improved by any two devices alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from planner.placement.blocks import Blocks, slowness
from planner.placement.pricing import Pricer, Rounding, Splitter
from planner.placement.problem import Charging
from planner.solvers.base import SolveLimits

TICKS = (400, 1600, 6400)
LEAST_GAIN = 1e-7
MAX_SPLITS = 50
"""Splits tried of one pair, best first, until one fits in memory."""

FILL_TICKS = (600, 1500)
FORBIDDEN = 1e6


def improved(
    blocks: Blocks, devices: Sequence[int], *, goal_s: float, limits: SolveLimits
) -> tuple[int, ...]:
    """A device for each block, with a largest load that is not above that of ``devices``.

    Stops at ``goal_s``.
    """
    if blocks.problem.charging is Charging.WIRE:
        return tuple(devices)
    pairs = _Pairs(blocks, devices)
    for ticks in TICKS:
        while not limits.expired and max(pairs.loads) > goal_s and pairs.step(ticks, limits):
            pass
    return tuple(pairs.devices)


def filled(blocks: Blocks, *, ceiling_s: float) -> tuple[int, ...] | None:
    """A device for each block: one after the other takes as much work as fits below a ceiling.

    The last one takes the rest, which may be too much. Memory is not looked at.
    """
    least, _ = slowness(blocks)
    devices = [-1] * blocks.num_blocks
    places = [(c, p) for c, own in enumerate(blocks.problem.classes) for p in own]
    places.sort(key=lambda place: blocks.problem.places[place[1]].transfer_factor)
    for k, (c, p) in enumerate(places):
        rest = [b for b in range(blocks.num_blocks) if devices[b] < 0]
        if k == len(places) - 1:
            chosen: Sequence[int] = rest
        else:
            pricer = Pricer(blocks, c, ceiling_s=ceiling_s, ticks=FILL_TICKS, rounding=Rounding.UP)
            if not pricer.feasible:
                return None
            prices = np.where(np.array(devices) < 0, least, -FORBIDDEN * (least.sum() + 1))
            _, (chosen, *_) = pricer.best(prices)
        if any(math.isinf(blocks.times_s[c, b]) for b in chosen):
            return None
        for b in chosen:
            devices[b] = p
    return tuple(devices)


class _Pairs:
    """A placement under improvement."""

    def __init__(self, blocks: Blocks, devices: Sequence[int]) -> None:
        self.blocks, self.devices = blocks, list(devices)
        self.classes = [0] * len(blocks.problem.places)
        for c, places in enumerate(blocks.problem.classes):
            for p in places:
                self.classes[p] = c
        self.loads = [self._load(p) for p in range(len(self.classes))]

    def _held(self, place: int) -> list[int]:
        return [b for b, device in enumerate(self.devices) if device == place]

    def _load(self, place: int) -> float:
        return self.blocks.load_s(self._held(place), self.classes[place])

    def step(self, ticks: int, limits: SolveLimits) -> bool:
        """Improve the largest load together with some other device, lightest first."""
        places = sorted(range(len(self.loads)), key=lambda p: self.loads[p])
        worst = places.pop()
        return any(self._share(worst, other, ticks) for other in places if not limits.expired)

    def _share(self, worst: int, other: int, ticks: int) -> bool:
        chosen = self._held(worst) + self._held(other)
        before = self.loads[worst]
        classes = self.classes[other], self.classes[worst]
        splitter = Splitter(self.blocks, chosen, classes, ceiling_s=before)
        if not splitter.feasible:
            return False
        for found, own in itertools.islice(splitter.splits(ticks), MAX_SPLITS):
            if found >= before * (1 - LEAST_GAIN):
                return False
            if self._taken(chosen, own, (worst, other)):
                return True
        return False

    def _taken(self, chosen: list[int], own: tuple[int, ...], places: tuple[int, int]) -> bool:
        """Whether a split is better in truth and fits; if so it is made."""
        worst, other = places
        old = list(self.devices)
        for b in chosen:
            self.devices[b] = worst
        for b in own:
            self.devices[b] = other
        loads = [self._load(p) for p in places]
        better = max(loads) < self.loads[worst] * (1 - LEAST_GAIN)
        if not better or not all(map(self._fits, places)):
            self.devices = old
            return False
        self.loads[worst], self.loads[other] = loads
        return True

    def _fits(self, place: int) -> bool:
        memory = self.blocks.problem.places[place].memory_bytes
        return memory is None or int(self.blocks.sizes[self._held(place)].sum()) <= memory
