"""From a stage program to a module that computes: the inverse of ``profiler.encode``.

The module is a ``torch.fx.GraphModule`` with generated code (as fast as the model's own forward)
that holds the stage's weights and nothing else, and frees every value after its last use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from profiler.errors import InvalidInputError
from profiler.operators import resolve_operator
from profiler.program import JOINS, Arg, Node, StageProgram, SubProgram, WeightPort

JoinMaker = Callable[[Node], Callable[[torch.Tensor], torch.Tensor]]
"""For a node that joins, what turns this rank's part into the whole."""


class JoinModule(nn.Module):
    """A join as part of a stage's module."""

    def __init__(self, join: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._join = join

    def forward(self, part: torch.Tensor) -> torch.Tensor:
        """The whole value."""
        return self._join(part)


def build_stage(
    stage: StageProgram,
    *,
    device: torch.device,
    weight: Callable[[WeightPort], torch.Tensor],
    join: JoinMaker | None = None,
    awaited: Set[str] = frozenset(),
) -> fx.GraphModule:
    """A module that takes ``stage.inputs`` then ``stage.sizes`` and returns its outputs.

    ``weight`` gives the tensor of each weight, already on ``device``. ``join`` is needed for the
    program of one rank of several that divide their stage. In place of the inputs ``awaited`` the
    module takes objects whose ``wait()`` gives the tensor, and asks them when it first reads it.

    Raises:
        UnsupportedModelError: an operator is not installed here.
    """
    root = nn.Module()
    graph = fx.Graph()
    values: dict[str, Any] = {}
    for name in (*stage.inputs, *(name for name, _ in stage.sizes)):
        values[name] = graph.placeholder(name)
    for position, port in enumerate(stage.weights):
        attribute = f"weight_{position}"
        if port.trainable:
            root.register_parameter(attribute, nn.Parameter(weight(port)))
        else:
            root.register_buffer(attribute, weight(port), persistent=False)
        values[port.name] = graph.get_attr(attribute)
    for name, nested in stage.graphs.items():
        attribute = f"graph_{name}"
        root.add_module(attribute, _build_nested(nested, stage.graphs, device))
        values[f"graph:{name}"] = graph.get_attr(attribute)
    joining = None if join is None else partial(_add_join, graph, root, join)
    pending = {name for name in stage.inputs if name in awaited}

    def await_(names: Iterable[str]) -> None:
        for name in names:
            if name in pending:
                pending.remove(name)
                values[name] = graph.call_method("wait", (values[name],))

    for node in stage.nodes:
        await_(node.references())
        _add_nodes(graph, (node,), values, device, joining)
    await_(stage.outputs)
    graph.output(tuple(values[name] for name in stage.outputs))
    return fx.GraphModule(root, graph)


def _build_nested(
    nested: SubProgram, graphs: Mapping[str, SubProgram], device: torch.device
) -> fx.GraphModule:
    root = nn.Module()
    graph = fx.Graph()
    values: dict[str, Any] = {name: graph.placeholder(name) for name in nested.inputs}
    for name, inner in graphs.items():
        if any(_mentions(node, name) for node in nested.nodes):
            root.add_module(f"graph_{name}", _build_nested(inner, graphs, device))
            values[f"graph:{name}"] = graph.get_attr(f"graph_{name}")
    _add_nodes(graph, nested.nodes, values, device)
    graph.output(decode(nested.output, values, device))
    return fx.GraphModule(root, graph)


def _mentions(node: Node, graph: str) -> bool:
    return any(isinstance(a, dict) and a.get("graph") == graph for a in node.args)


def _add_join(
    graph: fx.Graph, root: nn.Module, join: JoinMaker, node: Node, values: Mapping[str, Any]
) -> fx.Node:
    attribute = f"join_{node.args[1]}"
    root.add_module(attribute, JoinModule(join(node)))
    return graph.call_module(attribute, (values[node.args[0]["node"]],))


def _add_nodes(
    graph: fx.Graph,
    nodes: tuple[Node, ...],
    values: dict[str, Any],
    device: torch.device,
    joining: Callable[[Node, Mapping[str, Any]], fx.Node] | None = None,
) -> None:
    for node in nodes:
        if node.op in JOINS:
            if joining is None:
                raise InvalidInputError(
                    f"{node.args[2]} must be joined with other ranks, and none are known here"
                )
            values[node.name] = joining(node, values)
            continue
        values[node.name] = graph.call_function(
            resolve_operator(node.op),
            tuple(decode(a, values, device) for a in node.args),
            {k: decode(v, values, device) for k, v in node.kwargs.items()},
        )


def decode(arg: Arg, values: Mapping[str, Any], device: torch.device) -> Any:
    """The torch form of an encoded argument; ``values`` resolves references.

    Raises:
        InvalidInputError: not an encoded argument.
    """
    if isinstance(arg, (list, tuple)):
        return [decode(a, values, device) for a in arg]
    if not isinstance(arg, dict):
        return arg
    if len(arg) != 1:
        raise InvalidInputError(f"not an encoded argument: {arg!r}")
    mark, value = next(iter(arg.items()))
    match mark:
        case "node":
            return values[value]
        case "dtype" | "layout" | "memory_format":
            found = getattr(torch, value, None)
            if not isinstance(found, (torch.dtype, torch.layout, torch.memory_format)):
                raise InvalidInputError(f"torch has no {mark} {value!r}")
            return found
        case "device":
            return device
        case "float":
            return float(value)
        case "complex":
            return complex(*value)
        case "slice":
            return slice(*(decode(part, values, device) for part in value))
        case "graph":
            return values[f"graph:{value}"]
        case _:
            raise InvalidInputError(f"not an encoded argument: {arg!r}")
