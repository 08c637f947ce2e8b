"""Running a captured model in parts inside one process, as ranks would: every boundary a copy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from executor.inputs import RunInputs, prepare_inputs
from executor.outputs import answer_leaves
from profiler.build import build_stage
from profiler.capture import Captured
from profiler.export import named_leaves
from profiler.expressions import BATCH, evaluate
from profiler.program import StageProgram
from profiler.sources import Example

Parts = Sequence[Sequence[str]]


def random_parts(captured: Captured, rng: random.Random, *, num_parts: int) -> list[list[str]]:
    """The layers in a random topological order, cut into runs: any convex partition may come."""
    graph = captured.graph.digraph
    waiting = {i: graph.in_degree(i) for i in graph}
    ready = [i for i, count in waiting.items() if not count]
    order = []
    while ready:
        i = ready.pop(rng.randrange(len(ready)))
        order.append(captured.graph.layers[i].name)
        for j in graph.successors(i):
            waiting[j] -= 1
            if not waiting[j]:
                ready.append(j)
    cuts = sorted(rng.sample(range(1, len(order)), min(num_parts, len(order)) - 1))
    return [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]


def build(captured: Captured, program: StageProgram) -> nn.Module:
    """The module of a part, with the weights of the captured model."""
    return build_stage(program, device=torch.device("cpu"), weight=captured.weight)


def run_parts(captured: Captured, parts: Parts, args: tuple[Any, ...], kwargs: Any) -> Any:
    """The model's answer, computed part after part; every part gets copies of its inputs."""
    tensors = named_inputs(captured, args, kwargs)
    symbols = input_symbols(captured, tensors)
    values = {name: tensor.clone() for name, tensor in tensors.items()}
    for layers in parts:
        program = captured.cutter.part(layers)
        module = build(captured, program)
        taken = [values[name].clone() for name in program.inputs]
        sizes = [evaluate(size, symbols) for _, size in program.sizes]
        with torch.inference_mode():
            results = module(*taken, *sizes)
        values.update({n: r.clone() for n, r in zip(program.outputs, results, strict=True)})
    run = RunInputs(tensors=tensors, num_items=symbols[BATCH], symbols=symbols)
    return captured.unflatten_outputs(answer_leaves(captured, values, run))


def named_inputs(captured: Captured, args: tuple[Any, ...], kwargs: Any) -> dict[str, torch.Tensor]:
    """Tensor inputs of a call by the captured names."""
    return prepare_inputs(captured, Example(args=args, kwargs=kwargs)).tensors


def input_symbols(captured: Captured, tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    """Values of all symbols for these inputs."""
    symbols = dict(captured.graph.symbols)
    for port in captured.encoded.program.inputs:
        for dim, size in enumerate(port.spec.shape):
            if isinstance(size, str) and size.isidentifier():
                symbols[size] = tensors[port.name].shape[dim]
    assert BATCH in symbols
    return symbols


def resized(captured: Captured, items: int, *, seed: int = 1) -> tuple[tuple[Any, ...], Any]:
    """Arguments like the example's with ``items`` items, all different."""
    rng = torch.Generator().manual_seed(seed)
    example = captured.source.example
    dims = captured.traced.batch_dims
    assert captured.source.module is not None
    by_id = {
        id(leaf): dims.get(name)
        for name, leaf in named_leaves(captured.source.module, example).items()
        if isinstance(leaf, torch.Tensor)
    }

    def grown(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        dim = by_id[id(leaf)]
        if dim is None:
            return leaf.clone()
        rows = torch.randint(0, leaf.shape[dim], (items,), generator=rng)
        chosen = leaf.index_select(dim, rows)
        if chosen.is_floating_point():
            noise = torch.randn(chosen.shape, generator=rng).to(chosen.dtype)
            return chosen + noise
        if chosen.dtype == torch.int64 and int(chosen.max()) > 1:
            high = int(leaf.max()) + 1
            return torch.randint(3, high, chosen.shape, generator=rng)
        return chosen

    leaves, spec = pytree.tree_flatten((tuple(example.args), dict(example.kwargs)))
    return pytree.tree_unflatten([grown(leaf) for leaf in leaves], spec)


def same(one: Any, other: Any) -> str | None:
    """What differs between two answers, bit for bit, in structure, type or value; or None."""
    a, spec_a = pytree.tree_flatten(one)
    b, spec_b = pytree.tree_flatten(other)
    if spec_a != spec_b:
        return f"structure {spec_a} is not {spec_b}"
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            if x.dtype != y.dtype or x.shape != y.shape:
                return f"leaf {i}: {x.dtype} {list(x.shape)} is not {y.dtype} {list(y.shape)}"
            if not torch.equal(torch.nan_to_num(x), torch.nan_to_num(y)):
                return f"leaf {i}: off by {float((x - y).abs().max()):.2e}"
        elif type(x) is not type(y) or x != y:
            return f"leaf {i}: {x!r} is not {y!r}"
    return None
