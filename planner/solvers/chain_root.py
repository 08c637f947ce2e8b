"""What feeding and collecting adds to runs of layers on the root (``planner.root_work``), as arrays
for the chain solver."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.options import Option
from planner.problem import PlanningProblem
from planner.root_work import RootRates, RootSeat
from planner.solvers.arrays import Flags, Floats


def on_root(problem: PlanningProblem, options: Sequence[Option]) -> Flags:
    """The options with a rank on the root's device."""
    root = problem.class_of.get(problem.cluster.root, -1)
    return np.array([any(c == root for c, _ in x.members) for x in options], dtype=np.bool_)


def root_seconds(problem: PlanningProblem, rates: RootRates, options: Sequence[Option]) -> Floats:
    """Seconds that one run of a stage takes longer, by option, start and end of its layers:
    ``[option, 1, 1]`` zeros where nothing is charged."""
    seated = on_root(problem, options)
    if not rates.each.total_s or not seated.any():
        return np.zeros((len(options), 1, 1))
    graph, size = problem.graph, problem.num_layers + 1
    found = np.zeros((len(options), size, size))
    within = {name: _within(graph.readers[name], size) for name in rates.inputs}
    root = problem.class_of[problem.cluster.root]
    for n, option in enumerate(options):
        if not seated[n]:
            continue
        position = next(r for r, (c, _) in enumerate(option.members) if c == root)
        shares = [share for _, share in option.members]
        seat = RootSeat.at(position, shares, divides=option.is_tensor)
        for name, seconds in rates.inputs.items():
            some, every = within[name]
            times = seat.sent(in_parts=graph.tensor[name].in_parts)
            found[n] += seconds * (times * some + ~every)
        for name, seconds in rates.outputs.items():
            producer = graph.tensor[name].producer
            assert producer is not None
            inside, _ = _within((graph.layer_index[producer],), size)
            times = seat.received(in_parts=graph.tensor[name].in_parts)
            found[n] += seconds * np.where(inside, times, 1.0)
        if option.whole_batch:
            found[n] *= problem.num_microbatches
    return found


def _within(layers: Sequence[int], size: int) -> tuple[Flags, Flags]:
    """Whether the run from each start to each end has some of ``layers``, and all of them."""
    marks = np.zeros(size - 1, dtype=np.int64)
    marks[list(layers)] = 1
    before = np.concatenate([[0], np.cumsum(marks)])
    inside = before[None, :] - before[:, None]
    return np.asarray(inside > 0), np.asarray(inside == before[-1])
