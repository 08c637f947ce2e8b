"""The parts of a program that are cut alike, and which of them are worth having."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import gcd

from profiler.sharding.facts import Facts, base_name
from profiler.sharding.propagate import Outcome, propagate
from profiler.sharding.rules import rule_of
from profiler.sharding.states import Narrowed, Own, Partial, Sharded, WeightSlice

LEAST_OF_MODEL = 1 / 100
"""A product whose shards are put together at once is divided if it is this much of the model's
work (scores of a vocabulary always), and"""
LEAST_OF_LAYERS = 1 / 4
"""this much of that of its layers, where another region is among them."""

MAX_ROUNDS = 50


@dataclass
class Component:
    """Nodes on one axis, in the program's order; ``joins`` are the values put together."""

    axis: int
    units: int
    nodes: list[str] = field(default_factory=list)
    joins: list[str] = field(default_factory=list)
    layers: set[str] = field(default_factory=set)
    seeds: set[str] = field(default_factory=set)
    flops: float = 0.0
    sums: bool = False
    table: bool = False


def divide(facts: Facts) -> tuple[Outcome, list[Component], dict[str, str]]:
    """What the propagation finds once all that is not worth having is ruled out, and why it was."""
    banned: dict[str, str] = {}
    for _ in range(MAX_ROUNDS):
        outcome = propagate(facts, rule_of, banned=banned)
        found = components(facts, outcome)
        more = dict(outcome.refused) or _not_worth(facts, found)
        if not more:
            return outcome, found, banned
        banned.update(more)
    return (
        propagate(facts, rule_of, banned=dict.fromkeys(facts.nodes, "too many tries")),
        [],
        banned,
    )


def components(facts: Facts, outcome: Outcome) -> list[Component]:
    """The components of an outcome, by their first node."""
    found: dict[int, Component] = {}
    names = [n for n in facts.nodes if n in outcome.plans or n in outcome.moved]
    for name in names:
        axis = axis_of(outcome, name)
        if axis not in found:
            found[axis] = Component(axis=axis, units=outcome.axes.units(axis))
        one = found[axis]
        one.nodes.append(name)
        one.flops += facts.flops.get(name, 0.0)
        if name in facts.layer_of:
            one.layers.add(facts.layer_of[name])
        plan = outcome.plans.get(name)
        one.table |= plan is not None and plan.kind == "lookup"
        joined = outcome.joins.get(name)
        if joined is not None:
            one.joins.append(name)
            one.sums |= joined.how == "sum"
        state = outcome.states.get(name) or (joined.state if joined else None)
        if isinstance(state, (Sharded, Partial)):
            one.seeds |= state.seeds
    return list(found.values())


def axis_of(outcome: Outcome, name: str) -> int:
    """The axis that a node works on."""
    moved = outcome.moved.get(name)
    if moved is not None:
        return outcome.axes.find(moved[0].axis)
    for use in outcome.plans[name].uses.values():
        if isinstance(use, (WeightSlice, Narrowed)):
            return outcome.axes.find(use.axis)
    for ref, use in outcome.plans[name].uses.items():
        if isinstance(use, Own):
            held = outcome.states.get(ref) or next(iter(outcome.lists.get(ref, ())), None)
            if held is not None:
                return outcome.axes.find(held.axis)
            joined = outcome.joins.get(ref)
            if joined is not None:
                return outcome.axes.find(joined.state.axis)
            if ref in outcome.moved:
                return outcome.axes.find(outcome.moved[ref][0].axis)
    raise AssertionError(f"{name} works on no axis")


def clusters(found: Iterable[Component]) -> list[list[Component]]:
    """Components that share layers, together."""
    groups: list[list[Component]] = []
    for one in found:
        touching = [g for g in groups if any(c.layers & one.layers for c in g)]
        groups = [g for g in groups if g not in touching]
        groups.append([*(c for g in touching for c in g), one])
    return groups


def _not_worth(facts: Facts, found: list[Component]) -> dict[str, str]:
    """Seeds to be ruled out, and why; the first kind of reason that applies to any."""
    total = sum(facts.flops.values()) or 1.0
    of_layer: dict[str, float] = defaultdict(float)
    for name, layer in facts.layer_of.items():
        of_layer[layer] += facts.flops.get(name, 0.0)
    for one in found:
        if one.units < 2:
            return dict.fromkeys(one.seeds, "its weights have no two units in common")
    rejected: dict[str, str] = {}
    for one in found:
        products = sum(bool(facts.flops.get(name)) for name in one.nodes) + one.table
        if len(one.joins) > products:
            why = f"it would take {len(one.joins)} joins for {products} matrix products"
            rejected |= dict.fromkeys(one.seeds, why)
    for one in found:
        if one.sums:
            continue
        users = {user for join in one.joins for user in facts.users[join]}
        if any(users & set(c.nodes) for c in found if c is not one):
            rejected |= dict.fromkeys(one.seeds, "the region that uses it is cut in another way")
            continue
        near = [c for c in found if c is not one and c.layers & one.layers]
        here = sum(of_layer[layer] for layer in one.layers) or 1.0
        needed = _users(facts, one)
        if near and one.flops < LEAST_OF_LAYERS * here:
            rejected |= dict.fromkeys(
                one.seeds,
                f"{needed} needs it whole at once, and it is {one.flops / here:.0%} of its layers",
            )
        elif one.flops < LEAST_OF_MODEL * total and not _scores(facts, one):
            rejected |= dict.fromkeys(
                one.seeds,
                f"{needed} needs it whole at once, and it is {one.flops / total:.1%} of the model",
            )
    for one in found:
        if one.table and any(c is not one and c.layers & one.layers for c in found):
            rejected |= dict.fromkeys(one.seeds, "its layer is divided in another way")
    if rejected:
        return rejected
    for group in clusters(found):
        if len(group) > 1 and gcd(*(c.units for c in group)) < 2:
            least = min(group, key=lambda c: c.flops)
            return dict.fromkeys(
                least.seeds,
                f"its {least.units} units have no two in common with those of its other layers",
            )
    return {}


def _scores(facts: Facts, one: Component) -> bool:
    """Whether a component makes a long answer of a shorter value: the scores of a vocabulary."""
    return any(
        name in facts.outputs and facts.dims[name][-1] >= facts.dims[ref][-1]
        for name in one.seeds
        for ref in facts.references[name][:1]
    )


def _users(facts: Facts, one: Component) -> str:
    """The operators that need a component's result whole."""
    names = [user for join in one.joins for user in facts.users[join] if user not in one.nodes]
    kinds = dict.fromkeys(base_name(facts.nodes[name].op) for name in names)
    return ", ".join(kinds) or "the answer"
