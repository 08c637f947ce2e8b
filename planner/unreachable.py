"""Limits on times and devices that no plan keeps together: by how much, and what would do.

Each remedy is found by a search with one limit as the objective and the others kept: what is listed
works, alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.device_search import search_plan
from planner.request import Objective, PlanRequest
from planner.screen import count
from planner.search import Search
from planner.solvers.base import TOLERANCE
from profiler.cluster import Cluster
from profiler.errors import Change, Conflict, InfeasiblePlanError
from profiler.profile import Profile
from profiler.units import format_seconds


def has_limits(request: PlanRequest) -> bool:
    """Whether ``request`` limits times or devices of a plan as a whole."""
    return any(
        x is not None for x in (request.max_latency_s, request.min_items_per_s, request.max_devices)
    )


def without_limits(request: PlanRequest) -> PlanRequest:
    """The same without limits on times and devices, for the throughput if these need one."""
    goal = Objective.THROUGHPUT if request.objective.of_devices else request.objective
    return request.replaced(
        objective=goal, max_latency_s=None, min_items_per_s=None, max_devices=None
    )


@dataclass(frozen=True, slots=True)
class _Possible:
    """What is possible of one limit while the others are kept, and the change that it takes."""

    reason: str
    change: Change


def explain_limits(
    profile: Profile, request: PlanRequest, *, cluster: Cluster | None, evidence: str
) -> InfeasiblePlanError | None:
    """The error for limits that clash; None if nothing fits even without them."""
    part_s = max(1.0, request.limits.time_s / 4)
    base = request.replaced(
        objective=Objective.THROUGHPUT, limits=request.limits.replaced(time_s=part_s)
    )
    search = Search(profile, without_limits(base), cluster, goal_s=float("inf"))
    search.run()
    if search.best is None:
        return None
    found = [way for look in (_rate, _latency, _devices) for way in look(profile, base, cluster)]
    change = {x.change.limit: x.change for x in found}
    return InfeasiblePlanError(
        [
            Conflict(limit=limit, subject="", text=text, change=change.get(limit))
            for limit, text in _limits(request)
        ],
        reason=found[0].reason if found else "no plan keeps all limits but one, whichever that is",
        remedies=[(x.change,) for x in found],
        evidence=evidence,
    )


def _limits(request: PlanRequest) -> Iterator[tuple[str, str]]:
    """The limits on times and devices by field, in words."""
    if request.min_items_per_s is not None:
        yield "min_items_per_s", f"at least {request.min_items_per_s:g} items/s"
    if request.max_latency_s is not None:
        yield "max_latency_s", f"a latency of at most {format_seconds(request.max_latency_s)}"
    if request.max_devices is not None:
        yield "max_devices", f"at most {count(request.max_devices, 'device')}"


def _within(request: PlanRequest, skip: str) -> str:
    """The other limits, in words."""
    others = [text for limit, text in _limits(request) if limit != skip]
    return f" with {' and '.join(others)}" if others else ""


def _best(
    profile: Profile, request: PlanRequest, cluster: Cluster | None
) -> tuple[float, float] | None:
    """The least objective seen, and what is proved of it."""
    search = search_plan(profile, request, cluster).search
    return None if search.best is None else (search.best.objective_s, search.bound_s)


def _rate(profile: Profile, request: PlanRequest, cluster: Cluster | None) -> Iterator[_Possible]:
    wanted = request.min_items_per_s
    if wanted is None:
        return
    asked = request.replaced(objective=Objective.THROUGHPUT, min_items_per_s=None)
    found = _best(profile, asked, cluster)
    if found is None or found[0] <= 0:
        return
    best, bound = (request.batch_size / x if x > 0 else float("inf") for x in found)
    said = _proved(f"the best plan has {best:.4g} items/s", f"{bound:.4g}", found, "above")
    others = _within(request, "min_items_per_s")
    yield _Possible(
        f"the wanted rate{others} needs {wanted:.6g} items/s, but {said}",
        Change(
            limit="min_items_per_s",
            subject="",
            text=f"lower min_items_per_s from {wanted:.6g} to {_down(best):.4g} or less",
        ),
    )


def _latency(
    profile: Profile, request: PlanRequest, cluster: Cluster | None
) -> Iterator[_Possible]:
    wanted = request.max_latency_s
    if wanted is None:
        return
    asked = request.replaced(objective=Objective.LATENCY, max_latency_s=None)
    found = _best(profile, asked, cluster)
    if found is None:
        return
    best, bound = found
    ours, theirs = format_seconds(best), format_seconds(bound)
    said = _proved(f"the best plan has {ours}", theirs, found, "below")
    others = _within(request, "max_latency_s")
    yield _Possible(
        f"the wanted latency{others} needs at most {format_seconds(wanted)}, but {said}",
        Change(
            limit="max_latency_s",
            subject="",
            text=f"raise max_latency_s from {format_seconds(wanted)} to "
            f"{format_seconds(_up(best))} or more",
        ),
    )


def _devices(
    profile: Profile, request: PlanRequest, cluster: Cluster | None
) -> Iterator[_Possible]:
    wanted = request.max_devices
    if wanted is None or (request.min_items_per_s is None and request.max_latency_s is None):
        return
    asked = request.replaced(objective=Objective.DEVICES, max_devices=None)
    made = search_plan(profile, asked, cluster)
    if made.search.best is None or made.devices is None:
        return
    total = round(made.devices.total)
    others = _within(request, "max_devices")
    yield _Possible(
        f"the plan{others} needs {count(total, 'device')}, but the request allows {wanted}",
        Change(
            limit="max_devices",
            subject="",
            text=f"raise max_devices from {wanted} to {total}",
            now=wanted,
            becomes=total,
        ),
    )


def _proved(said: str, bound: str, found: tuple[float, float], side: str) -> str:
    """What was found, and what is ruled out beyond it."""
    best, proved = found
    if best <= proved * (1 + TOLERANCE):
        return f"{said}, nothing {side} that is possible (proved)"
    return f"{said}; nothing {side} {bound} is possible"


def _down(value: float) -> float:
    """Four digits that are not above ``value``."""
    written = float(f"{value:.4g}")
    return written if written <= value * (1 + TOLERANCE) else float(f"{value * (1 - 5e-4):.4g}")


def _up(value: float) -> float:
    """Three digits that are not below ``value``."""
    written = float(f"{value:.3g}")
    return written if written >= value * (1 - TOLERANCE) else float(f"{value * 1.005:.3g}")
