"""Every link of a cluster, measured by the processes of a :class:`World`, one a host.

Pairs of hosts measure in rounds of a tournament (:mod:`profiler.pairs`). Links within a host are
measured by two processes of its own (:mod:`profiler.loopback`), on all hosts at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from profiler.cluster import Cluster, Host, Link
from profiler.environment import Environment
from profiler.errors import InvalidInputError
from profiler.hosts import agree_on_cluster, meet, with_links
from profiler.loopback import measure_loopback
from profiler.pairs import MEASURED_TOO_LOW, LinkOptions, Pairs
from profiler.rounds import Pair, fill, kind_of, pack, schedule
from profiler.world import World


@dataclass(frozen=True, kw_only=True)
class MeasuredLinks:
    """``links`` between and within hosts; ``warnings`` say what else they seem to share."""

    links: tuple[Link, ...]
    warnings: tuple[str, ...] = ()


def measure_links(cluster: Cluster | None = None, *, options: LinkOptions | None = None) -> Cluster:
    """``cluster`` with its links measured, by processes that torchrun started, one a host.

    Every process calls this and gets the same cluster. Without one the hosts describe themselves;
    with one, rank 0's counts.

    Raises:
        InvalidInputError: not one of several processes, or the cluster has other hosts than they.
        RankFailedError: a host is gone, cannot be reached, or falls silent.
    """
    environment = Environment.read()
    if environment is None:
        raise InvalidInputError(
            "links are measured between processes, one a host: start this with torchrun"
        )
    with meet(environment) as world:
        machines, _ = agree_on_cluster(world, cluster)
        return with_links(machines, measure_between(world, machines, options=options).links)


def measure_between(
    world: World, cluster: Cluster, *, options: LinkOptions | None = None
) -> MeasuredLinks:
    """The links of ``cluster``, whose hosts are those of ``world``; the same on every rank.

    ``shares`` that the cluster declares are kept.

    Raises:
        RankFailedError: a host is gone, cannot be reached, or falls silent; it, the rank and the
            step are named.
    """
    options = options or LinkOptions()
    named = {host.name: host for host in cluster.hosts}
    hosts = [named[name] for name in world.hosts]
    within = _within_hosts(world, hosts, options)
    if world.size == 1:
        return MeasuredLinks(links=_declared(within, cluster))
    with world.group() as group:
        pairs = Pairs(world, group, hosts, options)
        rounds = schedule(
            [kind_of(host) for host in hosts], sample=options.sample, at_once=options.at_once
        )
        measured = pairs.measure(rounds, "measuring links", check=not options.find_wires)
        links = fill(measured, {host.name: kind_of(host) for host in hosts})
        warnings = tuple(_took_from_each_other(one, world.hosts) for one in pairs.disturbed)
        if options.find_wires:
            links, warnings = _with_wires(pairs, links)
    return MeasuredLinks(links=_declared([*within, *links], cluster), warnings=warnings)


def _declared(links: Iterable[Link], cluster: Cluster) -> tuple[Link, ...]:
    """What was measured, with the wires that people declared."""
    said = {(link.source, link.target): link.shares for link in cluster.links}
    return tuple(
        link.model_copy(update={"shares": said.get((link.source, link.target)) or link.shares})
        for link in links
    )


def _within_hosts(world: World, hosts: Sequence[Host], options: LinkOptions) -> list[Link]:
    """A link of each host with itself, where it has several devices; all hosts at once."""
    host = hosts[world.rank]
    own = None
    if len(host.devices) > 1:
        options.progress(f"measuring links within {host.name}", 0.0)
        own = measure_loopback(host, budget_s=options.budget_s, timeout_s=world.timeout_s)
    gathered = world.exchange("links within hosts", None if own is None else own.model_dump())
    return [Link(**data) for data in gathered if data is not None]


def _with_wires(pairs: Pairs, links: Sequence[Link]) -> tuple[tuple[Link, ...], tuple[str, ...]]:
    """``links`` with ``shares`` where clear, and what is not clear, in words."""
    world = pairs.world
    ranks = {name: rank for rank, name in enumerate(world.hosts)}
    streams = pairs.streams(links)
    plain: list[Any] = [[], [], []]
    if world.rank == 0:
        found = pairs.lead_trials(streams)
        plain = [found.wires, found.unclear, [[*key, rate] for key, rate in found.alone.items()]]
    else:
        pairs.follow_trials(streams)
    wires, unclear, alone = world.broadcast("shared wires", plain)
    shares = {
        (world.hosts[a], world.hosts[b]): name
        for number, wire in enumerate(wires)
        for name in [wire_name(wire, world.hosts, number + 1)]
        for a, b in wire
    }
    rate = {(world.hosts[a], world.hosts[b]): value for a, b, value in alone}
    # Links of one wire that were measured in the same round took from each other.
    low = {
        tuple(sorted((ranks[link.source], ranks[link.target])))
        for link in links
        if (link.source, link.target) in shares
        and rate[link.source, link.target] > MEASURED_TOO_LOW * link.bytes_per_s
    }
    again = pack(sorted((a, b) for a, b in low), at_once=1)
    better = {(k.source, k.target): k for k in pairs.measure(again, "measuring again, alone")}
    shared = tuple(
        better.get((link.source, link.target), link).model_copy(
            update={"shares": shares.get((link.source, link.target))}
        )
        for link in links
    )
    return shared, tuple(_in_words(group, world.hosts) for group in unclear)


def _took_from_each_other(pairs: Sequence[Pair], hosts: Sequence[str]) -> str:
    said = ", ".join(f"{hosts[a]} - {hosts[b]}" for a, b in pairs)
    return (
        f"these links hinder each other and were measured one after the other: {said}; a plan that "
        "uses them at once takes longer than it says: --find-wires tells which are one wire"
    )


def wire_name(wire: Sequence[Sequence[int]], hosts: Sequence[str], number: int) -> str:
    """A telling name: what leaves a host, what enters it, the two directions of a pair.

    >>> wire_name([(0, 1), (0, 2)], ["a", "b", "c"], 1), wire_name([(0, 1), (1, 0)], "ab", 2)
    ('out of a', 'between a and b')
    """
    sources, targets = {a for a, _ in wire}, {b for _, b in wire}
    if len(sources) == 1:
        return f"out of {hosts[min(sources)]}"
    if len(targets) == 1:
        return f"into {hosts[min(targets)]}"
    if len(sources | targets) == 2:
        return f"between {hosts[min(sources)]} and {hosts[max(sources)]}"
    return f"wire {number}"


def _in_words(group: Sequence[Sequence[int]], hosts: Sequence[str]) -> str:
    links = ", ".join(f"{hosts[a]} -> {hosts[b]}" for a, b in group)
    return (
        f"these links hinder each other, but not as one wire would: {links}; if they are one, give "
        "them equal shares in the cluster file"
    )


__all__ = ["LinkOptions", "MeasuredLinks", "measure_between", "measure_links", "wire_name"]
