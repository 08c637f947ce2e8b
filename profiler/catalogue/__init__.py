"""Devices and links that can be bought, by their vendors' data sheets and their standards.

The figures are data (``devices.yaml``, ``links.yaml``), each with its source; this module reads
them, finds entries by name, and knows which entry a measured device is. What the figures mean for
a model is the business of ``profiler.roofline``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from profiler.cluster import Device
from profiler.documents import Bytes, BytesPerSecond, Record, canonical_json, describe
from profiler.errors import InvalidInputError
from profiler.graph import DTYPE_BYTES
from profiler.yamltext import parse_yaml

_Entry = TypeVar("_Entry", "CatalogueDevice", "CatalogueLink")
_Whole = TypeVar("_Whole", bound=Record)

_CORES_IN_TYPE = re.compile(r" x(?P<cores>[0-9.]+)$")
"""How discovery ends the type of a processor: the cores that the device has of it."""


class CatalogueDevice(Record):
    """A device by its data sheet.

    ``peak_flops_per_s`` maps a dtype by torch's name to its dense peak; a dtype that is not there
    is one that the device has no units for, or whose peak the sheet does not give.
    ``memory_bytes`` is absent where the buyer decides (processors). ``matches`` are names under
    which the device shows itself, as ``Device.type``. ``host_link`` is what ties it to its host, or
    a board to others.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    kind: Literal["gpu", "cpu", "board"]
    runs_on: Literal["cpu", "cuda"] | None = None
    title: str
    matches: tuple[str, ...] = ()
    cores: int | None = Field(default=None, ge=1)
    peak_flops_per_s: dict[str, float] = Field(min_length=1)
    memory_bytes: Bytes | None = Field(default=None, gt=0)
    memory_bytes_per_s: BytesPerSecond = Field(gt=0)
    host_link: str | None = None
    year: int = Field(ge=2000)
    source: str = Field(min_length=10)

    @property
    def device_kind(self) -> Literal["cpu", "cuda"]:
        """The kind of a cluster's device that it would be."""
        return self.runs_on or ("cuda" if self.kind == "gpu" else "cpu")

    @model_validator(mode="after")
    def _consistent(self) -> CatalogueDevice:
        unknown = sorted(set(self.peak_flops_per_s) - set(DTYPE_BYTES))
        if unknown or min(self.peak_flops_per_s.values()) <= 0:
            raise ValueError(f"{self.name}: peaks must be above 0 and of a dtype, not {unknown}")
        if self.device_kind == "cpu" and self.cores is None:
            raise ValueError(f"{self.name}: a processor needs cores")
        if self.kind != "cpu" and self.memory_bytes is None:
            raise ValueError(f"{self.name}: a {self.kind} needs memory_bytes")
        return self


class CatalogueLink(Record):
    """A link by its standard: ``bytes_per_s`` is the payload that one direction carries at best.

    ``worst_fraction`` of it is what practice leaves at worst. A ``half_duplex`` link is one wire
    for both directions.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    kind: Literal["bus", "network"]
    bytes_per_s: BytesPerSecond = Field(gt=0)
    worst_fraction: float = Field(default=1.0, gt=0, le=1)
    half_duplex: bool = False
    source: str = Field(min_length=10)


class _Devices(Record):
    devices: tuple[CatalogueDevice, ...]


class _Links(Record):
    links: tuple[CatalogueLink, ...]


@cache
def catalogue_devices() -> Mapping[str, CatalogueDevice]:
    """All devices by name, in the file's order."""
    found = _read("devices.yaml", _Devices)
    return _by_name(found.devices)


@cache
def catalogue_links() -> Mapping[str, CatalogueLink]:
    """All links by name, in the file's order."""
    found = _read("links.yaml", _Links)
    return _by_name(found.links)


def find_device(name: str) -> CatalogueDevice:
    """The device of that name.

    Raises:
        InvalidInputError: there is none; the message has close names.
    """
    return _find(name, catalogue_devices(), what="device")


def find_link(name: str) -> CatalogueLink:
    """The link of that name.

    Raises:
        InvalidInputError: there is none; the message has close names.
    """
    return _find(name, catalogue_links(), what="link")


def entry_of(device: Device) -> CatalogueDevice | None:
    """The entry that a measured device is, by its type; None where the catalogue has none."""
    for entry in catalogue_devices().values():
        if entry.device_kind == device.kind and any(
            _is(device.type, name) for name in entry.matches
        ):
            return entry
    return None


def part_of(device: Device, entry: CatalogueDevice) -> float:
    """The part of the entry's peaks that a device has: of a processor, its cores over all."""
    if entry.cores is None or device.kind != "cpu":
        return 1.0
    said = _CORES_IN_TYPE.search(device.type)
    cores = float(said["cores"]) if said else float(device.threads)
    return min(1.0, cores / entry.cores)


def _is(kind: str, name: str) -> bool:
    """Whether a type says this name: all of it, or followed by what discovery or vendors add.

    >>> _is("AMD EPYC 7763 64-Core Processor x4", "AMD EPYC 7763"), _is("NVIDIA L40S", "NVIDIA L4")
    (True, False)
    >>> _is("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090")
    False
    """
    more = r"( (\d+-Core )?Processor| CPU)?( x[0-9.]+)?"
    return re.fullmatch(re.escape(name) + more, kind, re.IGNORECASE) is not None


def _find(name: str, entries: Mapping[str, _Entry], *, what: str) -> _Entry:
    wanted = name.strip().lower().replace(" ", "-").replace("_", "-")
    if wanted in entries:
        return entries[wanted]
    inside = [known for known in entries if wanted and wanted in known]
    close = inside or difflib.get_close_matches(wanted, list(entries), n=4, cutoff=0.5)
    hint = (
        f"close names: {', '.join(close[:4])}"
        if close
        else "apportion catalogue lists what there is"
    )
    raise InvalidInputError(f"the catalogue has no {what} {name[:60]!r}; {hint}")


def _by_name(entries: tuple[_Entry, ...]) -> dict[str, _Entry]:
    found = {entry.name: entry for entry in entries}
    assert len(found) == len(entries), "a name stands twice in the catalogue"
    return found


def _read(name: str, kind: type[_Whole]) -> _Whole:
    text = files("profiler.catalogue").joinpath(name).read_text(encoding="utf-8")
    try:
        return kind.model_validate_json(canonical_json(parse_yaml(text, name)))
    except ValidationError as error:  # only with a damaged installation
        raise InvalidInputError(describe(error, f"the catalogue's {name}")) from error
