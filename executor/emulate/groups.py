"""Control groups of emulated hosts: what is written where, and what the kernel tells afterwards.

A host has one group in each tree (version 1: a tree each for processor time, memory and which
processors; version 2: one for all). Groups stand at the top of their tree, so that whoever sweeps
finds them by name.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from executor.emulate.layout import HostLayout, quota
from profiler.cgroups import PROC, Controller, Hierarchy, hierarchy
from profiler.errors import EmulationError
from profiler.limits import statistic

SHARES_PER_CORE = 20 * 1024
"""Weight of a host with a quota of one core against the rest of the machine, where one process has
1024: the host gets its quota also when others work, and no more than its quota ever."""
WEIGHT_PER_CORE = 2000
"""The same in version 2, where a process has 100."""
REMOVE_S = 2.0
"""How long the kernel may take to let go of a group whose processes have ended."""


_UNLIMITED = {"cpu.cfs_quota_us": "-1", "cpu.max": "max"}
"""Files that limit processor time, and what they hold when nothing does."""
_ORDINARY = {"cpu.idle": "0", "cpu.shares": "1024", "cpu.weight": "100"}
"""Files that say how much a group counts beside others, and what they hold of any group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One setting: the text that goes into a file. Optional ones may not exist on this kernel."""

    file: Path
    text: str
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HostGroup:
    """One host's groups: directories to make, settings to write."""

    directories: tuple[Path, ...]
    writes: tuple[Write, ...]

    @property
    def quotas(self) -> tuple[Write, ...]:
        """The settings that limit processor time."""
        return tuple(write for write in self.writes if write.file.name in _UNLIMITED)

    @property
    def process_files(self) -> tuple[Path, ...]:
        """Files into which a process writes its id to join."""
        return tuple(directory / "cgroup.procs" for directory in self.directories)


def plan_group(host: HostLayout, *, processors: Sequence[int] = (), proc: Path = PROC) -> HostGroup:
    """The groups of ``host`` on this machine; none where nothing limits it.

    It runs on ``processors`` alone, if any are named and this machine can keep it to them. Where it
    may take all of their time it has no quota: one that is just as much stops it for a moment in
    every few periods.

    Raises:
        EmulationError: a limit is asked for and its controller is not there.
    """
    directories: dict[Path, None] = {}
    writes: list[Write] = []
    kept_by = hierarchy("cpuset", proc=proc) if processors else None
    # Made even without a limit: a group tells who is inside and what memory they hold.
    limits: tuple[tuple[Controller, float | None], ...] = (
        ("cpu", host.cores),
        ("memory", host.memory_bytes),
    )
    for controller, wanted in limits:
        tree = hierarchy(controller, proc=proc)
        if tree is None:
            if wanted is None:
                continue
            raise EmulationError(
                f"host {host.name!r} has a limit for {controller}, and this machine has no control "
                f"group controller {controller!r}: mount it (cgroup version 1 or 2), or take the "
                "limit out"
            )
        directory = tree.mount / host.group
        directories[directory] = None
        if controller == "cpu" and host.cores is not None:
            if kept_by is None or host.cores < len(processors):
                writes += _quota(tree, directory, host.cores, host.period_s)
            writes += _weight(tree, directory, host.cores)
        if controller == "memory" and host.memory_bytes is not None:
            writes += _memory(tree, directory, host.memory_bytes)
    if kept_by is not None:
        directory = kept_by.mount / host.group
        directories[directory] = None
        writes += _kept_on(kept_by, directory, processors)
    return HostGroup(directories=tuple(directories), writes=tuple(writes))


def plan_idle_group(name: str, *, proc: Path = PROC) -> HostGroup:
    """A group whose processes get only what no other group wants of the processors.

    A process's own priority counts within its group alone: among groups they would have as much
    weight as a host.
    """
    tree = hierarchy("cpu", proc=proc)
    if tree is None:
        return HostGroup(directories=(), writes=())
    directory = tree.mount / name
    file, least = ("cpu.weight", "1") if tree.version == 2 else ("cpu.shares", "2")
    return HostGroup(
        directories=(directory,),
        writes=(
            # Before cpu.idle (Linux 5.15), which fixes the weight.
            Write(file=directory / file, text=least, optional=True),
            Write(file=directory / "cpu.idle", text="1", optional=True),
        ),
    )


def _quota(tree: Hierarchy, directory: Path, cores: float, period_s: float) -> list[Write]:
    quota_us, period_us = quota(cores, period_s)
    if tree.version == 2:
        return [Write(file=directory / "cpu.max", text=f"{quota_us} {period_us}")]
    return [
        Write(file=directory / "cpu.cfs_period_us", text=str(period_us)),
        Write(file=directory / "cpu.cfs_quota_us", text=str(quota_us)),
    ]


