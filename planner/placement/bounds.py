"""Bounds on the largest load that need no search: the least that some device must do."""

from __future__ import annotations

import math

import numpy as np

from planner.placement.blocks import Blocks, slowness


def load_bound_s(blocks: Blocks) -> float:
    """A lower bound on the largest load: all work shared out, or the largest block.

    A device whose class is ``r`` times slower than the fastest does ``T / r`` of the work in time
    ``T`` at most: ``T >= work / sum(1 / r)``. Infinite if some block fits nowhere.
    """
    least, ratio = slowness(blocks)
    speed = math.fsum(np.array(blocks.counts) / ratio)
    work = math.fsum(least)
    shared = 0.0 if work == 0 else math.inf if math.isinf(work) else work / speed
    return max(shared, float(least.max(initial=0.0)))
