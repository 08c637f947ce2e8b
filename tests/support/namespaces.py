"""Two hosts made by hand on this machine: network namespaces, a shaped cable, a processor quota.

Needs root, ``ip``, ``tc`` and ``nsenter``, and the cpu controller of cgroup v1. Everything is named
``apl-`` and this process's id, and goes away at the end; what a killed run left, at the next start.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.hosts import Ended, environment, free_port

CPU = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 10_000
PRIORITY = 50_000
"""Shares of the processor (1024 is usual): what else runs on the machine then disturbs little."""


GROUP_VARIABLE = "APL_GROUP"
JOIN = f"""
import os, pathlib
pathlib.Path(os.environ["{GROUP_VARIABLE}"]).write_text(str(os.getpid()))
"""
"""Moves a Python process into the quota of its host, threads and all: after its imports, which are
not what is measured and would take many seconds in a part of a core."""


def lacking() -> str | None:
    """Why hosts cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "needs root"
    for program in ("ip", "tc", "nsenter"):
        if shutil.which(program) is None:
            return f"needs {program}"
    if not os.access(CPU / "cpu.cfs_quota_us", os.W_OK) and not (CPU / "cpu.shares").exists():
        return "needs the cpu controller of cgroup v1"
    return None


@dataclass(frozen=True)
class Shape:
    """One direction of a cable: bits per second, and the bytes that pass at once."""

    rate: str
    burst: str


@dataclass(frozen=True)
class TwoHosts:
    """Names of the namespaces and groups, by rank."""

    names: tuple[str, str]

    def run(self, arguments: Sequence[str], *, cwd: Path, timeout_s: float = 180) -> list[Ended]:
        """A command on both hosts, as torchrun would start it; on their network.

        Python within their quota too, once it has run :data:`JOIN`.
        """
        port = free_port()
        running = []
        for rank, name in enumerate(self.names):
            running.append(
                subprocess.Popen(
                    ["nsenter", f"--net=/run/netns/{name}", *arguments],
                    env={
                        **environment(rank, 2, port, address="10.231.7.1"),
                        "GLOO_SOCKET_IFNAME": "cable",
                        GROUP_VARIABLE: str(CPU / name / "cgroup.procs"),
                    },
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        try:
            ended = []
            for process in running:
                out, err = process.communicate(timeout=timeout_s)
                ended.append(Ended(process.returncode, out, err))
            return ended
        finally:
            for process in running:
                process.kill()
                process.wait()


@contextlib.contextmanager
def two_hosts(
    shapes: tuple[Shape, Shape] | None = None, *, quota: float | None = None
) -> Iterator[TwoHosts]:
    """Two hosts and a cable between them; ``shapes`` of what leaves each, ``quota`` in cores."""
    names = (f"apl-{os.getpid()}-0", f"apl-{os.getpid()}-1")
    _sweep()
    try:
        for name in names:
            _run("ip", "netns", "add", name)
            (CPU / name).mkdir()
            (CPU / name / "cpu.shares").write_text(str(PRIORITY))
            if quota is not None:
                (CPU / name / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (CPU / name / "cpu.cfs_quota_us").write_text(str(int(quota * PERIOD_US)))
        ends = ("netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        _run("ip", "link", "add", "cable", *ends)
        for rank, name in enumerate(names):
            _run("ip", "-n", name, "addr", "add", f"10.231.7.{rank + 1}/24", "dev", "cable")
            _run("ip", "-n", name, "link", "set", "cable", "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            if shapes is not None:
                tbf = ("rate", shapes[rank].rate, "burst", shapes[rank].burst, "latency", "400ms")
                _run("tc", "-n", name, "qdisc", "add", "dev", "cable", "root", "tbf", *tbf)
        yield TwoHosts(names)
    finally:
        for name in names:
            _remove(name)


def _sweep() -> None:
    """Remove what processes of this module left that are no more."""
    for place in (Path("/run/netns"), CPU):
        for found in place.glob("apl-*-[01]"):
            owner = found.name.split("-")[1]
            if owner.isdigit() and not Path("/proc", owner).exists():
                _remove(found.name)


def _remove(name: str) -> None:
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    with contextlib.suppress(OSError):
        (CPU / name).rmdir()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
