"""Floating point operations of a program's nodes, counted by torch's own counter.

The figures decide how finely a model is opened into layers and serve what-if estimates; no
measured time is ever replaced by them.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from profiler.build import decode
from profiler.documents import canonical_json
from profiler.expressions import BATCH, evaluate, symbols_of
from profiler.operators import resolve_operator
from profiler.program import Program, TensorSpec

COUNTED_AT = 2
"""Items at which nodes are counted; figures are per item."""

_LIGHT = frozenset({"aten.dropout.default", "aten.to.dtype", "aten.view.default"})


def count_flops(program: Program) -> dict[str, float]:
    """Operations per item of every node that multiplies matrices or convolves."""
    specs = {port.name: port.spec for port in program.inputs}
    specs |= {port.name: TensorSpec(shape=port.shape, dtype=port.dtype) for port in program.weights}
    specs |= {node.name: node.spec for node in program.nodes if node.spec is not None}
    sizes = {node.name: node.size for node in program.nodes if node.size is not None}
    weights = {port.name: port for port in program.weights if not port.constant}
    known: dict[str, float] = {}
    counted: dict[str, float] = {}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for node in program.nodes:
        read = node.references()
        if (
            node.size is not None
            or node.op in _LIGHT
            or any(n not in specs and n not in sizes for n in read)
        ):
            continue
        if not node.op.startswith("aten."):
            # Operators the counter does not know: one multiply-add a weight element and item.
            held = [prod(weights[n].shape) for n in read if n in weights]
            if held:
                counted[node.name] = 2.0 * sum(held)
            continue
        shapes = [(n, _shape(specs[n]) if n in specs else evaluate_at(sizes[n])) for n in read]
        key = canonical_json(
            [node.op, node.args and _anonymous(node.args, read), shapes and [s for _, s in shapes]]
        )
        if key not in known:
            known[key] = _count(node.op, node.args, node.kwargs, dict(shapes), specs, mode)
        if known[key]:
            counted[node.name] = known[key] / COUNTED_AT
    return counted


def evaluate_at(size: int | str) -> int:
    """A size at the batch that nodes are counted at; other symbols count as 32."""
    values = {symbol: 32 for symbol in symbols_of(size)} | {BATCH: COUNTED_AT}
    return evaluate(size, values)


def _shape(spec: TensorSpec) -> list[int]:
    return [evaluate_at(size) for size in spec.shape]


def _anonymous(args: Any, read: tuple[str, ...]) -> Any:
    from profiler.program import rename

    return rename(list(args), lambda name: str(read.index(name)))


def _count(
    op: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: dict[str, Any],
    specs: dict[str, TensorSpec],
    mode: FakeTensorMode,
) -> float:
    counter = FlopCounterMode(display=False)
    try:
        with mode, counter, torch.no_grad():
            values = {
                name: torch.empty(shape, dtype=getattr(torch, specs[name].dtype))
                if name in specs
                else shape
                for name, shape in shapes.items()
            }
            call = resolve_operator(op)
            call(
                *(decode(a, values, torch.device("cpu")) for a in args),
                **{k: decode(v, values, torch.device("cpu")) for k, v in kwargs.items()},
            )
    except Exception:  # an operator without a fake kernel counts as nothing
        return 0.0
    return float(counter.get_total_flops())
