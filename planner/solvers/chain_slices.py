"""What dividing regions changes about every run of consecutive layers, for the chain solver.

``[j, e]`` of an array is the run of layers ``j .. e - 1``, as in ``chain_segments``. A region
counts where all of it lies in the run. Numbers repeat ``planner.slices`` and ``planner.memory``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from planner.figures import Figures
from planner.memory import Part, arriving_bytes, shard_of
from planner.options import Option, place
from planner.problem import PlanningProblem
from planner.slices import joins_s, slice_times
from planner.solvers.arrays import Floats, Integers


class RegionsWithin:
    """Seconds and bytes of the regions that lie in each run, for options that split by tensor."""

    def __init__(self, problem: PlanningProblem, figures: Figures) -> None:
        self.problem, self.figures = problem, figures
        self._size = problem.num_layers + 1
        self._users: dict[str, list[int]] = {}
        for i, layer in enumerate(problem.graph.layers):
            for name in dict.fromkeys(layer.weights):
                self._users.setdefault(name, []).append(i)

    def seconds(self, option: Option, undivided: Callable[[int], Floats]) -> Floats:
        """Seconds of a run on ``option``; infinite where no region of it lies in the run.

        ``undivided`` gives those of a class of devices that computes all of each run.
        """
        (devices,) = place(self.problem, [option])
        items, figures = self.problem.microbatch, self.figures
        slowest = np.zeros((self._size, self._size))
        for c in {c for c, _ in option.members}:
            device = self.problem.classes[c][0]
            whole = [(x.region, figures.region_s(x.region, device, items)) for x in option.slicing]
            slowest = np.maximum(slowest, undivided(c) - self._sum(whole))
        known: dict[tuple[str, tuple[int, ...]], float] = {}
        divided = []
        for x in option.slicing:
            key = self.problem.graph.regions[x.region].twin, x.units
            if key not in known:
                known[key] = max(slice_times(figures, x, devices, items))
                known[key] += joins_s(figures, x, devices, items)
            divided.append((x.region, known[key]))
        any_within = self._sum((x.region, 1.0) for x in option.slicing) > 0
        return np.asarray(np.where(any_within, slowest + self._sum(divided), np.inf))

    def saved_bytes(self, option: Option, rank: int) -> Integers:
        """Bytes of weights that a rank need not hold; a weight with users outside is held whole."""
        graph, size = self.problem.graph, self._size
        change = np.zeros((size + 1, size + 1), dtype=np.int64)
        for x in option.slicing:
            layers = self.problem.region_layers[x.region]
            first, last = layers[0], layers[-1]
            for sliced in graph.regions[x.region].weights:
                whole = graph.weight[sliced.weight].num_bytes
                others = [i for i in self._users.get(sliced.weight, []) if i not in layers]
                if any(first < i < last for i in others):
                    continue
                # Runs from ``low .. first`` to ``last + 1 .. high``.
                low = max((i + 1 for i in others if i < first), default=0)
                high = min((i for i in others if i > last), default=size - 1)
                saved = whole - shard_of(whole, x, rank)
                change[low, last + 1] += saved
                change[first + 1, last + 1] -= saved
                change[low, high + 1] -= saved
                change[first + 1, high + 1] += saved
        return np.asarray(change.cumsum(axis=0).cumsum(axis=1)[:size, :size])

    def joined_bytes(self, option: Option, rank: int, part: Part) -> Integers:
        """The most that a rank receives at once in a join of a region in the run."""
        most = np.zeros((self._size, self._size), dtype=np.int64)
        for x in option.slicing:
            layers = self.problem.region_layers[x.region]
            arriving = arriving_bytes(self.figures, x, rank, self.problem.microbatch, part)
            at = layers[0], layers[-1] + 1
            most[at] = max(most[at], arriving)
        most = np.maximum.accumulate(most[::-1], axis=0)[::-1]
        return np.asarray(np.maximum.accumulate(most, axis=1))

    def _sum(self, values: Iterable[tuple[int, float]]) -> Floats:
        """The sum of what is given for the regions that lie in each run."""
        total = np.zeros((self._size, self._size))
        for region, value in values:
            layers = self.problem.region_layers[region]
            total[layers[0], layers[-1] + 1] += value
        return np.asarray(total[::-1].cumsum(axis=0)[::-1].cumsum(axis=1))
