"""The machines: hosts, their devices, the links between them. Written by discovery, then people.

A device is named ``host/device`` (``node-a/cuda:0``) wherever two hosts could be meant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

from pydantic import Field, model_validator

from profiler.documents import (
    Bytes,
    BytesPerSecond,
    Document,
    Record,
    Seconds,
    canonical_json,
)
from profiler.emulation import Emulation
from profiler.errors import InvalidInputError
from profiler.hypothetical import Hypothetical

LOOPBACK_LATENCY_S = 150e-6
LOOPBACK_BYTES_PER_S = 1.5e9
"""A message between two processes of one machine over gloo, where nothing better is known."""


class Device(Record):
    """A thing that computes. ``type`` is free text; equal types on one host are taken as equal.

    ``memory_bytes`` is what exists, ``free_bytes`` what a plan may use of it. ``threads`` is the
    number of processor threads a CPU device computes with. ``price_per_hour`` is in any one
    currency.
    """

    name: str = Field(min_length=1, pattern=r"^[^/\s]+$")
    type: str = Field(min_length=1)
    kind: Literal["cpu", "cuda"] = "cpu"
    memory_bytes: Bytes = Field(gt=0)
    free_bytes: Bytes | None = Field(default=None, ge=0)
    threads: int = Field(default=1, ge=1)
    price_per_hour: float | None = Field(default=None, ge=0)

    @property
    def usable_bytes(self) -> int:
        """Memory a plan may count on: free if known, else all of it."""
        return (
            self.memory_bytes
            if self.free_bytes is None
            else min(self.free_bytes, self.memory_bytes)
        )


class Link(Record):
    """One direction of a path. ``source`` and ``target`` name a host or a ``host/device``.

    Moving ``n`` bytes takes ``latency_s + n / bytes_per_s``. ``send_occupancy`` is the fraction of
    that time during which the source cannot compute (0: fully hidden, 1: fully serial),
    ``receive_occupancy`` the same of the target. Links with equal ``shares`` are one wire.
    ``error_fraction``: how far measured times scatter around the formula; absent if not measured.
    ``hypothetical``: the link is not there as given.
    """

    source: str
    target: str
    latency_s: Seconds = Field(ge=0)
    bytes_per_s: BytesPerSecond = Field(gt=0)
    send_occupancy: float = Field(default=0.0, ge=0, le=1)
    receive_occupancy: float = Field(default=0.0, ge=0, le=1)
    shares: str | None = None
    error_fraction: float | None = Field(default=None, ge=0)
    hypothetical: Hypothetical | None = None

    def transfer_time_s(self, num_bytes: float) -> float:
        """Seconds to move ``num_bytes``; nothing to move takes no time.

        >>> Link(source="a", target="b", latency_s=1e-5, bytes_per_s=1e9).transfer_time_s(10**6)
        0.00101
        """
        return self.latency_s + num_bytes / self.bytes_per_s if num_bytes else 0.0


class DefaultLink(Record):
    """What holds between two devices that no entry of ``links`` names."""

    latency_s: Seconds = Field(default=LOOPBACK_LATENCY_S, ge=0)
    bytes_per_s: BytesPerSecond = Field(default=LOOPBACK_BYTES_PER_S, gt=0)
    send_occupancy: float = Field(default=0.0, ge=0, le=1)
    receive_occupancy: float = Field(default=0.0, ge=0, le=1)
    hypothetical: Hypothetical | None = None


class Host(Record):
    """A machine: one address, some devices. ``cores`` are its processor threads, if known.

    ``address`` is where other hosts reach it (a name or an IP address), if that is not ``name``.
    ``inner_link`` is what its devices have between them, unless ``links`` name them.
    """

    name: str = Field(min_length=1, pattern=r"^[^/\s]+$")
    address: str | None = Field(default=None, min_length=1, pattern=r"^[^/\s]+$")
    cores: int | None = Field(default=None, ge=1)
    devices: tuple[Device, ...]
    inner_link: DefaultLink | None = None


class Group(Record):
    """Hosts behind one network: a rack, a site. ``members`` are hosts, or groups listed before.

    ``inner_link`` is what devices of different members have between them, unless ``links`` name
    them.
    """

    name: str = Field(min_length=1, pattern=r"^[^/\s]+$")
    members: tuple[str, ...] = Field(min_length=1)
    inner_link: DefaultLink


class Cluster(Document):
    """Everything a plan may use. The first device is where inputs enter and answers leave.

    ``emulate`` says how one machine can stand in for the hosts (``apportion hosts``); plans do not
    read it.
    """

    kind: Literal["Cluster"] = "Cluster"
    format_version: str = "1.0"
    hosts: tuple[Host, ...]
    groups: tuple[Group, ...] = ()
    links: tuple[Link, ...] = ()
    default_link: DefaultLink = DefaultLink()
    emulate: Emulation | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Cluster:
        names = [host.name for host in self.hosts]
        if len(set(names)) != len(names):
            raise ValueError(
                f"host {next(n for n in names if names.count(n) > 1)!r} is listed twice"
            )
        self._check_groups(names)
        for host in self.hosts:
            own = [device.name for device in host.devices]
            if len(set(own)) != len(own):
                twice = next(n for n in own if own.count(n) > 1)
                raise ValueError(f"device {host.name}/{twice} is listed twice")
        if not any(host.devices for host in self.hosts):
            raise ValueError("the cluster has no device: list at least one under hosts[].devices")
        for name, device in self.device.items():
            if device.kind == "cuda" and not re.fullmatch(r"cuda:[0-9]+", device.name):
                raise ValueError(f"device {name} is of kind cuda: name it cuda:0, cuda:1, ...")
        places = {*names, *self.device}
        pairs = [(link.source, link.target) for link in self.links]
        for link in self.links:
            for end in (link.source, link.target):
                if end not in places:
                    raise ValueError(f"link {link.source} -> {link.target}: there is no {end!r}")
        if len(set(pairs)) != len(pairs):
            source, target = next(p for p in pairs if pairs.count(p) > 1)
            raise ValueError(f"link {source} -> {target} is listed twice")
        if self.emulate is not None:
            self.emulate.require_consistent(names)
        return self

    def canonical(self) -> str:
        """As for every record, without what no plan depends on: addresses and ``emulate``.

        A plan does not go stale because a host moves or someone tries it on one machine.
        """
        data = self.model_dump(mode="json", exclude_defaults=True, exclude={"emulate"})
        for host in data["hosts"]:
            host.pop("address", None)
        return canonical_json(data)

    def _check_groups(self, hosts: Sequence[str]) -> None:
        apart = set(hosts)  # hosts and groups that are in no group yet
        known = set(hosts)
        for group in self.groups:
            if group.name in known:
                raise ValueError(f"group {group.name!r} has the name of another group or host")
            for member in group.members:
                if member not in apart:
                    what = "is in two groups" if member in known else "is no host or group so far"
                    raise ValueError(f"group {group.name}: member {member!r} {what}")
                apart.remove(member)
            known.add(group.name)
            apart.add(group.name)

    @cached_property
    def device(self) -> dict[str, Device]:
        """Devices by full name ``host/device``, in file order."""
        return {f"{h.name}/{d.name}": d for h in self.hosts for d in h.devices}

    @cached_property
    def host_of(self) -> dict[str, Host]:
        """Host of each device, by the device's full name."""
        return {f"{h.name}/{d.name}": h for h in self.hosts for d in h.devices}

    @cached_property
    def root(self) -> str:
        """Full name of the device where inputs enter and answers leave: the first one."""
        return next(iter(self.device))

    @cached_property
    def enclosing(self) -> dict[str, tuple[str, ...]]:
        """The groups that each host is in, by host name, the innermost first."""
        parent = {member: group.name for group in self.groups for member in group.members}
        found = {}
        for host in self.hosts:
            chain, at = [], host.name
            while at in parent:
                at = parent[at]
                chain.append(at)
            found[host.name] = tuple(chain)
        return found

    @cached_property
    def _links(self) -> dict[tuple[str, str], Link]:
        return {(link.source, link.target): link for link in self.links}

    @cached_property
    def _inner_links(self) -> dict[str, DefaultLink]:
        """By host or group."""
        inside = {host.name: host.inner_link for host in self.hosts}
        inside.update((group.name, group.inner_link) for group in self.groups)
        return {name: link for name, link in inside.items() if link is not None}

    def common_link(self, source_host: str, target_host: str) -> DefaultLink:
        """What devices of two hosts have between them where ``links`` do not name them.

        That of the host they share, else of the innermost group that holds both, else the default.
        """
        if source_host == target_host and source_host in self._inner_links:
            return self._inner_links[source_host]
        there = self.enclosing[target_host]
        for group in self.enclosing[source_host]:
            if group in there:
                return self._inner_links[group]
        return self.default_link

    def link(self, source: str, target: str) -> Link:
        """The link from one device to another, the most exact entry that names them.

        Order: device to device, device to host, host to device, host to host, what the host or
        the innermost group that holds both has inside, the default.

        Raises:
            InvalidInputError: no such device.
        """
        for end in (source, target):
            if end not in self.device:
                raise InvalidInputError(
                    f"there is no device {end!r}; the cluster has {', '.join(self.device)}"
                )
        source_host, target_host = self.host_of[source].name, self.host_of[target].name
        for pair in (
            (source, target),
            (source, target_host),
            (source_host, target),
            (source_host, target_host),
        ):
            if pair in self._links:
                return self._links[pair]
        common = self.common_link(source_host, target_host)
        return Link(
            source=source,
            target=target,
            latency_s=common.latency_s,
            bytes_per_s=common.bytes_per_s,
            send_occupancy=common.send_occupancy,
            receive_occupancy=common.receive_occupancy,
            hypothetical=common.hypothetical,
        )
