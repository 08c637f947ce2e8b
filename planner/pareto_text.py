"""A front as a table that fits 80 columns, and in one line what is proved of it."""

from __future__ import annotations

from collections.abc import Iterator

from planner.frontfile import FrontPoint, ParetoFront
from planner.screen import count, percent, rate
from profiler.units import format_seconds

PROVED = 1e-9
"""A relative gap that is none."""

HEADS = ("#", "devices", "latency", "gap", "items/s", "gap", "period", "price/h", "proof")


def table_rows(front: ParetoFront) -> Iterator[tuple[str, ...]]:
    """A row of text for each point, under ``HEADS``; without prices their column is empty."""
    for point in front.points:
        yield (
            str(point.number),
            str(point.devices),
            format_seconds(point.latency_s),
            _gap(point.latency_s, point.latency_bound_s),
            rate(point.items_per_s),
            _gap(point.period_s, point.period_bound_s),
            format_seconds(point.period_s),
            "" if point.price_per_hour is None else f"{point.price_per_hour:.4g}",
            proof_text(point),
        )


def proof_text(point: FrontPoint) -> str:
    """What is proved of a point, in a few words."""
    if point.proved:
        return "proved"
    return "within the gaps" if point.fewest else "fewer devices?"


def _gap(value: float, bound: float) -> str:
    """How much better another plan may be in a time; 0 where none is."""
    if value <= bound * (1 + PROVED):
        return "0"
    return percent(value / bound - 1) if bound > 0 else "?"


def plain_table(front: ParetoFront) -> str:
    """The table without colours, for files and pipes."""
    rows = list(table_rows(front))
    used = [i for i in range(len(HEADS)) if i != _PRICE or any(row[_PRICE] for row in rows)]
    wide = [max(len(HEADS[i]), *(len(row[i]) for row in rows)) for i in used]
    lines = ["  ".join(_cell(HEADS[i], w, i) for i, w in zip(used, wide, strict=True))]
    lines += [
        "  ".join(_cell(row[i], w, i) for i, w in zip(used, wide, strict=True)) for row in rows
    ]
    return "\n".join([*(line.rstrip() for line in lines), "", *summary(front)])


def summary(front: ParetoFront) -> Iterator[str]:
    """How much of the front this is, and how sure."""
    proved = sum(point.proved for point in front.points)
    points = count(len(front.points), "point")
    if proved == len(front.points):
        yield f"{points}, all proved: no plan is as good in all three and better in one"
    else:
        yield f"{points}, {proved} proved: no plan is as good in all three and better in one;"
        yield "of the others: a plan may be better in a time by its gap, or need fewer devices"
    if front.open_regions:
        yield (
            f"{count(front.open_regions, 'part')} of the front not searched to the end: "
            "a longer --time-limit finds more"
        )
    elif front.complete:
        yield f"complete: there are no others (latencies closer than {front.step:g} are one)"
    yield "devices: those with a rank; the first one, which feeds and gathers, always has"


_PRICE = HEADS.index("price/h")


def _cell(text: str, width: int, column: int) -> str:
    return text.ljust(width) if column == len(HEADS) - 1 else text.rjust(width)
