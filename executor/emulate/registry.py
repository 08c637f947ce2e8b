"""Which emulated hosts exist on this machine and who owns them, so that none outlives its owner.

A record is written before the first namespace is made and removed after the last is gone. Whatever
happens in between, somebody can find what is left and remove it: the owner itself, or, once no
process of that number and start time lives, anybody's next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from executor.emulate.layout import PREFIX
from executor.emulate.processors import Share
from profiler.cgroups import CONTROLLERS, hierarchy
from profiler.documents import write_atomically
from profiler.errors import ApportionError, EmulationError

DIRECTORY = Path("/run/apportion")
NAMESPACES = Path("/run/netns")
"""Where ``ip netns`` keeps the names of namespaces."""

_NAME = re.compile(re.escape(PREFIX) + r"[0-9a-f]{8}(?=-(?:switch|warm|[0-9]+)$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process: its number and, because numbers come back, the tick it was started at."""

    pid: int
    started: int

    @staticmethod
    def this_process() -> Owner:
        """The process that asks."""
        pid = os.getpid()
        started = _start_tick(pid)
        assert started is not None
        return Owner(pid=pid, started=started)

    @property
    def lives(self) -> bool:
        """Whether that very process still runs."""
        return _start_tick(self.pid) == self.started


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One emulated cluster. ``owner`` None: kept until somebody takes it down.

    ``wish`` is a digest of what the cluster file asked for, ``source`` that file, ``hosts`` their
    names in order, ``shares`` their processors.
    """

    name: str
    owner: Owner | None
    wish: str
    source: str
    hosts: tuple[str, ...]
    namespaces: tuple[str, ...]
    groups: tuple[str, ...]
    shares: tuple[Share, ...] = ()

    def groups_of(self, index: int) -> list[Path]:
        """The control groups of a host, by its place among ``hosts``."""
        return [Path(group) for group in self.groups if group.endswith(f"{self.name}-{index}")]

    @property
    def is_leftover(self) -> bool:
        """Whether its owner is gone."""
        return self.owner is not None and not self.owner.lives


def new_token() -> str:
    """What tells the names of one emulated cluster from all others."""
    return secrets.token_hex(4)


@contextmanager
def locked() -> Iterator[None]:
    """Nobody else brings up, takes down or sweeps meanwhile.

    Raises:
        EmulationError: the directory of records cannot be made.
    """
    try:
        DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Released by the kernel when this process ends, however it does.
        handle = os.open(DIRECTORY / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EmulationError(f"cannot write to {DIRECTORY}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def save(instance: Instance) -> None:
    """Write the record of an emulated cluster."""
    try:
        write_atomically(_record(instance.name), json.dumps(asdict(instance)))
    except ApportionError as error:
        raise EmulationError(f"cannot record emulated hosts: {error}") from error


def forget(instance: Instance) -> None:
    """Remove the record: nothing of the cluster is left."""
    _record(instance.name).unlink(missing_ok=True)


def instances() -> list[Instance]:
    """All emulated clusters of this machine; those without any record are leftovers.

    A record that cannot be read (of another release, say) is nobody's to sweep.
    """
    found = []
    files = sorted(DIRECTORY.glob(f"{PREFIX}*.json"))
    for file in files:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            data = json.loads(file.read_text())
            owner = Owner(**data["owner"]) if data["owner"] else None
            lists = {key: tuple(data[key]) for key in ("hosts", "namespaces", "groups")}
            shares = tuple(
                tuple((int(processor), float(part)) for processor, part in share)
                for share in data.get("shares", ())
            )
            found.append(Instance(**{**data, **lists, "owner": owner, "shares": shares}))
    return [*found, *_without_record({file.stem for file in files})]


def is_intact(instance: Instance) -> bool:
    """Whether all namespaces and groups are there still, also after the machine was restarted."""
    try:
        plain = NAMESPACES.stat().st_dev
        # A namespace that is alive is a mount; a mere file is the name of one that was.
        alive = all((NAMESPACES / name).stat().st_dev != plain for name in instance.namespaces)
    except OSError:
        return False
    return alive and all(Path(group).is_dir() for group in instance.groups)


def _without_record(known: set[str]) -> Iterator[Instance]:
    places: dict[str, tuple[list[str], list[str]]] = {}
    for file in NAMESPACES.glob(f"{PREFIX}*"):
        if match := _NAME.match(file.name):
            places.setdefault(match[0], ([], []))[0].append(file.name)
    for controller in CONTROLLERS:
        tree = hierarchy(controller)
        for directory in tree.mount.glob(f"{PREFIX}*") if tree else ():
            if match := _NAME.match(directory.name):
                places.setdefault(match[0], ([], []))[1].append(str(directory))
    nobody = Owner(pid=0, started=0)
    for name, (namespaces, groups) in sorted(places.items()):
        if name not in known:
            yield Instance(
                name=name,
                owner=nobody,
                wish="",
                source="",
                hosts=(),
                namespaces=tuple(namespaces),
                groups=tuple(dict.fromkeys(groups)),
            )


def _record(name: str) -> Path:
    return DIRECTORY / f"{name}.json"


def _start_tick(pid: int) -> int | None:
    try:
        # The command in parentheses may hold blanks; field 22 counts from the number.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
