"""The hosts of several processes as one cluster, and a cluster file against the hosts there are."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from profiler.cluster import Cluster, Host, Link
from profiler.discover import discover
from profiler.environment import Environment
from profiler.errors import InvalidInputError
from profiler.limits import available_cores
from profiler.world import DEFAULT_TIMEOUT_S, Identity, World

HOST_VARIABLE = "APPORTION_HOST"
"""Environment variable that names a host whose own name is not unique."""

LONGEST_TIMEOUT_S = 1e6


def host_name(given: str | None = None) -> Identity:
    """How this process introduces its host.

    Raises:
        InvalidInputError: the given name cannot be one.
    """
    name = given or os.environ.get(HOST_VARIABLE) or None
    if name is not None and ("/" in name or any(c.isspace() for c in name)):
        raise InvalidInputError(f"a host's name has no spaces and no slashes; {name!r} has")
    found = name or socket.gethostname().split(".")[0] or "localhost"
    return Identity.here(found, chosen=name is not None)


def meet(
    environment: Environment, *, host: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
) -> World:
    """The processes of an environment, one a host, as a context.

    Raises:
        RankFailedError: one did not come in time.
        InvalidInputError: a time limit that is none, a name that cannot be one, or two processes
            on one host.
    """
    if not 0 < timeout_s <= LONGEST_TIMEOUT_S:
        raise InvalidInputError(
            f"the time limit must be above 0 s and at most {LONGEST_TIMEOUT_S:g} s, not "
            f"{timeout_s:g}"
        )
    return World(environment, host=host_name(host), timeout_s=timeout_s)


def agree_on_cluster(
    world: World, cluster: Cluster | None, *, cpu_devices: int = 1
) -> tuple[Cluster, tuple[str, ...]]:
    """The cluster that all ranks go by, and warnings about it.

    That is rank 0's ``cluster``, whatever the others give; without one the hosts as they describe
    themselves.

    Raises:
        InvalidInputError: its hosts are not those of the ranks.
    """
    own = None if cluster is None else cluster.to_text(as_json=True)
    text = world.broadcast("the cluster", own)
    if text is None:
        return discover_all(world, cpu_devices=cpu_devices), ()
    given = Cluster.parse(text, name="the cluster of rank 0", is_json=True)
    met = world.exchange("comparing the hosts", asdict(Present.here(world.host)))
    return given, compare_hosts(given, [Present(**one) for one in met])


def discover_all(world: World, *, cpu_devices: int) -> Cluster:
    """Every host of ``world`` as it describes itself, in rank order; the same on every rank."""
    own = discover(cpu_devices=cpu_devices, host=world.host).hosts[0]
    described = world.exchange("describing the hosts", own.model_dump_json())
    return merge_hosts([Host.model_validate_json(data) for data in described])


def merge_hosts(hosts: Sequence[Host]) -> Cluster:
    """One cluster of hosts in this order; the first device of the first is the root.

    Raises:
        InvalidInputError: two of them have one name, or none has a device.
    """
    names = [host.name for host in hosts]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(f"two hosts are called {twice}: name them with --host")
    if not any(host.devices for host in hosts):
        raise InvalidInputError(f"none of the hosts {', '.join(names)} has a device")
    return Cluster(hosts=tuple(hosts))


@dataclass(frozen=True, kw_only=True)
class Present:
    """A host as the process on it sees it."""

    name: str
    cores: int
    num_cuda: int

    @staticmethod
    def here(name: str) -> Present:
        """This machine."""
        import torch

        cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return Present(name=name, cores=available_cores(), num_cuda=cuda)


def compare_hosts(cluster: Cluster, present: Sequence[Present]) -> tuple[str, ...]:
    """Warnings about a cluster file whose hosts are there, but smaller than it says.

    Raises:
        InvalidInputError: hosts without a process or a device, processes on hosts that are not in
            the cluster, or a device that its host cannot have.
    """
    there = {host.name: host for host in present}
    listed = {host.name for host in cluster.hosts}
    silent = [host.name for host in cluster.hosts if host.name not in there]
    strange = [
        f"rank {rank} on {host.name}"
        for rank, host in enumerate(present)
        if host.name not in listed
    ]
    if silent or strange:
        clash = [f"no rank runs on {', '.join(silent)}"] if silent else []
        clash += [f"{', '.join(strange)}: not in the cluster"] if strange else []
        raise InvalidInputError(
            f"the cluster has the hosts {', '.join(sorted(listed))}; {'; '.join(clash)}. Start one "
            f"process on each, or name it as the cluster does: --host or {HOST_VARIABLE}"
        )
    warnings = []
    for host in cluster.hosts:
        real = there[host.name]
        if not host.devices:
            raise InvalidInputError(
                f"host {host.name} has no device in the cluster: list one, or take the host out"
            )
        for device in host.devices:
            index = device.name.partition(":")[2]
            if device.kind == "cuda" and int(index or 0) >= real.num_cuda:
                raise InvalidInputError(
                    f"{host.name}/{device.name} is in the cluster; host {host.name} has "
                    f"{real.num_cuda} CUDA devices"
                )
            if device.kind == "cpu" and device.threads > real.cores:
                cores = f"{real.cores} core{'' if real.cores == 1 else 's'}"
                raise InvalidInputError(
                    f"{host.name}/{device.name} is declared with {device.threads} threads; host "
                    f"{host.name} has {cores} for it: correct the cluster file"
                )
        if host.cores is not None and host.cores > real.cores:
            warnings.append(
                f"host {host.name} is declared with {host.cores} cores and has {real.cores}: "
                "measured as it is"
            )
    return tuple(warnings)


def only_host(cluster: Cluster, name: str) -> Cluster:
    """The part of a cluster that one host is, without links."""
    return Cluster(hosts=tuple(host for host in cluster.hosts if host.name == name))


def unmeasured(cluster: Cluster) -> tuple[str, ...]:
    """The directed pairs of hosts between which ``cluster`` has no measured link."""
    known = {
        tuple(end.partition("/")[0] for end in (link.source, link.target))
        for link in cluster.links
        if link.error_fraction is not None
    }
    names = [host.name for host in cluster.hosts]
    return tuple(f"{a} -> {b}" for a in names for b in names if a != b and (a, b) not in known)


def with_links(cluster: Cluster, links: Sequence[Link]) -> Cluster:
    """``cluster`` with measured links in place of those it had between the same two ends.

    Entries for single devices go too where the hosts' link was measured: they are more exact in
    name only.
    """
    measured = {(link.source, link.target) for link in links}
    kept = tuple(
        link
        for link in cluster.links
        if (link.source.partition("/")[0], link.target.partition("/")[0]) not in measured
    )
    fields = {name: getattr(cluster, name) for name in type(cluster).model_fields}
    return Cluster(**{**fields, "links": (*links, *kept)})
