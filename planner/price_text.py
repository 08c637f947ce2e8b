"""What wishes and unused splits cost, in words for text and Markdown alike."""

from __future__ import annotations

from planner.screen import cut
from planner.shown import ExplainReport, SplitPriceShown, WishShown
from profiler.units import format_seconds

MOST_FREE = 6
"""Wishes that cost nothing that are named in one line."""

PLAN_WIDTH = 120
"""Columns that a plan may take among the reasons."""


def wish_entries(report: ExplainReport) -> list[tuple[str, str]]:
    """Each wish with its price, the dearest first; those that cost nothing in one line."""
    ours = report.proof.objective_s
    priced = [x for x in report.wishes if x.verdict != "free"]
    entries = [(x.wish, _price(x, ours)) for x in sorted(priced, key=lambda x: -(x.gain_s or 0.0))]
    free = [
        x.wish + (f" ({x.note})" if x.note else "") for x in report.wishes if x.verdict == "free"
    ]
    if free:
        more = len(free) - MOST_FREE
        listed = "; ".join(free[:MOST_FREE]) + (f"; {more} more" if more > 0 else "")
        entries.append(("costs nothing" if len(free) == 1 else "cost nothing", listed))
    return entries


def split_entries(report: ExplainReport) -> list[tuple[str, str]]:
    """Each way to split that the plan does not use, with what it would cost."""
    return [(x.split, _loss(x, report.proof.objective_s)) for x in report.splits]


def _price(x: WishShown, ours: float) -> str:
    if x.verdict == "skipped":
        return f"not priced: {x.note}"
    if x.verdict == "open" or x.gain_s is None or x.objective_s is None:
        most = max(0.0, ours - (x.bound_s or 0.0))
        return f"no better plan without it was found; it costs at most {format_seconds(most)}"
    part = f" ({-x.gain_s / ours:+.1%})" if ours > 0 else ""
    better = f"costs {format_seconds(x.gain_s)}: {format_seconds(x.objective_s)}{part} without it"
    if x.bound_s is not None and x.bound_s < x.objective_s * (1 - 1e-4):
        better += f", or even {format_seconds(x.bound_s)}"
    return f"{better}; {cut(x.plan, PLAN_WIDTH)}" if x.plan else better


def _loss(x: SplitPriceShown, ours: float) -> str:
    if x.verdict == "impossible":
        return f"impossible: {x.note}"
    if x.verdict == "skipped":
        return f"not priced: {x.note}"
    if x.objective_s is None:
        least = "" if x.bound_s is None else f"; none is below {format_seconds(x.bound_s)}"
        return f"{x.note}{least}"
    if x.verdict == "free":
        text = f"as good, {x.note}" if x.note else "as good"
    else:
        part = f"{(x.loss_s or 0.0) / ours:+,.1%}, " if ours > 0 else ""
        least = "" if _proved(x) else f", at least {format_seconds(x.bound_s or 0.0)}"
        among = f" {x.note}" if x.note else ""
        text = f"{part}{format_seconds(x.objective_s)} at best{among}{least}"
    return f"{text}: {cut(x.plan, PLAN_WIDTH)}" if x.plan else text


def _proved(x: SplitPriceShown) -> bool:
    return (
        x.bound_s is not None
        and x.objective_s is not None
        and (x.bound_s >= x.objective_s * (1 - 1e-4))
    )
