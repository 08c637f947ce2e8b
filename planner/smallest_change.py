"""The least change of a number after which something works, by halving, and sizes as people write
them. Whatever works must go on working beyond."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from profiler.units import parse_bytes

_UNITS = (("B", 1), ("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30), ("TiB", 2**40))

_FIRST_BYTES = 2**14  # the first size that is tried


@dataclass(frozen=True, slots=True)
class Size:
    """A size as people write it: ``steps`` of a hundredth, a tenth or one of its unit."""

    steps: int
    decimals: int
    unit: str

    @property
    def text(self) -> str:
        """The size with its unit.

        >>> Size(123, 2, "MiB").text
        '1.23 MiB'
        """
        return f"{self.steps / 10**self.decimals:.{self.decimals}f} {self.unit}"

    @property
    def num_bytes(self) -> int:
        """What the text means."""
        return parse_bytes(self.text)

    def at(self, steps: int) -> Size:
        """So many steps, written like this one."""
        return Size(steps, self.decimals, self.unit)


def written(num_bytes: int, rounding: Callable[[float], int]) -> Size:
    """A size with about three digits: with ``math.ceil`` not below ``num_bytes``, with
    ``math.floor`` not above.

    >>> written(1025, math.ceil).text, written(1025, math.floor).text
    ('1.01 KiB', '1.00 KiB')
    """
    unit, scale = next((x for x in _UNITS[::-1] if num_bytes >= x[1]), _UNITS[0])
    decimals = 0 if unit == "B" else 2 if num_bytes < 10 * scale else 1
    return Size(rounding(num_bytes / scale * 10**decimals), decimals, unit)


def largest(low: int, high: int, works: Callable[[int], bool]) -> int | None:
    """The largest number from ``low`` to ``high`` that works, if less always works too."""
    if low > high or not works(low):
        return None
    good, bad = low, high + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        if works(middle):
            good = middle
        else:
            bad = middle
    return good


def smallest(low: int, high: int, works: Callable[[int], bool]) -> int | None:
    """The smallest number from ``low`` to ``high`` that works, if more always works too."""
    found = largest(-high, -low, lambda n: works(-n))
    return None if found is None else -found


def least_size(ceiling: int, works: Callable[[int], bool]) -> Size | None:
    """The least size, of those that are written with about three digits, that works; None if none
    up to ``ceiling`` does. A step of its last digit less does not work."""
    if not works(ceiling):
        return None
    # Grow from below: what is lacking is nearer to nothing than to ``ceiling``.
    bad, good = -1, min(ceiling, _FIRST_BYTES)
    while good < ceiling and not works(good):
        bad, good = good, min(ceiling, 4 * good)
    while good - bad > 1 and _unlike(bad, good):
        middle = (good + bad) // 2
        bad, good = (bad, middle) if works(middle) else (middle, good)
    top = written(good, math.ceil)
    steps = smallest(
        written(max(0, bad), math.floor).steps if not _unlike(bad, good) else top.steps,
        top.steps,
        lambda steps: top.at(steps).num_bytes > bad and works(top.at(steps).num_bytes),
    )
    return top if steps is None else top.at(steps)


def most_size(ceiling: int, works: Callable[[int], bool]) -> Size | None:
    """The largest size below ``ceiling``, of those that are written with about three digits, that
    works; None if not even nothing does. A step of its last digit more does not work."""
    if ceiling <= 0 or not works(0):
        return None
    good, bad = 0, ceiling
    while bad - good > 1 and _unlike(good, bad):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if works(middle) else (good, middle)
    low = written(good, math.floor)
    if _unlike(good, bad):
        return low
    steps = largest(
        low.steps,
        written(bad, math.ceil).steps,
        lambda steps: low.at(steps).num_bytes < bad and works(low.at(steps).num_bytes),
    )
    return low if steps is None else low.at(steps)


def _unlike(one: int, other: int) -> bool:
    """Whether two sizes are written in other units, or with more decimals."""
    a, b = written(max(0, one), math.floor), written(max(0, other), math.floor)
    return (a.unit, a.decimals) != (b.unit, b.decimals)
