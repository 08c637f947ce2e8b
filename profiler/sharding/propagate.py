"""Following cut weights through a program: what every rank has of each value.

One pass goes through the nodes in order. A matrix product of a whole value and a weight *begins*:
its weight is cut along the dim that the result keeps, and the result is sharded. Rules
(``rules_*``) say what operators make of shards. A product over the sharded dim leaves each rank
with a term of a sum. Where a whole value is needed again, it is *joined*: terms are summed, shards
are put together. A pass is repeated with what it learned: that a weight holds several parts one
after another, and where sums are best joined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from profiler.program import Node
from profiler.sharding.facts import Bans, Facts, argument, base_name, operator_of, reference
from profiler.sharding.states import (
    Axes,
    NodePlan,
    Own,
    Partial,
    Sharded,
    State,
    Use,
    WeightSlice,
)

MAX_PASSES = 100


@dataclass(frozen=True, slots=True)
class Joined:
    """A value that ranks must put together: ``state`` is what each has of it."""

    how: Literal["sum", "concat"]
    state: Sharded | Partial


@dataclass(frozen=True, slots=True)
class Result:
    """What a rule makes of a node: its state (or one for each value it returns), and its plan."""

    state: State | tuple[State, ...]
    plan: NodePlan


Rule = Callable[["Pass", Node], "Result | None"]
"""Raises nothing; None when the operator cannot work on what ranks have of its operands."""


@dataclass
class Outcome:
    """What the last pass found, by value and by node."""

    axes: Axes
    states: dict[str, State] = field(default_factory=dict)
    lists: dict[str, tuple[State, ...]] = field(default_factory=dict)
    plans: dict[str, NodePlan] = field(default_factory=dict)
    moved: dict[str, tuple[Sharded, NodePlan]] = field(default_factory=dict)
    joins: dict[str, Joined] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


class Pass:
    """One walk over the program."""

    def __init__(
        self,
        facts: Facts,
        rules: Callable[[str], Rule | None],
        *,
        banned: Bans,
        parts: dict[str, int],
        forced: set[str],
    ) -> None:
        self.facts = facts
        self.dims = facts.dims
        self.axes = Axes()
        self.found = Outcome(axes=self.axes)
        self.banned, self.parts, self.forced = banned, parts, forced
        self.suggested: dict[str, int] = {}
        self.pending: set[str] = set()
        self._rules = rules

    # --- what rules ask ----------------------------------------------------------------------

    def state(self, name: str | None) -> State:
        """What ranks have of a value; None if all of it."""
        return self.found.states.get(name) if name is not None else None

    def tensors(self, node: Node) -> list[str]:
        """The tensors that a node reads."""
        return [r for r in self.facts.references[node.name] if r in self.facts.specs]

    def suggest(self, state: Sharded, parts: int) -> None:
        """The weights behind a shard hold so many parts one after another: try again so."""
        for seed in state.seeds:
            if self.parts.get(seed, 1) == 1 and parts > 1:
                self.suggested[seed] = parts

    def sharded(self, like: Sharded, *, dim: int, outer: int, rest: int) -> Sharded:
        """A shard on the axis of another one."""
        self.axes.restrict(like.axis, rest)
        return Sharded(dim, self.axes.find(like.axis), outer, rest, like.seeds)

    def unite(self, *states: Sharded | Partial) -> tuple[int, frozenset[str]]:
        """One axis for values that meet; also all the nodes that began them."""
        axis = states[0].axis
        for other in states[1:]:
            axis = self.axes.unite(axis, other.axis)
        for one in states:
            if isinstance(one, Sharded):
                self.axes.restrict(axis, one.rest)
        return axis, frozenset[str]().union(*(one.seeds for one in states))

    def cut_weight(self, name: str, dim: int, like: Sharded) -> Use | None:
        """How a rank takes only its units of a weight's dim; None if it cannot be cut so."""
        if not self.facts.is_weight(name) or self.dims[name][dim] != like.outer * like.rest:
            return None
        if name in self.facts.weights:
            return WeightSlice(dim, like.axis, like.outer, like.rest)
        node = self.facts.nodes[name]
        source = self.tensors(node)[0]
        use = self.cut_weight(source, _source_dim(node, dim, len(self.dims[name])), like)
        known = self.found.moved.get(name)
        state = like.at(dim)
        if use is None or (known is not None and not self._same_cut(known[0], state)):
            return None
        self.found.moved[name] = (state, NodePlan(uses={source: use}))
        return Own()

    def _same_cut(self, one: Sharded, other: Sharded) -> bool:
        return (
            (one.dim, one.outer, one.rest) == (other.dim, other.outer, other.rest)
            and self.axes.find(one.axis) == self.axes.find(other.axis)
        )  # fmt: skip

    # --- the walk ----------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Walk over all nodes; see ``suggested`` and ``pending`` for what was learned."""
        for name, node in self.facts.nodes.items():
            if node.size is not None or name in self.facts.prelude or name in self.facts.chains:
                continue
            if node.op == "operator.getitem":
                self._getitem(node)
                continue
            touched = [
                r
                for r in self.facts.references[name]
                if self.state(r) is not None or r in self.found.lists
            ]
            result = self._result(node, bool(touched))
            if result is None:
                for ref in touched:
                    self._need_whole(ref)
            else:
                self._note(node, result)
        for name in self.facts.outputs:
            self._need_whole(name)
        return self.found

    def _result(self, node: Node, touched: bool) -> Result | None:
        rule = self._rules(node.op)
        if rule is None or (not touched and base_name(node.op) not in BEGINNING):
            return None
        mutable = getattr(getattr(operator_of(node.op), "_schema", None), "is_mutable", False)
        if touched and mutable:
            written = self.facts.written(node.name)
            if self.facts.seen_later(node.name):
                for ref in self.tensors(node):
                    self._refuse(ref, "a value that it shards is changed in place and read again")
                return None
            if any(self.state(target) is None for target in written):
                return None
        return rule(self, node)

    def _note(self, node: Node, result: Result) -> None:
        self.found.plans[node.name] = result.plan
        for ref in self.facts.references[node.name]:
            if ref not in result.plan.uses or not isinstance(result.plan.uses[ref], Own):
                self._need_whole(ref)
        if isinstance(result.state, tuple):
            self.found.lists[node.name] = result.state
            return
        state = result.state
        if isinstance(state, Partial) and (node.name in self.forced or not state.linear):
            self.found.joins[node.name] = Joined("sum", state)
            state = None
        if state is not None:
            self.found.states[node.name] = state

    def _getitem(self, node: Node) -> None:
        source = reference(node.args[0])
        states = self.found.lists.get(source or "")
        if states is None:
            return
        index = node.args[1]
        self._note(node, Result(states[index], NodePlan(uses={str(source): Own()})))

    def _need_whole(self, name: str) -> None:
        state = self.state(name)
        if name in self.found.lists:
            for one in self.found.lists[name]:
                self._refuse_state(one, f"the list {name} is needed whole")
        elif isinstance(state, Sharded):
            self.found.joins.setdefault(name, Joined("concat", state))
        elif isinstance(state, Partial):
            self.pending.add(self._best_join(name))

    def _best_join(self, name: str) -> str:
        """The first value, going back, as small as this one from which sums were carried on."""
        while name in self.found.plans:
            before = [
                ref
                for ref, use in self.found.plans[name].uses.items()
                if isinstance(use, Own) and isinstance(self.state(ref), Partial)
            ]
            if len(before) != 1 or set(self.facts.users[before[0]]) != {name}:
                break
            if self.facts.num_bytes(before[0]) > self.facts.num_bytes(name):
                break
            name = before[0]
        return name

    def _refuse(self, name: str, why: str) -> None:
        self._refuse_state(self.state(name), why)

    def _refuse_state(self, state: State, why: str) -> None:
        for seed in state.seeds if state is not None else ():
            self.found.refused.setdefault(seed, why)


