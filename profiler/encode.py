"""From an exported program to :class:`~profiler.program.Program`: torch objects become data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch.export.graph_signature import InputKind, OutputKind

from profiler.errors import UnsupportedModelError
from profiler.export import Traced
from profiler.expressions import Size, symbols_of
from profiler.graph import DTYPE_BYTES
from profiler.operators import is_assertion, operator_name
from profiler.program import (
    Arg,
    InputPort,
    Node,
    OutputLeaf,
    Program,
    SubProgram,
    TensorSpec,
    WeightPort,
    references,
)


@dataclass(frozen=True)
class NodeOrigin:
    """Where a node came from: the modules that were running, outermost first.

    ``calls`` name each call (``block.relu@1`` is the second call of ``block.relu``), ``types``
    the modules' classes.
    """

    calls: tuple[str, ...]
    types: tuple[str, ...]
    target: Any


@dataclass(frozen=True)
class Encoded:
    """A program, where its nodes came from, and values of its constants."""

    program: Program
    origins: Mapping[str, NodeOrigin]
    constants: Mapping[str, torch.Tensor]


def encode(traced: Traced, *, name: str) -> Encoded:
    """The program behind a trace.

    Raises:
        UnsupportedModelError: something in it cannot be written as data.
    """
    return _Encoder(traced, name).run()


class _Encoder:
    def __init__(self, traced: Traced, name: str) -> None:
        self.traced = traced
        self.exported = traced.exported
        self.name = name
        self.symbols = self._symbols()
        self.graphs: dict[str, SubProgram] = {}
        self.origins: dict[str, NodeOrigin] = {}
        self.fixed: dict[str, Any] = {}

    def _symbols(self) -> dict[sympy.Symbol, sympy.Symbol]:
        """torch's symbols to ours; a symbol that no named dim explains keeps torch's name."""
        renamed: dict[sympy.Symbol, sympy.Symbol] = {}
        for node in self.exported.graph.nodes:
            value = node.meta.get("val")
            if node.op != "placeholder" or not isinstance(value, torch.Tensor):
                continue
            for dim, size in enumerate(value.shape):
                ours = self.traced.dim_names.get((node.name, dim))
                if ours is None or not isinstance(size, torch.SymInt):
                    continue
                expression = size.node.expr
                if isinstance(expression, sympy.Symbol):
                    renamed[expression] = sympy.Symbol(ours, integer=True, positive=True)
        return renamed

    def run(self) -> Encoded:
        inputs, weights, constants = self._ports()
        nodes = self._nodes(self.exported.graph_module, top=True)
        nodes = _without_dead(nodes, self._kept())
        outputs = self._outputs()
        used = {name for node in nodes for name in node.references()}
        used |= {leaf.value for leaf in outputs if leaf.value is not None}
        program = Program(
            inputs=tuple(inputs),
            weights=tuple(port for port in weights if port.name in used),
            nodes=tuple(nodes),
            outputs=outputs,
            graphs=self.graphs,
        )
        return Encoded(program=program, origins=self.origins, constants=constants)

    def _kept(self) -> set[str]:
        return {leaf.value for leaf in self._outputs() if leaf.value is not None}

    def _ports(self) -> tuple[list[InputPort], list[WeightPort], dict[str, torch.Tensor]]:
        inputs, weights, constants = [], [], {}
        state = self.exported.state_dict
        values = {n.name: n.meta.get("val") for n in self.exported.graph.nodes}
        for spec in self.exported.graph_signature.input_specs:
            name = getattr(spec.arg, "name", None)
            value = values.get(name) if name else None
            if spec.kind is InputKind.USER_INPUT:
                if isinstance(value, torch.Tensor) and name in self.traced.tensors:
                    inputs.append(
                        InputPort(
                            name=name,
                            spec=self._spec(value),
                            batch_dim=self.traced.batch_dims[name],
                        )
                    )
                elif name is not None:
                    self.fixed[name] = getattr(spec.arg, "value", None)
                continue
            target = str(spec.target)
            if not isinstance(value, torch.Tensor):
                raise UnsupportedModelError(
                    f"{self.name} holds {target!r}, which is not a tensor: ranks cannot get it"
                )
            constant = target not in state
            if constant:
                constants[target] = self.exported.constants[target]
            weights.append(
                WeightPort(
                    name=str(name),
                    weight=target,
                    shape=tuple(int(s) for s in value.shape),
                    dtype=_dtype(value.dtype),
                    constant=constant,
                    trainable=value.requires_grad,
                )
            )
        return inputs, weights, constants

    def _nodes(self, module: fx.GraphModule, *, top: bool) -> list[Node]:
        nodes = []
        for node in module.graph.nodes:
            if node.op == "get_attr":
                self._nested(module, node)
            if node.op != "call_function" or is_assertion(node.target):
                continue
            where = self._where(node)
            nodes.append(
                Node(
                    name=node.name,
                    op=operator_name(node.target, where=where),
                    args=tuple(self._arg(a, where) for a in node.args),
                    kwargs={k: self._arg(v, where) for k, v in sorted(node.kwargs.items())},
                    spec=self._node_spec(node),
                    size=self._size_of(node.meta.get("val")),
                )
            )
            if top:
                self.origins[node.name] = _origin(node)
        return nodes

    def _nested(self, module: fx.GraphModule, node: fx.Node) -> None:
        inner = getattr(module, str(node.target), None)
        if not isinstance(inner, fx.GraphModule):
            raise UnsupportedModelError(
                f"{self.name} refers to {node.target!r}, which is not part of the exported program"
            )
        placeholders = [n.name for n in inner.graph.nodes if n.op == "placeholder"]
        result = next(n for n in inner.graph.nodes if n.op == "output")
        self.graphs[node.name] = SubProgram(
            inputs=tuple(placeholders),
            nodes=tuple(self._nodes(inner, top=False)),
            output=self._arg(result.args[0], f"{self.name} ({node.target})"),
        )

    def _where(self, node: fx.Node) -> str:
        calls = _origin(node).calls
        return f"{self.name}, module {calls[-1]!r}" if calls and calls[-1] else self.name

    def _node_spec(self, node: fx.Node) -> TensorSpec | None:
        value = node.meta.get("val")
        return self._spec(value) if isinstance(value, torch.Tensor) else None

    def _spec(self, value: torch.Tensor) -> TensorSpec:
        shape = []
        for size in value.shape:
            known = self._size_of(size)
            # A size that data decides: keep torch's own symbol, no stage boundary may carry it.
            shape.append(known if known is not None else str(size))
        return TensorSpec(shape=tuple(shape), dtype=_dtype(value.dtype))

    def _size_of(self, value: Any) -> Size | None:
        """A number or shape expression over our symbols; None when data decides it."""
        if isinstance(value, bool):
            return None
        if isinstance(value, int):
            return value
        if not isinstance(value, torch.SymInt):
            return None
        expression = value.node.expr.xreplace(self.symbols)
        if expression.is_Integer:
            return int(expression)
        text = re.sub(r"\s+", "", str(expression)).replace("*", " * ").replace(" *  * ", "**")
        text = text.replace(" * ", "*")
        known = {s.name for s in self.symbols.values()}
        try:
            return text if symbols_of(text) <= known else None
        except ValueError:
            return None

    def _arg(self, value: Any, where: str) -> Arg:
        match value:
            case fx.Node():
                return self._node_arg(value)
            case None | bool() | int() | str():
                return value
            case float():
                return value if math.isfinite(value) else {"float": str(value)}
            case complex():
                return {"complex": [value.real, value.imag]}
            case slice():
                parts = (value.start, value.stop, value.step)
                return {"slice": [self._arg(p, where) for p in parts]}
            case list() | tuple():
                return [self._arg(v, where) for v in value]
            case torch.dtype():
                return {"dtype": _dtype(value)}
            case torch.device():
                return {"device": True}
            case torch.layout():
                return {"layout": str(value).removeprefix("torch.")}
            case torch.memory_format():
                return {"memory_format": str(value).removeprefix("torch.")}
            case _:
                raise UnsupportedModelError(
                    f"{where} passes a {type(value).__name__} to an operator: ranks cannot get it"
                )

    def _node_arg(self, node: fx.Node) -> Arg:
        if node.name in self.graphs:
            return {"graph": node.name}
        if node.name in self.fixed:
            return self._arg(self.fixed[node.name], self.name)
        return {"node": node.name}

    def _outputs(self) -> tuple[OutputLeaf, ...]:
        leaves = []
        sizes = {n.name: self._size_of(n.meta.get("val")) for n in self.exported.graph.nodes}
        for spec in self.exported.graph_signature.output_specs:
            if spec.kind is not OutputKind.USER_OUTPUT:
                continue
            name = getattr(spec.arg, "name", None)
            kind = type(spec.arg).__name__
            if kind == "TensorArgument":
                leaves.append(OutputLeaf(value=str(name)))
            elif kind == "SymIntArgument" and sizes.get(str(name)) is not None:
                leaves.append(OutputLeaf(size=sizes[str(name)]))
            elif kind == "ConstantArgument":
                leaves.append(OutputLeaf(constant=spec.arg.value))
            else:
                raise UnsupportedModelError(
                    f"{self.name} returns a {kind.removesuffix('Argument')} that depends on data; "
                    "return tensors instead"
                )
        return tuple(leaves)


def _without_dead(nodes: list[Node], kept: set[str]) -> list[Node]:
    """Nodes whose value is used, or that change something in place."""
    needed = set(kept)
    alive = []
    for node in reversed(nodes):
        if node.name in needed or _changes_something(node):
            alive.append(node)
            needed.update(node.references())
    return alive[::-1]


def _changes_something(node: Node) -> bool:
    from profiler.operators import resolve_operator, written_arguments

    return node.op.startswith("higher_order.") or bool(written_arguments(resolve_operator(node.op)))


def _origin(node: fx.Node) -> NodeOrigin:
    calls, types = [], []
    for key, (path, kind) in (node.meta.get("nn_module_stack") or {}).items():
        if str(key).startswith("_empty_nn_module_stack"):
            continue
        suffix = f"@{key.rpartition('@')[2]}" if "@" in str(key) else ""
        calls.append(f"{path}{suffix}")
        types.append(str(kind).rpartition(".")[2])
    return NodeOrigin(calls=tuple(calls), types=tuple(types), target=node.target)


def _dtype(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise UnsupportedModelError(f"tensors of dtype {name} are not supported")
    return name


__all__ = ["Encoded", "NodeOrigin", "encode", "references"]
