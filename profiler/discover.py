"""What this machine offers: its processors and CUDA devices as a Cluster."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from profiler.cluster import Cluster, Device, Host
from profiler.errors import InvalidInputError
from profiler.limits import available_cores, host_name, memory_limits, processor_quota

KEPT_FREE_FRACTION = 0.1
"""Part of the free host memory that discovery leaves to everything else on the machine."""


def discover(*, cpu_devices: int = 1, host: str | None = None) -> Cluster:
    """This machine as a cluster of one host.

    Its processors appear as ``cpu_devices`` devices with equal shares of the threads and of the
    free memory; with more devices than threads, each has one thread and they share the cores
    (profiling then measures them working at once). A quota of less than a whole number of cores
    stands in the type, so that devices of unlike speed are never taken as equal. CUDA devices
    appear one by one.

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
    speed = _speed(threads, cpu_devices)
    for index in range(cpu_devices):
        share = int(free * (1 - KEPT_FREE_FRACTION)) // cpu_devices
        devices.append(
            Device(
                name=f"cpu:{index}",
                type=f"{processor_name()} x{speed}",
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
    found = Host(name=host or host_name(), cores=cores, devices=tuple(devices))
    return Cluster(hosts=(found,))


def _speed(threads: int, num_devices: int) -> str:
    """How many cores a device of ``threads`` has, when ``num_devices`` share the quota."""
    quota = processor_quota()
    if quota is None or not num_devices or quota / num_devices >= threads:
        return str(threads)
    return f"{quota / num_devices:.3g}"


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
