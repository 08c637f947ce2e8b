"""The model as the planner sees it: layers, the tensors between them, the weights they hold.

A :class:`ModelGraph` is data (it is stored inside a Profile and hashed into plans); the networkx
graph is a view on it. It knows nothing of torch: how layers came about is ``profiler.layers``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from profiler.documents import Record
from profiler.errors import InvalidInputError
from profiler.expressions import BATCH, Size, evaluate, rows_per_item

if TYPE_CHECKING:
    import networkx as nx

DTYPE_BYTES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "complex64": 8, "complex128": 16,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "uint16": 2, "uint32": 4,
    "uint64": 8, "bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip
"""Bytes of one element, by torch's name of the dtype."""


class Tensor(Record):
    """A tensor that enters, leaves or crosses layers.

    ``producer`` is the layer that computes it, or ``None`` for an input of the model.
    ``batch_dim`` is the dim along which items lie one after another (``rows_per_item`` rows
    each); ``None`` when the tensor cannot be cut into items. ``per_batch`` says that its value
    belongs to one batch even though it cannot be cut (a mean over items, a square of
    similarities): whoever reads it must see the whole batch.
    """

    name: str
    producer: str | None = None
    shape: tuple[Size, ...]
    dtype: str
    batch_dim: int | None = None
    per_batch: bool = False

    def num_bytes(self, symbols: Mapping[str, int]) -> int:
        """Bytes at the given symbol values; ``batch`` counts items."""
        return prod(evaluate(s, symbols) for s in self.shape) * DTYPE_BYTES[self.dtype]

    def rows_per_item(self, symbols: Mapping[str, int]) -> int:
        """Rows of ``batch_dim`` that one item takes.

        Raises:
            InvalidInputError: the tensor has no batch dim.
        """
        dim = self.batch_dim
        rows = None if dim is None else rows_per_item(self.shape[dim], symbols)
        if rows is None:
            raise InvalidInputError(f"tensor {self.name} cannot be cut into items")
        return rows


class Weight(Record):
    """A parameter or buffer; tied names appear once, under the first of them.

    ``state`` marks a buffer that the model changes while it runs (a cache): it stays with its
    stage and is never copied.
    """

    name: str
    num_bytes: int = Field(ge=0)
    tied: tuple[str, ...] = ()
    state: bool = False


class Layer(Record):
    """The smallest unit the planner may place.

    ``name`` is the qualified name of the module that does most of its work; ``modules`` are all
    the modules whose operators it holds. ``twin`` is a digest of its operators and shapes: layers
    of equal twin cost the same and are measured once. ``itemwise`` says that cutting the batch
    does not change its outputs (measured, not assumed); a layer that is not must see whole
    batches on one rank. ``uses_prelude``: it reads tensors that every stage recomputes from the
    model's inputs (masks, positions) instead of receiving them.
    """

    name: str
    module_type: str
    modules: tuple[str, ...]
    twin: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    weights: tuple[str, ...]
    flops_per_item: float = 0.0
    itemwise: bool = True
    uses_prelude: bool = False


class SlicedWeight(Record):
    """How ranks divide a weight: along ``dim``, in units of equal size.

    ``dim`` holds ``parts`` equal runs one after another (3 for fused query, key and value); each
    run holds every unit once, so a rank's shard is its units of every run.
    """

    weight: str
    dim: int = Field(ge=0)
    parts: int = Field(default=1, ge=1)


class Join(Record):
    """A tensor of which each rank computes only a part: terms to ``sum``, or a run of units along
    ``dim`` to ``concat``. Every rank has the whole once it is joined."""

    tensor: str
    how: Literal["sum", "concat"]
    dim: int | None = None


class SliceRegion(Record):
    """Layers that several ranks can compute together, each a slice of one axis.

    The axis (``heads``, ``features``, ``vocabulary``, ``channels``, ``experts``) has ``units``
    indivisible units. A rank with u of them holds that part of ``weights``, does u / units of the
    work on its sharded tensors, and all of it elsewhere. ``joins`` are done once a microbatch, when
    the region ends. A layer is in at most one region; ``layers`` are in the model's order.
    ``divided`` is the part of the layers' operations that slicing divides. ``twin`` is equal for
    regions that cost the same.
    """

    name: str
    axis: str
    units: int = Field(ge=1)
    layers: tuple[str, ...]
    weights: tuple[SlicedWeight, ...]
    joins: tuple[Join, ...]
    divided: float = Field(default=1.0, ge=0, le=1)
    twin: str


