"""What is left when a device is gone: for each one with a stage, the best plan that does without.

Each is a search of its own on the cluster without the device. Devices that differ in nothing but
their names lose the same, so one search answers for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from planner.alternatives import Chosen
from planner.device_search import search_plan
from planner.planfile import Plan
from planner.problem import PlanningProblem
from planner.request import PlanRequest
from planner.search import Search
from planner.searchrecord import Fallback, SearchRecord
from planner.selection import fold
from planner.solvers.base import TOLERANCE, StageAssignment
from planner.unreachable import has_limits
from profiler.cluster import Cluster
from profiler.errors import InvalidInputError
from profiler.profile import Profile
from profiler.units import format_bytes

LEAST_S = 0.5
"""Seconds that every search gets, however little is left of the time limit."""


def with_fallbacks(plan: Plan, profile: Profile, *, cluster: Cluster | None = None) -> Plan:
    """``plan`` with ``search.fallbacks``: the best plan without each device that has a stage.

    All searches together get the request's time limit once more. Pins of layers to the missing
    device are lifted. ``cluster`` is what the plan was made for, if not the profile's.
    """
    machines = cluster or profile.cluster
    request = plan.inputs.request
    end = time.monotonic() + request.limits.time_s
    groups = _alike(plan, profile, machines)
    found = []
    for left, devices in zip(range(len(groups), 0, -1), groups, strict=True):
        part = max(LEAST_S, (end - time.monotonic()) / left)
        limits = request.limits.replaced(time_s=min(part, request.limits.time_s))
        asked = lifted(request, devices[0], machines).replaced(limits=limits)
        found.append(_fallback(plan.search, profile, machines, asked, devices))
    search = plan.search.replaced(fallbacks=tuple(found))
    return plan.model_copy(update={"search": search})


def _alike(plan: Plan, profile: Profile, cluster: Cluster) -> list[tuple[str, ...]]:
    """The devices with a stage in the plan's order, those that are equal together."""
    problem = PlanningProblem.build(
        profile,
        plan.inputs.request,
        cluster=cluster,
        microbatch=plan.spec.schedule.microbatch_size,
    )
    kind = {device: members for members in problem.classes for device in members}
    named = {binding.rank: binding.device for binding in plan.spec.ranks}
    groups: dict[tuple[str, ...], dict[str, None]] = {}
    for pipeline in plan.spec.pipelines:
        for stage in pipeline.stages:
            for rank in stage.ranks:
                device = named[rank]
                groups.setdefault(kind.get(device, (device,)), {})[device] = None
    return [tuple(members) for members in groups.values()]


def without_device(cluster: Cluster, device: str) -> Cluster | None:
    """``cluster`` without ``device`` and what names it; None if nothing is left to compute on.

    Where it was the first device, inputs enter and answers leave at the next one.
    """
    hosts = tuple(
        host.replaced(
            devices=tuple(own for own in host.devices if f"{host.name}/{own.name}" != device)
        )
        for host in cluster.hosts
    )
    if not any(host.devices for host in hosts):
        return None
    links = tuple(link for link in cluster.links if device not in (link.source, link.target))
    return cluster.replaced(hosts=hosts, links=links)


def lifted(request: PlanRequest, device: str, cluster: Cluster) -> PlanRequest:
    """``request`` without what it says of ``device``, or of a type that only it has."""
    others = {name: x.type for name, x in cluster.device.items() if name != device}
    kept = {*others, *others.values()}
    return request.replaced(
        pins=tuple(x for x in request.pins if x.device != device),
        forbids=tuple(x for x in request.forbids if x.device != device),
        max_bytes={name: size for name, size in request.max_bytes.items() if name != device},
        prices_per_hour={
            name: price for name, price in request.prices_per_hour.items() if name in kept
        },
    )


def _fallback(
    present: SearchRecord,
    profile: Profile,
    cluster: Cluster,
    request: PlanRequest,
    devices: tuple[str, ...],
) -> Fallback:
    fewer = without_device(cluster, devices[0])
    if fewer is None:
        return Fallback(devices=devices, note="no other device is left")
    try:
        search = search_plan(profile, request, fewer).search
    except InvalidInputError as error:
        return Fallback(devices=devices, note=str(error).splitlines()[0])
    if search.best is None:
        return Fallback(devices=devices, note=_nothing(search, profile, fewer))
    objective_s = search.best.objective_s
    return Fallback(
        devices=devices,
        objective_s=objective_s,
        slowdown=objective_s / present.objective_s - 1 if present.objective_s > 0 else None,
        plan=describe(search.best),
        note="; ".join(_notes(search, cluster, devices[0])),
    )


def _nothing(search: Search, profile: Profile, fewer: Cluster) -> str:
    """Why there is no plan, with what the model weighs and what there is to hold it."""
    if not search.infeasible:
        return "no plan was found in the time; whether one fits is open"
    if has_limits(search.request):
        return f"no plan on the {len(fewer.device)} devices left keeps every limit (proved)"
    free = max(device.usable_bytes for device in fewer.device.values())
    return (
        f"nothing fits (proved): the model weighs {format_bytes(profile.model.total_weight_bytes)},"
        f" the largest of {len(fewer.device)} devices left has {format_bytes(free)}"
    )


def _notes(search: Search, cluster: Cluster, device: str) -> Iterator[str]:
    assert search.best is not None
    if device == cluster.root:
        yield f"inputs enter at {search.best.problem.cluster.root} then"
    if search.gap > TOLERANCE:
        yield f"proved to {search.gap:.1%}"


def describe(chosen: Chosen) -> str:
    """Who runs what, in a line: stages of a pipeline by ``->``, pipelines by ``|``."""
    names = [layer.name for layer in chosen.problem.graph.layers]

    def stage_text(stage: StageAssignment) -> str:
        alone = len(stage.devices) == 1
        who = " + ".join(
            device if alone else f"{device} ({share})"
            for device, share in zip(stage.devices, stage.shares, strict=True)
        )
        return f"{who}: {', '.join(fold([names[i] for i in stage.layers], names))}"

    return " | ".join(
        " -> ".join(stage_text(stage) for stage in pipeline.stages)
        for pipeline in chosen.assignment.pipelines
    )
