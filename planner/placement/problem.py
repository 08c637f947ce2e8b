"""Where to run the operators of a graph: the question, checked once, and an answer.

Times are seconds, sizes bytes. A :class:`PlacementProblem` is smaller than a
:class:`~planner.problem.PlanningProblem`: one time per operator and kind of device, one cost per
tensor, no batch split. It owns what the question means; it knows no solver.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import networkx as nx

from profiler.errors import InvalidInputError


class Charging(StrEnum):
    """Who pays for moving a tensor between a device and host memory."""

    DEVICE = "device"  # the device waits: its load is computing plus transfers
    WIRE = "wire"  # the wire of the device works beside it: its load is the larger of the two


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """A node of the graph.

    ``times_s`` holds a time for each kind of device that can run it. Operators with an equal
    ``together`` share a device. ``backward`` ones need not be contiguous (see
    :class:`~planner.placement.blocks.Blocks`).
    """

    name: str
    times_s: Mapping[str, float]
    size_bytes: int = 0
    together: str | None = None
    backward: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """An output of an operator, and the operators that read it.

    Moving it between a device and host memory takes ``transfer_s`` times the factor of the device,
    once per device whatever the number of readers there.
    """

    producer: str
    consumers: tuple[str, ...]
    transfer_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A device. ``transfer_factor`` 0 is a host processor: it computes in host memory."""

    name: str
    kind: str
    memory_bytes: int | None = None
    transfer_factor: float = 1.0

    @property
    def is_host(self) -> bool:
        """Whether it reads and writes host memory at no cost."""
        return self.transfer_factor == 0


@dataclass(frozen=True, kw_only=True)
class PlacementProblem:
    """Operators, what flows between them, and the devices they may run on.

    Raises:
        InvalidInputError: no operator or device, names that repeat or are unknown, negative or
            infinite figures, an operator that no device runs, operators to be kept together with
            no device in common, a cycle.
    """

    operators: tuple[Operator, ...]
    flows: tuple[Flow, ...]
    places: tuple[Place, ...]
    charging: Charging = Charging.DEVICE

    def __post_init__(self) -> None:
        """Check the parts, one by one and against each other."""
        _check_names("operator", [o.name for o in self.operators])
        _check_names("device", [p.name for p in self.places])
        for operator in self.operators:
            _check_operator(operator)
        for place in self.places:
            _check_place(place)
        for flow in self.flows:
            _check_flow(flow, self.index)
        _check_support(self)
        _check_acyclic(self)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each operator by name."""
        return {o.name: i for i, o in enumerate(self.operators)}

    @cached_property
    def place_index(self) -> dict[str, int]:
        """Position of each device by name."""
        return {p.name: i for i, p in enumerate(self.places)}

    @cached_property
    def pins(self) -> tuple[tuple[int, ...], ...]:
        """For each flow: its producer, then its other readers in ascending order."""
        found = []
        for flow in self.flows:
            producer = self.index[flow.producer]
            readers = {self.index[name] for name in flow.consumers} - {producer}
            found.append((producer, *sorted(readers)))
        return tuple(found)

    @cached_property
    def digraph(self) -> nx.DiGraph[int]:
        """Positions of operators, an edge from each producer to each reader."""
        graph: nx.DiGraph[int] = nx.DiGraph()
        graph.add_nodes_from(range(len(self.operators)))
        for producer, *readers in self.pins:
            graph.add_edges_from((producer, reader) for reader in readers)
        return graph

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Operators that share a device, most often one; by first member."""
        found: dict[object, list[int]] = {}
        for i, operator in enumerate(self.operators):
            key = ("alone", i) if operator.together is None else ("together", operator.together)
            found.setdefault(key, []).append(i)
        return tuple(tuple(members) for members in found.values())

    @cached_property
    def classes(self) -> tuple[tuple[int, ...], ...]:
        """Devices that differ in nothing but their names; exchanging two changes no figure."""
        found: dict[object, list[int]] = {}
        for i, place in enumerate(self.places):
            key = (place.kind, place.memory_bytes, place.transfer_factor)
            found.setdefault(key, []).append(i)
        return tuple(tuple(members) for members in found.values())

    def time_s(self, operator: int, place: int) -> float:
        """What ``operator`` takes on ``place``; infinite where it does not run."""
        return self.operators[operator].times_s.get(self.places[place].kind, math.inf)


def _check_names(what: str, names: list[str]) -> None:
    if not names:
        raise InvalidInputError(f"a placement needs at least one {what}, got none: add one")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidInputError(f"two {what}s are called {name!r}: give each its own name")
        seen.add(name)


def _check_number(value: float, what: str) -> None:
    if not math.isfinite(value) or value < 0:
        raise InvalidInputError(f"{what} is {value}, it has to be finite and at least 0")


def _check_operator(operator: Operator) -> None:
    if not operator.times_s:
        raise InvalidInputError(
            f"operator {operator.name!r} has no time for any kind of device: measure it on one"
        )
    for kind, time_s in operator.times_s.items():
        _check_number(time_s, f"the time of operator {operator.name!r} on {kind!r}")
    _check_number(operator.size_bytes, f"the size of operator {operator.name!r}")


def _check_place(place: Place) -> None:
    if place.memory_bytes is not None:
        _check_number(place.memory_bytes, f"the memory of device {place.name!r}")
    _check_number(place.transfer_factor, f"the transfer factor of device {place.name!r}")


def _check_flow(flow: Flow, known: Iterable[str]) -> None:
    for name in (flow.producer, *flow.consumers):
        if name not in known:
            raise InvalidInputError(
                f"a tensor of operator {flow.producer!r} names operator {name!r}, "
                "which is not in the graph"
            )
    if flow.producer in flow.consumers:
        raise InvalidInputError(f"operator {flow.producer!r} reads its own output: a cycle")
    _check_number(flow.transfer_s, f"the transfer time of a tensor of {flow.producer!r}")


def _check_support(problem: PlacementProblem) -> None:
    kinds = {p.kind for p in problem.places}
    for group in problem.groups:
        names = [problem.operators[i].name for i in group]
        common = set(kinds)
        for i in group:
            own = kinds & problem.operators[i].times_s.keys()
            if not own:
                raise InvalidInputError(
                    f"operator {problem.operators[i].name!r} runs on "
                    f"{sorted(problem.operators[i].times_s)}, but the devices are of kind "
                    f"{sorted(kinds)}: add a device or a time"
                )
            common &= own
        if not common:
            raise InvalidInputError(
                f"operators {names} have to share a device, but no kind of device runs all of them"
            )


def _check_acyclic(problem: PlacementProblem) -> None:
    try:
        cycle = nx.find_cycle(problem.digraph)
    except nx.NetworkXNoCycle:
        return
    names = " -> ".join(problem.operators[edge[0]].name for edge in cycle)
    raise InvalidInputError(f"the graph has a cycle: {names}; break it up before placing it")