class ModelGraph(Record):
    """Layers in a topological order, with the tensors and weights they touch.

    ``fingerprint`` is a digest of the captured operators, shapes and weight names (not of weight
    values). ``symbols`` holds the example value of each symbol (``batch`` first). ``static_batch``
    is set when the model was captured for exactly that many items.
    """

    name: str
    source: Literal["factory", "huggingface", "pt2", "module"]
    ref: str
    captured_by: str
    dtype: str
    fingerprint: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    symbols: dict[str, int]
    static_batch: int | None = None
    layers: tuple[Layer, ...]
    tensors: tuple[Tensor, ...]
    weights: tuple[Weight, ...]
    regions: tuple[SliceRegion, ...] = ()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> ModelGraph:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems[:3]))
        return self

    def _problems(self) -> Iterable[str]:
        for kind, names in (
            ("layer", [x.name for x in self.layers]),
            ("tensor", [x.name for x in self.tensors]),
            ("weight", [x.name for x in self.weights]),
        ):
            if len(set(names)) != len(names):
                twice = next(n for n in names if names.count(n) > 1)
                yield f"{kind} {twice!r} is listed twice"
        if not self.layers:
            yield "the model has no layer"
        if BATCH not in self.symbols:
            yield f"symbols lack {BATCH!r}"
        known, weights = {t.name: t for t in self.tensors}, {w.name for w in self.weights}
        position = {layer.name: i for i, layer in enumerate(self.layers)}
        for index, layer in enumerate(self.layers):
            for name in (*layer.reads, *layer.writes):
                if name not in known:
                    yield f"layer {layer.name!r} names an unknown tensor {name!r}"
                    return
            for name in layer.reads:
                producer = known[name].producer
                if producer is not None and position.get(producer, index) >= index:
                    yield f"layer {layer.name!r} reads {name!r} before {producer!r} has written it"
            for name in layer.writes:
                if known[name].producer != layer.name:
                    yield f"tensor {name!r} is not written by {layer.name!r}"
            for name in layer.weights:
                if name not in weights:
                    yield f"layer {layer.name!r} names an unknown weight {name!r}"
        for name in (*self.inputs, *self.outputs):
            if name not in known:
                yield f"input or output {name!r} is not a tensor of the graph"
        sliced: set[str] = set()
        for region in self.regions:
            for name in region.layers:
                if name not in position or name in sliced:
                    yield f"region {region.name!r} names {name!r}, unknown or in another region"
                sliced.add(name)
            for weight in region.weights:
                if weight.weight not in weights:
                    yield f"region {region.name!r} names an unknown weight {weight.weight!r}"
            for join in region.joins:
                if join.tensor not in known:
                    yield f"region {region.name!r} joins an unknown tensor {join.tensor!r}"
        written = {name for layer in self.layers for name in layer.writes}
        for tensor in self.tensors:
            if tensor.producer is not None and tensor.name not in written:
                yield f"tensor {tensor.name!r} is not written by {tensor.producer!r}"
            if tensor.dtype not in DTYPE_BYTES:
                yield f"tensor {tensor.name!r} has an unknown dtype {tensor.dtype!r}"
            if tensor.batch_dim is not None and not 0 <= tensor.batch_dim < len(tensor.shape):
                yield f"tensor {tensor.name!r} has no dim {tensor.batch_dim}"

    @cached_property
    def layer_index(self) -> dict[str, int]:
        """Position of each layer by name."""
        return {layer.name: i for i, layer in enumerate(self.layers)}

    @cached_property
    def tensor(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return {t.name: t for t in self.tensors}

    @cached_property
    def weight(self) -> dict[str, Weight]:
        """Weights by name."""
        return {w.name: w for w in self.weights}

    @cached_property
    def region_of(self) -> dict[int, int]:
        """Position of the region of each layer that is in one, by the layer's position."""
        return {
            self.layer_index[name]: r
            for r, region in enumerate(self.regions)
            for name in region.layers
        }

    @cached_property
    def readers(self) -> dict[str, tuple[int, ...]]:
        """For each tensor, the positions of the layers that read it, ascending."""
        found: dict[str, list[int]] = {t.name: [] for t in self.tensors}
        for index, layer in enumerate(self.layers):
            for name in layer.reads:
                found[name].append(index)
        return {name: tuple(where) for name, where in found.items()}

    @cached_property
    def digraph(self) -> nx.DiGraph[int]:
        """Layers as nodes (by position); an edge carries ``tensors``, the names that cross it."""
        import networkx as nx

        graph: nx.DiGraph[int] = nx.DiGraph()
        graph.add_nodes_from(range(len(self.layers)))
        for index, layer in enumerate(self.layers):
            for name in layer.reads:
                producer = self.tensor[name].producer
                if producer is not None:
                    source = self.layer_index[producer]
                    if not graph.has_edge(source, index):
                        graph.add_edge(source, index, tensors=[])
                    graph.edges[source, index]["tensors"].append(name)
        return graph

    @cached_property
    def is_chain(self) -> bool:
        """Whether the layers have exactly one topological order (each leads to the next)."""
        return all(self.digraph.has_edge(i, i + 1) for i in range(len(self.layers) - 1))

    def weight_bytes(self, layers: Iterable[int]) -> int:
        """Bytes of the weights of these layers held together; tied weights count once."""
        names = {name for i in layers for name in self.layers[i].weights}
        return sum(self.weight[name].num_bytes for name in names)

    def symbols_at(self, items: int) -> dict[str, int]:
        """The example symbols with ``batch`` set to ``items``."""
        return {**self.symbols, BATCH: items}

    @property
    def total_weight_bytes(self) -> int:
        """Bytes of all weights, tied ones once."""
        return sum(w.num_bytes for w in self.weights)
