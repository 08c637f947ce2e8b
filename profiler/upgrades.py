"""A profile as it would be with one thing changed: a device more, something faster, more memory.

Every function returns a new profile; what it changed is marked as hypothetical, with its reason and
range. Removing a device needs no such thing: planning on a cluster without it does. Links are in
``profiler.upgrade_links``.
"""

from __future__ import annotations

from collections.abc import Iterator

from profiler.catalogue import CatalogueDevice, CatalogueLink
from profiler.cluster import Cluster, Device, Host, Link
from profiler.errors import InvalidInputError
from profiler.hypothetical import marked
from profiler.interval import scaled_timings
from profiler.places import find_device, find_host
from profiler.profile import DeviceTimings, Profile
from profiler.sheet_times import sheet_timings
from profiler.units import format_bytes
from profiler.upgrade_links import links_by_standard, require_factor


def on_cluster(profile: Profile, cluster: Cluster) -> Profile:
    """``profile`` for a cluster with other memory or links, or with fewer devices.

    Raises:
        InvalidInputError: the cluster has a device that the profile does not cover.
    """
    strange = [name for name in cluster.device if name not in profile.timings_of]
    if strange:
        raise InvalidInputError(
            f"the profile has no timings for {', '.join(strange[:4])}: drop them from the cluster"
        )
    kept = []
    for timings in profile.timings:
        left = tuple(name for name in timings.devices if name in cluster.device)
        if left:
            kept.append(timings if left == timings.devices else timings.replaced(devices=left))
    return profile.replaced(cluster=cluster, timings=tuple(kept))


def with_device(
    profile: Profile,
    entry: CatalogueDevice,
    *,
    link: CatalogueLink | None,
    host: str | None = None,
    memory_bytes: int | None = None,
) -> tuple[Profile, str]:
    """``profile`` with a catalogue's device more, and the device's full name.

    Without ``host`` it is on a new one, with ``link`` to all others; else in that host, with
    ``link`` to the host's devices and to others what the host's first device has. Without ``link``
    it has what the cluster's file says for devices that it does not name.

    Raises:
        InvalidInputError: no such host, no memory known, or no data-sheet peak for the model.
    """
    size = entry.memory_bytes if memory_bytes is None else memory_bytes
    if size is None:
        raise InvalidInputError(
            f"{entry.name} comes with as much memory as is bought: say how much, as in "
            f'"{entry.name} with 64GiB"'
        )
    cluster = profile.cluster
    place = _new_host(cluster, entry.name) if host is None else find_host(cluster, host)
    device = Device(
        name=_free_name(place, entry.device_kind),
        type=entry.title,
        kind=entry.device_kind,
        memory_bytes=size,
        threads=(entry.cores or 1) if entry.device_kind == "cpu" else 1,
    )
    name = f"{place.name}/{device.name}"
    grown = place.replaced(devices=(*place.devices, device))
    hosts = (
        (*cluster.hosts, grown)
        if host is None
        else tuple(grown if x.name == place.name else x for x in cluster.hosts)
    )
    links = _new_links(cluster, place, name, link, inside=host is not None)
    return profile.replaced(
        cluster=cluster.replaced(hosts=hosts, links=(*cluster.links, *links)),
        timings=(*profile.timings, sheet_timings(profile, name, entry)),
    ), name


def with_speed(profile: Profile, device: str, factor: float) -> Profile:
    """``profile`` with one device ``factor`` times as fast: all its times divided by it.

    Raises:
        InvalidInputError: no such device, or a factor that is not above 0.
    """
    require_factor(factor)
    basis = f"{device} {factor:g} times as fast as measured"
    return _with_timings(profile, device, basis, factor)


def with_memory(profile: Profile, device: str, factor: float) -> Profile:
    """``profile`` with ``factor`` times the memory on one device; what is taken now stays taken.

    Raises:
        InvalidInputError: no such device, or a factor that is not above 0.
    """
    require_factor(factor)
    cluster = profile.cluster
    before = find_device(cluster, device)
    size = max(1, round(before.memory_bytes * factor))
    free = None
    if before.free_bytes is not None:
        free = max(0, before.usable_bytes + size - before.memory_bytes)
    after = before.replaced(memory_bytes=size, free_bytes=free)
    host = cluster.host_of[device]
    others = [after if x.name == before.name else x for x in host.devices]
    changed = host.replaced(devices=tuple(others))
    hosts = [changed if x.name == host.name else x for x in cluster.hosts]
    basis = f"{device} with {format_bytes(size)} in place of {format_bytes(before.memory_bytes)}"
    moved = _with_timings(profile, device, basis, 1.0)
    return moved.replaced(cluster=cluster.replaced(hosts=tuple(hosts)))


def _with_timings(profile: Profile, device: str, basis: str, factor: float) -> Profile:
    """One device with times of its own, divided by ``factor`` and marked."""
    find_device(profile.cluster, device)
    found: list[DeviceTimings] = []
    for timings in profile.timings:
        if device not in timings.devices:
            found.append(timings)
            continue
        rest = tuple(name for name in timings.devices if name != device)
        if rest:
            where = rest[0] if timings.measured_on == device else timings.measured_on
            found.append(timings.replaced(devices=rest, measured_on=where))
        own = timings if factor == 1.0 else scaled_timings(timings, 1 / factor)
        found.append(
            own.replaced(
                measured_on=device,
                devices=(device,),
                hypothetical=marked(timings.hypothetical, basis),
            )
        )
    return profile.replaced(timings=tuple(found))


def _new_links(
    cluster: Cluster, host: Host, device: str, link: CatalogueLink | None, *, inside: bool
) -> Iterator[Link]:
    """The links of a device that is new in ``host``, or of a new host."""
    if not inside:
        if link is not None:
            for other in cluster.hosts:
                yield from links_by_standard(cluster, host.name, other.name, link, within=False)
        return
    if link is not None:
        yield from links_by_standard(cluster, device, host.name, link, within=True)
    if not host.devices:
        return
    pattern = f"{host.name}/{host.devices[0].name}"
    own = {f"{host.name}/{x.name}" for x in host.devices} | {host.name}
    for known in cluster.links:
        # What the host's first device has to others, by entries of its own.
        if known.source == pattern and known.target not in own:
            yield known.replaced(source=device)
        elif known.target == pattern and known.source not in own:
            yield known.replaced(target=device)


def _new_host(cluster: Cluster, wanted: str) -> Host:
    taken = {x.name for x in cluster.hosts} | {x.name for x in cluster.groups}
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return Host(name=name, devices=())


def _free_name(host: Host, kind: str) -> str:
    taken = {x.name for x in host.devices}
    return next(name for i in range(len(taken) + 1) if (name := f"{kind}:{i}") not in taken)
