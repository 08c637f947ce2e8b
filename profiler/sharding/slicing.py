"""The program of one rank of several that divide the regions of a stage.

Weights are the rank's shards, numbers that count what is sharded are its own, and what must be
whole again is joined: by nodes of the two operators ``apportion.join_sum`` and
``apportion.join_concat``, which whoever builds the program connects to the other ranks. Every rank
has the same joins in the same order. The names of whole values stay those of the captured program.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from profiler.cut import Cutter
from profiler.errors import InvalidInputError
from profiler.expressions import Size
from profiler.program import (
    JOIN_CONCAT,
    JOIN_SUM,
    Arg,
    Node,
    Shard,
    StageProgram,
    TensorSpec,
    WeightPort,
    rename,
)
from profiler.sharding.facts import base_name, reference
from profiler.sharding.regions import Sharding
from profiler.sharding.shapes import require_shapes
from profiler.sharding.states import (
    Narrowed,
    NodePlan,
    Own,
    Partial,
    Sharded,
    Use,
    WeightSlice,
)


@dataclass(frozen=True, slots=True)
class Cut:
    """One rank's units of a region, of all ranks' ``units``."""

    units: tuple[int, ...]
    index: int

    @property
    def total(self) -> int:
        """Units of all ranks."""
        return sum(self.units)

    def length(self, rest: int, index: int | None = None) -> int:
        """How much of ``rest`` belongs to the rank (or to another one)."""
        return rest * self.units[self.index if index is None else index] // self.total

    def start(self, rest: int) -> int:
        """Where the rank's part of ``rest`` begins."""
        return rest * sum(self.units[: self.index]) // self.total


def sliced(
    program: StageProgram, sharding: Sharding, slices: Mapping[str, tuple[int, ...]], index: int
) -> StageProgram:
    """The program of rank ``index`` of a stage; ``slices`` gives, by region, each rank's units.

    Regions of the stage that are not named are computed whole by every rank.

    Raises:
        InvalidInputError: units that do not add up, a rank without units, an unknown region, or
            one that is not all in this stage.
    """
    cuts: dict[int, Cut] = {}
    own = {node.name for node in program.nodes}
    for name, units in slices.items():
        if name not in sharding.position:
            known = ", ".join(region.name for region in sharding.regions[:8])
            raise InvalidInputError(f"the model has no region {name!r} to slice; it has {known}")
        position = sharding.position[name]
        region = sharding.regions[position]
        if sum(units) != region.units or min(units) < 1 or not 0 <= index < len(units):
            raise InvalidInputError(
                f"region {name} has {region.units} units of its {region.axis}; the slices are "
                f"{', '.join(map(str, units))}: give every rank one or more, {region.units} in all"
            )
        missing = [
            layer
            for node, layer in sharding.facts.layer_of.items()
            if layer in region.layers and node not in own
        ]
        if missing:
            raise InvalidInputError(
                f"region {name} is sliced in a stage that lacks its layer {missing[0]}: put all of "
                f"{', '.join(region.layers)} into the stage, or leave the region whole"
            )
        cuts[position] = Cut(tuple(units), index)
    made = _Slicer(program, sharding, cuts).run()
    require_shapes(made, sharding.facts, changed={n.name for n in made.nodes} - own)
    return made


def only_sound(sharding: Sharding, cutter: Cutter) -> Sharding:
    """Without the regions whose halves cannot be written down: no plan shall rely on them."""
    unsound: dict[str, str] = {}
    tried: set[str] = set()
    for region in sharding.regions:
        if region.twin not in tried:
            tried.add(region.twin)
            half = (region.units + 1) // 2
            try:
                slices = {region.name: (half, region.units - half)}
                sliced(cutter.part(region.layers), sharding, slices, 0)
            except InvalidInputError as error:
                unsound[region.twin] = str(error)
    if not unsound:
        return sharding
    kept = [i for i, region in enumerate(sharding.regions) if region.twin not in unsound]
    place = {old: new for new, old in enumerate(kept)}
    lost = {
        layer: unsound[region.twin]
        for region in sharding.regions
        if region.twin in unsound
        for layer in region.layers
    }
    refused = {
        node: lost[layer] for node, layer in sharding.facts.layer_of.items() if layer in lost
    }
    return replace(
        sharding,
        regions=tuple(sharding.regions[i] for i in kept),
        region_of_axis={a: place[r] for a, r in sharding.region_of_axis.items() if r in place},
        refused={**sharding.refused, **refused},
    )


