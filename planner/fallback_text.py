"""What a plan says of missing devices, in words for text and Markdown alike."""

from __future__ import annotations

from planner.shown import ExplainReport, FallbackShown
from profiler.units import format_seconds

MOST_NAMED = 4
"""Devices of a group of equal ones that are named."""


def fallback_entries(report: ExplainReport) -> list[tuple[str, str]]:
    """Which devices, and what is left without one of them; the worst loss first."""
    return [(_devices(x.devices), _loss(x)) for x in sorted(report.fallbacks, key=_gravity)]


def _gravity(x: FallbackShown) -> tuple[bool, float]:
    return x.objective_s is not None, -(x.slowdown or 0.0)


def _devices(names: tuple[str, ...]) -> str:
    more = len(names) - MOST_NAMED
    shown = ", ".join(names[:MOST_NAMED])
    return f"{shown} or {more} more" if more > 0 else shown.replace(", ", " or ")


def _loss(x: FallbackShown) -> str:
    if x.objective_s is None:
        return f"no plan: {x.note}"
    slower = "" if x.slowdown is None else f" ({x.slowdown * 100:+,.1f} %)"
    parts = [f"{format_seconds(x.objective_s)}{slower}", x.plan or "", x.note]
    return "; ".join(part for part in parts if part)
