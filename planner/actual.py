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

OFF = 0.10
"""A measured figure further than this from its estimate is marked."""

Unit = Literal["s", "bytes", "items/s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Actual:
    """One figure as estimated and as measured; ``ratio`` is measured over estimated."""

    what: str
    unit: Unit
    predicted: float | None
    measured: float | None
    ratio: float | None

    @property
    def is_off(self) -> bool:
        """Whether the estimate was wrong by more than a tenth."""
        return self.ratio is not None and abs(self.ratio - 1) > OFF


def read_actuals(plan: Plan, report: Mapping[str, object]) -> tuple[Actual, ...]:
    """The figures of a run of ``plan``, whole first, then rank by rank.

    Raises:
        InvalidInputError: not a RunReport, or one of another plan.
    """
    if report.get("kind") != "RunReport":
        raise InvalidInputError("the report is not a RunReport; write one with apportion run")
    if report.get("plan_id") != plan.plan_id:
        raise InvalidInputError(
            f"the report is of plan {str(report.get('plan_id'))[:80]}, this is {plan.plan_id[:80]}"
        )
    return tuple(x for x in _figures(report) if x.measured is not None)


def _figures(report: Mapping[str, object]) -> Iterator[Actual]:
    yield _actual("time between batches", "s", report.get("period_s"))
    yield _actual("time of one batch", "s", report.get("latency_s"))
    yield _actual("throughput", "items/s", report.get("items_per_s"))
    ranks = report.get("ranks")
    for rank in ranks if isinstance(ranks, list) else []:
        if isinstance(rank, dict):
            name = f"rank {rank.get('rank')} {rank.get('stage') or ''}".rstrip()
            yield _actual(f"{name} compute", "s", rank.get("compute_s"))
            yield _actual(f"{name} memory", "bytes", rank.get("memory_bytes"))


def _actual(what: str, unit: Unit, compared: object) -> Actual:
    figures = compared if isinstance(compared, dict) else {}
    predicted, measured = _number(figures.get("predicted")), _number(figures.get("measured"))
    both = predicted is not None and measured is not None and predicted > 0
    return Actual(
        what=what,
        unit=unit,
        predicted=predicted,
        measured=measured,
        ratio=measured / predicted if both and measured is not None and predicted else None,
    )


def _number(value: object) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and isinstance(value, (int, float)) else None
