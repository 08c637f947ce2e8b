"""Control groups, versions 1 and 2: where they are mounted, and which one a process is in.

Knows how the kernel names things, not what the limits mean: that is in ``profiler.limits``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

Controller = Literal["cpu", "memory", "cpuset"]
CONTROLLERS: tuple[Controller, ...] = ("cpu", "memory", "cpuset")

PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """A mounted tree of control groups. ``root`` is the group that stands at the mount point."""

    version: Literal[1, 2]
    mount: Path
    root: str


def hierarchy(controller: Controller, *, proc: Path = PROC) -> Hierarchy | None:
    """The tree that ``controller`` works in; None where it is not mounted.

    Version 1 has a tree for each controller, version 2 one for all; on a machine with both, a
    controller is in one of them.
    """
    unified = None
    for line in _lines(proc / "self/mountinfo"):
        # Fields: id, parent, device, root, mount point, ...; after the dash: kind, source, options.
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        root, mount = _unescaped(fields[3]), Path(_unescaped(fields[4]))
        if kind[0] == "cgroup" and controller in kind[2].split(","):
            return Hierarchy(version=1, mount=mount, root=root)
        if kind[0] == "cgroup2" and controller in _words(mount / "cgroup.controllers"):
            unified = Hierarchy(version=2, mount=mount, root=root)
    return unified


def own_groups(controller: Controller, *, proc: Path = PROC) -> tuple[Hierarchy, list[Path]] | None:
    """The tree of ``controller`` and this process's groups in it, the innermost first.

    All of them limit the process. None where the controller is not mounted.
    """
    found = hierarchy(controller, proc=proc)
    if found is None:
        return None
    own = PurePosixPath("/")
    for line in _lines(proc / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "" if found.version == 2 else controller in controllers.split(","):
            own = PurePosixPath(path)
    # Inside a container the mount may show only a part of the tree; outside of it nothing is seen.
    below = own.relative_to(found.root) if own.is_relative_to(found.root) else PurePosixPath()
    if ".." in below.parts:
        below = PurePosixPath()
    groups = [found.mount / part for part in (below, *below.parents)]
    return found, [group for group in dict.fromkeys(groups) if group.is_dir()]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()


def _unescaped(text: str) -> str:
    """A path of mountinfo, in which blanks are written as ``\\040``."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
