"""What a reviewer should know about a plan before trusting its figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.alternatives import Chosen, Rival
from planner.cost import CostModel
from planner.planfile import Estimate, PlanWarning, place
from planner.solvers.base import TOLERANCE
from profiler.units import format_seconds

MOST_PARTS = 3
"""Hypothetical devices and links that a warning names."""


def plan_warnings(
    chosen: Chosen, rivals: Sequence[Rival], *, gap: float, cost: CostModel, estimate: Estimate
) -> tuple[PlanWarning, ...]:
    """Warnings about the chosen plan, in a fixed order."""
    return (
        *_hypothetical(estimate),
        *_gap(gap),
        *_close_call(chosen, rivals),
        *_extrapolated(chosen, cost),
        *_unstable(chosen),
        *_uneven(chosen),
    )


def _hypothetical(estimate: Estimate) -> Iterator[PlanWarning]:
    range_ = estimate.hypothetical
    if range_ is not None:
        parts = "; ".join(f"{x.where} ({x.basis})" for x in range_.parts[:MOST_PARTS])
        more = len(range_.parts) - MOST_PARTS
        yield PlanWarning(
            code="hypothetical",
            message=f"nobody measured {parts}{f' and {more} more' if more > 0 else ''}: the period "
            f"is expected between {format_seconds(range_.period_low_s)} and "
            f"{format_seconds(range_.period_high_s)}, the latency between "
            f"{format_seconds(range_.latency_low_s)} and {format_seconds(range_.latency_high_s)}",
        )


def _gap(gap: float) -> Iterator[PlanWarning]:
    if gap > TOLERANCE:
        yield PlanWarning(
            code="not-proved",
            message=f"a plan up to {gap:.1%} better than the bound allows was not ruled out; "
            "raise limits.time_s to search longer",
        )


def _close_call(chosen: Chosen, rivals: Sequence[Rival]) -> Iterator[PlanWarning]:
    """A different plan within what the profile can tell apart."""
    error = chosen.problem.profile.error_fraction
    close = [
        (rival.objective_s, rival.name)
        for rival in rivals
        if rival.objective_s is not None
        and rival.assignment != chosen.assignment
        and rival.objective_s > chosen.objective_s * (1 + TOLERANCE)
        and rival.objective_s <= chosen.objective_s * (1 + error)
    ]
    if close:
        objective_s, name = min(close)
        slower = objective_s / chosen.objective_s - 1
        yield PlanWarning(
            code="close-call",
            message=f"the runner-up ({name}) is {slower:.1%} slower, within the profile's error "
            f"of {error:.1%}: profile again to be sure",
        )


def _extrapolated(chosen: Chosen, cost: CostModel) -> Iterator[PlanWarning]:
    for p, pipeline in enumerate(chosen.assignment.pipelines):
        for s, stage in enumerate(pipeline.stages):
            for device, share in zip(stage.devices, stage.shares, strict=True):
                most = cost.figures.most_measured(stage.layers, device)
                if share > most:
                    yield PlanWarning(
                        code="extrapolated",
                        message=f"{place(p, s)}: {device} gets {share} items at once; at most "
                        f"{most} were measured, so its time and memory are extrapolated",
                    )


def _unstable(chosen: Chosen) -> Iterator[PlanWarning]:
    unstable = chosen.problem.profile.conditions.unstable
    if unstable:
        shown = ", ".join(unstable[:4]) + (" ..." if len(unstable) > 4 else "")
        yield PlanWarning(
            code="unstable-profile",
            message=f"{len(unstable)} measurements varied too much to trust ({shown}): profile "
            "again on a quiet machine",
        )


def _uneven(chosen: Chosen) -> Iterator[PlanWarning]:
    size, pipelines = chosen.problem.microbatch, chosen.assignment.pipelines
    for p, pipeline in enumerate(pipelines):
        rest = pipeline.items % size
        if rest:
            whose = f" of pipeline {p}" if len(pipelines) > 1 else ""
            yield PlanWarning(
                code="uneven-microbatch",
                message=f"the last of {-(-pipeline.items // size)} microbatches{whose} has {rest} "
                f"items instead of {size}; the estimate counts it as a whole one",
            )
