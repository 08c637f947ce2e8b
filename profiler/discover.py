"""What this machine offers: its processors and CUDA devices as a Cluster."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

import psutil
import torch

from profiler.cluster import Cluster, Device, Host
from profiler.errors import InvalidInputError

KEPT_FREE_FRACTION = 0.1
"""Part of the free host memory that discovery leaves to everything else on the machine."""


def discover(*, cpu_devices: int = 1, host: str | None = None) -> Cluster:
    """This machine as a cluster of one host.

    Its processors appear as ``cpu_devices`` devices with equal shares of the threads and of the
    free memory; with more devices than threads, each has one thread and they share the cores
    (profiling then measures them working at once). CUDA devices appear one by one.

    Raises:
        InvalidInputError: ``cpu_devices`` is negative, or leaves no device at all.
    """
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if cpu_devices < 0 or (cpu_devices == 0 and cuda == 0):
        raise InvalidInputError(
            f"cpu_devices is {cpu_devices} and this machine has {cuda} CUDA devices: "
            "no device is left"
        )
    cores = available_cores()
    total, free = memory_limits()
    devices = []
    threads = max(1, cores // cpu_devices) if cpu_devices else 0
    for index in range(cpu_devices):
        share = int(free * (1 - KEPT_FREE_FRACTION)) // cpu_devices
        devices.append(
            Device(
                name=f"cpu:{index}",
                type=f"{processor_name()} x{threads}",
                kind="cpu",
                memory_bytes=total // cpu_devices,
                free_bytes=min(share, total // cpu_devices),
                threads=threads,
            )
        )
    for index in range(cuda):
        free_cuda, total_cuda = torch.cuda.mem_get_info(index)
        devices.append(
            Device(
                name=f"cuda:{index}",
                type=torch.cuda.get_device_name(index),
                kind="cuda",
                memory_bytes=total_cuda,
                free_bytes=free_cuda,
                threads=1,
            )
        )
    name = host or socket.gethostname().split(".")[0] or "localhost"
    return Cluster(hosts=(Host(name=name, cores=cores, devices=tuple(devices)),))


def available_cores() -> int:
    """Processor threads this process may use: affinity and cgroup quota counted."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = _cgroup_cores()
    return max(1, min(cores, int(quota))) if quota else cores


def _cgroup_cores() -> float | None:
    v2, v1 = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    try:
        if v2.exists():
            quota, period = v2.read_text().split()
            return None if quota == "max" else int(quota) / int(period)
        if v1.exists():
            limit = int(v1.read_text())
            return (
                None if limit <= 0 else limit / int(v1.with_name("cpu.cfs_period_us").read_text())
            )
    except (OSError, ValueError):
        return None
    return None


def memory_limits() -> tuple[int, int]:
    """Total and free bytes of host memory, within this process's cgroup."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    for limit_file, usage_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            text = Path(limit_file).read_text().strip()
            if text != "max" and int(text) < total:
                total = int(text)
                free = min(free, total - int(Path(usage_file).read_text()))
        except (OSError, ValueError):
            continue
    return total, max(0, free)


def processor_name() -> str:
    """The processor's model name, without marks and spaces that names in files avoid."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].replace("(R)", "").replace("(TM)", "")
                return " ".join(name.split("@")[0].split()) or platform.machine()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "cpu"
