"""What a cluster's emulated hosts look like: names, addresses, queues. Pure: nothing is touched.

Every host is a network namespace with one interface; one more namespace holds the bridge that
joins them. Rates are enforced where packets are sent: each host's interface has one queue for each
wire that starts there, filtered by the receiver's address. Where the sender waits in its own queue,
TCP needs no loss to find the rate. A wire on which several hosts send has no such place: their
packets are led through one more device beside the bridge, which carries them at the wire's rate.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from profiler.cluster import Cluster
from profiler.emulation import MAX_PERIOD_S, PERIOD_S, EmulatedLink, Emulation
from profiler.errors import InvalidInputError

PREFIX = "apportion-"
"""What the names of all namespaces and control groups begin with; only such are ever removed."""

INTERFACE = "eth0"
"""The interface of every emulated host."""

NETWORK = ipaddress.IPv4Network("10.77.0.0/16")
"""Where addresses come from. Nothing outside of the namespaces sees them, so that several emulated
clusters, and a real network of the same numbers, do not meet."""

MAX_HOSTS = 128
"""Queues and filters grow with the square of the hosts: these take some twenty seconds to make."""

MIN_QUOTA_S = 0.001
"""The least that the kernel hands out in one period."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLayout:
    """One host. ``processes`` is the number of its devices: ranks to be started there."""

    name: str
    namespace: str
    group: str
    port: str
    address: str
    mac: str
    processes: int
    cores: float | None
    period_s: float
    memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """One rate at a host's interface, shared by everything sent to ``targets`` (host numbers)."""

    bytes_per_s: float
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """One rate for links of several sources, as pairs of host numbers."""

    name: str
    bytes_per_s: float
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """All of an emulated cluster. ``queues[i]`` are those of ``hosts[i]``.

    ``warm_group`` is the control group of what keeps cores warm (``warmth``), where hosts wait for
    their turns and the cluster asks for it.
    """

    name: str
    switch: str
    hosts: tuple[HostLayout, ...]
    queues: tuple[tuple[Queue, ...], ...]
    wires: tuple[Wire, ...]
    warm_group: str | None

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Names of all network namespaces."""
        return (self.switch, *(host.namespace for host in self.hosts))


def layout(cluster: Cluster, *, token: str) -> Layout:
    """The emulated hosts of ``cluster``; ``token`` tells them from those of other runs.

    Raises:
        InvalidInputError: the cluster does not say how to emulate it, or is too large.
    """
    wish = cluster.emulate
    if wish is None:
        raise InvalidInputError(
            "the cluster has no emulate section; add one, for instance:\n"
            "  emulate:\n"
            f"    hosts: [{{name: {cluster.hosts[0].name}, cores: 0.5, memory_bytes: 2GiB}}]\n"
            "    default_bytes_per_s: 1Gbit/s"
        )
    if len(cluster.hosts) > MAX_HOSTS:
        raise InvalidInputError(
            f"the cluster has {len(cluster.hosts)} hosts; one machine can emulate at most "
            f"{MAX_HOSTS}"
        )
    name = f"{PREFIX}{token}"
    limits = {host.name: host for host in wish.hosts}
    hosts = []
    for index, host in enumerate(cluster.hosts):
        limit = limits.get(host.name)
        address = NETWORK[index + 1]
        hosts.append(
            HostLayout(
                name=host.name,
                namespace=f"{name}-{index}",
                group=f"{name}-{index}",
                port=f"p{index}",
                address=str(address),
                mac=_mac(address),
                processes=len(host.devices),
                cores=limit.cores if limit else None,
                period_s=wish.period_s,
                memory_bytes=limit.memory_bytes if limit else None,
            )
        )
    number = {host.name: index for index, host in enumerate(hosts)}
    return Layout(
        name=name,
        switch=f"{name}-switch",
        hosts=tuple(hosts),
        queues=tuple(_queues(wish, number, index) for index in range(len(hosts))),
        wires=_wires(wish.links, number),
        warm_group=f"{name}-warm" if wish.keep_warm and _wait(hosts) else None,
    )


def _wait(hosts: Sequence[HostLayout]) -> bool:
    """Whether some host is stopped in every period: whether it has less than a core."""
    return any(host.cores is not None and host.cores < 1 for host in hosts)


def _mac(address: ipaddress.IPv4Address) -> str:
    # 02: assigned by hand, not by a maker; the rest is the address.
    return ":".join(["02", "00", *(f"{byte:02x}" for byte in address.packed)])


def _queues(wish: Emulation, number: dict[str, int], source: int) -> tuple[Queue, ...]:
    """One queue a wire, in the order of first mention; then the pairs that no link names."""
    targets: dict[object, list[int]] = {}
    rates: dict[object, float] = {}
    for link in wish.links:
        if number[link.source] == source:
            wire = link.shares if link.shares is not None else (link.source, link.target)
            targets.setdefault(wire, []).append(number[link.target])
            rates[wire] = link.bytes_per_s
    queues = [Queue(bytes_per_s=rates[w], targets=tuple(t)) for w, t in targets.items()]
    if wish.default_bytes_per_s is not None:
        named = {target for queue in queues for target in queue.targets}
        queues += [
            Queue(bytes_per_s=wish.default_bytes_per_s, targets=(target,))
            for target in number.values()
            if target != source and target not in named
        ]
    return tuple(queues)


def _wires(links: Sequence[EmulatedLink], number: dict[str, int]) -> tuple[Wire, ...]:
    """Wires on which more than one host sends; for one sender its own queue does."""
    pairs: dict[str, list[tuple[int, int]]] = {}
    rates: dict[str, float] = {}
    for link in links:
        if link.shares is not None:
            pairs.setdefault(link.shares, []).append((number[link.source], number[link.target]))
            rates[link.shares] = link.bytes_per_s
    return tuple(
        Wire(name=name, bytes_per_s=rates[name], pairs=tuple(on))
        for name, on in pairs.items()
        if len({source for source, _ in on}) > 1
    )


def quota(cores: float, period_s: float = PERIOD_S) -> tuple[int, int]:
    """Processor time and period, in microseconds, that make up ``cores``; the period is longer
    than ``period_s`` where the part in it would be too small.

    >>> quota(0.25), quota(2.0), quota(0.05), quota(0.5, 0.004)
    ((2500, 10000), (20000, 10000), (1000, 20000), (2000, 4000))
    """
    period_us = round(1e6 * min(MAX_PERIOD_S, max(period_s, MIN_QUOTA_S / cores)))
    return round(cores * period_us), period_us
