"""A made-up /proc and control group trees in a directory, as different kernels show them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def machine(
    directory: Path,
    mounts: Mapping[str, str],
    *,
    own: str,
    root: str = "/",
    files: Mapping[str, str] | None = None,
) -> Path:
    """The ``proc`` of a process whose /proc/self/cgroup says ``own``.

    ``mounts`` maps a mount point (below ``directory``) to its controller of version 1, or to
    ``unified``; ``files`` are settings by path. ``root`` is the group at the mount points.
    """
    lines = []
    for name, controller in mounts.items():
        (directory / name).mkdir(parents=True)
        at = str(directory / name).replace(" ", r"\040")
        kind = "cgroup2 cgroup2 rw" if controller == "unified" else f"cgroup cgroup rw,{controller}"
        lines.append(f"30 25 0:26 {root} {at} rw,nosuid shared:4 - {kind}")
    for name, text in (files or {}).items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    proc = directory / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self/mountinfo").write_text("\n".join(["25 1 8:1 / / rw - ext4 /dev/vda rw", *lines]))
    (proc / "self/cgroup").write_text(own)
    return proc