class _Slicer:
    def __init__(self, program: StageProgram, sharding: Sharding, cuts: dict[int, Cut]) -> None:
        self.program = program
        self.facts, self.found = sharding.facts, sharding.outcome
        self.region_of_axis, self.cuts = sharding.region_of_axis, cuts
        self.nodes: dict[str, Node] = {}
        self.ports: dict[str, WeightPort] = {port.name: port for port in program.weights}
        self.sizes: dict[str, Size] = dict(program.sizes)
        self.joins = 0

    def run(self) -> StageProgram:
        """The rank's program."""
        for node in self.program.nodes:
            self._node(node)
        nodes = self._needed()
        used = {ref for node in nodes for ref in node.references()}
        return StageProgram(
            inputs=self.program.inputs,
            sizes=tuple((name, size) for name, size in self.sizes.items() if name in used),
            weights=tuple(port for name, port in self.ports.items() if name in used),
            nodes=tuple(nodes),
            outputs=self.program.outputs,
            graphs=self.program.graphs,
        )

    def _needed(self) -> list[Node]:
        """Without moved weights that nobody takes any more."""
        kept: list[Node] = []
        used = set(self.program.outputs)
        for node in reversed(self.nodes.values()):
            if node.name in used or node.name.partition(".")[0] not in self.facts.chains:
                kept.append(node)
                used.update(node.references())
        return kept[::-1]

    def _cut(self, axis: int) -> Cut | None:
        region = self.region_of_axis.get(self.found.axes.find(axis))
        return None if region is None else self.cuts.get(region)

    def _plan(self, name: str) -> tuple[NodePlan, Cut] | None:
        """How a node is run on shards; None if the stage does not divide its region."""
        plan = self.found.plans.get(name)
        if plan is None:
            return None
        for axis in self._axes(plan):
            cut = self._cut(axis)
            return None if cut is None else (plan, cut)
        return None

    def _axes(self, plan: NodePlan) -> Iterator[int]:
        for ref, use in plan.uses.items():
            if not isinstance(use, Own):
                yield use.axis
            elif ref in self.found.lists:
                yield from (s.axis for s in self.found.lists[ref] if s is not None)
            elif (state := self.found.states.get(ref)) is not None:
                yield state.axis
            elif ref in self.found.moved:
                yield self.found.moved[ref][0].axis

    def _node(self, node: Node) -> None:
        moved = self.found.moved.get(node.name)
        if moved is not None:
            self._add(node)
            cut = self._cut(moved[0].axis)
            if cut is not None:
                self._add(self._rewritten(node, f"{node.name}.part", moved[1], moved[0], cut))
            return
        planned = self._plan(node.name)
        if planned is None:
            self._add(node)
            return
        plan, cut = planned
        joined = self.found.joins.get(node.name)
        state = joined.state if joined is not None else self.found.states.get(node.name)
        if node.name in self.found.lists:
            self._add(self._rewritten(node, f"{node.name}.part", plan, None, cut))
            return
        part = f"{node.name}.part" if state is not None else node.name
        if plan.kind == "lookup":
            self._lookup(node, part, plan, cut)
        elif plan.kind == "row":
            self._row(node, part, plan, cut)
            return
        else:
            self._add(self._rewritten(node, part, plan, state, cut))
        if joined is not None:
            self._join(node.name, part, joined.state, cut, node)

    def _add(self, node: Node) -> None:
        self.nodes[node.name] = node

    # --- operands ----------------------------------------------------------------------------

    def _rewritten(
        self, node: Node, name: str, plan: NodePlan, state: Sharded | Partial | None, cut: Cut
    ) -> Node:
        names = {ref: self._operand(ref, use, cut) for ref, use in plan.uses.items()}
        args = rename(list(node.args), lambda ref: names.get(ref, ref))
        for one in plan.scaled:
            value = self._scaled(one.size, cut)
            if one.index is None:
                args[one.argument] = value
            else:
                args[one.argument][one.index] = value
        kwargs = {k: rename(v, lambda ref: names.get(ref, ref)) for k, v in node.kwargs.items()}
        return replace(
            node, name=name, args=tuple(args), kwargs=kwargs, spec=self._spec(node.spec, state, cut)
        )

    def _operand(self, ref: str, use: Use, cut: Cut) -> str:
        match use:
            case Own():
                return f"{ref}.part"
            case Narrowed():
                name = f"{ref}.{use.dim}.narrow{self.found.axes.find(use.axis)}"
                if name not in self.nodes:
                    start = cut.start(use.rest)
                    end = start + cut.length(use.rest)
                    spec = self.facts.specs[ref]
                    shape = (*spec.shape[: use.dim], end - start, *spec.shape[use.dim + 1 :])
                    self._add(
                        Node(
                            name=name,
                            op="aten.slice.Tensor",
                            args=({"node": ref}, use.dim, start, end),
                            kwargs={},
                            spec=TensorSpec(shape=shape, dtype=spec.dtype),
                        )
                    )
                return name
            case WeightSlice():
                return self._port(ref, use, cut)

    def _port(self, ref: str, use: WeightSlice, cut: Cut) -> str:
        port = self.facts.weights[ref]
        start, length = cut.start(use.rest), cut.length(use.rest)
        runs = tuple(
            (part * use.rest + start, part * use.rest + start + length) for part in range(use.outer)
        )
        name = f"{ref}.{use.dim}.{use.outer}.{start}"
        shape = (*port.shape[: use.dim], use.outer * length, *port.shape[use.dim + 1 :])
        shard = Shard(dim=use.dim, runs=runs, whole=port.shape)
        self.ports[name] = replace(port, name=name, shape=shape, shard=shard)
        return name

    def _scaled(self, size: Size, cut: Cut) -> Arg:
        """A number that counts what is sharded, on this rank."""
        if isinstance(size, int):
            return cut.length(size)
        name = f"sliced_size_{len(self.sizes)}"
        self.sizes[name] = self._local(size, cut)
        return {"node": name}

    def _local(self, size: Size, cut: Cut) -> Size:
        if isinstance(size, int):
            return cut.length(size)
        return f"({size})*{cut.units[cut.index]}//{cut.total}"

    def _spec(
        self, spec: TensorSpec | None, state: Sharded | Partial | None, cut: Cut
    ) -> TensorSpec | None:
        if spec is None or not isinstance(state, Sharded):
            return spec
        shape = list(spec.shape)
        shape[state.dim] = self._local(shape[state.dim], cut)
        return replace(spec, shape=tuple(shape))

    # --- joins -------------------------------------------------------------------------------

    def _join(self, name: str, part: str, state: Sharded | Partial, cut: Cut, node: Node) -> None:
        args: tuple[Arg, ...] = ({"node": part}, self.joins, node.name)
        op = JOIN_SUM
        if isinstance(state, Sharded):
            op = JOIN_CONCAT
            lengths = [cut.length(state.rest, i) for i in range(len(cut.units))]
            args = (*args, state.dim, lengths)
        self.joins += 1
        self._add(Node(name=name, op=op, args=args, kwargs={}, spec=node.spec))

    def _row(self, node: Node, part: str, plan: NodePlan, cut: Cut) -> None:
        """A product that leaves terms: the bias is added once, after they are summed."""
        position = 0 if base_name(node.op) == "addmm" else 2
        bias = reference(node.args[position])
        assert bias is not None
        bare = replace(node, args=(*node.args[:position], None, *node.args[position + 1 :]))
        if position == 0:
            bare = replace(node, op="aten.mm.default", args=node.args[1:])
        self._add(self._rewritten(bare, part, plan, None, cut))
        state = self.found.joins[node.name].state
        whole = f"{node.name}.whole"
        self._join(whole, part, state, cut, node)
        if base_name(node.op).startswith("conv"):
            spec = self.facts.specs[bias]
            shape = (spec.shape[0], *[1] * (len(self.facts.dims[node.name]) - 2))
            shaped = f"{node.name}.bias"
            self._add(
                Node(
                    name=shaped,
                    op="aten.view.default",
                    args=({"node": bias}, list(shape)),
                    kwargs={},
                    spec=TensorSpec(shape=shape, dtype=spec.dtype),
                )
            )
            bias = shaped
        added = ({"node": whole}, {"node": bias})
        self._add(Node(name=node.name, op="aten.add.Tensor", args=added, kwargs={}, spec=node.spec))

    def _lookup(self, node: Node, part: str, plan: NodePlan, cut: Cut) -> None:
        """Rows that another rank holds are looked up as zero: one rank's term has them."""
        table, ids = reference(node.args[0]), reference(node.args[1])
        assert table is not None
        assert ids is not None
        use = plan.uses[table]
        assert isinstance(use, WeightSlice)
        shard, start, rows = self._port(table, use, cut), cut.start(use.rest), cut.length(use.rest)
        index = self.facts.specs[ids]
        flag = replace(index, dtype="bool")
        column = replace(flag, shape=(*flag.shape, 1))
        at = f"{node.name}.at"
        steps: tuple[tuple[str, str, tuple[Arg, ...], TensorSpec | None], ...] = (
            (at, "aten.sub.Scalar", ({"node": ids}, start), index),
            (f"{at}.low", "aten.lt.Scalar", ({"node": at}, 0), flag),
            (f"{at}.high", "aten.ge.Scalar", ({"node": at}, rows), flag),
            (f"{at}.out", "aten.logical_or.default", _nodes(f"{at}.low", f"{at}.high"), flag),
            (f"{at}.here", "aten.clamp.default", ({"node": at}, 0, rows - 1), index),
            (f"{at}.rows", "aten.embedding.default", _nodes(shard, f"{at}.here"), node.spec),
            (f"{at}.mask", "aten.unsqueeze.default", ({"node": f"{at}.out"}, -1), column),
            (
                part,
                "aten.masked_fill.Scalar",
                (*_nodes(f"{at}.rows", f"{at}.mask"), 0),
                node.spec,
            ),
        )
        for name, op, args, spec in steps:
            self._add(Node(name=name, op=op, args=args, kwargs={}, spec=spec))


def _nodes(*names: str) -> tuple[Arg, ...]:
    return tuple({"node": name} for name in names)


__all__ = ["Cut", "sliced"]
