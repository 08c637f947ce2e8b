"""Checking a rank's program before it runs: does every operator give the shape that is expected?

Each node is run once on tensors without memory. Nodes that slicing changed are looked at; an
operator that cannot run so is passed over.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from profiler.build import decode
from profiler.errors import InvalidInputError
from profiler.expressions import BATCH, evaluate, symbols_of
from profiler.program import JOINS, StageProgram, TensorSpec
from profiler.sharding.facts import Facts, operator_of

CHECKED_AT = 3
"""Items of the batch for which shapes are compared; other symbols are 16."""


def require_shapes(program: StageProgram, facts: Facts, *, changed: Collection[str]) -> None:
    """Refuse a program in which a node of ``changed`` has another shape than it says.

    Raises:
        InvalidInputError: names the node, its shape and the one expected.
    """
    specs = dict(facts.specs)
    specs |= {p.name: TensorSpec(shape=p.shape, dtype=p.dtype) for p in program.weights}
    specs |= {node.name: node.spec for node in program.nodes if node.spec is not None}
    sizes = {n.name: n.size for n in program.nodes if n.size is not None} | dict(program.sizes)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    device = torch.device("cpu")
    for node in program.nodes:
        read = node.references()
        known = all(ref in specs or ref in sizes for ref in read)
        touched = node.name in changed or any(ref in changed for ref in read)
        if node.spec is None or node.op in JOINS or not known or not touched:
            continue
        with mode, torch.no_grad():
            values: dict[str, Any] = {
                ref: _empty(specs[ref]) if ref in specs else _number(sizes[ref]) for ref in read
            }
            call = operator_of(node.op)
            try:
                made = call(
                    *(decode(arg, values, device) for arg in node.args),
                    **{k: decode(arg, values, device) for k, arg in node.kwargs.items()},
                )
            except NotImplementedError:
                continue
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise InvalidInputError(
                    f"slicing {node.name} ({node.op}) gives a program that cannot run: "
                    f"{str(error).strip().splitlines()[0][:200]}; leave its region whole"
                ) from error
        expected = [_number(size) for size in node.spec.shape]
        if isinstance(made, torch.Tensor) and list(made.shape) != expected:
            raise InvalidInputError(
                f"slicing {node.name} ({node.op}) would give shape {list(made.shape)} where "
                f"{expected} is needed; leave its region whole"
            )


def _empty(spec: TensorSpec) -> torch.Tensor:
    return torch.empty([_number(s) for s in spec.shape], dtype=getattr(torch, spec.dtype))


def _number(size: int | str) -> int:
    return evaluate(size, {s: 16 for s in symbols_of(size)} | {BATCH: CHECKED_AT})
