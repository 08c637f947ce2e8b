"""Devices by kind, and where they stand: the view of a cluster that counts kinds, not devices.

A *kind* is a set of devices that are alike apart from their links. A *pool* is what a host has of
one kind. What lies between two kinds depends on where the devices stand; here are the best and the
worst that it can be, each figure for itself, so that nothing is better than the one or worse than
the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations

from planner.alike import LikeDevices
from planner.problem import PlanningProblem
from profiler.cluster import DefaultLink, Link

MAX_PAIRED = 64
"""Of so many devices every pair is looked at; of more, the places that hold them."""


@dataclass(frozen=True, slots=True)
class Path:
    """Figures of a link; see ``profiler.cluster.Link``."""

    latency_s: float
    bytes_per_s: float
    send_occupancy: float
    receive_occupancy: float

    @classmethod
    def of(cls, link: Link | DefaultLink) -> Path:
        """The figures of ``link``."""
        return cls(link.latency_s, link.bytes_per_s, link.send_occupancy, link.receive_occupancy)

    def better(self, other: Path) -> Path:
        """At least as good as either."""
        return Path(
            min(self.latency_s, other.latency_s),
            max(self.bytes_per_s, other.bytes_per_s),
            min(self.send_occupancy, other.send_occupancy),
            min(self.receive_occupancy, other.receive_occupancy),
        )

    def worse(self, other: Path) -> Path:
        """At most as good as either."""
        return Path(
            max(self.latency_s, other.latency_s),
            min(self.bytes_per_s, other.bytes_per_s),
            max(self.send_occupancy, other.send_occupancy),
            max(self.receive_occupancy, other.receive_occupancy),
        )


@dataclass(frozen=True, slots=True)
class Kind:
    """Devices alike apart from their links: one that stands for them, and all of them by pool."""

    device: str
    pools: tuple[tuple[str, ...], ...]

    @property
    def count(self) -> int:
        """How many devices there are."""
        return sum(len(pool) for pool in self.pools)

    @property
    def largest_pool(self) -> int:
        """Devices of the largest pool."""
        return max(len(pool) for pool in self.pools)


@dataclass(frozen=True, slots=True)
class Paths:
    """What lies between kinds, under one assumption about where devices stand.

    ``inner[t]`` is between devices of one pool of kind ``t``, ``outer[t, u]`` from one of ``t`` to
    one of ``u`` elsewhere; pairs that no two devices make are absent. ``inward`` and ``outward``
    lead from and to the root; absent for the root itself.
    """

    inner: dict[int, Path]
    outer: dict[tuple[int, int], Path]
    inward: dict[int, Path]
    outward: dict[int, Path]


@dataclass(frozen=True, slots=True)
class Pools:
    """The kinds of a problem's devices, and what is between them at best and at worst."""

    kinds: tuple[Kind, ...]
    best: Paths
    worst: Paths


def find_pools(problem: PlanningProblem) -> Pools:
    """The usable devices of ``problem`` by kind; the root is a kind of its own."""
    cluster, alike = problem.cluster, LikeDevices(problem)
    members: dict[object, dict[str, list[str]]] = {}
    for name in _in_tree_order(problem):
        key = (alike.kind(name), name == cluster.root)
        members.setdefault(key, {}).setdefault(cluster.host_of[name].name, []).append(name)
    kinds = tuple(
        Kind(next(iter(hosts.values()))[0], tuple(tuple(pool) for pool in hosts.values()))
        for hosts in members.values()
    )
    return Pools(
        kinds=kinds,
        best=_paths(problem, kinds, best=True),
        worst=_paths(problem, kinds, best=False),
    )


def _in_tree_order(problem: PlanningProblem) -> list[str]:
    """Usable devices, those of one group next to each other."""
    cluster = problem.cluster
    number = {group.name: g for g, group in enumerate(cluster.groups)}
    position = {host.name: h for h, host in enumerate(cluster.hosts)}

    def place(device: str) -> tuple[tuple[int, ...], int]:
        host = cluster.host_of[device].name
        return tuple(number[group] for group in cluster.enclosing[host][::-1]), position[host]

    return sorted(problem.devices, key=place)


