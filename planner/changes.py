"""Single changes of the machines that one may think of, each as a value that can be applied.

What people write is read here too: ``rtx-4090 via 10gbe @node-a``, ``link a -> b x10``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from planner.fallbacks import lifted, without_device
from planner.request import PlanRequest
from profiler.catalogue import (
    CatalogueDevice,
    CatalogueLink,
    catalogue_devices,
    find_device,
    find_link,
)
from profiler.cluster import Cluster
from profiler.errors import InvalidInputError
from profiler.places import near
from profiler.profile import Profile
from profiler.units import format_bytes, parse_bytes
from profiler.upgrade_links import with_link_speed, with_wire_speed
from profiler.upgrades import with_device, with_memory, with_speed

_ADD = re.compile(
    r"\s*(?P<device>[^\s@]+)"
    r"(\s+with\s+(?P<memory>[0-9.]+\s*[A-Za-z]+))?"
    r"(\s+via\s+(?P<link>[^\s@]+))?"
    r"(\s*@\s*(?P<host>\S+))?\s*",
    re.IGNORECASE,
)
_TIMES = re.compile(r"(?P<what>.+?)\s+x\s*(?P<factor>[-+0-9.eE]+|inf|nan)\s*")
_LINK = re.compile(r"link\s+(?P<source>\S+?)\s*(?P<arrow><->|->)\s*(?P<target>\S+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class World:
    """What a plan is made from. ``cluster`` is the profile's, unless devices were taken out."""

    profile: Profile
    request: PlanRequest
    cluster: Cluster | None = None

    @property
    def machines(self) -> Cluster:
        """The cluster that plans are for."""
        return self.cluster or self.profile.cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class AddDevice:
    """A device of the catalogue more, on a new host or in one that is there.

    ``one_of_many``: it is tried with all others, and left out where the model cannot run on it.
    """

    device: CatalogueDevice
    link: CatalogueLink | None = None
    host: str | None = None
    memory_bytes: int | None = None
    one_of_many: bool = False

    @property
    def text(self) -> str:
        """The change in words."""
        memory = "" if self.memory_bytes is None else f" with {format_bytes(self.memory_bytes)}"
        via = "" if self.link is None else f" via {self.link.name}"
        return f"add {self.device.name}{memory}{via}{f' @{self.host}' if self.host else ''}"

    def applied(self, world: World) -> World:
        """``world`` with the device.

        Raises:
            InvalidInputError: no such host, no memory known, or no peak for the model's dtype.
        """
        grown, _ = with_device(
            world.profile,
            self.device,
            link=self.link,
            host=self.host,
            memory_bytes=self.memory_bytes,
        )
        return World(profile=grown, request=world.request)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveDevice:
    """A device less, or a host with all its devices."""

    place: str

    @property
    def text(self) -> str:
        """The change in words."""
        return f"remove {self.place}"

    def applied(self, world: World) -> World:
        """``world`` without it; wishes about it are lifted.

        Raises:
            InvalidInputError: no such device or host, or nothing is left to compute on.
        """
        cluster, request = world.machines, world.request
        names = [x for x in cluster.device if self.place in (x, cluster.host_of[x].name)]
        if not names:
            places = [*cluster.device, *(x.name for x in cluster.hosts)]
            raise InvalidInputError(
                f"cannot remove {self.place!r}: there is no such device or host; "
                f"{near(self.place, places)}"
            )
        for name in names:
            fewer = without_device(cluster, name)
            if fewer is None:
                raise InvalidInputError(
                    f"cannot remove {self.place}: no other device is left to compute on; "
                    "add one instead"
                )
            cluster, request = fewer, lifted(request, name, cluster)
        return World(profile=world.profile, request=request, cluster=cluster)


@dataclass(frozen=True, slots=True, kw_only=True)
class FasterDevice:
    """A device ``factor`` times as fast in all it does."""

    device: str
    factor: float

    @property
    def text(self) -> str:
        """The change in words."""
        return f"{self.device} x{self.factor:g} as fast"

    def applied(self, world: World) -> World:
        """``world`` with it.

        Raises:
            InvalidInputError: no such device, or a factor not above 0.
        """
        faster = with_speed(world.profile, self.device, self.factor)
        return World(profile=faster, request=world.request)


