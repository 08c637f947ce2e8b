"""A profile and a cluster with hypothetical times at one end of their range.

A plan's estimate is computed a second and a third time on these: what it costs if the hypothetical
devices and links turn out as fast, or as slow, as may be expected. Measured figures stay.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from profiler.cluster import Cluster, DefaultLink, Link
from profiler.hypothetical import Hypothetical
from profiler.profile import DeviceTimings, Profile

_AnyLink = TypeVar("_AnyLink", Link, DefaultLink)


class End(StrEnum):
    """An end of the range of hypothetical times: all of them low, or all of them high."""

    LOW = "low"
    HIGH = "high"


def is_hypothetical(profile: Profile, cluster: Cluster) -> bool:
    """Whether any figure of these is."""
    return any(x.hypothetical for x in profile.timings) or has_hypothetical_links(cluster)


def has_hypothetical_links(cluster: Cluster) -> bool:
    """Whether any link of the cluster is."""
    inside = [host.inner_link for host in cluster.hosts if host.inner_link is not None]
    groups = [group.inner_link for group in cluster.groups]
    common = [*inside, *groups, cluster.default_link]
    return any(x.hypothetical for x in cluster.links) or any(x.hypothetical for x in common)


def profile_at(profile: Profile, end: End) -> Profile:
    """``profile`` with the hypothetical times of devices and links at ``end``."""
    return profile.replaced(
        cluster=cluster_at(profile.cluster, end),
        timings=tuple(
            x if x.hypothetical is None else scaled_timings(x, _factor(x.hypothetical, end))
            for x in profile.timings
        ),
    )


def cluster_at(cluster: Cluster, end: End) -> Cluster:
    """``cluster`` with the times of hypothetical links at ``end``."""
    if not has_hypothetical_links(cluster):
        return cluster
    return cluster.replaced(
        links=tuple(_link_at(x, end) for x in cluster.links),
        default_link=_link_at(cluster.default_link, end),
        hosts=tuple(
            x if x.inner_link is None else x.replaced(inner_link=_link_at(x.inner_link, end))
            for x in cluster.hosts
        ),
        groups=tuple(x.replaced(inner_link=_link_at(x.inner_link, end)) for x in cluster.groups),
    )


def scaled_timings(timings: DeviceTimings, factor: float) -> DeviceTimings:
    """All times of a device multiplied by ``factor``; memory as it is."""
    return timings.replaced(
        dispatch_s=timings.dispatch_s * factor,
        layers={
            twin: tuple(row.replaced(median_s=row.median_s * factor) for row in rows)
            for twin, rows in timings.layers.items()
        },
        segments=tuple(
            x.replaced(predicted_s=x.predicted_s * factor, median_s=x.median_s * factor)
            for x in timings.segments
        ),
        slices=tuple(
            x.replaced(whole_s=x.whole_s * factor, part_s=x.part_s * factor) for x in timings.slices
        ),
    )


def scaled_link(link: _AnyLink, factor: float) -> _AnyLink:
    """A link whose messages take ``factor`` times as long, whatever their size."""
    return link.replaced(latency_s=link.latency_s * factor, bytes_per_s=link.bytes_per_s / factor)


def _link_at(link: _AnyLink, end: End) -> _AnyLink:
    return link if link.hypothetical is None else scaled_link(link, _factor(link.hypothetical, end))


def _factor(mark: Hypothetical, end: End) -> float:
    return mark.low if end is End.LOW else mark.high
