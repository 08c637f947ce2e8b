"""What a plan owes to figures that nobody measured, and what it costs at both ends of their range.

Used by what makes plans and by what checks them; each brings the prices that it derived itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

from planner.planfile import HypotheticalEstimate, HypotheticalPart
from profiler.cluster import Cluster
from profiler.interval import (
    End,
    cluster_at,
    has_hypothetical_links,
    is_hypothetical,
    profile_at,
)
from profiler.profile import Profile


class Priced(Protocol):
    """What a plan costs, by whichever code derived it."""

    @property
    def period_s(self) -> float:
        """Seconds between finished batches."""

    @property
    def latency_s(self) -> float:
        """Seconds of one batch alone."""


def hypothetical_estimate(
    profile: Profile,
    cluster: Cluster,
    *,
    devices: Sequence[str],
    wires: Collection[str],
    price: Callable[[Profile, Cluster], Priced],
) -> HypotheticalEstimate | None:
    """The range of a decision that uses these devices and wires; None if all was measured.

    ``price`` is what the decision costs by other figures.
    """
    if not is_hypothetical(profile, cluster):
        return None
    parts = tuple(_parts(profile, cluster, devices, wires))
    if not parts:
        return None
    low, high = (price(profile_at(profile, end), cluster_at(cluster, end)) for end in End)
    return HypotheticalEstimate(
        parts=parts,
        period_low_s=low.period_s,
        period_high_s=high.period_s,
        latency_low_s=low.latency_s,
        latency_high_s=high.latency_s,
    )


def _parts(
    profile: Profile, cluster: Cluster, devices: Sequence[str], wires: Collection[str]
) -> Iterator[HypotheticalPart]:
    for device in devices:
        mark = profile.timings_of[device].hypothetical
        if mark is not None:
            yield HypotheticalPart(where=device, basis=mark.basis)
    if not has_hypothetical_links(cluster):
        return
    marks = {
        (source, target): basis
        for source in devices
        for target in devices
        if source != target and (basis := _link_basis(cluster, source, target, wires)) is not None
    }
    for (source, target), basis in marks.items():
        if marks.get((target, source)) != basis:
            yield HypotheticalPart(where=f"{source} -> {target}", basis=basis)
        elif devices.index(source) < devices.index(target):
            yield HypotheticalPart(where=f"{source} <-> {target}", basis=basis)


def _link_basis(cluster: Cluster, source: str, target: str, wires: Collection[str]) -> str | None:
    """What the figures of a link rest on, if it is in use and nobody measured it."""
    link = cluster.link(source, target)
    if link.hypothetical is None or (link.shares or f"{source} -> {target}") not in wires:
        return None
    return link.hypothetical.basis