def _weight(tree: Hierarchy, directory: Path, cores: float) -> list[Write]:
    if tree.version == 2:
        weight = min(10_000, max(1, round(WEIGHT_PER_CORE * cores)))
        return [Write(file=directory / "cpu.weight", text=str(weight), optional=True)]
    shares = min(262_144, max(2, round(SHARES_PER_CORE * cores)))
    return [Write(file=directory / "cpu.shares", text=str(shares), optional=True)]


def _kept_on(tree: Hierarchy, directory: Path, processors: Sequence[int]) -> list[Write]:
    writes = [Write(file=directory / "cpuset.cpus", text=",".join(map(str, processors)))]
    if tree.version == 1:  # which no process can join before it has memory nodes: all of them
        nodes = (tree.mount / "cpuset.mems").read_text().strip()
        writes.append(Write(file=directory / "cpuset.mems", text=nodes))
    return writes


def _memory(tree: Hierarchy, directory: Path, limit_bytes: int) -> list[Write]:
    # Without swap: a host that runs out must fail as its real counterpart would, not slow down.
    if tree.version == 2:
        return [
            Write(file=directory / "memory.max", text=str(limit_bytes)),
            Write(file=directory / "memory.swap.max", text="0", optional=True),
        ]
    return [
        Write(file=directory / "memory.limit_in_bytes", text=str(limit_bytes)),
        Write(file=directory / "memory.memsw.limit_in_bytes", text=str(limit_bytes), optional=True),
        Write(file=directory / "memory.swappiness", text="0", optional=True),
    ]


def enable(controller: Controller, *, proc: Path = PROC) -> None:
    """Let groups at the top of a version 2 tree limit ``controller``; nothing for version 1.

    Raises:
        EmulationError: the kernel refuses, mostly because processes live at the top.
    """
    tree = hierarchy(controller, proc=proc)
    if tree is None or tree.version == 1:
        return
    file = tree.mount / "cgroup.subtree_control"
    try:
        if controller not in file.read_text().split():
            file.write_text(f"+{controller}")
    except OSError as error:
        raise EmulationError(
            f"cannot limit {controller} by control groups: writing +{controller} to {file} "
            f"failed ({error.strerror}). In a container its processes must first leave the "
            f"top group: mkdir {tree.mount}/init; for p in $(cat {tree.mount}/cgroup.procs); "
            f"do echo $p > {tree.mount}/init/cgroup.procs; done"
        ) from error


def make(group: HostGroup) -> None:
    """Make a host's groups and write its limits.

    Raises:
        EmulationError: the kernel refuses.
    """
    try:
        for directory in group.directories:
            directory.mkdir(exist_ok=True)
        for write in group.writes:
            if write.file.exists() or not write.optional:
                write.file.write_text(write.text)
    except OSError as error:
        raise EmulationError(
            f"cannot set up the control group of an emulated host: {error.filename}: "
            f"{error.strerror}; is /sys/fs/cgroup mounted for writing?"
        ) from error


def lift(group: HostGroup) -> None:
    """Take the limit off a host's processor time; :func:`enforce` puts it back."""
    for write in group.quotas:
        write.file.write_text(_UNLIMITED[write.file.name])


def enforce(group: HostGroup) -> None:
    """Limit a host's processor time as its cluster asks."""
    for write in group.quotas:
        write.file.write_text(write.text)


def hurry(directories: Iterable[Path]) -> None:
    """Let the processes of groups have processor time like any others, so that they can end.

    One at the kernel's lowest priority gets none on a core that others use (not a moment in ten
    minutes, Linux 6.18), and without any it does not even end when it is killed.
    """
    for directory in directories:
        for name, text in (_UNLIMITED | _ORDINARY).items():
            with contextlib.suppress(OSError):  # not there: of another tree, version or kernel
                if (directory / name).exists():
                    (directory / name).write_text(text)


def processes(directories: Iterable[Path]) -> set[int]:
    """Ids of the processes in these groups."""
    found: set[int] = set()
    for directory in directories:
        with contextlib.suppress(OSError):
            found.update(int(pid) for pid in (directory / "cgroup.procs").read_text().split())
    return found


def memory_kills(directories: Iterable[Path]) -> int:
    """How many processes the kernel has killed because a group ran out of memory."""
    return max(
        (
            statistic(directory / name, "oom_kill")
            for directory in directories
            for name in ("memory.oom_control", "memory.events")
        ),
        default=0,
    )


def memory_used(directories: Iterable[Path]) -> int | None:
    """Bytes that the processes of a group hold now; None where nothing counts them."""
    for directory in directories:
        for name in ("memory.usage_in_bytes", "memory.current"):
            with contextlib.suppress(OSError, ValueError):
                return int((directory / name).read_text())
    return None


def remove(directories: Sequence[Path]) -> None:
    """Remove groups whose processes have ended; what is not there is fine."""
    deadline = time.monotonic() + REMOVE_S
    for directory in directories:
        while True:
            try:
                directory.rmdir()
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                break
