"""What a plan says of its limits, in words for text and Markdown alike."""

from __future__ import annotations

from collections.abc import Iterator

from planner.screen import count, rate
from planner.shown import ExplainReport, LimitShown
from profiler.units import format_seconds

FREE = 5e-4
"""A limit that costs a smaller part of the objective costs nothing that is worth a word."""


def limit_lines(report: ExplainReport) -> Iterator[str]:
    """One line for each limit, and for the devices where these are the objective."""
    devices = report.proof.devices
    if devices is not None:
        what = (
            count(round(devices.total), "device")
            if devices.what == "devices"
            else f"{devices.total:.6g} an hour for {count(len(report.ranks), 'device')}"
        )
        least = "the fewest" if devices.what == "devices" else "the least"
        if devices.proved:
            yield f"{what}: {least} that keep the limits (proved)"
        else:
            yield f"{what}: {least} found; below {devices.bound:.6g} is ruled out"
    for limit in report.limits:
        yield f"{_kept(limit)}{_cost(limit, report)}"


def _kept(limit: LimitShown) -> str:
    if limit.limit == "max_latency_s":
        return f"latency {format_seconds(limit.actual)}, at most {format_seconds(limit.allowed)}"
    if limit.limit == "min_items_per_s":
        return f"{rate(limit.actual)} items/s, at least {rate(limit.allowed)}"
    return f"{count(round(limit.actual), 'device')}, at most {limit.allowed:.0f}"


def _cost(limit: LimitShown, report: ExplainReport) -> str:
    """What the objective would be without it."""
    objective_s = report.proof.objective_s
    if limit.without_s is None or objective_s <= 0:
        return ""
    saved = 1 - limit.without_s / objective_s
    if saved < FREE:
        return ": costs nothing"
    what = "latency" if report.result.objective.counts_latency else "period"
    return f": without this limit the {what} is {format_seconds(limit.without_s)} ({-saved:.1%})"
