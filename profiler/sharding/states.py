"""What a rank holds of a value, and how it takes an operand: the words of the propagation.

A value without a state is whole on every rank. A sharded dim of size ``outer * rest`` is ``outer``
equal runs one after another; in each run a rank has the part of ``rest`` that belongs to its units.
Fused query, key and value have ``outer`` 3; a batch merged with heads has the batch as ``outer``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd


@dataclass(frozen=True, slots=True)
class Sharded:
    """Each rank has its units of ``dim``. ``seeds`` are the nodes whose weights began it."""

    dim: int
    axis: int
    outer: int
    rest: int
    seeds: frozenset[str]

    def at(self, dim: int) -> Sharded:
        """The same cut of another dim."""
        return Sharded(dim, self.axis, self.outer, self.rest, self.seeds)


@dataclass(frozen=True, slots=True)
class Partial:
    """Each rank has a term; the value is their sum. ``linear`` is whether operators that keep sums
    may work on the terms (not once a bias is due)."""

    axis: int
    seeds: frozenset[str]
    linear: bool = True


State = Sharded | Partial | None


@dataclass(frozen=True, slots=True)
class Own:
    """The operand is what the rank has of it: its shard, or its term."""


@dataclass(frozen=True, slots=True)
class Narrowed:
    """The operand is whole on every rank; the rank takes its units of ``dim`` of it."""

    dim: int
    axis: int
    rest: int


@dataclass(frozen=True, slots=True)
class WeightSlice:
    """The operand is a weight of which the rank holds only its units of ``dim``."""

    dim: int
    axis: int
    outer: int
    rest: int


Use = Own | Narrowed | WeightSlice


@dataclass(frozen=True, slots=True)
class Scaled:
    """A number among a node's arguments that counts what is sharded: ``size`` at ``argument`` (a
    position, then a position in a list if ``index`` is given)."""

    argument: int
    index: int | None
    size: int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """How a rank runs a node that works on shards.

    ``uses`` lists the operands that are not taken whole. ``kind``: ``same`` operator; ``row``, the
    same without its bias, which is added after the join; ``lookup``, a table of which a rank holds
    some rows.
    """

    uses: dict[str, Use]
    scaled: tuple[Scaled, ...] = ()
    kind: str = "same"


class Axes:
    """Axes that grow together when sharded values meet; each counts its indivisible units."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._units: list[int] = []

    def new(self, units: int) -> int:
        """A new axis of so many units."""
        self._parent.append(len(self._parent))
        self._units.append(units)
        return len(self._parent) - 1

    def find(self, axis: int) -> int:
        """The axis that this one has become part of."""
        while self._parent[axis] != axis:
            axis = self._parent[axis]
        return axis

    def unite(self, one: int, other: int) -> int:
        """Make two axes one: ranks cut both alike."""
        a, b = sorted((self.find(one), self.find(other)))
        if a != b:
            self._parent[b] = a
            self._units[a] = gcd(self._units[a], self._units[b])
        return a

    def restrict(self, axis: int, rest: int) -> None:
        """Units must divide ``rest``."""
        root = self.find(axis)
        self._units[root] = gcd(self._units[root], rest)

    def units(self, axis: int) -> int:
        """Units of an axis."""
        return self._units[self.find(axis)]
