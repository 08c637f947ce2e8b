"""From operator calls to layers: which nodes belong together, and what each group is called.

1. Numbers computed from shapes belong to no layer: every stage computes them itself.
2. The *prelude* - masks, positions, whatever depends on the model's inputs alone and costs little -
   belongs to every layer that uses it: recomputing beats sending it.
3. The module tree is opened from the top wherever a module does more than ``MAX_LAYER_FRACTION`` of
   the work, except modules of a few parallel operators (the projections of one attention).
4. Operators between modules join the layer that feeds them; light modules (norms, activations) join
   their neighbour.
5. What must not be cut apart is merged: changes in place and their readers, values that are not
   plain tensors, sizes that data decides, cycles.

A layer is named after the module that does most of its work.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx

from profiler.encode import Encoded
from profiler.flops import count_flops
from profiler.modules import ModuleTree, open_modules
from profiler.operators import aliased_arguments, is_random, written_arguments
from profiler.program import Node, Program, references

OWN = "forward"
"""Last part of the name of a layer made of a module's own operators."""


@dataclass(frozen=True)
class Group:
    """Nodes that form one layer, in program order."""

    name: str
    module_type: str
    modules: tuple[str, ...]
    nodes: tuple[str, ...]
    flops: float


@dataclass(frozen=True)
class Layering:
    """The layers of a program in a topological order, and the prelude they share.

    ``prelude`` nodes belong to every layer that needs them. ``state`` are the weights that the
    model changes in place.
    """

    groups: tuple[Group, ...]
    prelude: frozenset[str]
    state: frozenset[str]


def find_layers(encoded: Encoded) -> Layering:
    """Group the nodes of a captured program into layers."""
    return _Grouping(encoded).run()


