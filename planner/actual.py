"""What a run measured, beside what the plan had estimated: read from a RunReport as data.

The executor owns the RunReport document; this reads the figures that both sides name, and nothing
else of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from planner.planfile import Plan
from profiler.errors import InvalidInputError
from profiler.units import format_bytes

OFF = 0.10
"""A measured figure further than this from its estimate is marked."""

Unit = Literal["s", "bytes", "items/s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Actual:
    """One figure as estimated and as measured; ``ratio`` is measured over estimated.

    ``note`` says why there is nothing measured, where it is known.
    """

    what: str
    unit: Unit
    predicted: float | None
    measured: float | None
    ratio: float | None
    note: str = ""

    @property
    def is_off(self) -> bool:
        """Whether the estimate was wrong by more than a tenth."""
        return self.ratio is not None and abs(self.ratio - 1) > OFF

    @property
    def distance(self) -> float:
        """How wrong the estimate was, the same for twice and for half; 0 within a tenth."""
        if not self.is_off or not self.ratio:
            return 0.0
        return max(self.ratio, 1 / self.ratio)


def read_actuals(plan: Plan, report: Mapping[str, object]) -> tuple[Actual, ...]:
    """The figures of a run of ``plan``: the whole first, then stages, ranks and links.

    Raises:
        InvalidInputError: not a RunReport, or one of another plan.
    """
    if report.get("kind") != "RunReport":
        raise InvalidInputError("the report is not a RunReport; write one with apportion run")
    if report.get("plan_id") != plan.plan_id:
        raise InvalidInputError(
            f"the report is of plan {str(report.get('plan_id'))[:80]}, this is {plan.plan_id[:80]}"
        )
    return tuple(x for x in _figures(report) if x.measured is not None or x.note)


def _figures(report: Mapping[str, object]) -> Iterator[Actual]:
    yield _actual("time between batches", "s", report.get("period_s"))
    yield _actual("time of one batch", "s", report.get("latency_s"))
    yield _actual("throughput", "items/s", report.get("items_per_s"))
    for stage in _records(report, "stages"):
        slowest = f" (rank {stage.get('slowest_rank')})" if _several(stage) else ""
        yield _actual(f"{stage.get('stage')} busy{slowest}", "s", stage.get("busy_s"))
    for rank in _records(report, "ranks"):
        name = f"rank {rank.get('rank')} {rank.get('stage') or ''}".rstrip()
        yield _actual(f"{name} compute", "s", rank.get("compute_s"))
        yield _actual(f"{name} memory", "bytes", rank.get("memory_bytes"))
    for link in _records(report, "links"):
        yield _link(link)


_SILENT = {
    "hidden": "hidden: never awaited",
    "unresolved": "too quick to measure",
}


def _link(link: Mapping[str, object]) -> Actual:
    size = _number(link.get("num_bytes"))
    what = f"rank {link.get('source')} -> {link.get('target')} {str(link.get('tensor'))[:24]}"
    if size is not None:
        what += f" {format_bytes(size)}"
    note = _SILENT.get(str(link.get("state")), "")
    return _actual(what, "s", link.get("time_s"), note=note)


def _records(report: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    found = report.get(name)
    return [x for x in found if isinstance(x, dict)] if isinstance(found, list) else []


def _several(stage: Mapping[str, object]) -> bool:
    ranks = stage.get("ranks")
    return isinstance(ranks, list) and len(ranks) > 1


def _actual(what: str, unit: Unit, compared: object, *, note: str = "") -> Actual:
    figures = compared if isinstance(compared, dict) else {}
    predicted, measured = _number(figures.get("predicted")), _number(figures.get("measured"))
    both = predicted is not None and measured is not None and predicted > 0
    return Actual(
        what=what,
        unit=unit,
        predicted=predicted,
        measured=measured,
        ratio=measured / predicted if both and measured is not None and predicted else None,
        note=note,
    )


def _number(value: object) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and isinstance(value, (int, float)) else None
