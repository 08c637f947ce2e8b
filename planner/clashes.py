"""The smallest sets of limits that no plan keeps all, and the smallest sets to lift.

Works on any question that more limits never make easier to satisfy; knows neither plans nor
solvers. Elements are numbered; an ``Oracle`` says whether all of some numbered limits can be kept.

First an irreducible clash, by dividing (QuickXplain: Junker, "QuickXplain: preferred explanations
and relaxations for over-constrained problems", AAAI 2004). Then the proof that none is smaller, or
a smaller one, by hitting set duality (Ignatiev, Previti, Liffiton, Marques-Silva, "Smallest MUS
extraction with minimal hitting set dualization", CP 2015): whatever can be kept is grown to a
maximal set; what it leaves out must be hit by every clash; so a hitting set of least size that is a
clash is a smallest one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

Oracle = Callable[[frozenset[int]], bool | None]
"""Whether a set of limits can be kept; None where that is not known (time ran out)."""

MAX_ROUNDS = 200
"""Hitting sets that are tried before a clash is called irreducible only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clash:
    """Limits that cannot be kept together. ``irreducible``: each of them alone is needed for that;
    ``smallest``: no smaller set clashes. Both only where it was proved."""

    members: tuple[int, ...]
    irreducible: bool
    smallest: bool


@dataclass
class ClashSearch:
    """Clashes among ``count`` limits, all of which cannot be kept together."""

    count: int
    oracle: Oracle
    left_out: list[frozenset[int]] = field(default_factory=list)  # by maximal sets that can be kept
    unsure: bool = False

    def smallest(self) -> Clash:
        """A clash with the fewest members, as far as the oracle answers.

        Of several, one with members of low numbers.
        """
        everything = list(range(self.count))
        found = sorted(self._divided([], everything, known=False))
        irreducible = not self.unsure
        for _ in range(MAX_ROUNDS):
            hitting = least_hitting_set(self.left_out, most=len(found) - 1)
            if hitting is None:
                return Clash(
                    members=tuple(found), irreducible=irreducible, smallest=not self.unsure
                )
            kept = self._kept(frozenset(hitting))
            if kept is False:
                # A smallest one is irreducible too.
                return Clash(members=hitting, irreducible=not self.unsure, smallest=not self.unsure)
            self.left_out.append(self._grown(frozenset(hitting)))
        return Clash(members=tuple(found), irreducible=irreducible, smallest=False)

    def pairs_to_lift(self, clash: Clash) -> Iterator[tuple[int, int]]:
        """Pairs of limits without which the others can be kept; one of each is in ``clash``."""
        everything = frozenset(range(self.count))
        for one in clash.members:
            for other in range(self.count):
                if other == one or (other in clash.members and other < one):
                    continue
                if self.oracle(everything - {one, other}):
                    yield one, other

    def fewest_to_lift(self) -> frozenset[int] | None:
        """The smallest set that was found so far without which the others can be kept."""
        return min(self.left_out, key=lambda x: (len(x), sorted(x)), default=None)

    def _divided(self, background: list[int], some: list[int], *, known: bool) -> list[int]:
        """Members of ``some`` that clash with ``background``, none of them needless.

        ``known``: the background has new members since it was last asked about.
        """
        if known and self._kept(frozenset(background)) is False:
            return []
        if len(some) == 1:
            return some
        half = len(some) // 2
        first, second = some[:half], some[half:]
        of_second = self._divided([*background, *first], second, known=bool(first))
        of_first = self._divided([*background, *of_second], first, known=bool(of_second))
        return [*of_first, *of_second]

    def _kept(self, limits: frozenset[int]) -> bool | None:
        answer = self.oracle(limits)
        if answer is None:
            self.unsure = True
        return answer

    def _grown(self, kept: frozenset[int]) -> frozenset[int]:
        """What is left out of a maximal set that can be kept and holds ``kept``."""
        left_out = []
        for limit in range(self.count):
            if limit in kept:
                continue
            if self.oracle(kept | {limit}):
                kept |= {limit}
            else:
                left_out.append(limit)
        return frozenset(left_out)


def least_hitting_set(sets: Sequence[frozenset[int]], *, most: int) -> tuple[int, ...] | None:
    """The fewest numbers such that each set has one of them; None if more than ``most`` are needed.

    Of several, the first in order.

    >>> least_hitting_set([frozenset({1, 2}), frozenset({2, 3})], most=3)
    (2,)
    """

    def hit(chosen: tuple[int, ...], left: int) -> Iterator[tuple[int, ...]]:
        open_ones = [x for x in sets if x.isdisjoint(chosen)]
        if not open_ones:
            yield chosen
        elif left >= _apart(open_ones):
            fewest = min(open_ones, key=lambda x: (len(x), sorted(x)))
            for number in sorted(fewest):
                yield from hit((*chosen, number), left - 1)

    for size in range(most + 1):
        found = min((tuple(sorted(x)) for x in hit((), size)), default=None)
        if found is not None:
            return found
    return None


def _apart(sets: Sequence[frozenset[int]]) -> int:
    """How many of the sets have nothing in common, at least: so many numbers are needed."""
    taken: set[int] = set()
    count = 0
    for some in sorted(sets, key=len):
        if some.isdisjoint(taken):
            taken |= some
            count += 1
    return count