class _Grouping:
    def __init__(self, encoded: Encoded) -> None:
        self.encoded = encoded
        self.program: Program = encoded.program
        self.nodes: dict[str, Node] = {n.name: n for n in self.program.nodes}
        self.order = {name: i for i, name in enumerate(self.nodes)}
        self.references = {name: node.references() for name, node in self.nodes.items()}
        self.users: dict[str, list[str]] = defaultdict(list)
        for name, read in self.references.items():
            for other in read:
                self.users[other].append(name)
        self.weight_bytes = {port.name: port.num_bytes for port in self.program.weights}
        self.saved = {port.name for port in self.program.weights if not port.constant}
        self.inputs = {port.name for port in self.program.inputs}
        self.outputs = {leaf.value for leaf in self.program.outputs if leaf.value is not None}
        self.numbers = {name for name, node in self.nodes.items() if node.size is not None}
        self.flops = count_flops(self.program)
        self.unit: dict[str, str] = {}

    def run(self) -> Layering:
        light = self._input_only()
        body = [n for n in self.nodes if n not in self.numbers and n not in light]
        if not body:
            # Nothing but light work on inputs: it is the model.
            body, light = [n for n in self.nodes if n not in self.numbers], set()
        tree = ModuleTree.build(self.encoded.origins, body, self.flops, self.references)
        chosen = open_modules(tree)
        self._assign(body, tree, chosen)
        prelude = self._prelude(light)
        state = self._merge_mutations(prelude)
        self._merge_uncuttable(prelude)
        self._merge_cycles()
        self._merge_light(tree)
        return Layering(
            groups=tuple(self._groups()), prelude=frozenset(prelude), state=frozenset(state)
        )

    # --- step 2: the prelude -----------------------------------------------------------------

    def _input_only(self) -> set[str]:
        """Light nodes that depend on inputs and constants alone."""
        roots = self._roots()
        sharing = self._sharing(roots)
        mutated: set[str] = set()
        for name in self.nodes:
            for target in self._written(name):
                owners = roots.get(target, frozenset({target}))
                mutated |= owners.union(*(sharing[root] for root in owners))
        light: set[str] = set()
        for name, node in self.nodes.items():
            target = self.encoded.origins[name].target
            free = all(
                ref in light or ref in self.numbers or ref in self.inputs
                or (ref in self.weight_bytes and ref not in self.saved)
                for ref in self.references[name]
            )  # fmt: skip
            if (
                free
                and name not in self.numbers
                and node.spec is not None
                and not self.flops.get(name)
                and not is_random(target)
                and not self._written(name)
                and name not in mutated
                and not any("graph" in a for a in node.args if isinstance(a, dict))
            ):
                light.add(name)
        return light

    def _prelude(self, light: set[str]) -> set[str]:
        """The light nodes that several layers need and that cost less than sending; the others
        join a layer."""
        users_of: dict[str, set[str]] = {}
        inputs_of: dict[str, set[str]] = {}
        for name in light:
            inputs_of[name] = set()
        for name in self.nodes:
            if name in light:
                for ref in self.references[name]:
                    inputs_of[name] |= inputs_of.get(ref, {ref} & self.inputs)
        for name in reversed(self.nodes):
            if name in light:
                found: set[str] = set()
                for user in self.users[name]:
                    found |= users_of.get(user, set()) if user in light else self._unit_set(user)
                users_of[name] = found
        shared = {
            name
            for name in light
            if len(users_of[name]) > 1
            and self._bytes(inputs_of[name]) <= 2 * self._bytes({name})
            and name not in self.outputs
        }
        keep = set(shared)
        for name in reversed(self.nodes):
            # What feeds a shared node is repeated with it.
            if name in keep:
                keep |= {ref for ref in self.references[name] if ref in light}
        keep -= self.outputs
        keep = {
            n for n in keep if not any(r in light and r not in keep for r in self.references[n])
        }
        self._attach([n for n in self.nodes if n in light and n not in keep])
        return keep

    def _unit_set(self, name: str) -> set[str]:
        return {self.unit[name]} if name in self.unit else set()

    def _bytes(self, names: Iterable[str]) -> float:
        """Rough bytes of values at the example's sizes; text sizes count as 2 x their factors."""
        from profiler.expressions import evaluate, symbols_of

        specs = {port.name: port.spec for port in self.program.inputs}
        total = 0.0
        for name in names:
            spec = specs.get(name) or self.nodes[name].spec
            if spec is None:
                continue
            size = float(spec.element_bytes)
            for dim in spec.shape:
                size *= evaluate(dim, dict.fromkeys(symbols_of(dim), 32))
            total += size
        return total

    # --- steps 3 and 4: units ----------------------------------------------------------------

    def _assign(self, body: list[str], tree: ModuleTree, chosen: set[str]) -> None:
        loose = []
        for name in body:
            home = tree.home(name, chosen)
            if home is not None:
                self.unit[name] = home
            elif self.flops.get(name):
                # A heavy operator in a module's own forward is a layer of its own.
                self.unit[name] = f"{tree.owner(name)}\0{name}"
            else:
                loose.append(name)
        self._attach(loose)

    def _attach(self, loose: list[str]) -> None:
        """Give loose nodes the unit of their latest producer, else of their first user."""
        pending = []
        for name in loose:
            fed = [self.order[r] for r in self.references[name] if r in self.unit]
            if fed:
                latest = max(fed)
                self.unit[name] = self.unit[next(r for r in self.nodes if self.order[r] == latest)]
            else:
                pending.append(name)
        for name in reversed(pending):
            users = [u for u in self.users[name] if u in self.unit]
            if users:
                self.unit[name] = self.unit[min(users, key=self.order.__getitem__)]
        for name in pending:
            if name not in self.unit:
                calls = self.encoded.origins[name].calls
                self.unit[name] = f"{calls[-1] if calls else ''}\0{OWN}"

    # --- step 5: what stays together ---------------------------------------------------------

    def _written(self, name: str) -> list[str]:
        node = self.nodes[name]
        found: list[str] = []
        for where in written_arguments(self.encoded.origins[name].target):
            if isinstance(where, int):
                value = node.args[where] if where < len(node.args) else None
            else:
                value = node.kwargs.get(where)
            found.extend(references(value))
        return found

    def _roots(self) -> dict[str, frozenset[str]]:
        """For each value, the values whose memory it may share, itself included."""
        roots: dict[str, frozenset[str]] = {}
        for name, node in self.nodes.items():
            found = {name}
            for position in aliased_arguments(self.encoded.origins[name].target):
                value = node.args[position] if position < len(node.args) else None
                parts = value if isinstance(value, list) else [value]
                for part in parts:
                    if isinstance(part, dict) and "node" in part:
                        source = part["node"]
                        found |= {source, *roots.get(source, frozenset())}
            roots[name] = frozenset(found)
        return roots

    def _merge_mutations(self, prelude: set[str]) -> set[str]:
        """A change in place stays in one layer with whatever could see or miss it by another name.

        Harmless are readers of the change's own result, and operators that the change depends on:
        they are done before it, in whatever stage. Stages get copies, so two names share memory
        only inside a layer: the views behind both join as well. What reads a changed *weight*
        always joins.
        """
        roots = self._roots()
        sharing = self._sharing(roots)
        weight_of = {port.name: port.weight for port in self.program.weights}
        state: set[str] = set()
        for name in self.nodes:
            for target in self._written(name):
                owners = roots.get(target, frozenset({target}))
                held = {weight_of[root] for root in owners if root in weight_of}
                state |= held
                before = set() if held else self._ancestors(name)
                involved: set[str] = set()
                for alias in owners.union(*(sharing[root] for root in owners)):
                    if name in roots.get(alias, ()):
                        continue
                    users = {*self.users[alias]} - {name, *before, *prelude, *self.numbers}
                    involved |= users
                    if users or alias in self.outputs:
                        involved |= {n for n in (alias, *owners) if len(roots.get(n, ())) > 1}
                    if alias in self.outputs and alias in self.unit:
                        involved.add(alias)
                for other in sorted(involved, key=self.order.__getitem__):
                    self._merge(self.unit[other], self.unit[name])
        return state

    def _sharing(self, roots: dict[str, frozenset[str]]) -> dict[str, set[str]]:
        """For each value, all that may share memory because they were made from it."""
        sharing: dict[str, set[str]] = defaultdict(set)
        for name, found in roots.items():
            for root in found:
                sharing[root].add(name)
        return sharing

    def _ancestors(self, name: str) -> set[str]:
        found: set[str] = set()
        open_names = [name]
        while open_names:
            for ref in self.references.get(open_names.pop(), ()):
                if ref not in found:
                    found.add(ref)
                    open_names.append(ref)
        return found

    def _merge_uncuttable(self, prelude: set[str]) -> None:
        """Lists, tuples, numbers from data and sizes from data never cross a boundary."""
        from profiler.expressions import symbols_of

        known = {s for port in self.program.inputs for d in port.spec.shape for s in symbols_of(d)}
        for name, node in self.nodes.items():
            if name in self.numbers or name in prelude:
                continue
            spec = node.spec
            plain = spec is not None and all(symbols_of(d) <= known for d in spec.shape)
            if not plain:
                for user in self.users[name]:
                    if user in self.unit:
                        self._merge(self.unit[user], self.unit[name])

    def _merge(self, one: str, other: str) -> None:
        """Make two units one, known by the one that does more work."""
        if one == other:
            return
        kept, gone = sorted((one, other), key=self._importance)
        for name, unit in self.unit.items():
            if unit == gone:
                self.unit[name] = kept

    def _importance(self, unit: str) -> tuple[float, float, int]:
        """Sorts the unit with most operations first, then with most weights, then the earliest."""
        names = [name for name, held in self.unit.items() if held == unit]
        weights = {ref for name in names for ref in self.references[name]} & set(self.weight_bytes)
        return (
            -sum(self.flops.get(name, 0.0) for name in names),
            -sum(self.weight_bytes[ref] for ref in weights),
            min(self.order[name] for name in names),
        )

    def _quotient(self) -> nx.DiGraph[str]:
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from(dict.fromkeys(self.unit.values()))
        for name, unit in self.unit.items():
            for ref in self.references[name]:
                if ref in self.unit and self.unit[ref] != unit:
                    graph.add_edge(self.unit[ref], unit)
        return graph

    def _merge_cycles(self) -> None:
        for component in list(nx.strongly_connected_components(self._quotient())):
            units = sorted(component, key=self._importance)
            for unit in units[1:]:
                self._merge(units[0], unit)

    def _merge_light(self, tree: ModuleTree) -> None:
        """Units without heavy operators join a neighbour that is part of the same module.

        Joining the latest producer, or the earliest user, can close no cycle.
        """
        graph = self._quotient()
        members: dict[str, list[str]] = defaultdict(list)
        for name, unit in self.unit.items():
            members[unit].append(name)
        heavy = {u for u, names in members.items() if any(self.flops.get(n) for n in names)}
        position = {unit: i for i, unit in enumerate(nx.topological_sort(graph))}
        for unit in list(position):
            if unit in heavy or unit not in graph:
                continue
            before = sorted(graph.predecessors(unit), key=position.__getitem__)
            after = sorted(graph.successors(unit), key=position.__getitem__)
            near = [*before[-1:], *after[:1]]
            target = next((other for other in near if tree.siblings(other, unit)), None)
            if target is None:
                continue
            kept, gone = sorted((target, unit), key=self._importance)
            for name in members.pop(gone):
                self.unit[name] = kept
                members[kept].append(name)
            around = [*graph.in_edges(gone), *graph.out_edges(gone)]
            graph.add_edges_from(
                (kept if a == gone else a, kept if b == gone else b)
                for a, b in around
                if {a, b} != {kept, gone}
            )
            graph.remove_node(gone)
            position[kept] = position[target]

    # --- naming ------------------------------------------------------------------------------

    def _groups(self) -> list[Group]:
        members: dict[str, list[str]] = defaultdict(list)
        for name in self.nodes:
            if name in self.unit:
                members[self.unit[name]].append(name)
        graph = self._quotient()
        order = {unit: self.order[nodes[0]] for unit, nodes in members.items()}
        groups = []
        taken: set[str] = set()
        for unit in nx.lexicographical_topological_sort(graph, key=order.__getitem__):
            nodes = members[unit]
            name, kind = self._name(unit, nodes)
            while name in taken:
                name += "+"
            taken.add(name)
            calls = [self.encoded.origins[n].calls for n in nodes]
            modules = dict.fromkeys(c[-1] for c in calls if c and c[-1])
            groups.append(
                Group(
                    name=name,
                    module_type=kind,
                    modules=tuple(modules),
                    nodes=tuple(nodes),
                    flops=sum(self.flops.get(n, 0.0) for n in nodes),
                )
            )
        return _distinct_prefixes(groups)

    def _name(self, unit: str, nodes: list[str]) -> tuple[str, str]:
        """The unit's module; for a merged unit the one with most work below the common name."""
        path, mark, operator = unit.partition("\0")
        if mark and operator != OWN:
            kind = self.nodes[operator].op.split(".")[1] if operator in self.nodes else operator
            own = f"{path}.{operator}" if path else operator
            return own, kind
        if mark or not path:
            return (f"{path}.{OWN}" if path else OWN), self._type_of(nodes, path)
        return path, self._type_of(nodes, path)

    def _type_of(self, nodes: list[str], path: str) -> str:
        for name in nodes:
            origin = self.encoded.origins[name]
            for call, kind in zip(origin.calls, origin.types, strict=True):
                if call == path:
                    return kind
        return "Module"


def _distinct_prefixes(groups: list[Group]) -> list[Group]:
    """No layer's name may be a dotted prefix of another's: selectors could not tell them apart."""
    names = {g.name for g in groups}
    inner = {p for n in names for p in (n.rsplit(".", k)[0] for k in range(1, n.count(".") + 1))}
    return [
        Group(
            name=f"{g.name}.{OWN}" if g.name in inner else g.name,
            module_type=g.module_type,
            modules=g.modules,
            nodes=g.nodes,
            flops=g.flops,
        )
        for g in groups
    ]
