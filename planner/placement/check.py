"""Derives objective and feasibility of any placement from the problem alone.

Shares no code with the solvers, and imports none of them: it walks over operators and flows, never
over blocks, nets or down-sets.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass

import networkx as nx

from planner.placement.problem import Charging, PlacementProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a placement costs, and every rule it breaks (none if it is feasible)."""

    objective_s: float
    violations: tuple[str, ...]


def check_loads(
    problem: PlacementProblem, devices: tuple[int, ...], *, contiguous: bool
) -> Checked:
    """The largest load of any device.

    ``contiguous``: forward operators of each device have to be such that devices can stand in a
    line with tensors flowing forwards only.
    """
    if len(devices) != len(problem.operators):
        return _unlike(problem, devices)
    broken = _common(problem, devices)
    if contiguous and not broken and not _flows_one_way(problem, devices):
        broken.append("tensors flow in a circle between devices")
    loads = [_load(problem, devices, p) for p in range(len(problem.places))]
    return Checked(objective_s=max(loads), violations=tuple(broken))


def check_latency(
    problem: PlacementProblem,
    devices: tuple[int, ...],
    jobs: tuple[int, ...],
    *,
    max_jobs: int,
) -> Checked:
    """When the last operator is done, for one sample.

    Operators on host processors start when what they read is in host memory. A job of an
    accelerator receives once everything it reads is there, computes, sends, and is not interrupted;
    the jobs of an accelerator run one after another. Host processors are as many as needed.
    """
    if not len(devices) == len(jobs) == len(problem.operators):
        return _unlike(problem, devices)
    broken = _common(problem, devices)
    unit: list[tuple[int, int]] = []
    numbers: dict[int, set[int]] = defaultdict(set)
    for i, place in enumerate(devices):
        if problem.places[place].is_host:
            unit.append((-1, i))
        else:
            unit.append((place, jobs[i]))
            numbers[place].add(jobs[i])
    for place, used in sorted(numbers.items()):
        if len(used) > max_jobs:
            broken.append(
                f"device {problem.places[place].name} runs {len(used)} jobs, at most {max_jobs}"
            )
    graph: nx.DiGraph[tuple[int, int]] = nx.DiGraph()
    graph.add_nodes_from(unit)
    for flow in problem.flows:
        source = unit[problem.index[flow.producer]]
        for name in flow.consumers:
            graph.add_edge(source, unit[problem.index[name]])
    for place, used in numbers.items():
        line = sorted(used)
        graph.add_edges_from(((place, a), (place, b)) for a, b in itertools.pairwise(line))
    graph.remove_edges_from([(one, other) for one, other in graph.edges if one == other])
    if not nx.is_directed_acyclic_graph(graph):
        return Checked(
            objective_s=math.inf, violations=(*broken, "jobs wait for each other in a circle")
        )
    done: dict[tuple[int, int], float] = {}
    for one in nx.topological_sort(graph):
        start = max((done[before] for before in graph.predecessors(one)), default=0.0)
        done[one] = start + _unit_time(problem, devices, unit, one)
    return Checked(objective_s=max(done.values()), violations=tuple(broken))


def _unlike(problem: PlacementProblem, devices: tuple[int, ...]) -> Checked:
    message = f"{len(devices)} devices for {len(problem.operators)} operators"
    return Checked(objective_s=math.inf, violations=(message,))


def _common(problem: PlacementProblem, devices: tuple[int, ...]) -> list[str]:
    """Rules of every placement: one device each, support, groups, memory."""
    broken = []
    groups: dict[str, set[object]] = defaultdict(set)
    used = [0] * len(problem.places)
    for operator, device in zip(problem.operators, devices, strict=True):
        place = problem.places[device]
        if place.kind not in operator.times_s:
            broken.append(f"operator {operator.name} does not run on {place.name}")
        if operator.together is not None:
            groups[operator.together].add(place.name)
        used[device] += operator.size_bytes
    for name, places in sorted(groups.items()):
        if len(places) > 1:
            broken.append(f"group {name} is on {len(places)} devices")
    for place, taken in zip(problem.places, used, strict=True):
        if place.memory_bytes is not None and taken > place.memory_bytes:
            broken.append(f"device {place.name} holds {taken} of {place.memory_bytes} bytes")
    return broken


def _load(problem: PlacementProblem, devices: tuple[int, ...], place: int) -> float:
    kind, factor = problem.places[place].kind, problem.places[place].transfer_factor
    work = math.fsum(
        operator.times_s.get(kind, math.inf)
        for operator, device in zip(problem.operators, devices, strict=True)
        if device == place
    )
    moved = []
    for flow in problem.flows:
        own = devices[problem.index[flow.producer]] == place
        others = [devices[problem.index[name]] for name in flow.consumers]
        sends = own and any(device != place for device in others)
        receives = not own and place in others
        if sends or receives:
            moved.append(factor * flow.transfer_s)
    wire = math.fsum(moved)
    return work + wire if problem.charging is Charging.DEVICE else max(work, wire)


def _flows_one_way(problem: PlacementProblem, devices: tuple[int, ...]) -> bool:
    graph: nx.DiGraph[int] = nx.DiGraph()
    for flow in problem.flows:
        source = problem.index[flow.producer]
        for name in flow.consumers:
            reader = problem.index[name]
            backward = problem.operators[source].backward or problem.operators[reader].backward
            if devices[source] != devices[reader] and not backward:
                graph.add_edge(devices[source], devices[reader])
    return nx.is_directed_acyclic_graph(graph)


def _unit_time(
    problem: PlacementProblem,
    devices: tuple[int, ...],
    unit: list[tuple[int, int]],
    one: tuple[int, int],
) -> float:
    """How long a job, or an operator on a host processor, takes once it starts."""
    own = [i for i in range(len(devices)) if unit[i] == one]
    place = problem.places[devices[own[0]]]
    work = math.fsum(problem.operators[i].times_s.get(place.kind, math.inf) for i in own)
    moved = []
    for flow in problem.flows:
        inside = unit[problem.index[flow.producer]] == one
        readers = [unit[problem.index[name]] == one for name in flow.consumers]
        if (inside and not all(readers)) or (not inside and any(readers)):
            moved.append(place.transfer_factor * flow.transfer_s)
    return work + math.fsum(moved)
