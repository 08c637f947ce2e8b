"""What a request and its machines hold a plan to, limit by limit, and the request without some.

Shared by what explains that nothing fits (``planner.clashes``, ``planner.remedies``) and by what
prices the wishes of a plan (``planner.wishes``). Knows no solver.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum

from planner.microbatches import microbatch_sizes
from planner.problem import PlanningProblem
from planner.request import Forbid, Pin, PlanRequest, Split
from profiler.cluster import Cluster
from profiler.profile import Profile
from profiler.units import format_bytes

ENDLESS_BYTES = 2**60
"""As much memory as nobody has."""

MAX_NAMED = 3
"""Devices of a limit that are named."""


class LimitKind(StrEnum):
    """What a limit is about."""

    PIN = "pin"
    FORBID = "forbid"
    KEEP_TOGETHER = "keep_together"
    MAX_STAGES = "max_stages"
    SPLITS = "splits"
    MICROBATCH_SIZE = "microbatch_size"
    BATCH_SIZE = "batch_size"
    MAX_BYTES = "max_bytes"
    RESERVE_BYTES = "reserve_bytes"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit. ``subject`` is the split, the layers or the device that it is about.

    ``position`` is that among the request's limits of this kind. ``devices`` are those whose memory
    it is: equal ones, which are lifted together. ``now`` is its figure (bytes, items, stages) where
    it has one.
    """

    kind: LimitKind
    text: str
    subject: str = ""
    position: int = 0
    devices: tuple[str, ...] = ()
    now: int | None = None


def wishes(request: PlanRequest) -> Iterator[Limit]:
    """The limits that people set: each can be left out of the request."""
    for at, pin in enumerate(request.pins):
        yield Limit(kind=LimitKind.PIN, text=pin_text(pin), subject=pin.layers, position=at)
    for at, forbid in enumerate(request.forbids):
        yield Limit(
            kind=LimitKind.FORBID,
            text=forbid_text(forbid),
            subject=forbid.device,
            position=at,
        )
    for at, selector in enumerate(request.keep_together):
        yield Limit(
            kind=LimitKind.KEEP_TOGETHER,
            text=f"keep_together {selector}",
            subject=selector,
            position=at,
        )
    if request.max_stages is not None:
        most = request.max_stages
        yield Limit(kind=LimitKind.MAX_STAGES, text=f"max_stages {most}", now=most)
    for split in Split:
        if split not in request.splits:
            yield Limit(
                kind=LimitKind.SPLITS, text=f"no {split.value} in splits", subject=split.value
            )
    if request.microbatch_size is not None:
        size = request.microbatch_size
        yield Limit(kind=LimitKind.MICROBATCH_SIZE, text=f"microbatch_size {size}", now=size)
    for device, size in request.max_bytes.items():
        yield Limit(
            kind=LimitKind.MAX_BYTES,
            text=f"max_bytes of {device} ({format_bytes(size)})",
            subject=device,
            devices=(device,),
            now=size,
        )
    if request.reserve_bytes:
        size = request.reserve_bytes
        yield Limit(
            kind=LimitKind.RESERVE_BYTES, text=f"reserve_bytes {format_bytes(size)}", now=size
        )


def pin_text(pin: Pin) -> str:
    """A pin in words."""
    return f"pin of {pin.layers} to {pin.device}"


def forbid_text(forbid: Forbid) -> str:
    """A forbid in words."""
    return f"forbid of {forbid.layers or 'everything'} on {forbid.device}"