def _paths(problem: PlanningProblem, kinds: tuple[Kind, ...], *, best: bool) -> Paths:
    inner: dict[int, Path] = {}
    outer: dict[tuple[int, int], Path] = {}
    kind_of = {d: t for t, kind in enumerate(kinds) for pool in kind.pools for d in pool}

    def join(into: dict[object, Path], key: object, path: Path) -> None:
        known = into.get(key)
        if known is not None:
            path = known.better(path) if best else known.worse(path)
        into[key] = path

    for t, u, together, path in _seen(problem, kinds, kind_of):
        if together:
            join(inner, t, path)  # type: ignore[arg-type]
        else:
            join(outer, (t, u), path)  # type: ignore[arg-type]
    inward: dict[int, Path] = {}
    outward: dict[int, Path] = {}
    root = problem.cluster.root
    for t, kind in enumerate(kinds):
        for device in _one_a_place(problem, kind):
            if device != root:
                join(inward, t, Path.of(problem.cluster.link(root, device)))  # type: ignore[arg-type]
                join(outward, t, Path.of(problem.cluster.link(device, root)))  # type: ignore[arg-type]
    return Paths(inner, outer, inward, outward)


def _one_a_place(problem: PlanningProblem, kind: Kind) -> Iterator[str]:
    """A device of each pool that ``links`` do not name, and all that they name."""
    named = {end for link in problem.cluster.links for end in (link.source, link.target)}
    for pool in kind.pools:
        yield from [device for device in pool if device not in named][:1]
        yield from (device for device in pool if device in named)


def _seen(
    problem: PlanningProblem, kinds: tuple[Kind, ...], kind_of: dict[str, int]
) -> Iterable[tuple[int, int, bool, Path]]:
    """Kinds of source and target, whether both are of one pool, and a link that they may have."""
    cluster = problem.cluster
    if len(kind_of) <= MAX_PAIRED:
        for a, b in permutations(kind_of, 2):
            same = kind_of[a] == kind_of[b] and cluster.host_of[a] is cluster.host_of[b]
            yield kind_of[a], kind_of[b], same, Path.of(cluster.link(a, b))
        return
    yield from _by_place(problem, kinds)
    at_host: dict[str, list[str]] = {}
    for device in kind_of:
        at_host.setdefault(cluster.host_of[device].name, []).append(device)
    for link in cluster.links:
        for a in at_host.get(link.source, [link.source]):
            for b in at_host.get(link.target, [link.target]):
                if a != b and a in kind_of and b in kind_of:
                    same = kind_of[a] == kind_of[b] and cluster.host_of[a] is cluster.host_of[b]
                    yield kind_of[a], kind_of[b], same, Path.of(link)


def _by_place(
    problem: PlanningProblem, kinds: tuple[Kind, ...]
) -> Iterable[tuple[int, int, bool, Path]]:
    """The links that hosts, groups and the cluster have inside, between kinds that meet there."""
    cluster = problem.cluster
    everywhere = "/"  # no name has a slash
    inside: dict[str, dict[int, set[str]]] = {}  # place -> kind -> members of the place with it
    for t, kind in enumerate(kinds):
        for pool in kind.pools:
            host = cluster.host_of[pool[0]].name
            path = Path.of(cluster.common_link(host, host))
            if len(pool) > 1:
                yield t, t, True, path
            inside.setdefault(host, {}).setdefault(t, set()).add(f"{host}/{t}")
            below = host
            for place in (*cluster.enclosing[host], everywhere):
                inside.setdefault(place, {}).setdefault(t, set()).add(below)
                below = place
    links = {group.name: group.inner_link for group in cluster.groups}
    links[everywhere] = cluster.default_link
    for place, held in inside.items():
        link = links.get(place) or cluster.common_link(place, place)
        for t, here in held.items():
            for u, there in held.items():
                if len(here | there) > 1:
                    yield t, u, False, Path.of(link)