@dataclass(frozen=True, slots=True, kw_only=True)
class FasterLink:
    """Messages between two places ``factor`` times as fast, one way or ``both`` ways."""

    source: str
    target: str
    factor: float
    both: bool = False

    @property
    def text(self) -> str:
        """The change in words."""
        if self.source == self.target:
            inside = "default link" if self.source == "default" else f"link inside {self.source}"
            return f"{inside} x{self.factor:g} as fast"
        arrow = "<->" if self.both else "->"
        return f"link {self.source} {arrow} {self.target} x{self.factor:g} as fast"

    def applied(self, world: World) -> World:
        """``world`` with it.

        Raises:
            InvalidInputError: no such ends, or a factor not above 0.
        """
        faster = with_link_speed(world.profile, self.source, self.target, self.factor)
        if self.both and self.source != self.target:
            faster = with_link_speed(faster, self.target, self.source, self.factor)
        return World(profile=faster, request=world.request)


@dataclass(frozen=True, slots=True, kw_only=True)
class FasterWire:
    """All links that share a wire ``factor`` times as fast."""

    wire: str
    factor: float

    @property
    def text(self) -> str:
        """The change in words."""
        return f"wire {self.wire} x{self.factor:g} as fast"

    def applied(self, world: World) -> World:
        """``world`` with it.

        Raises:
            InvalidInputError: no such wire, or a factor not above 0.
        """
        faster = with_wire_speed(world.profile, self.wire, self.factor)
        return World(profile=faster, request=world.request)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreMemory:
    """A device with ``factor`` times its memory."""

    device: str
    factor: float

    @property
    def text(self) -> str:
        """The change in words."""
        return f"memory of {self.device} x{self.factor:g}"

    def applied(self, world: World) -> World:
        """``world`` with it.

        Raises:
            InvalidInputError: no such device, or a factor not above 0.
        """
        larger = with_memory(world.profile, self.device, self.factor)
        return World(profile=larger, request=world.request)


Change = AddDevice | RemoveDevice | FasterDevice | FasterLink | FasterWire | MoreMemory


def read_add(text: str) -> AddDevice:
    """``DEVICE [with SIZE] [via LINK] [@HOST]`` with names of the catalogue.

    Raises:
        InvalidInputError: another form, an unknown name, or no size.
    """
    match = _ADD.fullmatch(text)
    if match is None:
        raise InvalidInputError(
            f'--add {text[:80]!r}: write DEVICE via LINK, as in "rtx-4090 via 10gbe", and for a '
            'host that is there "rtx-4090 via pcie-4-x16 @node-a"'
        )
    return AddDevice(
        device=find_device(match["device"]),
        link=None if match["link"] is None else find_link(match["link"]),
        host=match["host"],
        memory_bytes=None if match["memory"] is None else parse_bytes(match["memory"]),
    )


def any_device(text: str) -> list[AddDevice]:
    """``any [with SIZE] [via LINK] [@HOST]``: every device of the catalogue that way.

    Raises:
        InvalidInputError: as for :func:`read_add`.
    """
    names = list(catalogue_devices())
    every = [read_add(re.sub(r"^\s*any\b", name, text, flags=re.IGNORECASE)) for name in names]
    return [replace(x, one_of_many=True) for x in every]


def read_faster(text: str) -> FasterDevice | FasterLink | FasterWire | MoreMemory:
    """``HOST/DEVICE xN``, ``link A -> B xN``, ``link A <-> B xN``, ``wire NAME xN`` or
    ``memory HOST/DEVICE xN``.

    Raises:
        InvalidInputError: another form, or a factor that is not above 0.
    """
    match = _TIMES.fullmatch(text.strip())
    factor = _number(match["factor"]) if match else None
    if match is None or factor is None:
        raise InvalidInputError(
            f'--faster {text[:80]!r}: say what and how much, as in "node-a/cuda:0 x2", '
            '"link node-a -> node-b x10", "wire air x10" or "memory node-a/cuda:0 x2"'
        )
    if not 0 < factor < float("inf"):
        raise InvalidInputError(
            f"--faster {text[:80]!r}: a factor is a number above 0, as in x10; not x{factor:g}"
        )
    what = match["what"].strip()
    link = _LINK.fullmatch(what)
    if link is not None:
        return FasterLink(
            source=link["source"],
            target=link["target"],
            factor=factor,
            both=link["arrow"] == "<->",
        )
    kind, _, name = what.partition(" ")
    match kind.lower(), name.strip():
        case "link", "default":
            return FasterLink(source="default", target="default", factor=factor)
        case "wire", wire if wire:
            return FasterWire(wire=wire, factor=factor)
        case "memory", device if device:
            return MoreMemory(device=device, factor=factor)
        case "link", _:
            raise InvalidInputError(
                f'--faster {text[:80]!r}: a link has two ends, as in "link node-a -> node-b x10"'
            )
    return FasterDevice(device=what, factor=factor)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
