"""Cutting a program: the part that holds some layers, with exactly what they need.

A part repeats the prelude nodes it needs, computes sizes from the batch itself, and lists the
tensors that must come in and go out. A whole model is the part that holds all layers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

from profiler.expressions import Size
from profiler.layers import Group, Layering
from profiler.program import Arg, Node, Program, StageProgram, TensorSpec


class Cutter:
    """Answers what any set of layers of one program reads, writes and holds."""

    def __init__(self, program: Program, layering: Layering) -> None:
        self.program = program
        self.layering = layering
        self.nodes: dict[str, Node] = {node.name: node for node in program.nodes}
        self.references = {name: node.references() for name, node in self.nodes.items()}
        self.inputs = {port.name: port for port in program.inputs}
        self.weights = {port.name: port for port in program.weights}
        self.sizes: dict[str, Size] = {
            node.name: node.size for node in program.nodes if node.size is not None
        }
        # A weight that the model returns as it is crosses no boundary: whoever asks holds it.
        self.final = [
            leaf.value
            for leaf in program.outputs
            if leaf.value is not None and leaf.value not in self.weights
        ]
        self._final = frozenset(self.final)
        self.order = {name: position for position, name in enumerate(self.nodes)}
        self.users: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, read in self.references.items():
            # A number taken from a tensor's shape needs no tensor: every part computes it itself.
            for ref in read if name not in self.sizes else ():
                if ref in self.users:
                    self.users[ref].append(name)

    @cached_property
    def groups(self) -> Mapping[str, Group]:
        """Groups by layer name."""
        return {group.name: group for group in self.layering.groups}

    def part(self, layers: Collection[str], *, prelude: bool = True) -> StageProgram:
        """The part that holds these layers.

        With ``prelude=False`` prelude values come in like any other tensor: so a layer's own time
        can be measured.
        """
        own = {name for layer in layers for name in self.groups[layer].nodes}
        return self._assemble(own, self._leaving(own), prelude=prelude)

    def whole(self) -> StageProgram:
        """The whole model; its outputs are those of the program, each once."""
        own = {name for group in self.layering.groups for name in group.nodes}
        produced = [name for name in dict.fromkeys(self.final) if name not in self.inputs]
        return self._assemble(own, produced, prelude=True)

    def prelude(self) -> StageProgram | None:
        """The prelude alone, returning what layers read of it; None if there is none."""
        own = set(self.layering.prelude)
        used = [
            name
            for name in self.nodes
            if name in own and any(name in self.reads_directly(g) for g in self.layering.groups)
        ]
        return self._assemble(own, used, prelude=False) if used else None

    def reads_directly(self, group: Group) -> frozenset[str]:
        """Values a group reads that it does not compute: inputs, prelude, other groups, weights."""
        own = set(group.nodes)
        return frozenset(
            ref for name in group.nodes for ref in self.references[name] if ref not in own
        )

    def boundary(self, group: Group) -> tuple[str, ...]:
        """Tensors a layer needs from elsewhere: of other layers, and inputs (its own and its
        prelude's)."""
        part = self.part([group.name])
        return part.inputs

    def uses_prelude(self, group: Group) -> bool:
        """Whether a group reads any prelude value."""
        return bool(self.reads_directly(group) & self.layering.prelude)

    def leaving(self, layers: Collection[str]) -> tuple[str, ...]:
        """Tensors that these layers compute and others (or the answer) need."""
        return tuple(self._leaving({n for layer in layers for n in self.groups[layer].nodes}))

    def spec(self, name: str) -> TensorSpec:
        """Shape and dtype of a tensor of the program."""
        if name in self.inputs:
            return self.inputs[name].spec
        spec = self.nodes[name].spec
        assert spec is not None, f"{name} is not a tensor"
        return spec

    def _leaving(self, own: set[str]) -> list[str]:
        leaving = [
            name
            for name in own
            if name in self._final or any(user not in own for user in self.users[name])
        ]
        return sorted(leaving, key=self.order.__getitem__)

    def _assemble(self, own: set[str], outputs: list[str], *, prelude: bool) -> StageProgram:
        repeated = set(own)
        if prelude:
            waiting = [ref for name in own for ref in self.references[name]]
            while waiting:
                ref = waiting.pop()
                if ref in self.layering.prelude and ref not in repeated:
                    repeated.add(ref)
                    waiting.extend(self.references[ref])
        nodes = [self.nodes[name] for name in self.nodes if name in repeated]
        inputs: dict[str, None] = {}
        sizes: dict[str, Size] = {}
        weights: dict[str, None] = {}
        graphs: dict[str, None] = {}
        for node in nodes:
            graphs.update(dict.fromkeys(self._graphs_in(node.args)))
            for ref in self.references[node.name]:
                if ref in repeated:
                    continue
                if ref in self.sizes:
                    sizes.setdefault(ref, self.sizes[ref])
                elif ref in self.weights:
                    weights.setdefault(ref)
                else:
                    inputs.setdefault(ref)
        return StageProgram(
            inputs=tuple(inputs),
            sizes=tuple(sizes.items()),
            weights=tuple(self.weights[name] for name in weights),
            nodes=tuple(nodes),
            outputs=tuple(outputs),
            graphs={name: self.program.graphs[name] for name in graphs},
        )

    def _graphs_in(self, args: Any) -> list[str]:
        found: list[str] = []

        def visit(arg: Arg) -> None:
            if isinstance(arg, dict) and "graph" in arg:
                found.append(arg["graph"])
                for node in self.program.graphs[arg["graph"]].nodes:
                    visit(node.args)
            elif isinstance(arg, (list, tuple)):
                for part in arg:
                    visit(part)

        visit(args)
        return found
