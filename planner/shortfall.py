"""What lacks most where nothing fits, in numbers.

A layer without a home, too little memory in all, or the device where least more would do.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.figures import Figures
from planner.memory import least_alive, root_bytes
from planner.problem import PlanningProblem
from profiler.errors import Change
from profiler.units import format_bytes


def plainly_nothing(problem: PlanningProblem) -> bool:
    """Whether no plan fits for a reason that needs no search: more weights than memory, or a layer
    that is too much for every device. Where False, nothing is known."""
    if _too_heavy(problem) is not None:
        return True
    return not problem.batch_splits and _homeless_layer(problem) is not None


def shortfall(problem: PlanningProblem, changes: Sequence[Change]) -> str:
    """What needs how much, and how much there is. ``changes`` make a plan fit, each alone."""
    return _homeless_layer(problem) or _too_heavy(problem) or _tightest(problem, changes)


def _homeless_layer(problem: PlanningProblem) -> str | None:
    """The layer that lacks most memory on every device it may run on, if there is one."""
    figures, graph = Figures(problem), problem.graph
    worst: tuple[int, str] | None = None
    for i, layer in enumerate(graph.layers):
        if problem.tensor_splits and i in graph.region_of:
            continue  # several devices may hold it together
        items = 1 if problem.batch_splits else problem.microbatch
        needs, rooms = [], []
        for device, *_ in problem.classes:
            if device in problem.allowed[i]:
                need = graph.weight_bytes([i]) + least_alive(figures, i, device, items)
                needs.append(need + root_bytes(figures, device))
                rooms.append(problem.capacity_bytes(device) - problem.reserve_bytes(device))
        if all(need > room for need, room in zip(needs, rooms, strict=True)):
            need, room = min(needs), max(rooms)
            where = (
                "the device allowed for it has"
                if len(problem.allowed[i]) == 1
                else "no device allowed for it has more than"
            )
            text = (
                f"{layer.name} needs {format_bytes(need)}, but {where} "
                f"{format_bytes(max(0, room))} besides the reserve"
            )
            if worst is None or need - room > worst[0]:
                worst = need - room, text
    return worst[1] if worst else None


def _too_heavy(problem: PlanningProblem) -> str | None:
    """That the weights exceed all memory, if they do."""
    weights = problem.graph.total_weight_bytes
    free = sum(
        len(members) * max(0, problem.capacity_bytes(device) - problem.reserve_bytes(device))
        for members in problem.classes
        for device in members[:1]
    )
    if weights <= free:
        return None
    return (
        f"the model needs {format_bytes(weights)} for its weights alone, but "
        f"{_all_devices(problem)} {format_bytes(free)} besides the reserve"
    )


def _tightest(problem: PlanningProblem, changes: Sequence[Change]) -> str:
    """The device where least more memory is enough, else the limits as a whole."""
    more = [x for x in changes if x.limit == "memory" and x.now is not None and x.becomes]
    if more:
        least = min(more, key=lambda x: (x.becomes or 0) - (x.now or 0))
        has = problem.capacity_bytes(least.subject)
        return (
            f"the least demanding split of {problem.num_layers} layers needs "
            f"{format_bytes(least.becomes or 0)} on {least.subject}, but a plan may use "
            f"{format_bytes(has)} of it"
        )
    rooms = [len(members) * problem.capacity_bytes(members[0]) for members in problem.classes]
    weights = problem.graph.total_weight_bytes
    return (
        f"the model, split as the request allows, needs {format_bytes(weights)} of weights with "
        f"activations, buffers and reserves, but {_all_devices(problem)} "
        f"{format_bytes(sum(rooms))}"
    )


def _all_devices(problem: PlanningProblem) -> str:
    count = len(problem.devices)
    return "the one device has" if count == 1 else f"all {count} devices together have"
