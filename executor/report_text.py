"""A RunReport for people: predicted beside measured, one line a figure."""

from __future__ import annotations

from collections.abc import Iterator

from executor.report import Compared, RunReport
from profiler.units import format_bytes, format_seconds

OFF = 0.10
"""Figures further off than this are marked."""


def report_lines(report: RunReport) -> Iterator[str]:
    """The report as lines of at most 100 columns."""
    yield (
        f"{report.num_items} items in {report.steps} batch{'es' if report.steps != 1 else ''}: "
        f"{format_seconds(report.wall_s)}  (ranks ready after {format_seconds(report.start_s)})"
    )
    yield f"{'':<34}{'predicted':>12}{'measured':>12}{'ratio':>8}"
    for name, compared in (
        ("time between batches", report.period_s),
        ("time of one batch", report.latency_s),
    ):
        if compared.measured is not None:
            yield _line(name, compared, format_seconds)
    if report.items_per_s.measured is not None:
        yield _line("items per second", report.items_per_s, lambda value: f"{value:.4g}")
    for rank in report.ranks:
        if rank.stage is not None:
            label = f"{rank.stage} rank {rank.rank}, {rank.items_per_piece} items"
            yield _line(label, rank.compute_s, format_seconds)
    for rank in report.ranks:
        yield _line(f"peak memory rank {rank.rank}", rank.memory_bytes, format_bytes)


def _line(label: str, compared: Compared, show: object) -> str:
    assert callable(show)
    predicted = "-" if compared.predicted is None else show(compared.predicted)
    measured = "-" if compared.measured is None else show(compared.measured)
    ratio = "-" if compared.ratio is None else f"{compared.ratio:.2f}"
    off = compared.ratio is not None and abs(compared.ratio - 1) > OFF
    return f"  {label:<32}{predicted:>12}{measured:>12}{ratio:>8}{'   <- off' if off else ''}"
