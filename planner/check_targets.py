"""Whether a plan keeps the limits that its request sets on times and devices.

Independent of everything that makes plans.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.derive import Derived
from planner.findings import Finding, Severity, error
from planner.planfile import Plan
from planner.request import Objective
from profiler.cluster import Cluster
from profiler.units import format_seconds

ROUNDING = 1e-9
"""Fraction by which a figure may exceed its limit."""


def target_findings(
    plan: Plan, derived: Derived, cluster: Cluster, *, severity: Severity
) -> Iterator[Finding]:
    """Every limit that the plan breaks; and what it says of limits and devices that is not so.

    ``severity`` is that of statements which do not hold; a broken limit is an error.
    """
    request = plan.inputs.request
    held = [binding.device for binding in plan.spec.ranks]
    if request.max_latency_s is not None and _over(derived.latency_s, request.max_latency_s):
        yield error(
            "max-latency",
            "spec",
            f"one batch takes {format_seconds(derived.latency_s)}; the request allows "
            f"{format_seconds(request.max_latency_s)}",
        )
    rate = request.min_items_per_s
    if rate is not None and _over(rate, derived.items_per_s):
        yield error(
            "min-rate",
            "spec",
            f"it finishes {derived.items_per_s:.6g} items/s; the request wants {rate:.6g}",
        )
    if request.max_devices is not None and len(held) > request.max_devices:
        yield error(
            "max-devices",
            "spec.ranks",
            f"it has ranks on {len(held)} devices; the request allows {request.max_devices}",
        )
    actual = {
        "max_latency_s": (request.max_latency_s, derived.latency_s),
        "min_items_per_s": (rate, derived.items_per_s),
        "max_devices": (request.max_devices, float(len(held))),
    }
    for position, said in enumerate(plan.search.limits):
        allowed, real = actual[said.limit]
        if allowed is None or _differs(said.allowed, allowed) or _differs(said.actual, real):
            yield Finding(
                code="limits",
                severity=severity,
                where=f"search.limits[{position}]",
                message=f"{said.limit} {said.actual:.6g} of {said.allowed:.6g}; it is {real:.6g} "
                f"of {allowed}",
            )
    yield from _devices(plan, cluster, severity)


def _devices(plan: Plan, cluster: Cluster, severity: Severity) -> Iterator[Finding]:
    """What is said of the number or the price of the devices, where that is the objective."""
    objective, said = plan.inputs.request.objective, plan.search.devices
    wanted = objective in (Objective.DEVICES, Objective.PRICE)
    if wanted != (said is not None) or (said is not None and said.what != objective.value):
        has = "nothing" if said is None else said.what
        yield Finding(
            code="devices",
            severity=severity,
            where="search.devices",
            message=f"it counts {has}; the request's objective is {objective.value}",
        )
        return
    if said is None:
        return
    real = devices_total(plan, cluster)
    if real is None:
        yield error("devices", "search.devices", "a device of the plan has no price")
    elif _differs(said.total, real):
        yield Finding(
            code="devices",
            severity=severity,
            where="search.devices.total",
            message=f"{said.total:.6g} -> {real:.6g}",
        )
    if said.bound > said.total * (1 + ROUNDING):
        yield error(
            "devices",
            "search.devices.bound",
            f"the bound {said.bound:.6g} is above the total {said.total:.6g}",
        )
    if plan.search.status == "optimal" and _differs(said.bound, said.total):
        yield error("status", "search.status", "it says optimal, and fewer are not ruled out")


def devices_total(plan: Plan, cluster: Cluster) -> float | None:
    """How many devices have a rank; or, where the price is the objective, what they cost an hour.

    Prices are those of the request by name, else by type, else of the cluster; None without one.
    """
    held = [binding.device for binding in plan.spec.ranks]
    if plan.inputs.request.objective is not Objective.PRICE:
        return float(len(held))
    asked, total = plan.inputs.request.prices_per_hour, 0.0
    for name in held:
        device = cluster.device[name]
        for price in (asked.get(name), asked.get(device.type), device.price_per_hour):
            if price is not None:
                total += price
                break
        else:
            return None
    return total


def _over(value: float, most: float) -> bool:
    return value > most * (1 + ROUNDING)


def _differs(one: float, other: float) -> bool:
    return not abs(one - other) <= 5.1e-5 * max(abs(one), abs(other), 1e-12)
