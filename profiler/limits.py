"""What this process's host is called, and what it may use there: control groups counted."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple

import psutil

from profiler.cgroups import PROC, own_groups

UNLIMITED_BYTES = 2**62
"""Version 1 writes "no limit" as a number near 2^63."""

HOST_VARIABLE = "APPORTION_HOST"
"""Environment variable in which whoever starts a process tells it what its host is called in the
cluster file."""


def host_name() -> str:
    """What this process's host is called in clusters: as it was told, else its short name."""
    return os.environ.get(HOST_VARIABLE) or socket.gethostname().split(".")[0] or "localhost"


def available_cores(*, proc: Path = PROC) -> int:
    """Processor threads this process may use at once: affinity and quota counted, at least 1."""
    cores = _affinity()
    quota = processor_quota(proc=proc)
    return max(1, min(cores, int(quota))) if quota else cores


def processor_quota(*, proc: Path = PROC) -> float | None:
    """The cores' worth of time that this process's control groups leave it; None is no quota.

    Less than one for a process that gets only a part of a core.
    """
    quota = tightest_quota(proc=proc)
    return None if quota is None else quota.cores


class Quota(NamedTuple):
    """``cores * period_s`` seconds of processor time in each ``period_s``, for all of ``group``."""

    cores: float
    period_s: float
    group: Path

    def throttled(self) -> int:
        """In how many periods until now the group had used all, and had to wait for the next."""
        return statistic(self.group / "cpu.stat", "nr_throttled")


def tightest_quota(*, proc: Path = PROC) -> Quota | None:
    """Of this process's control groups, the quota that leaves it the least time; None is none."""
    found = own_groups("cpu", proc=proc)
    if found is None:
        return None
    hierarchy, groups = found
    quotas = []
    for group in groups:
        if hierarchy.version == 2:
            quota, _, period = _read(group / "cpu.max").partition(" ")
        else:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            quotas.append(Quota(int(quota) / int(period), int(period) / 1e6, group))
    return min(quotas, default=None)


def memory_limits(*, proc: Path = PROC) -> tuple[int, int]:
    """Total and free bytes of host memory, within this process's control groups.

    Files that the kernel keeps in memory and would drop count as free.
    """
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    found = own_groups("memory", proc=proc)
    if found is None:
        return total, free
    hierarchy, groups = found
    limit_file, usage_file, kept_key = (
        ("memory.max", "memory.current", "inactive_file")
        if hierarchy.version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    for group in groups:
        limit, usage = _read(group / limit_file), _read(group / usage_file)
        if not limit.isdigit() or int(limit) >= UNLIMITED_BYTES:
            continue
        total = min(total, int(limit))
        if usage.isdigit():
            kept = statistic(group / "memory.stat", kept_key)
            free = min(free, int(limit) - max(0, int(usage) - kept))
    return total, max(0, min(free, total))


def statistic(file: Path, key: str) -> int:
    """The number after ``key`` in a file of lines ``key number``; 0 where there is none."""
    for line in _read(file).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.strip().isdigit():
            return int(value)
    return 0


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return ""
