"""What to try where nothing in particular was asked: every single change that could matter.

Each device gone, each twice as fast, each with twice the memory, each distinct link ten times as
fast. Of devices, hosts and links that differ in nothing but their names, one stands for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from planner.changes import (
    Change,
    FasterDevice,
    FasterLink,
    FasterWire,
    MoreMemory,
    RemoveDevice,
    World,
)
from planner.microbatches import microbatch_sizes
from planner.problem import PlanningProblem
from profiler.cluster import Cluster, Link
from profiler.upgrade_links import DEFAULT

DEVICE_FACTOR = 2.0
LINK_FACTOR = 10.0
MEMORY_FACTOR = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A change to try, and how many others would do the same."""

    change: Change
    alike: int = 0


def default_questions(world: World) -> tuple[Question, ...]:
    """The changes to try, those of devices first.

    Raises:
        InvalidInputError: the world's parts contradict each other.
    """
    smallest = microbatch_sizes(world.profile, world.request).smallest
    problem = PlanningProblem.build(
        world.profile, world.request, cluster=world.cluster, microbatch=smallest
    )
    return (*_of_devices(problem, world.machines), *_of_links(problem, world.machines))


def _of_devices(problem: PlanningProblem, cluster: Cluster) -> Iterator[Question]:
    groups = list(problem.classes)
    if all(cluster.root not in members for members in groups):
        groups.insert(0, (cluster.root,))
    for members in groups:
        alike = len(members) - 1
        if len(cluster.device) > 1:
            yield Question(change=RemoveDevice(place=members[0]), alike=alike)
        if members[0] in problem.class_of:
            yield Question(
                change=FasterDevice(device=members[0], factor=DEVICE_FACTOR), alike=alike
            )
        yield Question(change=MoreMemory(device=members[0], factor=MEMORY_FACTOR), alike=alike)


def _of_links(problem: PlanningProblem, cluster: Cluster) -> Iterator[Question]:
    wires: dict[str, None] = {}
    found: dict[object, list[FasterLink]] = {}
    places = _kinds_of_place(problem, cluster)
    entries = {(x.source, x.target): x for x in cluster.links}
    for (source, target), link in entries.items():
        if link.shares is not None:
            wires[link.shares] = None
            continue
        back = entries.get((target, source))
        both = back is not None and back.shares is None
        if both and list(entries).index((target, source)) < list(entries).index((source, target)):
            continue  # asked with the other direction
        key = (places[source], places[target], _figures(link), _figures(back) if both else None)
        found.setdefault(key, []).append(
            FasterLink(source=source, target=target, factor=LINK_FACTOR, both=both)
        )
    for host in cluster.hosts:
        if host.inner_link is not None and len(host.devices) > 1:
            inside = FasterLink(source=host.name, target=host.name, factor=LINK_FACTOR)
            found.setdefault((places[host.name], str(host.inner_link)), []).append(inside)
    for group in cluster.groups:
        inside = FasterLink(source=group.name, target=group.name, factor=LINK_FACTOR)
        found.setdefault(group.name, []).append(inside)
    for wire in wires:
        yield Question(change=FasterWire(wire=wire, factor=LINK_FACTOR))
    for links in found.values():
        yield Question(change=links[0], alike=len(links) - 1)
    if _uses_default(problem, cluster):
        yield Question(change=FasterLink(source=DEFAULT, target=DEFAULT, factor=LINK_FACTOR))


def _kinds_of_place(problem: PlanningProblem, cluster: Cluster) -> Mapping[str, object]:
    """Equal for devices of one class, and for hosts whose devices are."""
    known: dict[str, object] = {name: problem.class_of.get(name, name) for name in cluster.device}
    for host in cluster.hosts:
        known[host.name] = tuple(known[f"{host.name}/{x.name}"] for x in host.devices)
    return known


def _figures(link: Link | None) -> object:
    return None if link is None else link.replaced(source="", target="")


def _uses_default(problem: PlanningProblem, cluster: Cluster) -> bool:
    """Whether two kinds of device have nothing but the default between them."""
    named = {(x.source, x.target) for x in cluster.links}
    for (source, target), _ in problem.kinds_of_link():
        hosts = cluster.host_of[source].name, cluster.host_of[target].name
        if {(source, target), (source, hosts[1]), (hosts[0], target), hosts} & named:
            continue
        if cluster.common_link(*hosts) is cluster.default_link:
            return True
    return False
