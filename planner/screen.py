"""Text that fits a screen: nothing wider than a page, nothing invisible, numbers for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

WIDTH = 100
"""Columns of a page."""


def plain(text: str) -> str:
    """``text`` without what could play tricks on a terminal: control and invisible characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def lines_of(lines: Iterable[str]) -> Iterator[str]:
    """Lines as they may be printed: nothing invisible, nothing wider than the page."""
    for line in lines:
        shown = plain(line).rstrip()
        yield shown if len(shown) <= WIDTH else shown[: WIDTH - 3] + "..."


def count(number: int, what: str) -> str:
    """A number of things, in words.

    >>> count(1, "stage"), count(2, "stage")
    ('1 stage', '2 stages')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def rate(items_per_s: float) -> str:
    """Items a second for people.

    >>> rate(24.96), rate(0.32246), rate(12345.6)
    ('25.0', '0.322', '12,346')
    """
    if 100 <= items_per_s < 1e15:
        return f"{items_per_s:,.0f}"
    return (
        f"{items_per_s:.{1 if items_per_s >= 9.995 else 2}f}"
        if 1 <= items_per_s < 100
        else (f"{items_per_s:.3g}")
    )


def percent(fraction: float) -> str:
    """A fraction in percent, one decimal below ten."""
    return f"{fraction * 100:.{1 if abs(fraction) < 0.0995 else 0}f} %"


def layers_text(layers: Sequence[str], width: int) -> str:
    """Selectors in at most ``width`` columns: the first and the last, what is between as dots."""
    text = ", ".join(layers)
    if len(text) <= width or not layers:
        return cut(text, width)
    last = cut(layers[-1], width // 2)
    first = cut(layers[0], max(4, width - len(last) - 7)) + ", "
    for layer in layers[1:-1]:
        if len(first) + len(layer) + len(last) + 7 > width:
            break
        first += layer + ", "
    return cut(f"{first}..., {last}", width)


def cut(text: str, width: int) -> str:
    """``text`` in at most ``width`` columns."""
    return text if len(text) <= width else text[: width - 3] + "..."


def sides(left: str, right: str) -> str:
    """Two ends of a line of the page's width."""
    return f"{left:<{WIDTH - len(right) - 1}} {right}"


def wrapped(first: str, text: str) -> list[str]:
    """``text`` after ``first``, in lines indented by two more than the first."""
    indent = " " * (len(first) - len(first.lstrip()) + 4)
    return textwrap.wrap(
        plain(first + text), WIDTH, subsequent_indent=indent, break_on_hyphens=False
    ) or [first]
