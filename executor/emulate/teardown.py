"""Taking emulated hosts down: processes first, then namespaces and control groups."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from executor.emulate import groups, registry
from executor.emulate.registry import Instance
from profiler.errors import EmulationError

KILL_S = 5.0
"""How long killed processes may take to be gone."""


def take_down(instance: Instance) -> None:
    """Remove everything of an emulated cluster; what is gone already is fine.

    Raises:
        EmulationError: the kernel does not let go of something; its record stays.
    """
    _end_processes(instance)
    there = [name for name in instance.namespaces if (registry.NAMESPACES / name).exists()]
    if there:
        done = subprocess.run(
            ["ip", "-force", "-batch", "-"],
            input="".join(f"netns delete {name}\n" for name in there),
            capture_output=True,
            text=True,
            check=False,
        )
        if any((registry.NAMESPACES / name).exists() for name in there):
            raise EmulationError(f"cannot remove network namespaces: {done.stderr.strip()}")
    try:
        groups.remove([Path(group) for group in instance.groups])
    except OSError as error:
        raise EmulationError(
            f"cannot remove control group {error.filename}: {error.strerror}"
        ) from error
    registry.forget(instance)


def sweep() -> list[Instance]:
    """Take down what owners that live no more have left; hosts of living owners stay.

    Returns what was swept. The caller holds the lock.
    """
    left = [instance for instance in registry.instances() if instance.is_leftover]
    for instance in left:
        take_down(instance)
    return left


def inside(instance: Instance) -> set[int]:
    """Ids of the processes in the namespaces and groups of an emulated cluster."""
    found = groups.processes(Path(group) for group in instance.groups)
    return (found | _in_namespaces(instance.namespaces)) - {os.getpid()}


def _end_processes(instance: Instance) -> None:
    deadline = time.monotonic() + KILL_S
    groups.hurry(Path(group) for group in instance.groups)
    while found := inside(instance):
        if time.monotonic() > deadline:
            raise EmulationError(
                f"processes {', '.join(map(str, sorted(found)[:8]))} inside of emulated hosts do "
                f"not end {KILL_S:g} s after SIGKILL"
            )
        # Again and again: a process may have started another one meanwhile.
        for pid in found:
            with contextlib.suppress(OSError):  # gone, or a sandbox forbids it
                os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _in_namespaces(names: Iterable[str]) -> set[int]:
    wanted = set()
    for name in names:
        with contextlib.suppress(OSError):
            at = (registry.NAMESPACES / name).stat()
            wanted.add((at.st_dev, at.st_ino))
    if not wanted:
        return set()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                at = (entry / "ns/net").stat()
                if (at.st_dev, at.st_ino) in wanted:
                    found.add(int(entry.name))
    return found
