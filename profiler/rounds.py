"""Which pairs of hosts measure when, and which hosts stand for which others. Pure functions.

In a round no host is in two pairs, so that no measurement disturbs another at its ends (wires
between them may still be shared: see :mod:`profiler.wires`).
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from profiler.cluster import Host, Link

Pair = tuple[int, int]


def tournament(num: int) -> list[list[Pair]]:
    """Every pair of ``num`` hosts once, in ``num - 1`` rounds (``num`` if odd).

    The circle method: one host stays, the others walk around a table (Kirkman 1847).

    >>> tournament(4)
    [[(0, 3), (1, 2)], [(0, 2), (1, 3)], [(0, 1), (2, 3)]]
    """
    seats: list[int | None] = [*range(num), *([None] if num % 2 else [])]
    rounds = []
    for _ in range(len(seats) - 1):
        opposite = zip(seats[: len(seats) // 2], reversed(seats), strict=False)
        rounds.append(
            sorted(_ordered(a, b) for a, b in opposite if a is not None and b is not None)
        )
        seats.insert(1, seats.pop())
    return [one for one in rounds if one]


def pack(pairs: Iterable[Pair], *, at_once: int | None = None) -> list[list[Pair]]:
    """``pairs`` in rounds, each into the first one where both of its hosts are free.

    ``at_once`` limits the pairs of a round; 1 measures every pair alone.
    """
    rounds: list[list[Pair]] = []
    busy: list[set[int]] = []
    for a, b in pairs:
        for members, taken in zip(rounds, busy, strict=True):
            if not taken & {a, b} and (at_once is None or len(members) < at_once):
                members.append((a, b))
                taken |= {a, b}
                break
        else:
            rounds.append([(a, b)])
            busy.append({a, b})
    return rounds


def schedule(
    kinds: Sequence[object], *, sample: int | None = None, at_once: int | None = None
) -> list[list[Pair]]:
    """Rounds for hosts of these kinds.

    ``sample``: of the pairs between equal kinds only so many are measured.
    """
    every = [pair for one in tournament(len(kinds)) for pair in one]
    if sample is None and at_once is None:
        return tournament(len(kinds))
    if sample is None:
        return pack(every, at_once=at_once)
    taken: dict[frozenset[object], int] = defaultdict(int)
    chosen = []
    for a, b in every:
        between = frozenset((kinds[a], kinds[b]))
        if taken[between] < sample:
            taken[between] += 1
            chosen.append((a, b))
    return pack(chosen, at_once=at_once)


def kind_of(host: Host) -> tuple[object, ...]:
    """Equal for hosts that are taken as equal: same cores and devices, whatever their names.

    Memory does not count: machines of one make report it a little differently.
    """
    return (
        host.cores,
        *sorted((d.kind, d.type, d.threads) for d in host.devices),
    )


def fill(links: Iterable[Link], kinds: Mapping[str, object]) -> tuple[Link, ...]:
    """All links between the hosts of ``kinds``, those not measured from their twins.

    A twin goes between hosts of the same two kinds in the same direction. Figures are the medians
    over the twins; the error says also how far these differ among themselves.

    Raises:
        ValueError: between two kinds nothing was measured.
    """
    measured = {(link.source, link.target): link for link in links}
    twins: dict[tuple[object, object], list[Link]] = defaultdict(list)
    for (source, target), link in measured.items():
        twins[kinds[source], kinds[target]].append(link)
    filled = []
    for source in kinds:
        for target in kinds:
            if source == target:
                continue
            if (source, target) in measured:
                filled.append(measured[source, target])
                continue
            same = twins[kinds[source], kinds[target]]
            if not same:
                raise ValueError(f"nothing like the link {source} -> {target} was measured")
            ends = {"source": source, "target": target}
            filled.append(_typical(same).model_copy(update=ends))
    return tuple(filled)


def _typical(links: Sequence[Link]) -> Link:
    bandwidth = statistics.median(link.bytes_per_s for link in links)
    apart = max(abs(link.bytes_per_s / bandwidth - 1) for link in links)
    return links[0].model_copy(
        update={
            "latency_s": statistics.median(link.latency_s for link in links),
            "bytes_per_s": bandwidth,
            "send_occupancy": statistics.median(link.send_occupancy for link in links),
            "receive_occupancy": statistics.median(link.receive_occupancy for link in links),
            "shares": None,
            "error_fraction": max(*(link.error_fraction or 0.0 for link in links), apart),
        }
    )


def _ordered(a: int, b: int) -> Pair:
    return (a, b) if a < b else (b, a)
