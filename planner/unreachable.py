"""Limits on times and devices that no plan keeps together: by how much, and what would do.

Each remedy is found by a search with one limit as the objective and the others kept: what is listed
works, alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.device_search import search_plan
from planner.request import Objective, PlanRequest
from planner.search import Search
from planner.solvers.base import TOLERANCE
from profiler.cluster import Cluster
from profiler.errors import Conflict, InfeasiblePlanError
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
    """What is possible of one limit while the others are kept: words for each part."""

    what: str
    needed: str
    found: str
    remedy: str


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
    if not found:
        names = ", ".join(_limits(request))
        found = [
            _Possible(
                what="the request",
                needed=names,
                found="no plan keeps them all, nor all but one of them",
                remedy="raise more than one of the limits",
            )
        ]
    return InfeasiblePlanError(
        [Conflict(what=x.what, needed=x.needed, available=x.found, remedy=x.remedy) for x in found],
        evidence=evidence,
    )


def _limits(request: PlanRequest) -> Iterator[str]:
    if request.min_items_per_s is not None:
        yield f"at least {request.min_items_per_s:g} items/s"
    if request.max_latency_s is not None:
        yield f"a latency of at most {format_seconds(request.max_latency_s)}"
    if request.max_devices is not None:
        yield f"at most {request.max_devices} devices"


def _within(request: PlanRequest, skip: str) -> str:
    """The other limits, in words."""
    others = list(_limits(request.model_copy(update={skip: None})))
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
    yield _Possible(
        what=f"the wanted rate{_within(request, 'min_items_per_s')}",
        needed=f"{wanted:.6g} items/s",
        found=_proved(f"the best plan has {best:.4g} items/s", f"{bound:.4g}", found, "above"),
        remedy=f"lower min_items_per_s from {wanted:.6g} to {_down(best):.4g} or less",
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
    yield _Possible(
        what=f"the wanted latency{_within(request, 'max_latency_s')}",
        needed=f"at most {format_seconds(wanted)}",
        found=_proved(
            f"the best plan has {format_seconds(best)}", format_seconds(bound), found, "below"
        ),
        remedy=f"raise max_latency_s from {format_seconds(wanted)} to {format_seconds(_up(best))} "
        "or more",
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
    yield _Possible(
        what="the plan",
        needed=f"{total} devices{_within(request, 'max_devices')}",
        found=f"the request allows {wanted}",
        remedy=f"raise max_devices from {wanted} to {total}",
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
