"""Links corrected by the times that messages of a run took.

One message takes ``latency + bytes / bandwidth``. Messages of several sizes give both (least
squares of relative errors) if the smallest is small enough for the latency to matter; else, and
where there is one size, only one of them: the larger part of the time is set so that the time
agrees, the smaller one is believed.

An entry of the cluster may stand for several pairs of devices (host to host, or the default). It
is corrected for all of them where those that were measured agree within :data:`SAME`; else each
measured pair gets an entry of its own. Links that share a wire are left alone: their messages also
wait for those of others, which the cost model adds up itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from profiler.cluster import Cluster, Link
from profiler.evidence import LinkEvidence
from profiler.units import format_bytes, format_bytes_per_s, format_seconds

LEAST_SAMPLES = 3
SAME = 0.05
"""Figures closer than this are taken to be of one kind."""

SEVERAL = 2.0
"""Sizes further apart than this tell latency from bandwidth."""

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefittedLinks:
    """The corrected cluster; what changed and what was not used, as lines for people."""

    cluster: Cluster
    used: int
    changes: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Point:
    """Messages of one size: their mean time, over so many."""

    num_bytes: int
    time_s: float
    samples: int
    spread: float


def refit_links(cluster: Cluster, evidence: Sequence[LinkEvidence]) -> RefittedLinks:
    """The links of ``cluster`` corrected; its devices are those of the evidence."""
    ignored: list[str] = []
    entries: dict[Pair, dict[Pair, list[_Point]]] = defaultdict(dict)
    for pair, points in _points(evidence, ignored).items():
        link = cluster.link(*pair)
        if link.shares is not None:
            ignored.append(f"{pair[0]} -> {pair[1]} shares a wire with others")
        else:
            entries[_entry(cluster, pair)][pair] = points
    changed: dict[Pair, Link] = {}
    used = 0
    for entry, pairs in entries.items():
        used += len(pairs)
        if _agree(cluster, pairs):
            pooled = [point for points in pairs.values() for point in points]
            changed[entry] = _fitted(cluster.link(*next(iter(pairs))), entry, pooled)
        else:
            for pair, points in pairs.items():
                changed[pair] = _fitted(cluster.link(*pair), pair, points)
    links = {(link.source, link.target): link for link in cluster.links}
    before = {pair: links.get(pair) or cluster.link(*_example(cluster, pair)) for pair in changed}
    return RefittedLinks(
        cluster=cluster.replaced(links=tuple({**links, **changed}.values())),
        used=used,
        changes=tuple(
            _change(before[pair], link)
            for pair, link in changed.items()
            if (before[pair].latency_s, before[pair].bytes_per_s)
            != (link.latency_s, link.bytes_per_s)
        ),
        ignored=tuple(ignored),
    )


def _points(evidence: Sequence[LinkEvidence], ignored: list[str]) -> Mapping[Pair, list[_Point]]:
    """What was measured between each pair, by size; too few messages are no measurement."""
    sizes: dict[Pair, dict[int, list[LinkEvidence]]] = defaultdict(lambda: defaultdict(list))
    for one in evidence:
        if one.samples >= LEAST_SAMPLES:
            sizes[one.source, one.target][one.num_bytes].append(one)
        else:
            ignored.append(
                f"{one.source} -> {one.target}: {one.samples} messages of "
                f"{format_bytes(one.num_bytes)} are fewer than {LEAST_SAMPLES}"
            )
    return {
        pair: [_mean(num_bytes, ones) for num_bytes, ones in sorted(found.items())]
        for pair, found in sizes.items()
    }


def _mean(num_bytes: int, ones: Sequence[LinkEvidence]) -> _Point:
    samples = sum(one.samples for one in ones)
    return _Point(
        num_bytes,
        sum(one.samples * one.time_s for one in ones) / samples,
        samples,
        max(one.spread for one in ones),
    )


def _entry(cluster: Cluster, pair: Pair) -> Pair:
    """What of the cluster file says how this pair is linked; for the default, its two hosts."""
    source, target = pair
    hosts = (cluster.host_of[source].name, cluster.host_of[target].name)
    named = {(link.source, link.target) for link in cluster.links}
    for entry in (pair, (source, hosts[1]), (hosts[0], target)):
        if entry in named:
            return entry
    return hosts


def _example(cluster: Cluster, entry: Pair) -> Pair:
    """A pair of devices that an entry is about."""
    ends = [
        end if "/" in end else next(n for n in cluster.device if cluster.host_of[n].name == end)
        for end in entry
    ]
    return ends[0], ends[1]


def _agree(cluster: Cluster, pairs: Mapping[Pair, Sequence[_Point]]) -> bool:
    """Whether one link can stand for all pairs: equally far from what was expected."""
    ratios = []
    for pair, points in pairs.items():
        link = cluster.link(*pair)
        expected = sum(link.transfer_time_s(point.num_bytes) for point in points)
        ratios.append(sum(point.time_s for point in points) / expected if expected else 1.0)
    return max(ratios) <= min(ratios) * (1 + SAME)


def _fitted(link: Link, entry: Pair, points: Sequence[_Point]) -> Link:
    sizes = [point.num_bytes for point in points]
    if max(sizes) >= SEVERAL * min(sizes):
        latency_s, bytes_per_s = _line(link, points)
    else:
        latency_s, bytes_per_s = _one_size(link, points)
    found = link.model_copy(
        update={
            "source": entry[0],
            "target": entry[1],
            "latency_s": _kept(link.latency_s, latency_s),
            "bytes_per_s": _kept(link.bytes_per_s, bytes_per_s),
        }
    )
    samples = sum(point.samples for point in points)
    residual = sqrt(
        sum(p.samples * (found.transfer_time_s(p.num_bytes) / p.time_s - 1) ** 2 for p in points)
        / samples
    )
    error = max(residual, max(point.spread for point in points) / 2)
    return found.model_copy(update={"error_fraction": float(f"{error:.4g}")})


def _line(link: Link, points: Sequence[_Point]) -> tuple[float, float]:
    """Least squares of ``(latency + bytes / bandwidth) / time - 1``, weighted by samples."""
    a = b = c = d = e = 0.0
    for point in points:
        one, size = 1 / point.time_s, point.num_bytes / point.time_s
        a += point.samples * one * one
        b += point.samples * one * size
        c += point.samples * size * size
        d += point.samples * one
        e += point.samples * size
    determinant = a * c - b * b
    latency_s = (d * c - e * b) / determinant
    slope = (a * e - b * d) / determinant
    least = min(points, key=lambda point: point.num_bytes)
    if slope > 0 and latency_s >= slope * least.num_bytes:
        return latency_s, 1 / slope
    kept_s = _bounded(link, min(point.time_s for point in points))
    if slope <= 0:
        # Larger messages were not slower: the wire is not what takes the time.
        return max(kept_s, (d - b / link.bytes_per_s) / a), link.bytes_per_s
    # Even the smallest took most of its time to move: these messages say little of the latency
    # (one right behind another hides it).
    return kept_s, c / (e - kept_s * b)


def _one_size(link: Link, points: Sequence[_Point]) -> tuple[float, float]:
    samples = sum(point.samples for point in points)
    time_s = sum(point.samples * point.time_s for point in points) / samples
    size = sum(point.samples * point.num_bytes for point in points) / samples
    moving_s = size / link.bytes_per_s
    if link.latency_s > moving_s and time_s > moving_s:
        return time_s - moving_s, link.bytes_per_s
    latency_s = link.latency_s if time_s > link.latency_s else _bounded(link, time_s)
    return latency_s, size / (time_s - latency_s)


def _bounded(link: Link, time_s: float) -> float:
    """The latency as it was, at most half of a whole message's time."""
    return min(link.latency_s, time_s / 2)


def _kept(before: float, after: float) -> float:
    """The figure before if the new one says the same."""
    return before if abs(after - before) <= 1e-9 * before else after


def _change(before: Link, after: Link) -> str:
    return (
        f"{after.source} -> {after.target}: {format_seconds(before.latency_s)} and "
        f"{format_bytes_per_s(before.bytes_per_s)} became {format_seconds(after.latency_s)} and "
        f"{format_bytes_per_s(after.bytes_per_s)}"
    )
