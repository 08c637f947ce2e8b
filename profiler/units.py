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
MAX_BYTES = 2**63 - 1
"""No size is larger."""

_QUANTITY = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)(/s)?\s*")


def parse_bytes(text: str | int) -> int:
    """Bytes in a size such as ``"24GiB"``, ``"500 MB"`` or a plain integer.

    Raises:
        InvalidInputError: not a size, or negative.

    >>> parse_bytes("1.5KiB"), parse_bytes(7), parse_bytes("2 MB")
    (1536, 7, 2000000)
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if not 0 <= text <= MAX_BYTES:
            raise InvalidInputError(f"a size cannot be negative or beyond every memory: {text}")
        return text
    number, unit, rate = _split(text, "size")
    scale = _BINARY.get(unit) or _DECIMAL.get(unit or "B")
    if scale is None or rate:
        raise InvalidInputError(
            f"not a size: {text!r}; write bytes, or a number with KiB, MiB, GiB, kB, MB or GB"
        )
    if number * scale > MAX_BYTES:
        raise InvalidInputError(f"a size beyond every memory: {text!r}")
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
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) and len(text) < 80 else None
    if match is None:
        raise InvalidInputError(f"not a {kind}: {str(text)[:80]!r}")
    return float(match[1]), match[2], match[3] is not None


def format_bytes(num_bytes: float) -> str:
    """A size for people, three significant digits.

    >>> format_bytes(0), format_bytes(1536), format_bytes(3 * 2**30)
    ('0 B', '1.50 KiB', '3.00 GiB')
    """
    scale, unit = bytes_unit(num_bytes)
    size = max(-1e300, min(1e300, num_bytes)) / scale
    return f"{size:.0f} B" if unit == "B" else f"{_three(size)} {unit}"


def format_seconds(seconds: float) -> str:
    """A time for people, in the unit that keeps it between 1 and 1000.

    >>> format_seconds(0.0123), format_seconds(4.2e-5), format_seconds(0.99999)
    ('12.3 ms', '42.0 us', '1.00 s')
    """
    scale, unit = seconds_unit(seconds)
    return f"{_three(seconds / scale)} {unit}" if seconds else "0 s"


def format_bytes_per_s(bytes_per_s: float) -> str:
    """A rate for people, decimal units as networks are sold.

    >>> format_bytes_per_s(1.25e9)
    '1.25 GB/s'
    """
    for unit, scale in (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3)):
        if _rounded(bytes_per_s) >= scale:
            return f"{_three(bytes_per_s / scale)} {unit}"
    return f"{_three(bytes_per_s)} B/s"


def bytes_unit(num_bytes: float) -> tuple[int, str]:
    """The unit in which a size reads best, and its bytes: for a column of one unit.

    >>> bytes_unit(5 * 2**20)
    (1048576, 'MiB')
    """
    found = (1, "B")
    for unit, scale in _BINARY.items():
        if abs(num_bytes) >= scale:
            found = (scale, unit)
    return found


def seconds_unit(seconds: float) -> tuple[float, str]:
    """The unit in which a time reads best, and its seconds: for a column of one unit.

    >>> seconds_unit(0.25)
    (0.001, 'ms')
    """
    for unit, scale in _SECONDS.items():
        if abs(_rounded(seconds)) >= scale:
            return scale, unit
    return _SECONDS["ns"], "ns"


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _three(value: float) -> str:
    size = abs(_rounded(value))
    if size >= 1e6:
        return f"{value:.3g}"
    digits = 2 if size < 10 else 1 if size < 100 else 0
    return f"{value:.{digits}f}"
