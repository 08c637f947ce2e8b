"""What the propagation knows of a captured program before it starts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from math import prod
from typing import Any

import torch

from profiler.errors import UnsupportedModelError
from profiler.expressions import BATCH, evaluate, symbols_of
from profiler.flops import count_flops
from profiler.graph import DTYPE_BYTES
from profiler.layers import Layering
from profiler.operators import aliased_arguments, resolve_operator, written_arguments
from profiler.program import Node, Program, TensorSpec, references

_PRIMES = (10007, 10009, 10037, 10039, 10061, 10067, 10069, 10079, 10091, 10093)
"""Sizes of symbols while shapes are compared: products of other sizes do not look like them."""

MOVES = {"t", "transpose", "permute", "to", "contiguous", "detach", "alias", "clone"}
"""Operators through which a weight may pass and still be cut before them."""

KEEPS_SHAPE = {"dropout", "feature_dropout", "to", "contiguous", "clone", "detach", "alias",
               "masked_fill", "lift_fresh_copy"}  # fmt: skip
"""Operators that work element by element although torch does not mark them so."""


class Facts:
    """A program with shapes as numbers, and what feeds what.

    ``heavy`` are values behind matrix products or convolutions: every other value is cheap to have
    whole, and may be cut where a shard meets it. ``from_data`` depend on values of the inputs.
    """

    def __init__(self, program: Program, layering: Layering) -> None:
        self.program = program
        self.prelude = layering.prelude
        self.nodes: dict[str, Node] = {node.name: node for node in program.nodes}
        self.order = {name: i for i, name in enumerate(self.nodes)}
        self.references = {name: node.references() for name, node in self.nodes.items()}
        self.weights = {port.name: port for port in program.weights}
        self.changing = {p.name for p in program.weights if p.weight in layering.state}
        self.layer_of = {n: g.name for g in layering.groups for n in g.nodes}
        self.flops = count_flops(program)
        self.users: dict[str, list[str]] = defaultdict(list)
        for name, read in self.references.items():
            for ref in read if self.nodes[name].size is None else ():
                self.users[ref].append(name)
        self.outputs = tuple(dict.fromkeys(x.value for x in program.outputs if x.value is not None))
        self.specs: dict[str, TensorSpec] = {port.name: port.spec for port in program.inputs}
        self.specs |= {p.name: TensorSpec(shape=p.shape, dtype=p.dtype) for p in program.weights}
        self.specs |= {n.name: n.spec for n in program.nodes if n.spec is not None}
        self._symbols: dict[str, int] = {}
        self.dims = {name: tuple(self._number(spec)) for name, spec in self.specs.items()}
        self._count_grouped()
        self.heavy, self.from_data = self._ancestry()
        self.chains = {name for name in self.nodes if self._is_chain(name)}

    def _count_grouped(self) -> None:
        """Products of groups of rows, whose weights torch's counter does not find when moved."""
        batch = self._symbols.get(BATCH, 1)
        for name, node in self.nodes.items():
            if base_name(node.op).removesuffix("_fallback").endswith("grouped_mm"):
                rows, width = self.dims[name][0], self.dims[name][-1]
                depth = self.dims[self.references[name][0]][-1]
                self.flops[name] = 2.0 * rows * width * depth / batch

    def _number(self, spec: TensorSpec) -> Iterator[int]:
        for size in spec.shape:
            for symbol in sorted(symbols_of(size) - self._symbols.keys()):
                self._symbols[symbol] = _PRIMES[len(self._symbols) % len(_PRIMES)]
            yield evaluate(size, self._symbols)

    def _ancestry(self) -> tuple[set[str], set[str]]:
        heavy: set[str] = set()
        from_data = {port.name for port in self.program.inputs}
        for name, node in self.nodes.items():
            if node.size is not None:
                continue
            read = self.references[name]
            if self.flops.get(name) or any(ref in heavy for ref in read):
                heavy.add(name)
            if any(ref in from_data for ref in read):
                from_data.add(name)
        return heavy, from_data

    def _is_chain(self, name: str) -> bool:
        """Whether a value is a weight, moved."""
        while name in self.nodes:
            read = [r for r in self.references[name] if r in self.specs]
            if base_name(self.nodes[name].op) not in MOVES or len(read) != 1:
                return False
            name = read[0]
        return name in self.weights

    def is_weight(self, name: str) -> bool:
        """Whether a value is a weight that never changes, or one that was only moved."""
        return (name in self.weights and name not in self.changing) or name in self.chains

    def num_bytes(self, name: str) -> int:
        """Bytes of a value, symbols at their stand-in sizes."""
        return prod(self.dims[name]) * DTYPE_BYTES[self.specs[name].dtype]

    def written(self, name: str) -> list[str]:
        """Values that a node changes in place."""
        node = self.nodes[name]
        found: list[str] = []
        for where in written_arguments(operator_of(node.op)):
            if isinstance(where, int):
                value = node.args[where] if where < len(node.args) else None
            else:
                value = node.kwargs.get(where)
            found.extend(references(value))
        return found

    @cached_property
    def _memory(self) -> dict[str, frozenset[str]]:
        """For each value, itself and those whose memory it may share because it comes from them."""
        found: dict[str, frozenset[str]] = {}
        for name, node in self.nodes.items():
            sources = {
                ref
                for position in aliased_arguments(operator_of(node.op))
                for ref in references(node.args[position] if position < len(node.args) else None)
            }
            found[name] = frozenset({name, *sources}).union(
                *(found.get(ref, frozenset()) for ref in sources)
            )
        return found

    @cached_property
    def _sharing(self) -> dict[str, list[str]]:
        """For each value, all that may share its memory because they come from it."""
        found: dict[str, list[str]] = defaultdict(list)
        for name, roots in self._memory.items():
            for root in roots:
                found[root].append(name)
        return found

    def seen_later(self, name: str) -> bool:
        """Whether anyone looks, after this node, at what it changes in place, by an older name."""
        position = self.order[name]
        roots = {
            root
            for target in self.written(name)
            for root in self._memory.get(target, frozenset({target}))
        }
        older = {v for root in roots for v in self._sharing.get(root, [root])} | roots
        return any(
            other in self.outputs or any(self.order[u] > position for u in self.users[other])
            for other in older
            if name not in self._memory.get(other, ())
        )


def base_name(op: str) -> str:
    """``aten.linear.default`` is ``linear``.

    >>> base_name("aten.relu_.default"), base_name("operator.getitem")
    ('relu_', 'getitem')
    """
    return op.split(".")[1]


@lru_cache(maxsize=1024)
def operator_of(op: str) -> Any:
    """The torch object behind an operator's name; None if it is not installed."""
    try:
        return resolve_operator(op)
    except UnsupportedModelError:
        return None


@lru_cache(maxsize=1024)
def is_pointwise(op: str) -> bool:
    """Whether every element of the result depends on the elements at its place alone."""
    if base_name(op).rstrip("_") in KEEPS_SHAPE:
        return True
    found = operator_of(op)
    return isinstance(found, torch._ops.OpOverload) and torch.Tag.pointwise in found.tags


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument by position or keyword."""
    if position < len(node.args):
        return node.args[position]
    return node.kwargs.get(name, default)


def reference(arg: Any) -> str | None:
    """The value that an argument names, if it names one."""
    return arg["node"] if isinstance(arg, dict) and "node" in arg else None


Bans = Mapping[str, str]
"""Nodes that shall not begin a region, and why."""
