"""A RunReport for people: predicted beside measured, one line a figure, the worst in words."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence

from executor.report import Compared, LinkReport, RunReport
from profiler.units import format_bytes, format_seconds

WIDTH = 100
MOST_LINKS = 12
"""Links shown: those that are off first; the JSON form has all."""

MOST_TIMES = 999
"""Larger ratios are of figures that were expected to be next to nothing."""

Row = tuple[str, Compared, Callable[[float], str]]


def report_lines(report: RunReport) -> Iterator[str]:
    """The report as lines of at most 100 columns."""
    yield (
        f"{report.num_items} items in {report.steps} batch{'es' if report.steps != 1 else ''}: "
        f"{format_seconds(report.wall_s)}  (ranks ready after {format_seconds(report.start_s)})"
    )
    yield f"{'':<44}{'predicted':>12}{'measured':>12}{'ratio':>8}"
    rows = list(_rows(report))
    worst = max((_distance(compared) for _, compared, _ in rows), default=0.0)
    for label, compared, show in rows:
        yield _line(label, compared, show, worst=_distance(compared) == worst)
    silent = [link for link in report.links if link.state != "measured"]
    yield from _unmeasured(silent)
    left_out = len(report.links) - len(silent) - len(_shown(report))
    if left_out > 0:
        yield f"  ... {left_out} more links within a tenth (the JSON form has all)"
    off = sum(compared.off for _, compared, _ in rows)
    if off:
        yield f"  {off} of {len(rows)} figures are more than 10 % off: apportion refit learns it"


def _rows(report: RunReport) -> Iterator[Row]:
    for name, compared in (
        ("time between batches", report.period_s),
        ("time of one batch", report.latency_s),
    ):
        if compared.measured is not None:
            yield name, compared, format_seconds
    if report.items_per_s.measured is not None:
        yield "items per second", report.items_per_s, lambda value: f"{value:.4g}"
    for stage in report.stages:
        slowest = f" (slowest: rank {stage.slowest_rank})" if len(stage.ranks) > 1 else ""
        yield f"{stage.stage} busy{slowest}", stage.busy_s, format_seconds
    for rank in report.ranks:
        if rank.stage is not None:
            label = f"rank {rank.rank} compute, {rank.items_per_piece} items"
            yield label, rank.compute_s, format_seconds
    for link in _shown(report):
        label = f"rank {link.source} -> {link.target}  {link.tensor[:18]}"
        yield f"{label} {format_bytes(link.num_bytes)}", link.time_s, format_seconds
    for rank in () if report.rehearsed else report.ranks:
        yield f"rank {rank.rank} peak memory", rank.memory_bytes, format_bytes


def _shown(report: RunReport) -> Sequence[LinkReport]:
    """At most so many measured links, in their order: those furthest off."""
    measured = [link for link in report.links if link.state == "measured"]
    far = sorted(measured, key=lambda link: -_distance(link.time_s))[:MOST_LINKS]
    return [link for link in measured if link in far]


def _unmeasured(links: Sequence[LinkReport]) -> Iterator[str]:
    """What has no measured time, and why."""
    reasons = {
        "hidden": "hidden behind computing: their receivers never had to wait for them",
        "unresolved": "faster than the clocks of their hosts can be compared",
    }
    for state, reason in reasons.items():
        pairs = dict.fromkeys((x.source, x.target) for x in links if x.state == state)
        if pairs:
            shown = ", ".join(f"{a} -> {b}" for a, b in list(pairs)[:6])
            more = f" and {len(pairs) - 6} more" if len(pairs) > 6 else ""
            kinds = sum(x.state == state for x in links)
            what = "1 kind of message is" if kinds == 1 else f"{kinds} kinds of message are"
            text = f"  {what} {reason} (rank {shown}{more})"
            yield from textwrap.wrap(text, WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def _distance(compared: Compared) -> float:
    """How far a figure is off, the same for twice and for half; 0 within a tenth."""
    if not compared.off or not compared.ratio:
        return 0.0
    return max(compared.ratio, 1 / compared.ratio)


def _line(label: str, compared: Compared, show: Callable[[float], str], *, worst: bool) -> str:
    predicted = "-" if compared.predicted is None else show(compared.predicted)
    measured = "-" if compared.measured is None else show(compared.measured)
    ratio = "-" if compared.ratio is None else _times(compared.ratio)
    mark = "" if not compared.off else "   <- off, the worst" if worst else "   <- off"
    return f"  {label[:41]:<42}{predicted:>12}{measured:>12}{ratio:>8}{mark}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < MOST_TIMES else f">{MOST_TIMES}"
