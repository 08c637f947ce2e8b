"""Each distinct layer of a model, ready to run on real values at any batch size.

A pass runs the model's layers in order on example inputs. Only one layer of each twin is built;
the others take its results, which have the same shapes. So memory and time depend on the number of
distinct layers, not on depth, and every layer still runs on inputs that a layer before it produced.
Layers are measured inside this sequence: repeating one alone would keep its weights in cache and
read too low.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from profiler.build import JoinMaker, build_stage
from profiler.capture import Captured
from profiler.expressions import BATCH, evaluate
from profiler.graph import Layer, Tensor
from profiler.operators import changed_inputs
from profiler.profile import PRELUDE
from profiler.program import StageProgram, WeightPort

Values = dict[str, torch.Tensor]


@dataclass(frozen=True)
class BuiltLayer:
    """One distinct layer: its program, its module, and the layer it was built from.

    ``layer`` is None for the prelude. ``changes`` are the inputs that running it modifies.
    """

    twin: str
    name: str
    layer: Layer | None
    program: StageProgram
    module: fx.GraphModule
    changes: frozenset[str]


@dataclass(frozen=True)
class Call:
    """A built layer with the arguments of one batch size."""

    built: BuiltLayer
    tensors: tuple[torch.Tensor, ...]
    sizes: tuple[int, ...]

    def run(self) -> tuple[torch.Tensor, ...]:
        """Compute once; results are the layer's outputs."""
        with torch.inference_mode():
            return self.built.module(*self.tensors, *self.sizes)  # type: ignore[no-any-return]


class LayerBench:
    """The distinct layers of a captured model on one device."""

    def __init__(self, captured: Captured, *, device: torch.device) -> None:
        self.captured = captured
        self.device = device
        self.generator = torch.Generator().manual_seed(0)
        self.layers = {layer.name: layer for layer in captured.graph.layers}
        self.built = {b.twin: b for b in self._build()}

    def _build(self) -> Iterator[BuiltLayer]:
        cutter = self.captured.cutter
        prelude = cutter.prelude()
        if prelude is not None:
            yield self._built(PRELUDE, PRELUDE, None, prelude)
        seen: set[str] = set()
        for layer in self.captured.graph.layers:
            if layer.twin not in seen:
                seen.add(layer.twin)
                program = cutter.part([layer.name], prelude=False)
                yield self._built(layer.twin, layer.name, layer, program)

    def build(self, program: StageProgram, *, join: JoinMaker | None = None) -> BuiltLayer:
        """Any part of the model, to be called with :meth:`call`."""
        return self._built("", "", None, program, join)

    def call(self, built: BuiltLayer, values: Values, items: int) -> Call:
        """A part of the model with its arguments of a batch size."""
        return self._call(built, values, {**self.captured.graph.symbols, BATCH: items})

    def _built(
        self,
        twin: str,
        name: str,
        layer: Layer | None,
        program: StageProgram,
        join: JoinMaker | None = None,
    ) -> BuiltLayer:
        return BuiltLayer(
            twin=twin,
            name=name,
            layer=layer,
            program=program,
            module=build_stage(program, device=self.device, weight=self._weight, join=join),
            changes=changed_inputs(program),
        )

    def _weight(self, port: WeightPort) -> torch.Tensor:
        """The real value where this process holds it, else random numbers of the same kind."""
        if port.constant or self.captured.source.has_weights:
            return self.captured.weight(port).to(self.device)
        dtype: torch.dtype = getattr(torch, port.dtype)
        if not dtype.is_floating_point:
            return torch.zeros(port.shape, dtype=dtype, device=self.device)
        # Small and centred, as trained weights are: no overflow, no denormals.
        noise = torch.empty(port.shape, dtype=torch.float32)
        return noise.normal_(std=0.02, generator=self.generator).to(dtype).to(self.device)

    def inputs(self, items: int, *, varied: bool = False) -> Values:
        """Example inputs of ``items`` items on the bench's device."""
        made = example_inputs(self.captured, items, varied=varied)
        return {name: tensor.to(self.device) for name, tensor in made.items()}

    def calls(self, items: int, *, varied: bool = False) -> Iterator[Call]:
        """The distinct layers at a batch size, in order, each once its inputs are known."""
        for call, _ in self._pass(items, varied=varied):
            if call is not None:
                yield call

    def _pass(self, items: int, *, varied: bool = False) -> Iterator[tuple[Call | None, Values]]:
        """Each distinct layer with the values known before it; at last None with all of them."""
        symbols = {**self.captured.graph.symbols, BATCH: items}
        values = self.inputs(items, varied=varied)
        results: dict[str, tuple[torch.Tensor, ...]] = {}
        if PRELUDE in self.built:
            call = self._call(self.built[PRELUDE], values, symbols)
            yield call, values
            values.update(zip(call.built.program.outputs, _fresh(call), strict=True))
        for layer in self.captured.graph.layers:
            if layer.twin not in results:
                call = self._call(self.built[layer.twin], values, symbols)
                yield call, values
                results[layer.twin] = _fresh(call)
            values.update(zip(layer.writes, results[layer.twin], strict=True))
        yield None, values

    def values(self, items: int, needed: Collection[str]) -> Values:
        """The ``needed`` tensors of the model at a batch size."""
        *_, (_, found) = self._pass(items)
        return {name: found[name] for name in needed}

    def segment(self, program: StageProgram, values: Values, items: int) -> Call:
        """A run of layers as a rank would hold it, with its arguments."""
        return self.call(self.build(program), values, items)

    def _call(self, built: BuiltLayer, values: Values, symbols: Mapping[str, int]) -> Call:
        return Call(
            built=built,
            tensors=tuple(values[name] for name in built.program.inputs),
            sizes=tuple(evaluate(size, symbols) for _, size in built.program.sizes),
        )

    def spec(self, name: str) -> Tensor | None:
        """The graph's record of a tensor; None for a value inside the prelude."""
        return self.captured.graph.tensor.get(name)


def example_inputs(captured: Captured, items: int, *, varied: bool = False) -> Values:
    """Inputs of ``items`` items made from the example; ``varied`` makes every item different."""
    values: Values = {}
    for port in captured.encoded.program.inputs:
        example = captured.traced.tensors[port.name]
        dim = port.batch_dim
        if dim is not None:
            repeats = -(-items // example.shape[dim])
            parts = [_vary(example, dim, k) if varied and k else example for k in range(repeats)]
            example = torch.cat(parts, dim=dim).narrow(dim, 0, items)
        values[port.name] = example.contiguous()
    return values


def _fresh(call: Call) -> tuple[torch.Tensor, ...]:
    """Results that no later change in place can touch, and inputs left as they were."""
    copies = Call(
        built=call.built, tensors=tuple(t.clone() for t in call.tensors), sizes=call.sizes
    )
    return tuple(t.clone() for t in copies.run())


def _vary(example: torch.Tensor, dim: int, step: int) -> torch.Tensor:
    """Other items of the same kind: rolled along the last dim, numbers slightly scaled."""
    last = example.ndim - 1
    rolled = torch.roll(example, step, dims=last) if last != dim else example
    if rolled.is_floating_point():
        return rolled * (1 + 0.1 * step)
    return rolled
