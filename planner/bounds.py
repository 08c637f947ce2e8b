"""Bounds that hold for every plan, whatever its stages and transfers.

Weak, but valid where a solver has nothing better to say: all work spread over all devices without
loss; the longest chain of layers, each where it is fastest, without transfers.
"""

from __future__ import annotations

from planner.figures import Figures
from planner.problem import PlanningProblem
from planner.request import Objective


def objective_bound_s(problem: PlanningProblem, figures: Figures) -> float:
    """No plan for ``problem`` has an objective below this."""
    if problem.request.objective is Objective.THROUGHPUT:
        return period_bound_s(problem, figures)
    return latency_bound_s(problem, figures)


def period_bound_s(problem: PlanningProblem, figures: Figures) -> float:
    """The work of a batch, each layer where an item costs least, over all devices."""
    rates: dict[str, float] = {}
    total = 0.0
    for i, layer in enumerate(problem.graph.layers):
        if layer.twin not in rates:
            rates[layer.twin] = min(
                figures.time_s(i, members[0], items) / items
                for members in problem.classes
                for items in _sizes(problem, layer.twin, members[0])
            )
        total += problem.batch * rates[layer.twin]
    return total / len(problem.devices)


def latency_bound_s(problem: PlanningProblem, figures: Figures) -> float:
    """The longest chain of layers, each with the least share on its fastest device."""
    fastest: dict[str, float] = {}
    longest: list[float] = []
    graph = problem.graph
    for i, layer in enumerate(graph.layers):
        if layer.twin not in fastest:
            least = 1 if problem.batch_splits else problem.microbatch
            fastest[layer.twin] = min(
                figures.time_s(i, members[0], least) for members in problem.classes
            )
        before = [
            longest[graph.layer_index[producer]]
            for name in layer.reads
            if (producer := graph.tensor[name].producer) is not None
        ]
        longest.append(fastest[layer.twin] + max(before, default=0.0))
    return max(longest)


def _sizes(problem: PlanningProblem, twin: str, device: str) -> list[int]:
    """Item counts at which the time of one item can be least: the ends of straight pieces."""
    most = problem.batch
    measured = [row.items for row in problem.profile.timings_of[device].layers[twin]]
    return sorted({1, problem.microbatch, most, *(n for n in measured if n <= most)})
