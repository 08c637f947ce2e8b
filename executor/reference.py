"""The undivided model, as the truth that plans are held against.

The answer comes from the model itself where it can be loaded (a module, a factory, a directory);
the tensors at stage boundaries from the captured program, run layer by layer with each layer's
weights loaded for its turn only, so that a model that fits on no device can still be verified.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from executor.inputs import RunInputs
from profiler.build import build_stage
from profiler.capture import Captured
from profiler.export import replace_leaves
from profiler.expressions import BATCH, evaluate
from profiler.operators import changed_inputs


@dataclass(frozen=True)
class Reference:
    """Tensors of the captured program by name, and the leaves of the model's own answer.

    ``leaves`` is None when the model itself could not be run; then ``why`` says so.
    """

    tensors: Mapping[str, torch.Tensor]
    leaves: list[Any] | None
    why: str = ""


def reference(captured: Captured, run: RunInputs, *, needed: set[str]) -> Reference:
    """What the undivided model computes on ``run``; ``needed`` tensors are kept."""
    tensors = dict(_streamed(captured, run, needed))
    try:
        leaves = _own_answer(captured, run)
    except (MemoryError, RuntimeError, OSError) as error:
        return Reference(tensors=tensors, leaves=None, why=f"{type(error).__name__}: {error}")
    return Reference(tensors=tensors, leaves=leaves)


def _streamed(
    captured: Captured, run: RunInputs, needed: set[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Run layer after layer; a tensor is dropped once no later layer reads it."""
    cpu = torch.device("cpu")
    symbols = {**captured.graph.symbols, **run.symbols, BATCH: run.num_items}
    values: dict[str, torch.Tensor] = dict(run.tensors)
    last_reader = {name: i for i, layer in enumerate(captured.graph.layers) for name in layer.reads}
    for index, layer in enumerate(captured.graph.layers):
        program = captured.cutter.part([layer.name])
        module = build_stage(program, device=cpu, weight=captured.weight)
        changed = changed_inputs(program)
        taken = [values[n].clone() if n in changed else values[n] for n in program.inputs]
        with torch.inference_mode():
            results = module(*taken, *(evaluate(size, symbols) for _, size in program.sizes))
        values.update(zip(program.outputs, results, strict=True))
        yield from ((n, values[n]) for n in program.outputs if n in needed)
        for name in [n for n in values if last_reader.get(n, -1) <= index and n not in needed]:
            del values[name]


def _own_answer(captured: Captured, run: RunInputs) -> list[Any] | None:
    """The leaves of what the model itself returns, called like the example was."""
    source = captured.source
    if source.kind == "huggingface":
        from pathlib import Path

        from profiler.huggingface import load_whole

        module: Any = load_whole(Path(source.ref))
    elif source.kind == "ensemble":
        from pathlib import Path

        from profiler.ensemblefile import ensemble_file
        from profiler.ensembleload import load_whole_ensemble

        file = ensemble_file(Path(source.ref))
        assert file is not None
        module = load_whole_ensemble(file)
    elif source.exported is not None:
        module = source.exported.module()
    else:
        module = source.module
    args, kwargs = _arguments(captured, run)
    with torch.no_grad(), _unchanged(module, captured):
        answer = module(*args, **kwargs)
        return [
            leaf.clone() if isinstance(leaf, torch.Tensor) else leaf
            for leaf in pytree.tree_flatten(answer)[0]
        ]


@contextmanager
def _unchanged(module: nn.Module, captured: Captured) -> Iterator[None]:
    """Leave the buffers that the model changes while it runs as they were."""
    changed = {name for w in captured.graph.weights if w.state for name in (w.name, *w.tied)}
    before = {n: b.clone() for n, b in module.named_buffers() if n in changed}
    yield
    for name, buffer in module.named_buffers():
        if name in before:
            buffer.copy_(before[name])


def _arguments(captured: Captured, run: RunInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The run's inputs as arguments of a call; copies, because a model may change its inputs."""
    source = captured.source
    if source.module is not None:
        return replace_leaves(
            source.module,
            source.example,
            lambda name, leaf: run.tensors[name].clone() if name in run.tensors else leaf,
        )
    # A saved program takes its inputs in the order in which it lists them.
    names = iter(captured.traced.tensors)
    leaves, spec = pytree.tree_flatten((source.example.args, dict(source.example.kwargs)))
    filled = [
        run.tensors[next(names)].clone() if isinstance(leaf, torch.Tensor) else leaf
        for leaf in leaves
    ]
    args, kwargs = pytree.tree_unflatten(filled, spec)
    return args, kwargs
