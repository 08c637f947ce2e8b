"""What lies between two down-sets: which contain a given one, and the nets that are cut between.

A net is *open* at a down-set that holds some and not all of its blocks. The blocks of ``J`` that
are not in ``I`` cut a net exactly if it is open at ``I`` and they hold one of its blocks, or it is
untouched by ``I`` and open at ``J``. So costs need no walk over blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.placement.blocks import Blocks, Floats
from planner.placement.downsets import DownSets

Ints = NDArray[np.int64]


class SetPairs:
    """Tables over ``sets``: ``size`` in bytes, ``open[e, i]`` for net ``e`` at set ``i``.

    Nets count as costing at most ``most_s``, so that sums of small costs beside huge ones stay
    exact.
    """

    def __init__(self, blocks: Blocks, sets: DownSets, *, most_s: float) -> None:
        self.blocks, self.sets = blocks, sets
        holds = sets.holds
        self.size = blocks.sizes.astype(float) @ holds
        self.pins = [np.array(pins) for pins, _ in blocks.nets]
        self.cost = np.array([min(cost, most_s) for _, cost in blocks.nets], np.float64)
        self.open = np.zeros((len(self.pins), sets.count), bool)
        for e, pins in enumerate(self.pins):
            self.open[e] = holds[pins].any(axis=0) & ~holds[pins].all(axis=0)
        self.open_cost = self.cost @ self.open
        self.tops = self._tops()

    def _tops(self) -> list[Ints]:
        """For each set, the blocks that nothing in it stands behind: they tell its supersets."""
        holds = self.sets.holds
        covered = np.zeros_like(holds)
        for first, second in self.blocks.order_edges:
            covered[first] |= holds[second]
        return [np.flatnonzero(holds[:, i] & ~covered[:, i]) for i in range(self.sets.count)]

    def supersets(self, i: int, end: int) -> Ints:
        """Sets before position ``end`` that hold all of set ``i`` and more."""
        holds = self.sets.holds
        above = np.ones(end - i - 1, bool)
        for b in self.tops[i]:
            above &= holds[b, i + 1 : end]
        return np.flatnonzero(above) + i + 1

    def cuts(self, i: int, above: Ints) -> Floats:
        """Costs of nets cut by the sets ``above`` without set ``i``.

        Nets open at ``i`` are cut if touched beyond it; the others exactly if open above.
        """
        holds = self.sets.holds
        cut = self.open_cost[above]
        for e in np.flatnonzero(self.open[:, i]):
            pins = self.pins[e]
            beyond = pins[~holds[pins, i]]
            touched = holds[beyond[0], above]
            for b in beyond[1:]:
                touched = touched | holds[b, above]
            cut += self.cost[e] * (touched.astype(np.int8) - self.open[e, above].astype(np.int8))
        return np.maximum(cut, 0.0)
