"""Cutting the values of a measured model into items, and comparing what comes out.

Shared by the tests that profiling makes of layers: ``profiler.itemwise`` and
``profiler.reductions``.
"""

from __future__ import annotations

import torch

from profiler.bench import LayerBench
from profiler.expressions import BATCH, rows_per_item, symbols_of

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

Cut = tuple[int, int]
"""Along which dim a value can be cut, and how many rows of it an item takes."""

SHARED: Cut = (-1, 1)
"""Mark of a tensor that all items share."""


def cut_of(name: str, bench: LayerBench) -> Cut | None:
    """How a value can be cut into items; None if it cannot."""
    tensor = bench.spec(name)
    symbols = bench.captured.graph.symbols
    if tensor is not None:
        if tensor.per_batch:
            return None
        return (
            SHARED
            if tensor.batch_dim is None
            else (tensor.batch_dim, tensor.rows_per_item(symbols))
        )
    shape = bench.captured.cutter.spec(name).shape
    batched = [d for d, size in enumerate(shape) if BATCH in symbols_of(size)]
    if not batched:
        return SHARED
    rows = rows_per_item(shape[batched[0]], symbols) if len(batched) == 1 else None
    return None if rows is None else (batched[0], rows)


def cut_out(tensor: torch.Tensor, where: Cut | None, start: int, count: int) -> torch.Tensor:
    """``count`` items from ``start`` on."""
    if where is None or where == SHARED:
        return tensor
    dim, rows = where
    return tensor.narrow(dim, start * rows, count * rows)


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether rounding explains every difference."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return bool(torch.equal(one, other))
    a, b = torch.nan_to_num(one), torch.nan_to_num(other)
    scale = max(float(a.abs().max()), 1e-6) if a.numel() else 1.0
    limit = TOLERANCE.get(one.dtype, 1e-3)
    same_holes = torch.equal(torch.isnan(one), torch.isnan(other))
    return same_holes and (not a.numel() or float((a - b).abs().max()) <= limit * scale)
