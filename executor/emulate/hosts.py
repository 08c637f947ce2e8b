"""Emulated hosts that are up: how to start processes inside, and bringing them up and down.

>>> with emulated(cluster) as hosts:                                       # doctest: +SKIP
...     hosts.popen("slow", ["python", "-m", "executor", "devices"]).wait()
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from executor.emulate import groups, registry, teardown
from executor.emulate.groups import HostGroup
from executor.emulate.layout import INTERFACE, PREFIX, HostLayout, Layout, layout
from executor.emulate.network import Step, build_steps
from executor.emulate.processors import Share, free_processors, share_out
from executor.emulate.registry import Instance, Owner
from executor.emulate.requirements import require_tools, shortfalls
from executor.emulate.warmth import KEEP_WARM, warm_cores
from executor.local import Place
from profiler.cluster import Cluster
from profiler.documents import canonical_json, digest
from profiler.errors import EmulationError, InvalidInputError
from profiler.limits import HOST_VARIABLE

ADDRESS_VARIABLE = "APPORTION_HOST_ADDRESS"
"""Environment variable that holds the host's address."""

JOIN = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 126; shift; done; shift; exec "$@"'
"""Enters the groups whose files are named before ``--``, then becomes the command after it."""


class EmulatedHosts:
    """Hosts that are up. Made by :func:`emulated`, :func:`bring_up` or :func:`attach`."""

    interface = INTERFACE
    """The network interface of every host."""

    def __init__(self, cluster: Cluster, plan: Layout, host_groups: Mapping[str, HostGroup]):
        self._hosts = {host.name: host for host in plan.hosts}
        self._groups = dict(host_groups)
        self.name = plan.name
        self._warm = groups.plan_idle_group(plan.warm_group) if plan.warm_group else None
        self.warnings = shortfalls(cluster, plan)

    @property
    def hosts(self) -> tuple[HostLayout, ...]:
        """All hosts, in the cluster's order."""
        return tuple(self._hosts.values())

    def host(self, name: str) -> HostLayout:
        """One host: its address, its limits.

        Raises:
            InvalidInputError: there is none of that name.
        """
        if name not in self._hosts:
            raise InvalidInputError(
                f"there is no host {name!r}; the cluster has {', '.join(self._hosts)}"
            )
        return self._hosts[name]

    def address(self, name: str) -> str:
        """Where the other hosts reach a host."""
        return self.host(name).address

    def limited(self, name: str, argv: Sequence[str]) -> list[str]:
        """The command that is ``argv`` within a host's quota and memory limit."""
        self.host(name)
        return _joined(self._groups[name], argv)

    def connected(self, name: str, argv: Sequence[str]) -> list[str]:
        """The command that is ``argv`` on a host's network, free of its limits."""
        # Not "ip netns exec": that mounts /sys anew, and hides the control groups.
        return ["nsenter", f"--net={registry.NAMESPACES / self.host(name).namespace}", *argv]

    def command(self, name: str, argv: Sequence[str]) -> list[str]:
        """The command that is ``argv`` inside a host: on its network, within its limits."""
        return self.connected(name, self.limited(name, argv))

    def environment(self, name: str) -> dict[str, str]:
        """Variables for processes of a host: its name and address, gloo's interface, threads."""
        host = self.host(name)
        found = {
            HOST_VARIABLE: host.name,
            ADDRESS_VARIABLE: host.address,
            "GLOO_SOCKET_IFNAME": INTERFACE,
        }
        # More threads than cores wait for each other and burn the quota with it.
        if host.cores is not None and (host.cores < 2 or "OMP_NUM_THREADS" not in os.environ):
            found["OMP_NUM_THREADS"] = str(max(1, int(host.cores)))
        return found

    def popen(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start ``argv`` inside a host; ``env`` is added to this process's environment.

        Other ``options`` are those of ``subprocess.Popen``. A command that does not exist ends with
        status 127, as in a shell.

        Raises:
            InvalidInputError: no such host, or nothing to run.
        """
        if not argv:
            raise InvalidInputError(f"nothing to run on host {name}: give a command")
        variables = {**os.environ, **self.environment(name), **(env or {})}
        return subprocess.Popen(self.command(name, argv), env=variables, **options)

    def place(self, name: str) -> Place:
        """Where a process that is running already moves to, to be inside a host."""
        host = self.host(name)
        return Place(
            namespace=str(registry.NAMESPACES / host.namespace),
            process_files=tuple(str(file) for file in self._groups[name].process_files),
            environment=self.environment(name),
        )

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        """Hosts without quotas of processor time inside the block: for loading, which takes
        minutes on a tenth of a core, and is not what a plan is about."""
        try:
            for group in self._groups.values():
                groups.lift(group)
            yield
        finally:
            for group in self._groups.values():
                groups.enforce(group)

    @contextmanager
    def kept_warm(self) -> Iterator[None]:
        """Inside the block cores do not cool down while hosts wait for their turns (``warmth``), if
        the cluster asks for that and there is such a host."""
        with nullcontext() if self._warm is None else warm_cores(_joined(self._warm, KEEP_WARM)):
            yield

    def memory_kills(self, name: str) -> int:
        """How many of a host's processes the kernel has killed for want of memory."""
        self.host(name)
        return groups.memory_kills(self._groups[name].directories)

    def num_processes(self, name: str) -> int:
        """How many processes are within a host's limits."""
        self.host(name)
        return len(groups.processes(self._groups[name].directories))


@contextmanager
def emulated(cluster: Cluster) -> Iterator[EmulatedHosts]:
    """The hosts of ``cluster`` on this machine, for as long as the block lasts.

    Leftovers of owners that were killed are swept first. On leaving, whatever the reason, all
    processes inside are killed and everything is removed.

    Raises:
        InvalidInputError: the cluster has no ``emulate`` section.
        EmulationError: no root, a missing tool, or the kernel refuses; nothing is left behind.
    """
    hosts, instance = bring_up(cluster)
    try:
        with hosts.kept_warm():
            yield hosts
    finally:
        with registry.locked():
            teardown.take_down(instance)


def bring_up(
    cluster: Cluster, *, kept: bool = False, source: str = ""
) -> tuple[EmulatedHosts, Instance]:
    """Make the hosts of ``cluster``; ``kept`` ones outlive this process.

    Raises:
        InvalidInputError: the cluster has no ``emulate`` section.
        EmulationError: no root, a missing tool, or the kernel refuses; nothing is left behind.
    """
    plan = layout(cluster, token=registry.new_token())
    require_tools()
    with registry.locked():
        teardown.sweep()
        others = [share for other in registry.instances() for share in other.shares]
        shares = share_out([host.cores for host in plan.hosts], free_processors(others))
        host_groups = _host_groups(plan, shares)
        made = list(host_groups.values())
        if plan.warm_group:
            made.append(groups.plan_idle_group(plan.warm_group))
        directories = [directory for group in made for directory in group.directories]
        instance = Instance(
            name=plan.name,
            owner=Owner.this_process(),
            wish=wish_digest(cluster),
            source=source,
            hosts=tuple(host.name for host in plan.hosts),
            namespaces=plan.namespaces,
            groups=tuple(str(directory) for directory in dict.fromkeys(directories)),
            shares=shares,
        )
        registry.save(instance)
        try:
            if any(host.cores is not None for host in plan.hosts):
                groups.enable("cpu")
            if any(host.memory_bytes is not None for host in plan.hosts):
                groups.enable("memory")
            if any(shares):
                groups.enable("cpuset")
            for group in made:
                groups.make(group)
            for step in build_steps(plan):
                _perform(step)
            if kept:
                instance = replace(instance, owner=None)
                registry.save(instance)
        except BaseException:
            teardown.take_down(instance)
            raise
    return EmulatedHosts(cluster, plan, host_groups), instance


def attach(cluster: Cluster, instance: Instance) -> EmulatedHosts:
    """The hosts of ``cluster`` that are up already."""
    plan = layout(cluster, token=instance.name.removeprefix(PREFIX))
    # Of an earlier release it does not tell the processors of its hosts.
    shares = instance.shares or tuple(() for _ in plan.hosts)
    return EmulatedHosts(cluster, plan, _host_groups(plan, shares))


def find_kept(cluster: Cluster, *, source: str) -> Instance | None:
    """Hosts that ``apportion hosts up`` made for the cluster file ``source``.

    Raises:
        InvalidInputError: the file has changed since, or somebody removed a part of them.
    """
    for instance in registry.instances():
        if instance.owner is None and instance.source == source:
            if instance.wish != wish_digest(cluster):
                raise InvalidInputError(
                    f"{source} has changed since its hosts were brought up: "
                    f"apportion hosts down {source}"
                )
            if not registry.is_intact(instance):
                raise InvalidInputError(
                    f"of the hosts that were brought up for {source} a part is gone: "
                    f"apportion hosts down {source}"
                )
            return instance
    return None


def wish_digest(cluster: Cluster) -> str:
    """A digest of all that emulated hosts depend on."""
    return digest(
        canonical_json(
            {
                "hosts": [[host.name, len(host.devices)] for host in cluster.hosts],
                "emulate": cluster.emulate.model_dump(mode="json") if cluster.emulate else None,
            }
        )
    )


def _host_groups(plan: Layout, shares: Sequence[Share]) -> dict[str, HostGroup]:
    return {
        host.name: groups.plan_group(host, processors=[processor for processor, _ in share])
        for host, share in zip(plan.hosts, shares, strict=True)
    }


def _joined(group: HostGroup, argv: Sequence[str]) -> list[str]:
    """The command that is ``argv`` inside a group."""
    return ["sh", "-c", JOIN, "sh", *map(str, group.process_files), "--", *argv]


def _perform(step: Step) -> None:
    done = subprocess.run(
        step.argv,
        input="".join(f"{line}\n" for line in step.lines),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise EmulationError(
            f"{' '.join(step.argv)} failed with status {done.returncode}: {done.stderr.strip()}. "
            "In a container, root also needs the right to administer networks and to mount "
            "(docker run --privileged); the kernel needs veth, bridge, sch_htb, cls_u32, act_mirred"
        )


__all__ = ["EmulatedHosts", "attach", "bring_up", "emulated", "find_kept", "wish_digest"]
