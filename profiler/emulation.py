"""The part of a Cluster that says how one machine can stand in for its hosts.

Only the wish is here: what each host may use and how fast its links are. ``executor.emulate`` makes
hosts of it. Validation knows the names of the hosts and nothing of the machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from pydantic import Field

from profiler.documents import Bytes, BytesPerSecond, Record, Seconds

MIN_CORES, MAX_CORES = 0.01, 4096
"""Less of a processor cannot be enforced: the kernel hands out at least 1 ms, at most once in a
period, and long periods make times jump."""

MIN_PERIOD_S, MAX_PERIOD_S, PERIOD_S = 0.001, 1.0, 0.01
"""The periods that the kernel takes, and the one that is usual here: in longer ones the time of one
step jumps, in shorter ones hosts that together use most of the machine get less than their part."""

MIN_BYTES_PER_S, MAX_BYTES_PER_S = 1e3, 1e12
"""Rates that the kernel's queues can keep."""


class EmulatedHost(Record):
    """What a host may use of this machine; absent means without limit.

    ``cores`` is a quota of processor time: 0.25 is a quarter of one core, 2.0 two cores.
    ``memory_bytes`` is a limit on all processes of the host together; the kernel kills what
    exceeds it.
    """

    name: str
    cores: float | None = Field(default=None, ge=MIN_CORES, le=MAX_CORES)
    memory_bytes: Bytes | None = Field(default=None, gt=0)


class EmulatedLink(Record):
    """One direction between two hosts and the rate at which it carries what programs send.

    Links with equal ``shares`` are one wire: together they carry ``bytes_per_s``, which must be
    the same for all of them.
    """

    source: str
    target: str
    bytes_per_s: BytesPerSecond = Field(ge=MIN_BYTES_PER_S, le=MAX_BYTES_PER_S)
    shares: str | None = Field(default=None, min_length=1)


class Emulation(Record):
    """How one machine stands in for a cluster's hosts.

    ``default_bytes_per_s`` is the rate of every direction that ``links`` does not name, each a wire
    of its own; absent means as fast as this machine. ``period_s`` is the time in which a host has
    its part of the processor once: devices that wait for each other many times a step (those
    that divide layers) are stopped at different times, by up to a period. ``keep_warm`` has
    processes of the lowest priority keep the cores' caches warm while hosts with less than a core
    wait, for machines on which others empty them meanwhile.
    """

    hosts: tuple[EmulatedHost, ...] = ()
    links: tuple[EmulatedLink, ...] = ()
    default_bytes_per_s: BytesPerSecond | None = Field(
        default=None, ge=MIN_BYTES_PER_S, le=MAX_BYTES_PER_S
    )

    period_s: Seconds = Field(default=PERIOD_S, ge=MIN_PERIOD_S, le=MAX_PERIOD_S)
    keep_warm: bool = False

    def require_consistent(self, names: Collection[str]) -> None:
        """Refuse what contradicts itself or the cluster, whose hosts are called ``names``.

        Raises:
            ValueError: a host or link that is not there or is listed twice, a link of a host to
                itself, a wire with two rates.
        """
        known = set(names)
        for host in self.hosts:
            if host.name not in known:
                raise ValueError(
                    f"emulate.hosts: there is no host {host.name!r}; the cluster has "
                    f"{', '.join(names)}"
                )
        for link in self.links:
            what = f"emulate.links: {link.source} -> {link.target}"
            for end in (link.source, link.target):
                if end not in known:
                    raise ValueError(
                        f"{what}: there is no host {end!r}; links here join hosts, not devices"
                    )
            if link.source == link.target:
                raise ValueError(f"{what}: within a host there is no wire")
        _refuse_repeated("emulate.hosts", (host.name for host in self.hosts))
        _refuse_repeated("emulate.links", (f"{x.source} -> {x.target}" for x in self.links))
        rates: dict[str, EmulatedLink] = {}
        for link in self.links:
            if link.shares is None:
                continue
            first = rates.setdefault(link.shares, link)
            if first.bytes_per_s != link.bytes_per_s:
                raise ValueError(
                    f"emulate.links: wire {link.shares!r} has two rates: "
                    f"{first.bytes_per_s:g} bytes/s on {first.source} -> {first.target}, "
                    f"{link.bytes_per_s:g} on {link.source} -> {link.target}; give it one"
                )


def _refuse_repeated(where: str, names: Iterable[str]) -> None:
    twice = next((name for name, num in Counter(names).items() if num > 1), None)
    if twice is not None:
        raise ValueError(f"{where}: {twice} is listed twice")
