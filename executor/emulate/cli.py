"""``apportion hosts``: emulated hosts up, down, listed, and commands on them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiler.console import Format, commands, note, write_json, write_result
from profiler.errors import InvalidInputError
from profiler.units import format_bytes

if TYPE_CHECKING:
    from executor.emulate.hosts import EmulatedHosts
    from executor.emulate.registry import Instance

app = commands("Hosts of a cluster, emulated on this machine (needs root).")

ClusterArgument = Annotated[
    Path, typer.Argument(help="Cluster file with an emulate section.", metavar="CLUSTER")
]
FormatOption = Annotated[Format, typer.Option("--format", help="Result on stdout.")]


@app.command()
def up(cluster: ClusterArgument, form: FormatOption = Format.TEXT) -> None:
    """Bring the hosts of a cluster file up; they stay until they are taken down.

    Example: apportion hosts up lab.yaml
    """
    from executor.emulate.hosts import attach, bring_up, find_kept
    from executor.emulate.launch import terminable
    from executor.emulate.requirements import require_tools
    from profiler.cluster import Cluster

    loaded, source = Cluster.load(cluster), _source(cluster)
    require_tools()
    kept = find_kept(loaded, source=source)
    with terminable():
        hosts = attach(loaded, kept) if kept else bring_up(loaded, kept=True, source=source)[0]
    if kept:
        note(f"the hosts of {cluster} are up already")
    _warn(hosts)
    if form is Format.JSON:
        write_json([_described(hosts, host.name) for host in hosts.hosts])
    else:
        write_result("\n".join(_lines(hosts)))


@app.command()
def down(
    cluster: Annotated[
        Path | None, typer.Argument(help="Cluster file; default: all.", metavar="[CLUSTER]")
    ] = None,
) -> None:
    """Take down hosts that `up` has made, and what killed processes have left.

    Hosts that a running process uses for itself are left alone.
    """
    from executor.emulate import registry, teardown
    from executor.emulate.requirements import require_tools

    require_tools()
    source = None if cluster is None else _source(cluster)
    with registry.locked():
        swept = teardown.sweep()
        found = [
            instance
            for instance in registry.instances()
            if instance.owner is None and source in (None, instance.source)
        ]
        for instance in found:
            teardown.take_down(instance)
        used = [i for i in registry.instances() if i.owner is not None]
    for instance in [*swept, *found]:
        note(f"took down {_title(instance)}")
    for instance in used:
        note(f"left alone {_title(instance)}")
    if source is not None and not found:
        raise InvalidInputError(f"no hosts of {cluster} were up")


@app.command()
def status(form: FormatOption = Format.TEXT) -> None:
    """List the emulated hosts of this machine: whose they are, what runs in them."""
    from executor.emulate import registry
    from executor.emulate.requirements import require_tools

    require_tools()
    found = registry.instances()
    if form is Format.JSON:
        write_json([_state(instance) for instance in found])
        return
    if not found:
        write_result("no emulated hosts")
    for instance in found:
        write_result("\n".join([_title(instance), *_state_lines(_state(instance)["hosts"])]))


@app.command()
def run(
    cluster: ClusterArgument,
    command: Annotated[
        list[str], typer.Argument(help="Command, after --.", metavar="-- COMMAND...")
    ],
    on: Annotated[
        str | None, typer.Option("--on", help="Run on this host alone, without torchrun.")
    ] = None,
    port: Annotated[
        int, typer.Option(help="Where torchrun meets, on the first host.", min=1, max=65535)
    ] = 29500,
) -> None:
    """Run a command on every host, once for each of its devices, started by torchrun.

    Hosts that are not up are brought up first and taken down afterwards. Output of the first host
    goes to stdout, that of the others to stderr. Ends with the status of the rank that failed
    first.

    Example: apportion hosts run lab.yaml -- apportion run plan.yaml -i x.npz -o y.npz
    """
    from executor.emulate import registry, teardown
    from executor.emulate.hosts import attach, bring_up, find_kept
    from executor.emulate.launch import run_on_all, run_on_one, terminable
    from executor.emulate.requirements import require_tools
    from profiler.cluster import Cluster

    loaded, source = Cluster.load(cluster), _source(cluster)
    require_tools()
    kept = find_kept(loaded, source=source)
    instance: Instance | None = None
    with terminable():
        try:
            if kept:
                hosts = attach(loaded, kept)
            else:
                hosts, instance = bring_up(loaded, source=source)
            _warn(hosts)
            sys.stdout.flush()
            with hosts.kept_warm():
                if on is None:
                    ended = run_on_all(hosts, command, port=port)
                else:
                    ended = run_on_one(hosts, on, command)
        finally:
            if instance is not None:
                with registry.locked():
                    teardown.take_down(instance)
    if ended.status:
        note(f"error: {ended.where} ended with status {ended.status}")
        raise typer.Exit(ended.status)


def _source(cluster: Path) -> str:
    return str(cluster.resolve())


def _warn(hosts: EmulatedHosts) -> None:
    for warning in hosts.warnings:
        note(f"warning: {warning}")


def _lines(hosts: EmulatedHosts) -> list[str]:
    width = max(len(host.name) for host in hosts.hosts)
    return [
        f"{host.name:{width}}  {host.address:11}  {_amount(host.cores)}  "
        + (f"{format_bytes(host.memory_bytes)}" if host.memory_bytes else "memory not limited")
        for host in hosts.hosts
    ]


def _amount(cores: float | None) -> str:
    if cores is None:
        return "cores not limited"
    return f"{cores:g} core{'' if cores == 1 else 's'}"


def _described(hosts: EmulatedHosts, name: str) -> dict[str, Any]:
    host = hosts.host(name)
    return {
        "host": host.name,
        "address": host.address,
        "interface": hosts.interface,
        "namespace": host.namespace,
        "cores": host.cores,
        "memory_bytes": host.memory_bytes,
    }


def _title(instance: Instance) -> str:
    whose = (
        "kept"
        if instance.owner is None
        else f"leftover of process {instance.owner.pid}"
        if instance.is_leftover
        else f"of process {instance.owner.pid}"
    )
    return f"{instance.name}  {instance.source or 'no file'}  {whose}"


def _state(instance: Instance) -> dict[str, Any]:
    from executor.emulate import groups
    from executor.emulate.layout import NETWORK

    return {
        "name": instance.name,
        "cluster": instance.source or None,
        "owner": None if instance.owner is None else instance.owner.pid,
        "leftover": instance.is_leftover,
        "hosts": [
            {
                "host": name,
                "address": str(NETWORK[index + 1]),
                "processes": len(groups.processes(instance.groups_of(index))),
                "memory_used_bytes": groups.memory_used(instance.groups_of(index)),
                "memory_kills": groups.memory_kills(instance.groups_of(index)),
            }
            for index, name in enumerate(instance.hosts)
        ],
    }


def _state_lines(hosts: list[dict[str, Any]]) -> list[str]:
    width = max((len(host["host"]) for host in hosts), default=0)
    return [
        f"  {host['host']:{width}}  {host['address']:11}  {host['processes']} processes  "
        f"{format_bytes(host['memory_used_bytes'] or 0)} used"
        + (f"  {host['memory_kills']} killed for memory" if host["memory_kills"] else "")
        for host in hosts
    ]


__all__ = ["app"]
