"""Random requests with wishes of every kind, and requests without some of them, for property tests.

The lifting here is written apart from ``planner.limits``, which it judges.
"""

from __future__ import annotations

import random
from collections.abc import Collection

from planner.cost import CostModel
from planner.limits import Limit
from planner.problem import PlanningProblem
from planner.request import Forbid, Pin, PlanRequest, Split
from planner.solvers.base import SolveLimits, SolverResult
from planner.solvers.exhaustive import ExhaustiveSolver
from profiler.cluster import Cluster, Device, Host
from profiler.errors import InvalidInputError
from profiler.profile import Profile
from tests.support.worlds import World

Variant = tuple[Profile, PlanRequest, Cluster]


def with_wishes(rng: random.Random, world: World, *, caps: bool = True) -> World:
    """``world`` with more pins, forbids, layers together, caps and limits on stages."""
    profile, request, microbatch = world
    names = list(profile.cluster.device)
    layers = [layer.name for layer in profile.model.layers]
    some = rng.choice(layers)
    changes: dict[str, object] = {}
    if rng.random() < 0.6:
        pin = Pin(layers=some, device=rng.choice(names))
        changes["pins"] = (*request.pins, pin)
    if rng.random() < 0.5:
        which = rng.choice((None, rng.choice(layers)))
        changes["forbids"] = (Forbid(device=rng.choice(names), layers=which),)
    if rng.random() < 0.4 and len(layers) > 2:
        at = rng.randrange(len(layers) - 1)
        changes["keep_together"] = (f"l{at}..{at + 1}",)
    if rng.random() < 0.4:
        changes["max_stages"] = rng.choice((1, 2))
    if caps and rng.random() < 0.4:
        device = rng.choice(names)
        has = profile.cluster.device[device].usable_bytes
        changes["max_bytes"] = {device: max(1, int(has * rng.choice((0.3, 0.6))))}
    if rng.random() < 0.4:
        changes["microbatch_size"] = None
    return profile, request.replaced(**changes), microbatch


def lifted(profile: Profile, request: PlanRequest, gone: Collection[Limit]) -> Variant:
    """The question without some limits: wishes left out, memory endless, one item a batch."""
    fields = {name: getattr(request, name) for name in PlanRequest.model_fields}
    roomy: set[str] = set()
    dropped: dict[str, set[int]] = {"pin": set(), "forbid": set(), "keep_together": set()}
    for limit in gone:
        match limit.kind.value:
            case "pin" | "forbid" | "keep_together" as kind:
                dropped[kind].add(limit.position)
            case "max_stages":
                fields["max_stages"] = None
            case "microbatch_size":
                fields["microbatch_size"] = None
            case "batch_size":
                fields["batch_size"], fields["microbatch_size"] = 1, None
            case "reserve_bytes":
                fields["reserve_bytes"] = 0
            case "splits":
                fields["splits"] = (*fields["splits"], Split(limit.subject))
            case "max_bytes":
                fields["max_bytes"] = {
                    name: n for name, n in fields["max_bytes"].items() if name != limit.subject
                }
            case "memory":
                roomy.update(limit.devices)
    for kind, field in (("pin", "pins"), ("forbid", "forbids"), ("keep_together", "keep_together")):
        fields[field] = tuple(x for i, x in enumerate(fields[field]) if i not in dropped[kind])
    return profile, PlanRequest(**fields), resized(profile.cluster, dict.fromkeys(roomy, 2**50))


def resized(cluster: Cluster, sizes: dict[str, int]) -> Cluster:
    """``cluster`` where some devices have other memory."""
    hosts = []
    for host in cluster.hosts:
        devices = []
        for device in host.devices:
            size = sizes.get(f"{host.name}/{device.name}")
            devices.append(
                device
                if size is None
                else Device(name=device.name, type=device.type, memory_bytes=size)
            )
        hosts.append(Host(name=host.name, devices=tuple(devices)))
    return Cluster(hosts=tuple(hosts), links=cluster.links, default_link=cluster.default_link)


def best_of(variant: Variant, microbatch: int) -> SolverResult | None:
    """The true best plan at a microbatch size; None where wishes exclude each other."""
    profile, request, cluster = variant
    try:
        problem = PlanningProblem.build(profile, request, cluster=cluster, microbatch=microbatch)
    except InvalidInputError:
        return None
    return ExhaustiveSolver().solve(problem, cost=CostModel(problem), limits=SolveLimits())


def fits(variant: Variant) -> bool:
    """Whether any plan fits, at whatever microbatch size the request allows."""
    request = variant[1]
    asked = request.microbatch_size
    sizes = [asked] if asked is not None else list(range(1, request.batch_size + 1))
    for size in sizes:
        result = best_of(variant, size)
        if result is not None and result.assignment is not None:
            return True
    return False
