"""Capture: from a model to its program, its layers and its :class:`ModelGraph`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from profiler.cut import Cutter
from profiler.documents import canonical_json, digest
from profiler.encode import Encoded, encode
from profiler.export import Traced, trace
from profiler.expressions import BATCH, rows_per_item, symbols_of
from profiler.graph import Layer, ModelGraph, Tensor, Weight
from profiler.hints import disagreements
from profiler.layers import Group, Layering, find_layers
from profiler.members import describe_members, split_leaves, unflatten_member
from profiler.program import Node, StageProgram, WeightPort, rename
from profiler.sharding.regions import Sharding, find_regions
from profiler.sharding.slicing import only_sound
from profiler.sources import LoadedModel
from profiler.weights import cut


@dataclass(frozen=True, kw_only=True)
class Captured:
    """A model as data, and what is needed to call it.

    ``graph`` takes every layer for itemwise until measuring has told (``profiler.itemwise``).
    ``sharding`` is how its layers can be divided. ``stored_as`` gives the name under which each
    weight's value is stored.
    """

    source: LoadedModel
    traced: Traced
    encoded: Encoded
    layering: Layering
    cutter: Cutter
    sharding: Sharding
    graph: ModelGraph
    stored_as: Mapping[str, str]

    @property
    def constants(self) -> Mapping[str, torch.Tensor]:
        """Values of weights that are not part of the saved state."""
        return self.encoded.constants

    def weight(self, port: WeightPort) -> torch.Tensor:
        """The value of a weight, read from where it is stored; a copy, for stages may change it."""
        if port.constant:
            return cut(self.constants[port.weight], port.shard).clone()
        shape = port.shape if port.shard is None else port.shard.whole
        value = torch.empty(shape, dtype=getattr(torch, port.dtype))
        self.source.weights.fill(self.stored_as[port.weight], value)
        return value if port.shard is None else cut(value, port.shard).clone()

    def flatten_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The leaves of a call's arguments, in the program's order."""
        return list(pytree.tree_flatten((tuple(args), dict(kwargs)))[0])

    def member_leaves(self, leaves: list[Any]) -> list[list[Any]]:
        """The leaves of an ensemble's members, each its own."""
        return split_leaves(self.traced, leaves)

    def unflatten_member(self, member: int, leaves: list[Any]) -> Any:
        """The answer structure of one member of an ensemble around its leaves."""
        return unflatten_member(self.traced, member, leaves)

    def unflatten_outputs(self, leaves: list[Any]) -> Any:
        """The model's own answer structure around leaves: a tuple, dict or dataclass."""
        spec = self.traced.exported.call_spec.out_spec
        return pytree.tree_unflatten(leaves, spec) if spec is not None else tuple(leaves)


def capture(model: LoadedModel) -> Captured:
    """Trace a model, write it as data, and find its layers.

    Raises:
        InvalidInputError: the example does not fit the model.
        UnsupportedModelError: it cannot be traced or written as data.
    """
    traced = trace(model)
    encoded = encode(traced, name=model.name)
    layering = find_layers(encoded)
    cutter = Cutter(encoded.program, layering)
    tied = _tied(model)
    names = {p.weight: tied.get(p.weight, (p.weight,)) for p in encoded.program.weights}
    graph = _graph(model, traced, encoded, layering, cutter, names)
    sharding = find_regions(
        encoded.program,
        layering,
        twins={layer.name: layer.twin for layer in graph.layers},
        weight_names={weight: same[0] for weight, same in names.items()},
    )
    sharding = only_sound(sharding, cutter)
    graph = graph.model_copy(update={"regions": sharding.regions})
    shapes = {names[p.weight][0]: p.shape for p in encoded.program.weights}
    notes = (*graph.notes, *disagreements(graph, shapes, model.module))
    return Captured(
        source=model,
        traced=traced,
        encoded=encoded,
        layering=layering,
        cutter=cutter,
        sharding=sharding,
        graph=graph.model_copy(update={"notes": notes}),
        stored_as={weight: same[0] for weight, same in names.items()},
    )


def _tied(model: LoadedModel) -> dict[str, tuple[str, ...]]:
    """For each saved name, all names of the same weight, the one it is stored under first."""
    groups: dict[object, dict[str, None]] = {}
    for name, stored in model.aliases.items():
        groups.setdefault(stored, {stored: None}).setdefault(name)
    if not model.aliases:
        state = model.exported.state_dict if model.exported is not None else {}
        if model.module is not None:
            state = model.module.state_dict(keep_vars=True)
        for name, tensor in state.items():
            if isinstance(tensor, torch.Tensor):
                groups.setdefault(_memory(tensor), {}).setdefault(name)
    return {name: tuple(names) for names in groups.values() for name in names}


