"""Sizes, rates and times as people write them. The only place where units convert.

Everywhere else: bytes are ``int``, seconds and rates are ``float``, and the unit is in the name.
"""

from __future__ import annotations

import math
import re

from profiler.errors import InvalidInputError

_BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_DECIMAL = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BITS = {"bit": 1, "kbit": 10**3, "Mbit": 10**6, "Gbit": 10**9, "Tbit": 10**12}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_QUANTITY = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)(/s)?\s*$")


def parse_bytes(text: str | int) -> int:
    """Bytes in a size such as ``"24GiB"``, ``"500 MB"`` or a plain integer.

    Raises:
        InvalidInputError: not a size, or negative.

    >>> parse_bytes("1.5KiB"), parse_bytes(7), parse_bytes("2 MB")
    (1536, 7, 2000000)
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise InvalidInputError(f"a size cannot be negative: {text}")
        return text
    number, unit, rate = _split(text, "size")
    scale = _BINARY.get(unit) or _DECIMAL.get(unit or "B")
    if scale is None or rate:
        raise InvalidInputError(
            f"not a size: {text!r}; write bytes, or a number with KiB, MiB, GiB, kB, MB or GB"
        )
    return round(number * scale)


def parse_bytes_per_s(text: str | float) -> float:
    """Bytes per second in a rate such as ``"25Gbit/s"``, ``"1.2GB/s"`` or a plain number.

    Raises:
        InvalidInputError: not a rate, or not above zero.

    >>> parse_bytes_per_s("8Mbit/s"), parse_bytes_per_s("2GB/s")
    (1000000.0, 2000000000.0)
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        value = float(text)
    else:
        number, unit, rate = _split(text, "rate")
        if unit in _BITS:
            value = number * _BITS[unit] / 8
        else:
            scale = _BINARY.get(unit) or _DECIMAL.get(unit or "B")
            if scale is None or not rate:
                raise InvalidInputError(f"not a rate: {text!r}; write it like 25Gbit/s or 3.1GB/s")
            value = number * scale
    if not (value > 0 and math.isfinite(value)):
        raise InvalidInputError(f"a rate must be above zero and finite: {text!r}")
    return value


def parse_seconds(text: str | float) -> float:
    """Seconds in a time such as ``"200us"``, ``"1.5 ms"`` or a plain number of seconds.

    Raises:
        InvalidInputError: not a time, or negative.

    >>> parse_seconds("250us")
    0.00025
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        value = float(text)
    else:
        number, unit, rate = _split(text, "time")
        if (unit or "s") not in _SECONDS or rate:
            raise InvalidInputError(f"not a time: {text!r}; write it like 0.2ms, 150us or 3s")
        value = number * _SECONDS[unit or "s"]
    if not (value >= 0 and math.isfinite(value)):
        raise InvalidInputError(f"a time cannot be negative or endless: {text!r}")
    return value


def _split(text: object, kind: str) -> tuple[float, str, bool]:
    match = _QUANTITY.match(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidInputError(f"not a {kind}: {text!r}")
    return float(match[1]), match[2], match[3] is not None


def format_bytes(num_bytes: float) -> str:
    """A size for people, three significant digits.

    >>> format_bytes(0), format_bytes(1536), format_bytes(3 * 2**30)
    ('0 B', '1.50 KiB', '3.00 GiB')
    """
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{_three(size)} {unit}"
        size /= 1024
    return f"{_three(size)} TiB"


def format_seconds(seconds: float) -> str:
    """A time for people, in the unit that keeps it between 1 and 1000.

    >>> format_seconds(0.0123), format_seconds(4.2e-5)
    ('12.3 ms', '42.0 us')
    """
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= scale:
            return f"{_three(seconds / scale)} {unit}"
    return f"{_three(seconds / 1e-9)} ns" if seconds else "0 s"


def format_bytes_per_s(bytes_per_s: float) -> str:
    """A rate for people, decimal units as networks are sold.

    >>> format_bytes_per_s(1.25e9)
    '1.25 GB/s'
    """
    for unit, scale in (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3)):
        if bytes_per_s >= scale:
            return f"{_three(bytes_per_s / scale)} {unit}"
    return f"{_three(bytes_per_s)} B/s"


def _three(value: float) -> str:
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"