BEGINNING = frozenset({
    "linear", "addmm", "mm", "bmm", "matmul", "einsum", "conv1d", "conv2d", "conv3d",
    "grouped_mm_fallback", "_grouped_mm", "grouped_mm", "embedding",
})  # fmt: skip
"""Operators whose weight may begin a region."""


def propagate(facts: Facts, rules: Callable[[str], Rule | None], *, banned: Bans) -> Outcome:
    """The outcome once nothing more is learned; ``banned`` nodes do not begin a region."""
    parts: dict[str, int] = {}
    forced: set[str] = set()
    for _ in range(MAX_PASSES):
        one = Pass(facts, rules, banned=banned, parts=parts, forced=forced)
        found = one.run()
        if one.suggested:
            parts |= one.suggested
        elif one.pending - forced:
            forced |= one.pending
        else:
            return found
    return Outcome(axes=Axes())


def _source_dim(node: Node, dim: int, ndim: int) -> int:
    """Which dim of a moved weight's source becomes ``dim``."""
    match base_name(node.op):
        case "t":
            return ndim - 1 - dim
        case "transpose":
            pair = [int(argument(node, i, f"dim{i - 1}")) % ndim for i in (1, 2)]
            return pair[1 - pair.index(dim)] if dim in pair else dim
        case "permute":
            return int(argument(node, 1, "dims")[dim]) % ndim
        case _:
            return dim
