from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from profiler.catalogue import (
    CatalogueDevice,
    catalogue_devices,
    catalogue_links,
    entry_of,
    find_device,
    find_link,
    part_of,
)
from profiler.cli import app
from profiler.cluster import Device
from profiler.errors import InvalidInputError


def test_every_entry_has_a_source_and_a_link_that_exists() -> None:
    for entry in catalogue_devices().values():
        assert len(entry.source) >= 10, entry.name
        assert entry.host_link is None or entry.host_link in catalogue_links(), entry.name


def test_peaks_of_processors_follow_from_what_their_source_says() -> None:
    derived = 0
    for entry in catalogue_devices().values():
        said = re.search(
            r"(?P<cores>\d+) cores(?: \([^)]*\))? x (?P<clock>[\d.]+) (?P<unit>[GM])Hz x "
            r"(?P<flops>\d+)",
            entry.source,
        )
        if entry.device_kind == "cpu":
            assert said is not None, entry.name
            assert entry.cores == int(said["cores"]), entry.name
        if said is not None:
            clock = float(said["clock"]) * (1e9 if said["unit"] == "G" else 1e6)
            peak = int(said["cores"]) * clock * int(said["flops"])
            assert entry.peak_flops_per_s["float32"] == pytest.approx(peak), entry.name
            derived += 1
    assert derived > 8


def test_memory_bandwidth_of_processors_follows_from_their_channels() -> None:
    derived = 0
    for entry in catalogue_devices().values():
        said = re.search(r"(?P<channels>\d+) x DDR[45]-(?P<rate>\d+)", entry.source)
        if said is not None:
            # 64 bits a channel: 8 bytes a transfer.
            expected = int(said["channels"]) * int(said["rate"]) * 1e6 * 8
            assert entry.memory_bytes_per_s == pytest.approx(expected), entry.name
            derived += 1
    assert derived > 5


def test_ethernet_carries_1448_of_1538_bytes() -> None:
    for entry in catalogue_links().values():
        said = re.search(r"TCP payload of ([\d.]+) Gbit/s", entry.source)
        if said is not None:
            expected = float(said[1]) * 1e9 / 8 * 1448 / 1538
            assert entry.bytes_per_s == pytest.approx(expected, rel=1e-4), entry.name


@pytest.mark.parametrize(
    ("kind", "type_", "entry"),
    [
        ("cuda", "NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("cuda", "NVIDIA L40S", "l40s"),
        ("cuda", "NVIDIA L4", "l4"),
        ("cuda", "NVIDIA A10G", None),
        ("cuda", "NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("cpu", "AMD EPYC 7763 64-Core Processor x4", "epyc-7763"),
        ("cpu", "Intel Xeon Platinum 8380 CPU x2", "xeon-8380"),
        ("cpu", "Intel Xeon Processor x2", None),
        ("cpu", "NVIDIA L4", None),
    ],
)
def test_measured_devices_are_known_by_their_type(kind: str, type_: str, entry: str | None) -> None:
    device = Device(
        name="cuda:0" if kind == "cuda" else "cpu", type=type_, kind=kind, memory_bytes=1
    )
    found = entry_of(device)
    assert (found and found.name) == entry


@pytest.mark.parametrize(
    ("type_", "threads", "part"),
    [
        ("AMD EPYC 7763 64-Core Processor x16", 16, 0.25),
        ("AMD EPYC 7763 64-Core Processor x0.5", 1, 1 / 128),
        ("AMD EPYC 7763", 32, 0.5),
        ("AMD EPYC 7763", 128, 1.0),
    ],
)
def test_some_cores_have_their_part_of_a_processor(type_: str, threads: int, part: float) -> None:
    device = Device(name="cpu", type=type_, memory_bytes=1, threads=threads)
    assert part_of(device, find_device("epyc-7763")) == pytest.approx(part)


def test_unknown_names_are_refused_with_close_ones() -> None:
    with pytest.raises(InvalidInputError, match=r"no device 'rtx4090'; close names: rtx-4090"):
        find_device("rtx4090")
    with pytest.raises(InvalidInputError, match=r"no link '10 gigabit'; "):
        find_link("10 gigabit")
    assert find_device("RTX 4090").name == "rtx-4090"


@pytest.mark.parametrize(
    "change",
    [
        {"peak_flops_per_s": {"fp32": 1.0}},
        {"peak_flops_per_s": {"float32": 0.0}},
        {"memory_bytes": None},
        {"kind": "cpu"},
        {"surplus": 1},
    ],
)
def test_the_schema_refuses_what_makes_no_sense(change: dict[str, object]) -> None:
    good = find_device("t4").model_dump()
    with pytest.raises(ValueError, match="validation error"):
        CatalogueDevice.model_validate({**good, **change})


def test_the_table_fits_a_terminal() -> None:
    result = CliRunner().invoke(app, ["catalogue"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for name in (*catalogue_devices(), *catalogue_links()):
        assert any(line.startswith(f"{name} ") for line in lines), name


def test_an_entry_is_shown_with_its_source_and_as_json() -> None:
    shown = CliRunner().invoke(app, ["catalogue", "t4"]).stdout
    assert "t4-tensor-core-datasheet-951643" in shown
    data = json.loads(CliRunner().invoke(app, ["catalogue", "10gbe", "--format", "json"]).stdout)
    assert data["devices"] == []
    assert data["links"][0]["bytes_per_s"] == 1176.9e6