def limits_of_feasibility(problem: PlanningProblem) -> tuple[Limit, ...]:
    """Every limit that can keep plans for ``problem``'s request from existing.

    What people set comes first, then the batch, then memory. Pipelines side by side are left out:
    whatever the devices of several hold, those of the first of them hold alone.
    """
    request = problem.request
    found = [
        limit
        for limit in wishes(request)
        if (limit.kind, limit.subject) != (LimitKind.SPLITS, Split.PIPELINES.value)
    ]
    if problem.graph.static_batch is not None:
        found = [limit for limit in found if limit.kind is not LimitKind.MICROBATCH_SIZE]
    elif request.batch_size > 1:
        size = request.batch_size
        found.append(Limit(kind=LimitKind.BATCH_SIZE, text=f"batch_size {size}", now=size))
    if request.reserve_bytes is None:
        most = max(problem.reserve_bytes(device) for device in problem.cluster.device)
        if most:
            text = f"reserve_bytes {format_bytes(most)} as profiled"
            found.append(Limit(kind=LimitKind.RESERVE_BYTES, text=text, now=most))
    for devices in _equal_devices(problem):
        has = problem.cluster.device[devices[0]].usable_bytes
        found.append(
            Limit(
                kind=LimitKind.MEMORY,
                text=f"memory of {named(devices)} ({format_bytes(has)}"
                f"{' each' if len(devices) > 1 else ''})",
                subject=devices[0],
                devices=devices,
                now=has,
            )
        )
    return tuple(found)


def without(request: PlanRequest, lifted: Collection[Limit]) -> PlanRequest:
    """``request`` without these of its limits; memory is the cluster's (``with_memory``)."""
    gone: dict[LimitKind, set[int]] = {}
    for limit in lifted:
        gone.setdefault(limit.kind, set()).add(limit.position)
    freed = {device for x in lifted if x.kind is LimitKind.MAX_BYTES for device in x.devices}
    opened = {limit.subject for limit in lifted if limit.kind is LimitKind.SPLITS}
    changes: dict[str, object] = {}
    for kind, field in (
        (LimitKind.PIN, "pins"),
        (LimitKind.FORBID, "forbids"),
        (LimitKind.KEEP_TOGETHER, "keep_together"),
    ):
        if kind in gone:
            values = getattr(request, field)
            changes[field] = tuple(x for i, x in enumerate(values) if i not in gone[kind])
    if LimitKind.MAX_STAGES in gone:
        changes["max_stages"] = None
    if LimitKind.MICROBATCH_SIZE in gone or LimitKind.BATCH_SIZE in gone:
        changes["microbatch_size"] = None
    if LimitKind.BATCH_SIZE in gone:
        changes["batch_size"] = 1
    if LimitKind.RESERVE_BYTES in gone:
        changes["reserve_bytes"] = 0
    if freed:
        caps = request.max_bytes
        changes["max_bytes"] = {name: size for name, size in caps.items() if name not in freed}
    if opened:
        changes["splits"] = tuple(
            split for split in Split if split in request.splits or split.value in opened
        )
    return request.replaced(**changes) if changes else request


def with_memory(cluster: Cluster, sizes: dict[str, int]) -> Cluster:
    """``cluster`` with other sizes of memory, all of it free, by device."""
    if not sizes:
        return cluster
    hosts = tuple(
        host.model_copy(
            update={
                "devices": tuple(
                    device.model_copy(
                        update={
                            "memory_bytes": sizes[f"{host.name}/{device.name}"],
                            "free_bytes": None,
                        }
                    )
                    if f"{host.name}/{device.name}" in sizes
                    else device
                    for device in host.devices
                )
            }
        )
        for host in cluster.hosts
    )
    return Cluster(
        hosts=hosts,
        groups=cluster.groups,
        links=cluster.links,
        default_link=cluster.default_link,
    )


def least_demanding(profile: Profile, request: PlanRequest) -> int:
    """The microbatch size that needs least memory: what does not fit there fits at no other."""
    return microbatch_sizes(profile, request).smallest


def _equal_devices(problem: PlanningProblem) -> list[tuple[str, ...]]:
    """All devices, equal ones together; those that may hold no layer as they are, by their type
    and memory."""
    groups: dict[object, list[str]] = {}
    for name, device in problem.cluster.device.items():
        at = problem.class_of.get(name)
        capped = name in problem.request.max_bytes
        alone = name == problem.cluster.root or capped
        key: object = name if alone else at
        if key is None:
            key = (device.type, device.usable_bytes)
        groups.setdefault(key, []).append(name)
    return [tuple(names) for names in groups.values()]


def named(devices: tuple[str, ...]) -> str:
    """Equal devices in words."""
    if len(devices) == 1:
        return devices[0]
    if len(devices) <= MAX_NAMED:
        return ", ".join(devices)
    return f"{devices[0]} and {len(devices) - 1} equal devices"
