"""Does cutting the batch change a layer's answer? Measured, layer by layer.

A batch split joined by ``concat`` is right for a layer exactly if ``f(X) = concat(f(X_a), f(X_b))``
for every cut of the items. A layer that normalises over the batch, compares items, or divides by
their number breaks this, and no shape tells. So each distinct layer is run on a batch, on its first
item and on the rest, and the results are compared.
"""

from __future__ import annotations

from profiler.batchcut import ITEMS, cut_of, cut_out, equal
from profiler.bench import Call, LayerBench
from profiler.expressions import evaluate
from profiler.graph import ModelGraph
from profiler.profile import PRELUDE
from profiler.reductions import find_reductions, with_reductions


def with_itemwise(graph: ModelGraph, bench: LayerBench) -> ModelGraph:
    """The graph with every layer's ``itemwise`` (and every output's ``reduction``) as observed.

    A layer that reads a tensor belonging to a whole batch is never itemwise; nor is one that keeps
    state, which must see every item of a batch in one place and at one time.
    """
    if graph.static_batch is not None:
        return graph.model_copy(
            update={"layers": tuple(x.model_copy(update={"itemwise": False}) for x in graph.layers)}
        )
    calls, verdicts = {}, {}
    for call in bench.calls(ITEMS, varied=True):
        calls[call.built.twin] = call
        verdicts[call.built.twin] = _is_itemwise(call, bench)
    reduced = find_reductions(graph, calls, bench)
    whole = {t.name for t in graph.tensors if t.per_batch and t.name not in reduced}
    state = {w.name for w in graph.weights if w.state}
    prelude_ok = verdicts.pop(PRELUDE, True)
    layers = []
    for layer in graph.layers:
        # What is a reduction over items comes from parts of a batch, put together (by the plan).
        same = verdicts[layer.twin] or any(name in reduced for name in layer.writes)
        mixing = not same or (layer.uses_prelude and not prelude_ok)
        touches = bool(whole & {*layer.reads, *layer.writes} or state & {*layer.weights})
        layers.append(layer.model_copy(update={"itemwise": not mixing and not touches}))
    return with_reductions(graph.model_copy(update={"layers": tuple(layers)}), reduced)


def _is_itemwise(call: Call, bench: LayerBench) -> bool:
    """Whether running on cut items gives the cut results."""
    program, graph = call.built.program, bench.captured.graph
    dims = [cut_of(name, bench) for name in program.inputs]
    if any(dim is None for dim in dims):
        return False
    outputs = [cut_of(name, bench) for name in program.outputs]
    if any(dim is None for dim in outputs):
        return False
    results = []
    for start, count in ((0, ITEMS), (0, 1), (1, ITEMS - 1)):
        symbols = graph.symbols_at(count)
        part = Call(
            built=call.built,
            tensors=tuple(
                cut_out(tensor, dim, start, count).clone()
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
        equal(cut_out(full, dim, 0, 1), one) and equal(cut_out(full, dim, 1, ITEMS - 1), more)
        for full, one, more, dim in zip(whole, first, rest, outputs, strict=True)
    )
