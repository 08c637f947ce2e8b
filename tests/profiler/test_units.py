from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import InvalidInputError
from profiler.units import (
    bytes_unit,
    format_bytes,
    format_bytes_per_s,
    format_seconds,
    parse_bytes,
    parse_bytes_per_s,
    parse_seconds,
    seconds_unit,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("24GiB", 24 * 2**30),
        (" 500 MB ", 500_000_000),
        ("1.5KiB", 1536),
        (".5 KiB", 512),
        ("1e3", 1000),
        ("0", 0),
        (17, 17),
    ],
)
def test_sizes(text: str | int, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    "text", ["", "GiB", "1 gib", "-1", -1, "1GiB/s", "1,5 GiB", "1e400GiB", 2**63, "1" * 100_000]
)  # fmt: skip
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(InvalidInputError):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("25Gbit/s", 3.125e9), ("8 Mbit", 1e6), ("1.2GB/s", 1.2e9), ("1MiB/s", 2**20), (5, 5.0)],
)
def test_rates(text: str | float, value: float) -> None:
    assert parse_bytes_per_s(text) == value


@pytest.mark.parametrize("text", ["", "5", "5GB", "0Mbit/s", 0, -1.0, float("nan"), float("inf")])
def test_what_is_no_rate_is_refused(text: str | float) -> None:
    with pytest.raises(InvalidInputError):
        parse_bytes_per_s(text)


@pytest.mark.parametrize(
    ("text", "value"), [("200us", 2e-4), ("1.5 ms", 1.5e-3), ("3s", 3.0), ("2", 2.0), (0.5, 0.5)]
)
def test_times(text: str | float, value: float) -> None:
    assert parse_seconds(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("text", ["", "5min", "1/s", "-1", -1.0, float("nan"), "1e999"])
def test_what_is_no_time_is_refused(text: str | float) -> None:
    with pytest.raises(InvalidInputError):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.50 KiB"),
        (10 * 2**20, "10.0 MiB"),
        (1000 * 2**20, "1000 MiB"),
        (-3 * 2**30, "-3.00 GiB"),
        (5 * 2**40, "5.00 TiB"),
        (2**200, "1.46e+48 TiB"),
        (10**400, "9.09e+287 TiB"),
    ],
)
def test_sizes_for_people(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.0123, "12.3 ms"),
        (0.99996, "1.00 s"),
        (9.996e-3, "10.0 ms"),
        (99.96e-6, "100 us"),
        (3e-9, "3.00 ns"),
        (4.2e-12, "0.00 ns"),
        (86400.0, "86400 s"),
        (1e300, "1e+300 s"),
        (-0.5, "-500 ms"),
    ],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_rates_for_people() -> None:
    assert [format_bytes_per_s(x) for x in (1.25e9, 117e6, 999.9e6, 2e3, 5.0)] == [
        "1.25 GB/s", "117 MB/s", "1.00 GB/s", "2.00 kB/s", "5.00 B/s",
    ]  # fmt: skip


def test_units_of_columns() -> None:
    assert bytes_unit(3 * 2**30) == (2**30, "GiB")
    assert seconds_unit(0.0) == (1e-9, "ns")


@given(st.integers(0, 2**60))
def test_a_printed_size_reads_back_within_half_a_percent(num_bytes: int) -> None:
    assert parse_bytes(format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.005, abs=0.5)


@given(st.floats(1e-9, 1e5))
def test_a_printed_time_reads_back_within_half_a_percent(seconds: float) -> None:
    assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds, rel=0.00501)
