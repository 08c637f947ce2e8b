"""Does cutting the batch change a layer's answer? Measured, layer by layer.

A batch split joined by ``concat`` is right for a layer exactly if ``f(X) = concat(f(X_a), f(X_b))``
for every cut of the items. A layer that normalises over the batch, compares items, or divides by
their number breaks this, and no shape tells. So each distinct layer is run on a batch, on its first
item and on the rest, and the results are compared.
"""

from __future__ import annotations

import torch

from profiler.bench import Call, LayerBench
from profiler.expressions import BATCH, evaluate, rows_per_item, symbols_of
from profiler.graph import ModelGraph
from profiler.profile import PRELUDE

ITEMS = 4
"""Batch on which layers are tried; its first item is cut off."""

TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}
"""Largest difference, relative to the largest value, that rounding explains.

Layers of ResNet-50, BERT, Llama and Mixtral stay below 3e-7 in float32. A layer wrongly taken for
one that mixes items costs speed, the contrary costs the answer.
"""


def with_itemwise(graph: ModelGraph, bench: LayerBench) -> ModelGraph:
    """The graph with every layer's ``itemwise`` set to what was observed.

    A layer that reads a tensor belonging to a whole batch is never itemwise; nor is one that keeps
    state, which must see every item of a batch in one place and at one time.
    """
    if graph.static_batch is not None:
        return graph.model_copy(
            update={"layers": tuple(x.model_copy(update={"itemwise": False}) for x in graph.layers)}
        )
    verdicts = {
        call.built.twin: _is_itemwise(call, bench) for call in bench.calls(ITEMS, varied=True)
    }
    whole = {t.name for t in graph.tensors if t.per_batch}
    state = {w.name for w in graph.weights if w.state}
    prelude_ok = verdicts.pop(PRELUDE, True)
    layers = []
    for layer in graph.layers:
        mixing = not verdicts[layer.twin] or (layer.uses_prelude and not prelude_ok)
        touches = bool(whole & {*layer.reads, *layer.writes} or state & {*layer.weights})
        layers.append(layer.model_copy(update={"itemwise": not mixing and not touches}))
    return graph.model_copy(update={"layers": tuple(layers)})


def _is_itemwise(call: Call, bench: LayerBench) -> bool:
    """Whether running on cut items gives the cut results."""
    program, graph = call.built.program, bench.captured.graph
    dims = [_cut_of(name, bench) for name in program.inputs]
    if any(dim is None for dim in dims):
        return False
    outputs = [_cut_of(name, bench) for name in program.outputs]
    if any(dim is None for dim in outputs):
        return False
    results = []
    for start, count in ((0, ITEMS), (0, 1), (1, ITEMS - 1)):
        symbols = graph.symbols_at(count)
        part = Call(
            built=call.built,
            tensors=tuple(
                _cut(tensor, dim, start, count).clone()
                for tensor, dim in zip(call.tensors, dims, strict=True)
            ),
            sizes=tuple(evaluate(size, symbols) for _, size in program.sizes),
        )
        try:
            results.append(part.run())
        except RuntimeError:
            return False
    whole, first, rest = results
    return all(
        _equal(_cut(full, dim, 0, 1), one) and _equal(_cut(full, dim, 1, ITEMS - 1), more)
        for full, one, more, dim in zip(whole, first, rest, outputs, strict=True)
    )


_SHARED = (-1, 1)
"""Mark of a tensor that all items share."""


def _cut_of(name: str, bench: LayerBench) -> tuple[int, int] | None:
    """``(dim, rows per item)`` along which a value can be cut; None if it cannot."""
    tensor = bench.spec(name)
    symbols = bench.captured.graph.symbols
    if tensor is not None:
        if tensor.per_batch:
            return None
        return (
            _SHARED
            if tensor.batch_dim is None
            else (tensor.batch_dim, tensor.rows_per_item(symbols))
        )
    shape = bench.captured.cutter.spec(name).shape
    batched = [d for d, size in enumerate(shape) if BATCH in symbols_of(size)]
    if not batched:
        return _SHARED
    rows = rows_per_item(shape[batched[0]], symbols) if len(batched) == 1 else None
    return None if rows is None else (batched[0], rows)


def _cut(
    tensor: torch.Tensor, where: tuple[int, int] | None, start: int, count: int
) -> torch.Tensor:
    if where is None or where == _SHARED:
        return tensor
    dim, rows = where
    return tensor.narrow(dim, start * rows, count * rows)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return bool(torch.equal(one, other))
    a, b = torch.nan_to_num(one), torch.nan_to_num(other)
    scale = max(float(a.abs().max()), 1e-6) if a.numel() else 1.0
    limit = TOLERANCE.get(one.dtype, 1e-3)
    same_holes = torch.equal(torch.isnan(one), torch.isnan(other))
    return same_holes and (not a.numel() or float((a - b).abs().max()) <= limit * scale)
