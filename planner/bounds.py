"""Bounds that hold for every plan, whatever its pipelines, stages and transfers.

Weak, but valid where a solver has nothing better to say: all work spread over all devices without
loss; the longest chain of layers, each where it is fastest, without transfers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.figures import Figures
from planner.memory import root_bytes
from planner.problem import PlanningProblem

MAX_WEIGHTS = 16
"""Different devices whose times serve as weights of the layers."""

_ROUNDING = 1e-12  # of sums in another order: a bound must not exceed what it bounds


def objective_bound_s(problem: PlanningProblem, figures: Figures) -> float:
    """No plan for ``problem`` has an objective below this."""
    period_s = period_bound_s(problem, figures)
    if not problem.request.objective.counts_latency:
        return period_s
    # Within the latency every device computes its part of the batch.
    return max(period_s, latency_bound_s(problem, figures))


def period_bound_s(problem: PlanningProblem, figures: Figures) -> float:
    """The work of a batch over all devices: none is busy for less on average."""
    everything = np.array([[len(members) for members in problem.classes]])
    # A short last microbatch counts as a whole one, except where stages wait for the batch.
    whole = problem.num_microbatches * problem.microbatch
    items = problem.items if problem.whole_batch else whole
    seconds = items * float(WorkBound(problem, figures).item_s(everything)[0])
    return seconds if seconds < np.inf else 0.0


class WorkBound:
    """The least time an item can take on a group of devices, from their computing alone.

    Let ``r[l, d]`` be the least time of layer ``l`` on device ``d`` for one of the items that it
    may get at once. For any weights ``w[l] >= 0`` a device gets through at most
    ``max_l w[l] / r[l, d]`` of weighted layers a second, and an item is ``sum_l w[l]`` of them, so

        seconds per item >= sum_l w[l] / sum_d max_l (w[l] / r[l, d])

    (weak duality of the linear programme that shares every layer among the devices at will). The
    times on each device serve as weights: exact where all devices are alike up to a factor.
    """

    def __init__(self, problem: PlanningProblem, figures: Figures) -> None:
        rates = np.array([_item_times(problem, figures, c) for c in range(len(problem.classes))])
        device = [members[0] for members in problem.classes]
        self._may = np.array([[d in here for here in problem.allowed] for d in device])
        weights = [*np.unique(rates, axis=0)[:MAX_WEIGHTS], rates.min(axis=0)]
        self._work = [float(w.sum()) for w in weights]
        self._speed = [self._speeds(w, rates) for w in weights]
        taken = [problem.reserve_bytes(d) + root_bytes(figures, d) for d in device]
        self._room = np.array(
            [max(0, problem.capacity_bytes(d) - n) for d, n in zip(device, taken, strict=True)],
            dtype=np.float64,
        )
        self._weight_bytes = problem.graph.weight_bytes(range(problem.num_layers))

    def item_s(self, groups: NDArray[np.int64]) -> NDArray[np.float64]:
        """Least seconds per item of each group, given as device counts by class ``[group, class]``.

        Infinite where the weights exceed the memory, or a layer may run nowhere.
        """
        least = np.zeros(len(groups))
        for work, speed in zip(self._work, self._speed, strict=True):
            with np.errstate(divide="ignore", invalid="ignore"):
                total = groups @ np.where(np.isinf(speed), 0.0, speed)
                seconds = np.where(total > 0, work / total, np.inf if work > 0 else 0.0)
            endless = (groups[:, np.isinf(speed)] > 0).any(axis=1)
            least = np.maximum(least, np.where(endless, 0.0, seconds))
        heavy = groups @ self._room < self._weight_bytes
        homeless = ~((groups @ self._may.astype(np.int64)) > 0).all(axis=1)
        return np.where(heavy | homeless, np.inf, least * (1 - _ROUNDING))

    def _speeds(
        self, weights: NDArray[np.float64], rates: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The most weighted layers that a device of each class gets through in a second."""
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.where(weights > 0, weights / rates, 0.0)
        return np.asarray(np.where(self._may, each, 0.0).max(axis=1))


def latency_bound_s(problem: PlanningProblem, figures: Figures) -> float:
    """The longest chain of layers, each with the share that takes least on its fastest device; or,
    what a region divides, spread over all devices."""
    fastest: dict[tuple[str, float], float] = {}
    longest: list[float] = []
    graph = problem.graph
    for i, layer in enumerate(graph.layers):
        region = graph.region_of.get(i) if problem.tensor_splits else None
        divided = 0.0
        if region is not None:
            timings = problem.profile.timings
            divided = max(x.most_divided(graph.regions[region]) for x in timings)
        key = layer.twin, divided
        if key not in fastest:
            fastest[key] = min(
                figures.time_s(i, members[0], items)
                for members in problem.classes
                for items in _sizes(problem, layer.twin, members[0])
            )
            if divided:
                fastest[key] = min(fastest[key], _spread_s(problem, figures, i, divided))
        before = [
            longest[graph.layer_index[producer]]
            for name in layer.reads
            if (producer := graph.tensor[name].producer) is not None
        ]
        longest.append(fastest[key] + max(before, default=0.0))
    return max(longest)


def _spread_s(problem: PlanningProblem, figures: Figures, layer: int, divided: float) -> float:
    """The least time of a layer of which all devices do parts at once.

    Rank r takes ``t_r * (1 - divided + divided * x_r)`` for its part ``x_r``, and the parts make a
    whole; by the mean of this over ranks, weighted by ``1 / t_r``, the slowest takes as long as

        (1 - divided) * min_r t_r + divided / sum_r (1 / t_r)
    """
    counts = {problem.microbatch, problem.batch} if problem.whole_batch else {problem.microbatch}
    times = [
        min(figures.time_s(layer, members[0], items) for items in counts)
        for members in problem.classes
    ]
    if min(times) <= 0:
        return 0.0
    speed = sum(len(c) / t for c, t in zip(problem.classes, times, strict=True))
    return ((1 - divided) * min(times) + divided / speed) * (1 - _ROUNDING)


def _item_times(problem: PlanningProblem, figures: Figures, c: int) -> Sequence[float]:
    """Least seconds of an item of each layer on a device of class ``c``."""
    device = problem.classes[c][0]
    found: dict[str, float] = {}
    for i, layer in enumerate(problem.graph.layers):
        if layer.twin not in found:
            found[layer.twin] = min(
                figures.time_s(i, device, items) / items
                for items in _sizes(problem, layer.twin, device)
            )
    return [found[layer.twin] for layer in problem.graph.layers]


def _sizes(problem: PlanningProblem, twin: str, device: str) -> list[int]:
    """Item counts that a rank may get, at which the time of all, and that of one, can be least.

    Between measured sizes the time rises in a line or stays: both are least at their ends.
    """
    most = problem.microbatch
    whole = {problem.batch} if problem.whole_batch else set()
    if not problem.batch_splits:
        return sorted({most} | whole)
    measured = [row.items for row in problem.profile.timings_of[device].layers[twin]]
    return sorted({1, most, *(n for n in measured if n <= most)} | whole)
