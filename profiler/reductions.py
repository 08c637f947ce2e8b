"""Which outputs are a mean, a sum or the largest over items? Measured, and only where that can be.

An output without a batch dim (a loss, a pooled score) belongs to the whole batch, unless the value
for a batch follows from the values for its parts: ``f(X)`` is the mean of ``f(X_a)`` and
``f(X_b)`` weighted by their items, or their sum, or the larger. No shape tells, and a mean over
*some* of the items (those that are not padded, say) looks like one over all of them where none is
left out. So the layer is run on values that differ from item to item, integers shuffled, floats
scaled at random; the relation must hold for several cuts; and if it holds for two reductions at
once, or where nothing in the inputs varies, nothing is concluded. Losses over class labels are
never taken for means: they leave out a label that no example needs to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import torch

from profiler.batchcut import ITEMS, Cut, cut_of, cut_out, equal
from profiler.bench import Call, LayerBench
from profiler.expressions import BATCH, evaluate, symbols_of
from profiler.graph import Layer, ModelGraph, Tensor

Reduction = Literal["mean", "sum", "max"]

CUTS = ((1, 3), (2, 2), (3, 1))
"""Items of the two parts of a batch, for which the relation must hold."""

WEIGHTED_BY_DATA = ("cross_entropy", "nll_loss")
"""Parts of names of operators whose mean leaves out items by their label."""

_RELATIONS: Mapping[Reduction, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "mean": lambda a, b, part: a * part + b * (1 - part),
    "sum": lambda a, b, _: a + b,
    "max": lambda a, b, _: torch.maximum(a, b),
}


def find_reductions(
    graph: ModelGraph, calls: Mapping[str, Call], bench: LayerBench
) -> dict[str, Reduction]:
    """The outputs that are a reduction over items, each with which.

    ``calls`` are the distinct layers by twin, ready to be run on a batch of ``ITEMS``. A layer
    counts only if its other tensors can be cut and come out the same from a cut batch.
    """
    found: dict[str, Reduction] = {}
    for layer in graph.layers:
        candidates = [name for name in layer.writes if _may_be(graph.tensor[name], graph)]
        if not candidates or layer.uses_prelude:
            continue
        found.update(_of_layer(layer, candidates, calls[layer.twin], bench))
    return found


def with_reductions(graph: ModelGraph, found: Mapping[str, Reduction | None]) -> ModelGraph:
    """The graph with reductions as found, as far as the layers that compute them may be cut."""
    may = {name for layer in graph.layers if layer.itemwise for name in layer.writes}
    tensors = tuple(
        t.model_copy(update={"reduction": found.get(t.name) if t.name in may else None})
        for t in graph.tensors
    )
    return graph.replaced(tensors=tensors)  # a copy would keep the old tensors by name


def _may_be(tensor: Tensor, graph: ModelGraph) -> bool:
    """An output for the whole batch, of a shape that does not depend on it, read by no layer."""
    return (
        tensor.per_batch
        and tensor.name in graph.outputs
        and not graph.readers[tensor.name]
        and not any(BATCH in symbols_of(size) for size in tensor.shape)
        and tensor.dtype.startswith(("float", "bfloat", "int"))
    )


def _of_layer(
    layer: Layer, candidates: list[str], call: Call, bench: LayerBench
) -> dict[str, Reduction]:
    program = call.built.program
    if any(mark in node.op for node in program.nodes for mark in WEIGHTED_BY_DATA):
        return {}
    dims = [cut_of(name, bench) for name in program.inputs]
    # Twins have the same outputs in the same order, under names of their own.
    others = [i for i, name in enumerate(layer.writes) if name not in candidates]
    cuts = {i: cut_of(program.outputs[i], bench) for i in others}
    tensors = _varied(call)
    if tensors is None or any(dim is None for dim in dims) or None in cuts.values():
        return {}
    call = replace(call, tensors=tensors)
    try:
        whole = call.run()
        halves = [_halves(call, dims, first, bench) for first, _ in CUTS]
    except RuntimeError:
        return {}
    for i, cut in cuts.items():
        for (first, second), (a, b) in zip(CUTS, halves, strict=True):
            same = equal(cut_out(whole[i], cut, 0, first), a[i])
            if not same or not equal(cut_out(whole[i], cut, first, second), b[i]):
                return {}
    found: dict[str, Reduction] = {}
    for name in candidates:
        i = layer.writes.index(name)
        fitting = [
            kind
            for kind, relation in _RELATIONS.items()
            if all(
                equal(whole[i], _related(relation, a[i], b[i], first / ITEMS))
                for (first, _), (a, b) in zip(CUTS, halves, strict=True)
            )
        ]
        if len(fitting) != 1:
            return {}
        found[name] = fitting[0]
    return found


def _related(
    relation: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor],
    a: torch.Tensor,
    b: torch.Tensor,
    part: float,
) -> torch.Tensor:
    return relation(a, b, part).to(a.dtype)


def _halves(
    call: Call, dims: list[Cut | None], first: int, bench: LayerBench
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Results on the first items, and on the rest."""
    results = []
    for start, count in ((0, first), (first, ITEMS - first)):
        symbols = bench.captured.graph.symbols_at(count)
        part = replace(
            call,
            tensors=tuple(
                cut_out(tensor, dim, start, count).clone()
                for tensor, dim in zip(call.tensors, dims, strict=True)
            ),
            sizes=tuple(evaluate(size, symbols) for _, size in call.built.program.sizes),
        )
        results.append(tuple(x.clone() for x in part.run()))
    return results[0], results[1]


def _varied(call: Call) -> tuple[torch.Tensor, ...] | None:
    """Inputs whose every element is its own; None if some input cannot be made so."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for tensor in call.tensors:
        value = tensor.detach().cpu()
        if value.is_floating_point() or value.is_complex():
            scale = 0.5 + torch.rand(value.shape, generator=generator)
            made.append((value * scale.to(value.real.dtype)).to(tensor.device))
        elif value.dtype is torch.bool:
            made.append(torch.rand(value.shape, generator=generator).lt(0.5).to(tensor.device))
        else:
            if value.numel() < 2 or bool((value == value.flatten()[0]).all()):
                return None
            order = torch.randperm(value.numel(), generator=generator)
            made.append(value.flatten()[order].view(value.shape).to(tensor.device))
    return tuple(made)
