"""What changes would gain, as text of at most 80 columns: two lines a change, most gain first."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from planner.screen import cut, percent, plain
from planner.supposed import Answer, WhatIf, devices_text
from profiler.units import format_seconds

COLUMNS = 80
CHANGE = 41
"""Columns of a change's name."""
SKIPPED = 3
"""Changes that could not be tried which are shown with their reasons."""


def render_what_if(found: WhatIf, *, name: str) -> str:
    """The table for a terminal."""
    lines = [*_head(found, name), "", *_table(found), *_notes(found)]
    return "\n".join(plain(line).rstrip() for line in lines)


def _head(found: WhatIf, name: str) -> Iterator[str]:
    what = "latency" if found.objective.counts_latency else "period"
    present = found.present
    yield f"What if  {cut(name, 40)}  objective: {found.objective.value}"
    if present is None:
        yield from _wrapped("  now    ", f"no plan: {found.why_not}")
        return
    batch = present.inputs.request.batch_size
    status = "" if present.search.status == "optimal" else f", proved to {present.search.gap:.1%}"
    yield from _wrapped(
        "  now    ",
        f"{what} {format_seconds(present.search.objective_s)} for a batch of {batch}{status}; "
        f"on {devices_text(present)}",
    )


def _table(found: WhatIf) -> Iterator[str]:
    what = "latency" if found.objective.counts_latency else "period"
    yield f"{'':4}{'one change':<{CHANGE}}{what:>11}{'gain':>12}{'':>9}"
    for position, answer in enumerate(found.answers, start=1):
        yield from _rows(position, answer)


def _rows(position: int, x: Answer) -> Iterator[str]:
    star = " *" if x.plan is not None and x.plan.estimate.hypothetical is not None else ""
    if x.plan is None:
        yield f"{position:>3} {cut(x.change, CHANGE - 1):<{CHANGE}}{'none':>11}"
        yield from _wrapped("      ", x.note)
        return
    objective_s = x.objective_s or 0.0
    gain = "fits" if x.gain_s is None else _signed(x.gain_s)
    part = "" if x.gain_fraction is None else percent(x.gain_fraction)
    yield (
        f"{position:>3} {cut(x.change, CHANGE - 1 - len(star)) + star:<{CHANGE}}"
        f"{format_seconds(objective_s):>11}{gain:>12}{part:>9}"
    )
    yield from _wrapped("      ", "; ".join(_details(x)))


def _details(x: Answer) -> Iterator[str]:
    assert x.plan is not None
    if x.range_s is not None:
        yield f"{format_seconds(x.range_s[0])} to {format_seconds(x.range_s[1])}"
        if x.gain_range_s is not None:
            yield f"gain {_signed(x.gain_range_s[0])} to {_signed(x.gain_range_s[1])}"
    yield "the same plan" if x.same else devices_text(x.plan)
    if not x.proved:
        yield f"proved to {x.plan.search.gap:.1%}"
    if x.alike:
        yield f"or the like ({x.alike} more)"
    if x.note:
        yield x.note


def _notes(found: WhatIf) -> Iterator[str]:
    if any(x.plan is not None and x.plan.estimate.hypothetical for x in found.answers):
        yield "  * hypothetical: nobody measured what the plan rests on"
    for text, why in found.skipped[:SKIPPED]:
        yield from _wrapped("  not tried: ", f"{text}: {why}")
    more = len(found.skipped) - SKIPPED
    if more > 0:
        yield f"  not tried: {more} more (--format json has all)"


def _signed(seconds: float) -> str:
    """A gain; a loss with its sign, nothing as 0.

    >>> _signed(0.25), _signed(-0.002), _signed(0.0)
    ('250 ms', '-2.00 ms', '0 s')
    """
    return f"-{format_seconds(-seconds)}" if seconds < 0 else format_seconds(seconds)


def _wrapped(first: str, text: str) -> list[str]:
    return textwrap.wrap(
        plain(first + text), COLUMNS, subsequent_indent=" " * len(first), break_on_hyphens=False
    )
