"""Links that share a wire: found by sending over several at once and comparing with each alone.

Asking every two of a cluster's links would take time with the fourth power of the hosts. Instead,
what usually shares a wire is tried at once: all links out of one host, all into it, and per round
of a tournament both directions of all its pairs. Only where several slow down together are they
told apart. ``shares`` is one name per link, so a group counts as one wire only if all of it at once
gets no more through than one alone; what is shared in another way is reported, not filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from profiler.rounds import tournament

LinkKey = tuple[int, int]
"""Ranks of a link's source and target."""

SLOWED = 1.3
"""A link that gets this many times less through than alone shares something."""
ONE_WIRE = 1.25
"""Links that together get at most so many times what the fastest gets alone are one wire."""
MAX_PAIRWISE = 12
"""Of more slowed links, no two are tried: they are reported together."""

Run = Callable[[Sequence[LinkKey]], Mapping[LinkKey, float]]
"""Sends over these links at once; bytes per second that each got through."""


@dataclass(frozen=True, kw_only=True)
class SharedWires:
    """``wires``: groups of links that are one wire, clearly. ``unclear``: groups that hinder each
    other, but not as one wire would. ``alone``: bytes per second of each link alone."""

    wires: tuple[tuple[LinkKey, ...], ...]
    unclear: tuple[tuple[LinkKey, ...], ...]
    alone: Mapping[LinkKey, float]


def trials(num_hosts: int) -> list[list[LinkKey]]:
    """The groups of links that are tried at once; at most ``3 * num_hosts``."""
    ranks = range(num_hosts)
    found = [[(a, b) for b in ranks if b != a] for a in ranks]
    found += [[(b, a) for b in ranks if b != a] for a in ranks]
    found += [[*pairs, *((b, a) for a, b in pairs)] for pairs in tournament(num_hosts)]
    return [one for one in found if len(one) > 1]


def find_shared(num_hosts: int, run: Run, *, tell: Callable[[float], None]) -> SharedWires:
    """Which links between hosts share a wire. ``tell`` hears the fraction that is done."""
    keys = [(a, b) for a in range(num_hosts) for b in range(num_hosts) if a != b]
    groups = trials(num_hosts)
    total = len(keys) + len(groups)
    alone: dict[LinkKey, float] = {}
    for key in keys:
        alone[key] = run([key])[key]
        tell(len(alone) / total)
    candidates: list[frozenset[LinkKey]] = []
    for number, group in enumerate(groups):
        candidates += _hindered(group, alone, run)
        tell((len(keys) + number + 1) / total)
    wires, unclear = [], []
    for merged, parts in _components(candidates):
        if _is_one_wire(sorted(merged), alone, run):
            wires.append(tuple(sorted(merged)))
        else:
            unclear += [tuple(sorted(part)) for part in parts]
    return SharedWires(wires=tuple(wires), unclear=tuple(unclear), alone=alone)


def _hindered(
    group: Sequence[LinkKey], alone: Mapping[LinkKey, float], run: Run
) -> list[frozenset[LinkKey]]:
    """Those of a group that slow each other down, as few at a time as it takes."""
    slowed = _slowed(group, alone, run)
    if len(slowed) < 2:
        return []
    if len(slowed) == 2 or len(slowed) > MAX_PAIRWISE or _is_one_wire(slowed, alone, run):
        return [frozenset(slowed)]
    pairs = [
        frozenset(pair)
        for pair in combinations(slowed, 2)
        if len(_slowed(pair, alone, run)) == len(pair)
    ]
    return [merged for merged, _ in _components(pairs)]


def _slowed(group: Sequence[LinkKey], alone: Mapping[LinkKey, float], run: Run) -> list[LinkKey]:
    rates = run(group)
    return [key for key in group if alone[key] > SLOWED * rates[key]]


def _is_one_wire(group: Sequence[LinkKey], alone: Mapping[LinkKey, float], run: Run) -> bool:
    rates = run(group)
    return sum(rates.values()) <= ONE_WIRE * max(alone[key] for key in group)


def _components(
    groups: Sequence[frozenset[LinkKey]],
) -> list[tuple[frozenset[LinkKey], list[frozenset[LinkKey]]]]:
    """Groups that overlap, merged; with each the groups that it was merged from."""
    merged: list[tuple[frozenset[LinkKey], list[frozenset[LinkKey]]]] = []
    for group in dict.fromkeys(groups):
        touching = [one for one in merged if one[0] & group]
        merged = [one for one in merged if not one[0] & group]
        parts = [part for one in touching for part in one[1]]
        merged.append((group.union(*(one[0] for one in touching)), [*parts, group]))
    return merged
