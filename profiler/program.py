"""The captured model as plain data: a list of operator calls that any process can rebuild.

A :class:`Program` is what ``torch.export`` saw, without torch objects: operators by name,
arguments as JSON, shapes as expressions over ``batch``. It can be cut, hashed and sent to a rank
as text; nothing in it is executable code. Arguments are JSON values, with these marks for what
JSON lacks (one key each):

``{"node": name}`` a value of the program, ``{"dtype": "float32"}``, ``{"layout": "strided"}``,
``{"memory_format": "contiguous_format"}``, ``{"device": true}`` (wherever the rank computes),
``{"float": "inf"}``, ``{"complex": [re, im]}``, ``{"slice": [start, stop, step]}``,
``{"graph": name}`` (a nested program, argument of a control-flow operator).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from profiler.documents import canonical_json, digest
from profiler.expressions import Size
from profiler.graph import DTYPE_BYTES

Arg = Any
"""An encoded argument; see the module's first paragraph."""

JOIN_SUM = "apportion.join_sum"
JOIN_CONCAT = "apportion.join_concat"
JOINS = frozenset({JOIN_SUM, JOIN_CONCAT})
"""Operators that put together what several ranks have of a value (``profiler.sharding``).

Their arguments: the rank's part, the join's number, the value's name; ``concat`` also the dim and
the length of each rank's part in each of the runs that lie one after another along it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Shape (numbers and expressions) and dtype of a value."""

    shape: tuple[Size, ...]
    dtype: str

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator call. ``spec`` is its tensor result; ``size`` its result if that is a number
    computed from shapes; neither when it returns several values or a number computed from data.
    """

    name: str
    op: str
    args: tuple[Arg, ...]
    kwargs: dict[str, Arg]
    spec: TensorSpec | None = None
    size: Size | None = None

    def references(self) -> tuple[str, ...]:
        """Names of the values it reads, first use first, each once."""
        found: dict[str, None] = {}
        for arg in (*self.args, *self.kwargs.values()):
            for name in references(arg):
                found.setdefault(name)
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubProgram:
    """A nested program of a control-flow operator: inputs by position, one encoded output."""

    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    output: Arg


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The part of a weight that a rank holds: ``runs`` (from, up to) of ``dim``, one after another.
    ``whole`` is the weight's own shape."""

    dim: int
    runs: tuple[tuple[int, int], ...]
    whole: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPort:
    """A value that is a parameter, buffer or constant; ``weight`` is its qualified name.

    ``constant``: not part of the saved state (rotary frequencies, position tables), so its value
    travels with the program. ``trainable``: the model holds it as a parameter with gradient. No
    gradient is ever computed, but torch picks other kernels for such weights (a linear layer on
    a transposed input is up to twice as fast), so stages hold it in the same way. ``shape`` is that
    of the ``shard``, if the rank holds only part of the weight.
    """

    name: str
    weight: str
    shape: tuple[int, ...]
    dtype: str
    constant: bool
    trainable: bool = False
    shard: Shard | None = None

    @property
    def num_bytes(self) -> int:
        """Size of the weight."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputPort:
    """A tensor the caller passes. ``batch_dim`` as the caller declared it."""

    name: str
    spec: TensorSpec
    batch_dim: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLeaf:
    """One leaf of the model's answer: a value of the program, or a constant (number, text, None).

    ``size`` is set for a number that depends on the batch.
    """

    value: str | None = None
    constant: Any = None
    size: Size | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A whole captured model."""

    inputs: tuple[InputPort, ...]
    weights: tuple[WeightPort, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[OutputLeaf, ...]
    graphs: dict[str, SubProgram]

    def fingerprint(self) -> str:
        """Digest of operators, shapes, weight names and outputs; equal for equal models.

        Freezing a model's weights does not make it another one.
        """
        data = asdict(self)
        for port in data["weights"]:
            del port["trainable"], port["shard"]
        return digest(canonical_json(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProgram:
    """The part of a program that one rank runs.

    ``inputs`` are tensors, in the order the built module takes them, followed by ``sizes``:
    numbers that the caller computes from ``batch`` (name, expression). ``outputs`` are the
    tensors it returns, as a tuple.
    """

    inputs: tuple[str, ...]
    sizes: tuple[tuple[str, Size], ...]
    weights: tuple[WeightPort, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    graphs: dict[str, SubProgram]

    def to_data(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @staticmethod
    def from_data(data: dict[str, Any]) -> StageProgram:
        """From :meth:`to_data` after a round trip through JSON."""
        return StageProgram(
            inputs=tuple(data["inputs"]),
            sizes=tuple((name, size) for name, size in data["sizes"]),
            weights=tuple(_port(port) for port in data["weights"]),
            nodes=tuple(_node(node) for node in data["nodes"]),
            outputs=tuple(data["outputs"]),
            graphs={name: _graph(graph) for name, graph in data["graphs"].items()},
        )


def read_shard(data: Mapping[str, Any]) -> Shard | None:
    """The shard of a weight port given as data; None where the rank holds the whole weight."""
    shard = data.get("shard")
    if shard is None:
        return None
    runs = tuple((start, stop) for start, stop in shard["runs"])
    return Shard(dim=shard["dim"], runs=runs, whole=tuple(shard["whole"]))


def _port(data: dict[str, Any]) -> WeightPort:
    return WeightPort(**{**data, "shape": tuple(data["shape"]), "shard": read_shard(data)})


def _node(data: dict[str, Any]) -> Node:
    spec = data["spec"]
    return Node(
        name=data["name"],
        op=data["op"],
        args=tuple(data["args"]),
        kwargs=data["kwargs"],
        spec=spec and TensorSpec(shape=tuple(spec["shape"]), dtype=spec["dtype"]),
        size=data["size"],
    )


def _graph(data: dict[str, Any]) -> SubProgram:
    return SubProgram(
        inputs=tuple(data["inputs"]),
        nodes=tuple(_node(node) for node in data["nodes"]),
        output=data["output"],
    )


def references(arg: Arg) -> Iterator[str]:
    """Names of the values an encoded argument refers to."""
    if isinstance(arg, dict):
        if "node" in arg:
            yield arg["node"]
        elif "slice" in arg:
            for part in arg["slice"]:
                yield from references(part)
    elif isinstance(arg, (list, tuple)):
        for part in arg:
            yield from references(part)


def rename(arg: Arg, name_of: Callable[[str], str]) -> Arg:
    """The same argument with every referred value renamed."""
    if isinstance(arg, dict):
        if "node" in arg:
            return {"node": name_of(arg["node"])}
        if "slice" in arg:
            return {"slice": [rename(part, name_of) for part in arg["slice"]]}
        return arg
    if isinstance(arg, (list, tuple)):
        return [rename(part, name_of) for part in arg]
    return arg
