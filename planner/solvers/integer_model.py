"""An integer linear model as plain data: what a solver is given, independent of any solver."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Literal = int
"""A 0-1 variable, or its negation: ``negated(v)``."""

Terms = list[tuple[int, int]]
"""Coefficients with variables."""


def negated(literal: Literal) -> Literal:
    """The opposite of a 0-1 variable or of its negation.

    >>> negated(3), negated(negated(3))
    (-4, 3)
    """
    return -literal - 1


@dataclass(frozen=True, slots=True)
class Linear:
    """``sum of terms <= upper``, only if all literals of ``when`` hold."""

    terms: Terms
    upper: int
    when: tuple[Literal, ...] = ()


@dataclass
class IntegerModel:
    """Minimise variable ``objective`` subject to clauses, exact choices and inequalities."""

    upper: list[int] = field(default_factory=list)
    clauses: list[tuple[Literal, ...]] = field(default_factory=list)
    choices: list[tuple[Literal, ...]] = field(default_factory=list)
    inequalities: list[Linear] = field(default_factory=list)
    hints: dict[int, int] = field(default_factory=dict)
    objective: int = 0

    def integer(self, upper: int) -> int:
        """A new variable from 0 to ``upper``."""
        self.upper.append(upper)
        return len(self.upper) - 1

    def boolean(self) -> Literal:
        """A new 0-1 variable."""
        return self.integer(1)

    def any_of(self, *literals: Literal) -> None:
        """At least one of ``literals`` holds."""
        self.clauses.append(literals)

    def implies(self, one: Literal, other: Literal) -> None:
        """``other`` holds wherever ``one`` does."""
        self.any_of(negated(one), other)

    def either(self, literals: Sequence[Literal]) -> Literal:
        """A literal that holds exactly if any of ``literals`` does."""
        if len(literals) == 1:
            return literals[0]
        found = self.boolean()
        for literal in literals:
            self.implies(literal, found)
        self.any_of(negated(found), *literals)
        return found

    def exactly_one(self, literals: Sequence[Literal]) -> None:
        """One of ``literals`` holds and no other."""
        self.choices.append(tuple(literals))

    def at_most(self, terms: Iterable[tuple[int, int]], upper: int) -> None:
        """``sum of terms <= upper``."""
        self.inequalities.append(Linear([t for t in terms if t[0]], upper))

    def at_least(
        self, variable: int, terms: Iterable[tuple[int, int]], *, when: Sequence[Literal] = ()
    ) -> None:
        """``variable >= sum of terms``, only if all of ``when`` hold."""
        bound = [t for t in terms if t[0]]
        if bound:
            self.inequalities.append(Linear([*bound, (-1, variable)], 0, tuple(when)))

    def largest_sum(self) -> int:
        """The most that the 0-1 variables of one inequality can add up to."""
        return max(
            (sum(abs(c) for c, v in row.terms if self.upper[v] == 1) for row in self.inequalities),
            default=0,
        )
