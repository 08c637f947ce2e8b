"""A PlanDiff for people: a line for each thing that differs, what it costs, and why."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping

from planner.diff import Change, Figure, PlanDiff
from planner.screen import WIDTH, lines_of
from profiler.units import format_bytes, format_seconds

MOST = 12
"""Lines of one section without ``verbose``."""

_FORMAT: Mapping[str, Callable[[float], str]] = {
    "s": format_seconds,
    "bytes": format_bytes,
    "items/s": lambda value: f"{value:.4g}",
}


def render_diff(found: PlanDiff, *, verbose: bool = False) -> str:
    """The difference for a terminal; ``verbose`` leaves nothing out."""
    most = 10**9 if verbose else MOST
    lines = [_verdict(found)]
    lines += _section("Asked", [x.text for x in found.asked], most)
    lines += _section(
        "Decided",
        [
            *(x.text for x in found.settings),
            *(
                f"{_pipeline(found, x.pipeline)}{', '.join(x.layers)}: {x.before} -> {x.after}"
                for x in found.moves
            ),
        ],
        most,
    )
    lines += _section("Transfers", [_way(x) for x in found.transfers], most)
    figures = [x for x in found.figures if _differs(x)]
    if figures:
        lines.append(f"Costs, {found.basis}")
        lines += [_figure(x) for x in figures[:most]]
        if len(figures) > most:
            lines.append(f"  ... {len(figures) - most} more (--verbose)")
    lines += _section("Because the profile changed", list(found.because), most)
    return "\n".join(lines_of(lines))


def _verdict(found: PlanDiff) -> str:
    made = ", ".join(x.what for x in found.inputs)
    other = f"; made from another {made}" if made else ""
    if found.same:
        return f"The same decision{other}"
    decided = bool(found.settings or found.moves or found.transfers)
    what = "The plan changed" if decided else "The same layers on the same devices"
    return f"{what}{other or '; made from the same inputs'}"


def _pipeline(found: PlanDiff, number: int) -> str:
    several = any(x.pipeline for x in found.moves)
    return f"pipeline {number}: " if several else ""


def _way(x: Change) -> str:
    if "-" in (x.before, x.after):
        return x.text
    return f"{x.what}: was {x.before}; is {x.after}"


def _section(title: str, texts: list[str], most: int) -> list[str]:
    if not texts:
        return []
    lines = [title]
    for text in texts[:most]:
        lines += textwrap.wrap(
            f"  ~ {text}", WIDTH, subsequent_indent="      ", break_on_hyphens=False
        )
    if len(texts) > most:
        lines.append(f"  ... {len(texts) - most} more (--verbose)")
    return lines


def _differs(x: Figure) -> bool:
    """Whether the two look different at all: estimates have five digits."""
    if x.before is None or x.after is None:
        return x.before is not x.after
    return abs(x.after - x.before) > 1e-4 * max(abs(x.before), abs(x.after))


def _figure(x: Figure) -> str:
    show = _FORMAT[x.unit]
    before = "-" if x.before is None else show(x.before)
    after = "-" if x.after is None else show(x.after)
    change = ""
    if x.before and x.after is not None:
        change = f"{(x.after - x.before) / x.before:+.1%}"
    return f"  {x.what[:44]:<46}{before:>12} -> {after:<12}{change:>10}"
