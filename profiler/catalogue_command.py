"""``apportion catalogue``: the devices and links that what-if questions can name."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from profiler.console import Format, write_json, write_result
from profiler.units import format_bytes_per_s

if TYPE_CHECKING:
    from profiler.catalogue import CatalogueDevice, CatalogueLink

WIDTH = 80
"""Columns of the table."""


def catalogue(
    name: Annotated[
        str | None, typer.Argument(help="One device or link: all that is known of it.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="Result on stdout.")] = Format.TEXT,
) -> None:
    """List the devices and links known from data sheets and standards, with their sources.

    Example: apportion catalogue rtx-4090

    What they would change: apportion what-if profile.json --add "rtx-4090 via 10gbe"
    """
    from profiler.catalogue import catalogue_devices, catalogue_links, find_device

    devices, links = tuple(catalogue_devices().values()), tuple(catalogue_links().values())
    entries: tuple[CatalogueDevice | CatalogueLink, ...] = ()
    if name is not None:
        links = tuple(x for x in links if x.name == name)
        devices = () if links else (find_device(name),)
        entries = (*devices, *links)
    if form is Format.JSON:
        write_json(
            {
                "devices": [x.model_dump(mode="json", exclude_none=True) for x in devices],
                "links": [x.model_dump(mode="json") for x in links],
            }
        )
    elif name is not None:
        write_result("\n".join(line for entry in entries for line in _entry(entry)))
    else:
        write_result("\n".join((*_device_table(devices), "", *_link_table(links))))


def _device_table(devices: tuple[CatalogueDevice, ...]) -> Iterator[str]:
    yield (
        f"{'device':<22}{'kind':<7}{'fp32':>9}{'16 bit':>9}{'memory':>9}{'bandwidth':>12}"
        f"{'year':>6}"
    )
    for x in devices:
        half = max(
            (x.peak_flops_per_s.get(dtype, 0.0) for dtype in ("float16", "bfloat16")), default=0.0
        )
        memory = "-" if x.memory_bytes is None else f"{x.memory_bytes / 1e9:.0f} GB"
        yield (
            f"{x.name:<22}{x.kind:<7}{_tera(x.peak_flops_per_s.get('float32', 0.0)):>9}"
            f"{_tera(half):>9}{memory:>9}{format_bytes_per_s(x.memory_bytes_per_s):>12}"
            f"{x.year:>6}"
        )
    yield "fp32, 16 bit: dense TFLOP/s by the sheet; 16 bit: float16 or bfloat16"


def _link_table(links: tuple[CatalogueLink, ...]) -> Iterator[str]:
    yield f"{'link':<18}{'kind':<9}{'one way':>12}"
    for x in links:
        notes = ["both ways share it"] if x.half_duplex else []
        if x.worst_fraction < 1:
            notes.append(f"at worst {x.worst_fraction:.0%}")
        yield (
            f"{x.name:<18}{x.kind:<9}{format_bytes_per_s(x.bytes_per_s):>12}  {', '.join(notes)}"
        ).rstrip()
    yield "apportion catalogue NAME shows an entry with its source"


def _entry(entry: CatalogueDevice | CatalogueLink) -> Iterator[str]:
    """Every field on a line."""
    data = entry.model_dump(mode="json", exclude_none=True)
    for key, value in data.items():
        if isinstance(value, dict):
            value = ", ".join(f"{dtype} {_tera(peak)} T" for dtype, peak in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        elif key.endswith("bytes_per_s"):
            value = format_bytes_per_s(value)
        elif key == "memory_bytes":
            value = f"{value / 1e9:g} GB"
        if value != "":
            yield from textwrap.wrap(
                f"{key:<20}{value}", WIDTH, subsequent_indent=" " * 20, break_on_hyphens=False
            )


def _tera(flops_per_s: float) -> str:
    """Trillions of operations a second, three digits; a dash for none."""
    tera = flops_per_s / 1e12
    digits = 0 if tera >= 100 else 1 if tera >= 10 else 2
    return f"{tera:.{digits}f}" if flops_per_s else "-"
