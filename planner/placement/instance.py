"""Placement problems as JSON files, in the form in which such instances are published.

A file holds ``nodes`` (``id``, ``supportedOnFpga``, ``cpuLatency``, ``fpgaLatency``, ``size`` in
bytes, ``colorClass`` or none, ``isBackwardNode``), ``edges`` (``sourceId``, ``destId``, ``cost`` to
move the source's output), ``maxFPGAs`` accelerators of ``maxSizePerFPGA`` bytes and ``maxCPUs``
host processors. "FPGA" stands for any accelerator; other fields are not read. Times are in any one
unit: the objective is in the same, whatever names here say about seconds.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from planner.placement.problem import Charging, Flow, Operator, Place, PlacementProblem
from profiler.documents import describe, parse_data, read_text
from profiler.errors import InvalidInputError

ACCELERATOR, HOST = "accelerator", "cpu"
"""Kinds of devices of an instance."""

SAME = 1e-6
"""Edges out of a node may differ in cost by this fraction: some files print fewer digits."""

Key = Annotated[str, BeforeValidator(lambda x: str(x) if isinstance(x, int | float) else x)]
Count = Annotated[float, Field(ge=0)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Node(_Entry):
    id: Key
    supportedOnFpga: bool
    cpuLatency: Count
    fpgaLatency: Count
    size: Count = 0
    colorClass: Key | None = None
    isBackwardNode: bool = False


class _Edge(_Entry):
    sourceId: Key
    destId: Key
    cost: Count


class _Instance(_Entry):
    maxSizePerFPGA: Count
    maxFPGAs: int = Field(ge=0)
    maxCPUs: int = Field(ge=0)
    nodes: tuple[_Node, ...]
    edges: tuple[_Edge, ...]


def read_instance(
    path: str | os.PathLike[str],
    *,
    transfer_scale: float = 1.0,
    charging: Charging = Charging.DEVICE,
) -> PlacementProblem:
    """The problem in a file, its transfer costs times ``transfer_scale``.

    Devices are called ``accelerator0``, ... and ``cpu0``, ...

    Raises:
        InvalidInputError: no such instance (a field missing or of the wrong type), edges out of a
            node that differ in cost, or whatever :class:`PlacementProblem` refuses.
    """
    if not (math.isfinite(transfer_scale) and transfer_scale >= 0):
        raise InvalidInputError(
            f"transfer costs times {transfer_scale}: the factor has to be finite and at least 0"
        )
    name = str(path)
    data = parse_data(read_text(Path(path)), name=name, is_json=True)
    try:
        instance = _Instance.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise InvalidInputError(describe(error, name)) from error
    return PlacementProblem(
        operators=tuple(_operator(node) for node in instance.nodes),
        flows=_flows(instance.edges, transfer_scale, name),
        places=machines(
            instance.maxFPGAs, instance.maxCPUs, memory_bytes=math.floor(instance.maxSizePerFPGA)
        ),
        charging=charging,
    )


def machines(accelerators: int, hosts: int, *, memory_bytes: int | None) -> tuple[Place, ...]:
    """Equal accelerators with a memory, and host processors without limit."""
    return (
        *(
            Place(name=f"{ACCELERATOR}{i}", kind=ACCELERATOR, memory_bytes=memory_bytes)
            for i in range(accelerators)
        ),
        *(Place(name=f"{HOST}{i}", kind=HOST, transfer_factor=0.0) for i in range(hosts)),
    )


def _operator(node: _Node) -> Operator:
    times = {HOST: node.cpuLatency}
    if node.supportedOnFpga:
        times[ACCELERATOR] = node.fpgaLatency
    return Operator(
        name=node.id,
        times_s=times,
        size_bytes=math.ceil(node.size),
        together=node.colorClass,
        backward=node.isBackwardNode,
    )


def _flows(edges: tuple[_Edge, ...], scale: float, name: str) -> tuple[Flow, ...]:
    """One flow for each node with an edge out of it."""
    costs: dict[str, float] = {}
    readers: dict[str, dict[str, None]] = {}
    for edge in edges:
        cost = costs.setdefault(edge.sourceId, edge.cost)
        if not math.isclose(cost, edge.cost, rel_tol=SAME, abs_tol=SAME):
            raise InvalidInputError(
                f"{name}: edges out of node {edge.sourceId} cost {cost} and {edge.cost}, but its "
                "output is one tensor: give them the same cost"
            )
        readers.setdefault(edge.sourceId, {})[edge.destId] = None
    return tuple(
        Flow(producer=source, consumers=tuple(out), transfer_s=costs[source] * scale)
        for source, out in readers.items()
    )
