"""Two plan files with the documents they were made from: their difference at comparable prices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from planner.diff import PlanDiff, diff
from planner.inputs import Sources, find_sources, load_cluster
from planner.planfile import Plan
from planner.reprice import reprice
from profiler.cluster import Cluster
from profiler.errors import ApportionError, StalePlanError
from profiler.profile import DeviceTimings, Profile
from profiler.units import format_bytes_per_s, format_seconds

Named = tuple[Plan, Path]
"""A plan and its file, beside which its documents are looked for."""

MOST_REASONS = 8
TELLING = 0.01
"""Figures of a profile that differ by less than this are not worth a line."""


def compare(before: Named, after: Named, *, profile: Profile | None = None) -> PlanDiff:
    """What differs from one plan to another, both priced on what the second was made from.

    ``profile`` instead of the one that the second names. Where it is not found, or where the first
    plan does not fit it, the estimates stand as they were planned, and ``basis`` says so.

    Raises:
        StalePlanError: ``profile`` is not the one that the second plan was made from.
        InvalidInputError: a document is there and cannot be read.
    """
    (ours, our_file), (theirs, their_file) = before, after
    if profile is None:
        found = find_sources(theirs, their_file)
        current = found if found is not None and _is_of(found, theirs) else None
    else:
        current = Sources(profile=profile, cluster=load_cluster(theirs, their_file, profile))
        if not _is_of(current, theirs):
            raise StalePlanError(
                f"the second plan was not made from this profile and cluster: it names profile "
                f"{theirs.inputs.profile.fingerprint}, this one is {profile.content_digest()}"
            )
    if current is None or ours.inputs.model.graph != theirs.inputs.model.graph:
        return diff(ours, theirs)
    old = find_sources(ours, our_file)
    because = () if old is None or not _is_of(old, ours) else tuple(_reasons(old, current))
    if ours.inputs.profile == theirs.inputs.profile and ours.inputs.cluster == (
        theirs.inputs.cluster
    ):
        return diff(ours, theirs)
    inputs = theirs.inputs.model_copy(update={"request": ours.inputs.request})
    try:
        now = reprice(ours, inputs, current.profile, cluster=current.cluster)
    except ApportionError:  # a profile that has no figures for a device of the first plan
        now = None
    if now is None or now.derived is None:
        why = f": {now.broken[0].message}" if now is not None else ""
        return diff(
            ours,
            theirs,
            basis=f"as each was planned; the first does not fit the second's inputs{why}",
            because=because,
        )
    # The file's inputs stay: only the estimate is on those of the second plan.
    priced = ours.model_copy(update={"estimate": now.plan.estimate})
    return diff(priced, theirs, basis="on the second plan's profile", because=because)


def _is_of(sources: Sources, plan: Plan) -> bool:
    """Whether these are the very documents that a plan was made from."""
    return (
        sources.profile.content_digest() == plan.inputs.profile.fingerprint
        and sources.cluster.content_digest() == plan.inputs.cluster.fingerprint
    )


def _reasons(before: Sources, after: Sources) -> Iterator[str]:
    """What changed from one profile to the other, the largest changes first."""
    found = sorted(
        (*_layer_changes(before.profile, after.profile), *_links(before.cluster, after.cluster)),
        key=lambda reason: -reason[0],
    )
    yield from (text for _, text in found[:MOST_REASONS])


def _layer_changes(before: Profile, after: Profile) -> Iterator[tuple[float, str]]:
    """For each device: all layers together, and the one that changed most."""
    name_of = {layer.twin: layer.name for layer in reversed(before.model.layers)}
    copies = Counter(layer.twin for layer in before.model.layers)
    for device, new in after.timings_of.items():
        old = before.timings_of.get(device)
        if old is None:
            continue
        common = {n for n in before.batch_sizes if n in after.batch_sizes}
        if not common:
            continue
        items = max(common)
        pairs = {
            twin: (_at(old, twin, items), _at(new, twin, items))
            for twin in old.layers.keys() & new.layers.keys() & name_of.keys()
        }
        ours = sum(copies[twin] * a for twin, (a, _) in pairs.items())
        theirs = sum(copies[twin] * b for twin, (_, b) in pairs.items())
        if not ours or not pairs or abs(theirs / ours - 1) < TELLING:
            continue
        twin = max(pairs, key=lambda t: (abs(pairs[t][1] - pairs[t][0]), name_of[t]))
        a, b = pairs[twin]
        yield (
            abs(theirs / ours - 1),
            f"layers on {device} take x{theirs / ours:.3g}: {name_of[twin]} {format_seconds(a)} -> "
            f"{format_seconds(b)} for {items} items",
        )


def _at(timings: DeviceTimings, twin: str, items: int) -> float:
    return next((row.median_s for row in timings.layers[twin] if row.items == items), 0.0)


def _links(before: Cluster, after: Cluster) -> Iterator[tuple[float, str]]:
    common = [name for name in after.device if name in before.device]
    seen = set()
    for source in common:
        for target in common:
            if source == target:
                continue
            old, new = before.link(source, target), after.link(source, target)
            change = abs(new.bytes_per_s / old.bytes_per_s - 1)
            latency_s = max(old.latency_s, new.latency_s)
            change = max(change, abs(new.latency_s - old.latency_s) / latency_s if latency_s else 0)
            said = (
                f"{format_bytes_per_s(old.bytes_per_s)} after {format_seconds(old.latency_s)} -> "
                f"{format_bytes_per_s(new.bytes_per_s)} after {format_seconds(new.latency_s)}"
            )
            if change >= TELLING and said not in seen:
                seen.add(said)
                yield change, f"{source} -> {target} moves {said}"
