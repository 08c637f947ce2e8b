"""Inputs of a run: from what people pass to named and checked tensors.

Names are those of ``forward``'s parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from profiler.capture import Captured
from profiler.errors import InvalidInputError
from profiler.export import named_leaves
from profiler.expressions import BATCH, evaluate, rows_per_item, symbols_of
from profiler.program import InputPort
from profiler.sources import Example


@dataclass(frozen=True)
class RunInputs:
    """Checked inputs: tensors by name, how many items they hold, values of other symbols."""

    tensors: dict[str, torch.Tensor]
    num_items: int
    symbols: dict[str, int]


def prepare_inputs(captured: Captured, inputs: Any) -> RunInputs:
    """Inputs as a call of the model would take them, checked against what was captured.

    ``inputs`` is a tensor, a tuple of arguments, a dict of keyword arguments, an Example, or a
    dict by the captured input names.

    Raises:
        InvalidInputError: a name, dtype, shape or item count that does not fit; an empty batch.
    """
    ports = {port.name: port for port in captured.encoded.program.inputs}
    given = _by_name(captured, inputs, ports)
    missing = [_wanted(port) for name, port in ports.items() if name not in given]
    if missing:
        raise InvalidInputError(f"an input is missing: {', '.join(missing)}")
    counts: dict[str, int] = {}
    symbols: dict[str, int] = {}
    for name, port in ports.items():
        _check(given[name], port)
        _bind(given[name], port, counts, symbols, captured)
    if len(set(counts.values())) > 1:
        raise InvalidInputError(f"the inputs disagree on the number of items: {counts}")
    num_items = next(iter(counts.values()), captured.graph.static_batch or 1)
    if num_items == 0:
        raise InvalidInputError("there are no items to run: the batch is empty")
    return RunInputs(tensors={n: given[n] for n in ports}, num_items=num_items, symbols=symbols)


def _by_name(
    captured: Captured, inputs: Any, ports: Mapping[str, InputPort]
) -> dict[str, torch.Tensor]:
    if isinstance(inputs, Mapping) and set(inputs) <= set(ports):
        leaves: dict[str, Any] = dict(inputs)
    elif captured.source.module is not None:
        leaves = named_leaves(captured.source.module, Example.of(inputs))
    else:
        example = Example.of(inputs)
        flat = captured.flatten_inputs(example.args, example.kwargs)
        tensors = [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]
        leaves = dict(zip(ports, tensors, strict=False))
    fixed = _fixed(captured)
    found = {}
    for name, leaf in leaves.items():
        if isinstance(leaf, np.ndarray):
            leaf = torch.from_numpy(np.ascontiguousarray(leaf))
        if name in ports:
            if not isinstance(leaf, torch.Tensor):
                raise InvalidInputError(
                    f"input {name} is a {type(leaf).__name__}; it must be {_wanted(ports[name])}"
                )
            found[name] = leaf.detach()
        elif isinstance(leaf, torch.Tensor):
            raise InvalidInputError(
                f"the captured model has no input {name!r}; it takes {', '.join(ports)}. Inputs "
                "that were absent from the example cannot be given later: capture it with them"
            )
        elif name in fixed and fixed[name] != leaf:
            raise InvalidInputError(
                f"{name} was captured as {fixed[name]!r} and cannot be {leaf!r} now; capture the "
                "model again with that value"
            )
    return found


def _fixed(captured: Captured) -> dict[str, Any]:
    """Arguments that are not tensors, whose values are part of the captured model."""
    if captured.source.module is None:
        return {}
    leaves = named_leaves(captured.source.module, captured.source.example)
    return {name: leaf for name, leaf in leaves.items() if not isinstance(leaf, torch.Tensor)}


def _wanted(port: InputPort) -> str:
    shape = ", ".join(str(size) for size in port.spec.shape)
    return f"{port.name} [{shape}] {port.spec.dtype}"


def _check(tensor: torch.Tensor, port: InputPort) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype != port.spec.dtype:
        raise InvalidInputError(f"input {port.name} is {dtype}; the model takes {_wanted(port)}")
    if tensor.ndim != len(port.spec.shape):
        raise InvalidInputError(
            f"input {port.name} has shape {list(tensor.shape)}; the model takes {_wanted(port)}"
        )
    for dim, size in enumerate(port.spec.shape):
        if isinstance(size, int) and tensor.shape[dim] != size:
            raise InvalidInputError(
                f"input {port.name} has shape {list(tensor.shape)}, with {tensor.shape[dim]} at "
                f"dim {dim} where the model takes {size}: {_wanted(port)}"
            )


def _bind(
    tensor: torch.Tensor,
    port: InputPort,
    counts: dict[str, int],
    symbols: dict[str, int],
    captured: Captured,
) -> None:
    for dim, size in enumerate(port.spec.shape):
        here = int(tensor.shape[dim])
        if isinstance(size, int):
            continue
        if dim == port.batch_dim:
            rows = rows_per_item(size, captured.graph.symbols) or 1
            counts[port.name] = here // rows
        elif size in symbols and symbols[size] != here:
            raise InvalidInputError(
                f"input {port.name} has {here} at dim {dim} ({size}); another input has "
                f"{symbols[size]} there"
            )
        elif size.isidentifier():
            symbols[size] = here
    for dim, size in enumerate(port.spec.shape):
        known = {**symbols, BATCH: counts.get(port.name, 1)}
        if not isinstance(size, int) and symbols_of(size) <= set(known):
            expected = evaluate(size, known)
            if tensor.shape[dim] != expected:
                raise InvalidInputError(
                    f"input {port.name} has {tensor.shape[dim]} at dim {dim}; {size} is {expected}"
                )
