"""What a machine needs to emulate hosts, said before anything is touched."""

from __future__ import annotations

import os
import shutil
import sys

from executor.emulate.layout import Layout
from profiler.cluster import Cluster
from profiler.errors import EmulationError
from profiler.limits import available_cores, memory_limits
from profiler.units import format_bytes

TOOLS = {"ip": "iproute2", "tc": "iproute2", "bridge": "iproute2", "nsenter": "util-linux"}
"""Programs that are run, and the Debian packages that hold them."""


def require_tools() -> None:
    """Refuse to begin without root or without a program that is needed.

    Raises:
        EmulationError: something is missing; the message says what to do.
    """
    if sys.platform != "linux":
        raise EmulationError(
            f"emulated hosts are network namespaces and control groups of Linux; this is "
            f"{sys.platform}: use a Linux machine, or run plans without them"
        )
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
        raise EmulationError(
            f"emulated hosts need {', '.join(missing)}, which this machine does not have: "
            f"apt-get install {packages}"
        )
    if os.geteuid() != 0:
        raise EmulationError(
            f"emulated hosts need root, to make network namespaces and control groups; this is "
            f"user {os.geteuid()}: use sudo. Everything else works without"
        )


def shortfalls(cluster: Cluster, layout: Layout) -> tuple[str, ...]:
    """What this machine cannot give, or the cluster file says otherwise: warnings, one a line."""
    found = []
    cores = available_cores()
    asked = sum(host.cores or 0 for host in layout.hosts)
    if asked > cores:
        found.append(
            f"the hosts have {asked:g} cores together, this machine has {cores}: they slow each "
            "other down when all compute"
        )
    total, _ = memory_limits()
    for host, described in zip(layout.hosts, cluster.hosts, strict=True):
        limit = host.memory_bytes
        if host.cores is not None and host.cores > cores:
            found.append(
                f"host {host.name} has {host.cores:g} cores, this machine has {cores}: "
                f"it gets {cores}"
            )
        if limit is None:
            continue
        if limit > total:
            found.append(
                f"host {host.name} has {format_bytes(limit)} of memory, this machine has "
                f"{format_bytes(total)}"
            )
        planned = sum(d.usable_bytes for d in described.devices if d.kind == "cpu")
        if planned > limit:
            found.append(
                f"host {host.name} is limited to {format_bytes(limit)} of memory, and plans may "
                f"use {format_bytes(planned)} of its devices: lower their free_bytes"
            )
    return tuple(found)