def _memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What two tensors have in common exactly if they are one weight."""
    return (
        tensor.untyped_storage().data_ptr() or id(tensor),
        tensor.storage_offset(),
        tuple(tensor.shape),
        tuple(tensor.stride()),
    )


def _graph(
    model: LoadedModel,
    traced: Traced,
    encoded: Encoded,
    layering: Layering,
    cutter: Cutter,
    names: Mapping[str, tuple[str, ...]],
) -> ModelGraph:
    program = encoded.program
    fingerprint = program.fingerprint()
    symbols = _symbol_values(traced)
    dependent = _depends_on_items(cutter)
    tensors = [_tensor(port.name, None, cutter, symbols, dependent) for port in program.inputs]
    layers = []
    for group in layering.groups:
        written = cutter.leaving([group.name])
        tensors += [_tensor(name, group.name, cutter, symbols, dependent) for name in written]
        part = cutter.part([group.name])
        own = {r for n in group.nodes for r in cutter.references[n]}
        held = dict.fromkeys(
            names[cutter.weights[name].weight][0] for name in cutter.weights if name in own
        )
        layers.append(
            Layer(
                name=group.name,
                module_type=group.module_type,
                modules=group.modules or (group.name,),
                twin=_twin(group, cutter, fingerprint),
                reads=part.inputs,
                writes=written,
                weights=tuple(held),
                flops_per_item=float(f"{group.flops:.6g}"),
                uses_prelude=cutter.uses_prelude(group),
            )
        )
    dtypes = [port.dtype for port in program.weights if "float" in port.dtype]
    return ModelGraph(
        name=model.name,
        source=model.kind,
        ref=model.ref,
        captured_by=traced.level,
        dtype=max(set(dtypes), key=dtypes.count) if dtypes else "float32",
        fingerprint=fingerprint,
        inputs=tuple(port.name for port in program.inputs),
        outputs=tuple(dict.fromkeys(cutter.final)),
        symbols=symbols,
        static_batch=traced.static_batch,
        layers=tuple(layers),
        tensors=tuple(tensors),
        weights=tuple(_weights(cutter, names, layering.state)),
        ensemble=None
        if model.ensemble is None
        else describe_members(model.ensemble.combination, model.ensemble.refs, traced, encoded),
        notes=traced.notes,
    )


def _symbol_values(traced: Traced) -> dict[str, int]:
    values = {BATCH: traced.static_batch or 1}
    for (name, dim), symbol in traced.dim_names.items():
        values[symbol] = traced.tensors[name].shape[dim]
    return values


def _depends_on_items(cutter: Cutter) -> set[str]:
    """Values computed from inputs that hold items."""
    found = {p.name for p in cutter.program.inputs if p.batch_dim is not None}
    for name, read in cutter.references.items():
        if name not in cutter.sizes and any(ref in found for ref in read):
            found.add(name)
    return found


def _tensor(
    name: str, producer: str | None, cutter: Cutter, symbols: Mapping[str, int], dependent: set[str]
) -> Tensor:
    spec = cutter.spec(name)
    port = cutter.inputs.get(name)
    batched = [d for d, size in enumerate(spec.shape) if BATCH in symbols_of(size)]
    if port is not None:
        dim = port.batch_dim
    else:
        # One dim that is a whole number of rows per item can be cut; two (a square of items)
        # or a size such as batch + 1 cannot.
        dim = (
            batched[0]
            if len(batched) == 1 and rows_per_item(spec.shape[batched[0]], symbols) is not None
            else None
        )
    return Tensor(
        name=name,
        producer=producer,
        shape=spec.shape,
        dtype=spec.dtype,
        batch_dim=dim,
        per_batch=dim is None and (name in dependent or bool(batched)),
    )


def _weights(
    cutter: Cutter, names: Mapping[str, tuple[str, ...]], state: frozenset[str]
) -> Iterable[Weight]:
    changed = {names[weight][0] for weight in state}
    seen: set[str] = set()
    for port in cutter.program.weights:
        name, *others = names[port.weight]
        if name not in seen:
            seen.add(name)
            yield Weight(
                name=name, num_bytes=port.num_bytes, tied=tuple(others), state=name in changed
            )


def _twin(group: Group, cutter: Cutter, salt: str) -> str:
    """Digest of what decides a layer's cost: operators, shapes, dtypes; not names or values.

    Control-flow operators are not looked into: such a layer is no one's twin.
    """
    part: StageProgram = cutter.part([group.name], prelude=False)
    number: dict[str, str] = {}
    outside: list[Any] = []
    for name in part.inputs:
        number[name] = f"in{len(number)}"
        spec = cutter.spec(name)
        outside.append([list(spec.shape), spec.dtype])
    for name, size in part.sizes:
        number[name] = f"size{len(number)}"
        outside.append(size)
    for port in part.weights:
        number[port.name] = f"weight{len(number)}"
        outside.append([list(port.shape), port.dtype])
    for node in part.nodes:
        number[node.name] = f"node{len(number)}"
    body = [_anonymous(node, number) for node in part.nodes]
    data = [outside, body, [number[name] for name in part.outputs]]
    if part.graphs:
        data.append([salt, group.name])
    return re.sub("^sha256:", "", digest(canonical_json(data)))[:12]


def _anonymous(node: Node, number: Mapping[str, str]) -> list[Any]:
    args = rename(list(node.args), number.__getitem__)
    kwargs = {k: rename(v, number.__getitem__) for k, v in node.kwargs.items()}
    return [number[node.name], node.op, args, kwargs]
