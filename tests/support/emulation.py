"""Emulated clusters for tests, and whether this machine can make them."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from executor.emulate import EmulatedHosts
from profiler.cgroups import CONTROLLERS, hierarchy
from profiler.cluster import Cluster, Device, Host
from profiler.emulation import EmulatedHost, EmulatedLink, Emulation

ROOT = Path(__file__).parents[2]
MIB = 2**20
GIB = 2**30
MB = 1e6


@functools.cache
def why_not() -> str | None:
    """Why this machine cannot emulate hosts; None if it can.

    Found out without the code under test, so that a fault of that is no reason to skip.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux"
    for tool in ("ip", "tc", "nsenter"):
        if shutil.which(tool) is None:
            return f"needs {tool}: apt-get install iproute2 util-linux"
    trial = f"apportiontrial{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", trial], capture_output=True, text=True)
    if made.returncode:
        return f"cannot make a network namespace: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", trial], check=True)
    for controller in CONTROLLERS:
        tree = hierarchy(controller)
        if tree is None:
            return f"no control group controller {controller!r}"
        try:
            (tree.mount / trial).mkdir()
            (tree.mount / trial).rmdir()
            if tree.version == 2:
                (tree.mount / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError as error:
            return f"cannot make control groups: {error}"
    return None


def require_emulation() -> None:
    """Skip the test, or the module at whose top this stands, where hosts cannot be emulated."""
    if (reason := why_not()) is not None:
        pytest.skip(reason, allow_module_level=True)


def make_cluster(
    devices: Mapping[str, int],
    *,
    cores: Mapping[str, float] | None = None,
    memory: Mapping[str, int] | None = None,
    links: Sequence[EmulatedLink] = (),
    default_bytes_per_s: float | None = None,
) -> Cluster:
    """Hosts with so many processor devices each, their limits, and their links."""
    cores, memory = cores or {}, memory or {}
    limited = [name for name in devices if name in cores or name in memory]
    return Cluster(
        hosts=tuple(
            Host(
                name=name,
                devices=tuple(
                    Device(name=f"cpu:{i}", type=name, memory_bytes=GIB) for i in range(num)
                ),
            )
            for name, num in devices.items()
        ),
        emulate=Emulation(
            hosts=tuple(
                EmulatedHost(name=name, cores=cores.get(name), memory_bytes=memory.get(name))
                for name in limited
            ),
            links=tuple(links),
            default_bytes_per_s=default_bytes_per_s,
        ),
    )


def link(ends: str, bytes_per_s: float, shares: str | None = None) -> EmulatedLink:
    """``link("a>b", 1e6)``: one direction."""
    source, target = ends.split(">")
    return EmulatedLink(source=source, target=target, bytes_per_s=bytes_per_s, shares=shares)


def grow(mib: int) -> str:
    """Python that takes so much memory."""
    return f"held = bytearray({mib} * {MIB})\nfor i in range(0, len(held), 4096): held[i] = 1"


def hosts_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """``apportion hosts`` with these arguments."""
    return subprocess.run(
        [sys.executable, "-m", "executor", "hosts", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )


class Peers:
    """A process in every host that receives from all others and sends when told to."""

    def __init__(self, hosts: EmulatedHosts) -> None:
        self._hosts = hosts
        self._processes = {
            host.name: hosts.popen(
                host.name,
                [sys.executable, "-S", str(Path(__file__).with_name("peer.py")), host.address],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for host in hosts.hosts
        }
        for name in self._processes:
            assert self._answer(name) == "ready"

    def rate(self, *flows: str, num_bytes: int) -> float:
        """Bytes per second of ``flows`` (``a>b``) together, each of ``num_bytes``, begun at once.

        From the first byte that arrives anywhere to the last.
        """
        times = self._send(flows, num_bytes)
        return len(flows) * num_bytes / (max(t[2] for t in times) - min(t[1] for t in times))

    def rates(self, *flows: str, num_bytes: int) -> list[float]:
        """Bytes per second of each of ``flows``, begun at once."""
        return [num_bytes / (last - first) for _, first, last, _ in self._send(flows, num_bytes)]

    def seconds(self, flow: str, *, num_bytes: int) -> float:
        """Until the sender knows that all has arrived."""
        ((sent, _, _, heard),) = self._send([flow], num_bytes)
        return heard - sent

    def _send(self, flows: Sequence[str], num_bytes: int) -> list[list[float]]:
        for flow in flows:
            source, target = flow.split(">")
            order = json.dumps([self._hosts.address(target), num_bytes])
            stream = self._processes[source].stdin
            assert stream is not None
            stream.write(order + "\n")
            stream.flush()
        found: dict[str, list[float]] = {}
        for flow in flows:
            source = flow.split(">")[0]
            while flow not in found:
                address, *times = json.loads(self._answer(source))
                to = next(h.name for h in self._hosts.hosts if h.address == address)
                found[f"{source}>{to}"] = times
        return [found[flow] for flow in flows]

    def _answer(self, name: str) -> str:
        stream = self._processes[name].stdout
        assert stream is not None
        line = stream.readline()
        assert line, f"the peer in {name} ended"
        return str(line).strip()

    def close(self) -> None:
        """End all."""
        for process in self._processes.values():
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()
