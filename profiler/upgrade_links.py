"""A profile with faster links, and links that are only known by their standard."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

from profiler.catalogue import CatalogueLink
from profiler.cluster import LOOPBACK_BYTES_PER_S, Cluster, DefaultLink, Link
from profiler.errors import InvalidInputError
from profiler.hypothetical import Hypothetical, marked
from profiler.interval import scaled_link
from profiler.places import places_of
from profiler.profile import Profile

DEFAULT = "default"
"""As both ends of a link: what holds between devices that no entry names."""

_AnyLink = TypeVar("_AnyLink", Link, DefaultLink)


def with_link_speed(profile: Profile, source: str, target: str, factor: float) -> Profile:
    """``profile`` with messages from ``source`` to ``target`` ``factor`` times as fast.

    The ends are devices or hosts; a host or a group twice is what it has inside; both ``default``
    is what the cluster has where it names nothing else.

    Raises:
        InvalidInputError: no such place, nothing between them, or a factor that is not above 0.
    """
    require_factor(factor)
    cluster, basis = profile.cluster, f"{source} -> {target} {factor:g} times as fast"
    if source == target == DEFAULT:
        faster = _faster(cluster.default_link, factor, f"default link {factor:g} times as fast")
        return profile.replaced(cluster=cluster.replaced(default_link=faster))
    for group in cluster.groups:
        if source == target == group.name:
            inner = _faster(group.inner_link, factor, basis)
            groups = tuple(
                x.replaced(inner_link=inner) if x.name == group.name else x for x in cluster.groups
            )
            return profile.replaced(cluster=cluster.replaced(groups=groups))
    senders, receivers = places_of(cluster, source), places_of(cluster, target)
    within = {
        (x.source, x.target) for x in cluster.links if x.source in senders and x.target in receivers
    }
    links = [
        _faster(x, factor, basis) if (x.source, x.target) in within else x for x in cluster.links
    ]
    # Pairs for which an entry of wider ends holds, or none: they get one of their own.
    named = {(x.source, x.target) for x in cluster.links}
    other = [
        pair
        for pair in _pairs(cluster, senders, receivers)
        if _entry(cluster, pair, named) not in within
    ]
    hosts = {x.name for x in cluster.hosts}
    if other and {source, target} <= hosts:
        pattern = cluster.link(*other[0]).replaced(source=source, target=target)
        links.append(_faster(pattern, factor, basis))
    else:
        links += [
            _faster(cluster.link(*pair).replaced(source=pair[0], target=pair[1]), factor, basis)
            for pair in other
        ]
    if not within and not other:
        raise InvalidInputError(
            f"there is no link {source} -> {target}: a device sends itself nothing"
        )
    return profile.replaced(cluster=cluster.replaced(links=tuple(links)))


def with_wire_speed(profile: Profile, wire: str, factor: float) -> Profile:
    """``profile`` with all links that share a wire ``factor`` times as fast.

    Raises:
        InvalidInputError: no such wire, or a factor that is not above 0.
    """
    require_factor(factor)
    cluster = profile.cluster
    known = sorted({x.shares for x in cluster.links if x.shares is not None})
    if wire not in known:
        raise InvalidInputError(
            f"no links share a wire {wire!r}; "
            + (f"there is {', '.join(known[:6])}" if known else "none share any")
        )
    basis = f"wire {wire} {factor:g} times as fast"
    links = tuple(_faster(x, factor, basis) if x.shares == wire else x for x in cluster.links)
    return profile.replaced(cluster=cluster.replaced(links=links))


def require_factor(factor: float) -> None:
    """Refuse what is no factor.

    Raises:
        InvalidInputError: it is not a number above 0.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise InvalidInputError(f"a factor is a number above 0, as in x10; not x{factor:g}")


def links_by_standard(
    cluster: Cluster, one: str, other: str, link: CatalogueLink, *, within: bool
) -> Iterator[Link]:
    """Both directions of a link by its standard, with what the cluster's links say of the software
    that uses it; ``within`` a host or between hosts.

    Bandwidth between what the standard carries and what this cluster's messages were seen to
    reach; latency between the least and the largest of its links of the same kind.
    """
    same, every = _known_links(cluster, within=within), _known_links(cluster, within=None)
    latencies = sorted(x.latency_s for x in same or every)
    latency_s = latencies[len(latencies) // 2]
    best = link.bytes_per_s
    reached = max([LOOPBACK_BYTES_PER_S, *(x.bytes_per_s for x in every)])
    worst = min(best * link.worst_fraction, reached)
    likely = math.sqrt(best * worst)
    low, high = likely / best, likely / worst
    if latency_s:
        low, high = min(low, latencies[0] / latency_s), max(high, latencies[-1] / latency_s)
    pattern = (same or every)[0]
    for source, target in ((one, other), (other, one)):
        yield Link(
            source=source,
            target=target,
            latency_s=latency_s,
            bytes_per_s=likely,
            send_occupancy=pattern.send_occupancy,
            receive_occupancy=pattern.receive_occupancy,
            shares=f"{link.name} of {one}" if link.half_duplex else None,
            hypothetical=Hypothetical(
                basis=f"standard of {link.name}, software as on the links that were measured",
                low=max(min(low, 1.0), 1e-6),
                high=max(high, 1.0),
            ),
        )


def _known_links(cluster: Cluster, *, within: bool | None) -> list[Link | DefaultLink]:
    """Links of the file that are no assumptions: inside hosts, between them, or all of them.

    Those that were measured, if any were.
    """
    host_of = {name: host.name for name, host in cluster.host_of.items()}
    found: list[Link | DefaultLink] = [
        x
        for x in cluster.links
        if within is None
        or within == (host_of.get(x.source, x.source) == host_of.get(x.target, x.target))
    ]
    measured = [x for x in found if isinstance(x, Link) and x.error_fraction is not None]
    if measured:
        return [*measured]
    if within is not False:
        found += [x.inner_link for x in cluster.hosts if x.inner_link is not None]
    if within is not True:
        found += [x.inner_link for x in cluster.groups]
    found = [x for x in found if x.hypothetical is None]
    return found if found or within is not None else [cluster.default_link]


def _faster(link: _AnyLink, factor: float, basis: str) -> _AnyLink:
    return scaled_link(link, 1 / factor).replaced(hypothetical=marked(link.hypothetical, basis))


def _pairs(
    cluster: Cluster, senders: Sequence[str], receivers: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Devices of the ends, each with each."""
    for source in senders:
        for target in receivers:
            if source != target and {source, target} <= cluster.device.keys():
                yield source, target


def _entry(
    cluster: Cluster, pair: tuple[str, str], named: set[tuple[str, str]]
) -> tuple[str, str] | None:
    """The ends of the entry of ``links`` that holds between two devices, as the cluster looks."""
    source, target = pair
    hosts = cluster.host_of[source].name, cluster.host_of[target].name
    ways = (pair, (source, hosts[1]), (hosts[0], target), hosts)
    return next((way for way in ways if way in named), None)
