"""A profile measured by several hosts at once: each its own devices, rank 0 merges.

Every process captures the model and measures; all at the same time, so that neighbours that share
real hardware meet each other as they will when a plan runs. What one process cannot do ends all of
them, with its host named; what was measured stays in each host's journal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from profiler.capture import capture
from profiler.cluster import Cluster
from profiler.companion import companions
from profiler.errors import StalePlanError
from profiler.graph import ModelGraph
from profiler.hosts import (
    agree_on_cluster,
    only_host,
    unmeasured,
    with_links,
)
from profiler.links import LinkOptions, measure_between
from profiler.measure import Effort
from profiler.policy import LinkPolicy
from profiler.profile import Conditions, DeviceTimings, Profile
from profiler.reductions import with_reductions
from profiler.session import (
    Observed,
    ProfileOptions,
    conditions_here,
    load_beside,
    measurable,
    measure_groups,
    observe,
)
from profiler.sources import load_model
from profiler.spotcheck import compare, differing, measure_spot
from profiler.world import World

UNSTABLE_LINK = 0.5
"""Above this ``error_fraction`` a link is reported as unstable. Half of it is usual for messages of
middling size on links that a token bucket shapes, and within a machine."""


@dataclass(frozen=True, kw_only=True)
class TogetherOptions:
    """How several hosts measure.

    ``by_type``: of equal devices on different hosts only the first is measured in full, and the
    others get its figures after a spot check. ``cpu_devices`` is for hosts that describe
    themselves.
    """

    links: LinkPolicy = LinkPolicy.AUTO
    measuring: LinkOptions = field(default_factory=LinkOptions)
    by_type: bool = False
    cpu_devices: int = 1


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The profile, the same on every rank, and what people should know about it."""

    profile: Profile
    warnings: tuple[str, ...]


def profile_together(  # noqa: PLR0913  (as profile_model, on several hosts)
    world: World,
    model: str | nn.Module,
    example: Any = None,
    *,
    cluster: Cluster | None = None,
    batch_sizes: Sequence[int] | None = None,
    effort: Effort | None = None,
    options: ProfileOptions | None = None,
    together: TogetherOptions | None = None,
) -> Merged:
    """Measure ``model`` on the hosts of ``world``; every rank calls this and gets the result.

    ``cluster`` and ``batch_sizes`` are rank 0's, whatever the others give; without a cluster the
    hosts describe themselves.

    Raises:
        InvalidInputError: the model, a batch size or the cluster cannot be right, or the cluster
            and the hosts of the ranks differ.
        StalePlanError: the model is not the same on every host.
        RankFailedError: a host is gone, cannot be reached, or failed.
    """
    options, together = options or ProfileOptions(), together or TogetherOptions()
    options = replace(options, progress=_watched(world, options))
    machines, warnings = agree_on_cluster(world, cluster, cpu_devices=together.cpu_devices)
    sizes = world.broadcast("batch sizes", None if batch_sizes is None else list(batch_sizes))
    # Before the links: a model that cannot be captured is told of at once, not after minutes.
    observed = _observe_all(world, model, example, sizes, options)
    machines, about_links = _with_measured_links(world, machines, options, together)
    warnings += about_links
    own = only_host(machines, world.host)
    groups = measurable(own)
    measured = groups
    stands_for: dict[str, str] = {}
    if together.by_type:
        stands_for = _representatives(world, own, groups)
        measured = [group for group in groups if stands_for[group[0]] == group[0]]
    world.exchange("ready to measure layers", None)
    timings = measure_groups(
        observed, measured, cluster=own, effort=effort or Effort(), options=options
    )
    with _kept_busy(world, own):
        gathered = world.exchange(
            "measuring layers",
            {
                "timings": [timing.model_dump_json() for timing in timings],
                "conditions": conditions_here(observed, timings, cluster=own).model_dump_json(),
            },
        )
    merged = [
        DeviceTimings.model_validate_json(text) for one in gathered for text in one["timings"]
    ]
    if together.by_type:
        merged = _with_twins(world, observed, own, groups, merged, stands_for)
    conditions = merge_conditions(
        [Conditions.model_validate_json(one["conditions"]) for one in gathered],
        hosts=world.hosts,
        cluster=machines,
    )
    profile = Profile(
        model=observed.graph,
        cluster=machines,
        batch_sizes=observed.batch_sizes,
        timings=tuple(merged),
        conditions=conditions,
    )
    return Merged(profile=profile, warnings=(*warnings, *differing(merged)))


def _watched(world: World, options: ProfileOptions) -> Any:
    def progress(what: str, done: float) -> None:
        # Between two measurements is the moment to notice that another host has given up.
        world.require_all_well()
        options.progress(what, done)

    return progress


def _with_measured_links(
    world: World, cluster: Cluster, options: ProfileOptions, together: TogetherOptions
) -> tuple[Cluster, tuple[str, ...]]:
    wanted = together.links is LinkPolicy.ALWAYS or (
        together.links is LinkPolicy.AUTO and bool(unmeasured(cluster))
    )
    if not world.broadcast("whether to measure links", wanted):
        return cluster, ()
    measuring = replace(together.measuring, progress=options.progress)
    found = measure_between(world, cluster, options=measuring)
    return with_links(cluster, found.links), found.warnings


def _observe_all(
    world: World,
    model: str | nn.Module,
    example: Any,
    sizes: Sequence[int] | None,
    options: ProfileOptions,
) -> Observed:
    """The model as all hosts see it: a layer is itemwise if it is so on each of them.

    Batch sizes that were not given are those that the slowest host manages.
    """
    options.progress("capturing the model", 0.0)
    captured = capture(load_model(model, example, length=options.length))
    prints = world.exchange(
        "capturing the model", {"graph": captured.graph.fingerprint, "torch": torch.__version__}
    )
    require_same_model(world.hosts, [(one["graph"], one["torch"]) for one in prints])
    observed = observe(captured, sizes)
    seen = world.exchange(
        "looking at the layers",
        {
            "itemwise": [layer.itemwise for layer in observed.graph.layers],
            "sizes": list(observed.batch_sizes),
        },
    )
    return replace(
        observed,
        graph=itemwise_everywhere(observed.graph, [one["itemwise"] for one in seen]),
        batch_sizes=tuple(sorted(set.intersection(*(set(one["sizes"]) for one in seen)))),
    )


def require_same_model(hosts: Sequence[str], found: Sequence[tuple[str, str]]) -> None:
    """Refuse a model that is not the same everywhere; ``found`` are fingerprint and torch version.

    Raises:
        StalePlanError: the fingerprints differ; the message names the hosts.
    """
    by_print: dict[str, list[str]] = {}
    for host, (fingerprint, version) in zip(hosts, found, strict=True):
        by_print.setdefault(fingerprint, []).append(f"{host} (torch {version})")
    if len(by_print) > 1:
        shown = "; ".join(f"{fp} on {', '.join(names)}" for fp, names in by_print.items())
        raise StalePlanError(
            f"the hosts do not have the same model: {shown}. Copy the same code or files to every "
            "host, and install the same torch there"
        )


def itemwise_everywhere(graph: ModelGraph, verdicts: Sequence[Sequence[bool]]) -> ModelGraph:
    """``graph`` with layers itemwise where every host found them so."""
    layers = tuple(
        layer.model_copy(update={"itemwise": all(found)})
        for layer, found in zip(graph.layers, zip(*verdicts, strict=True), strict=True)
    )
    found = {tensor.name: tensor.reduction for tensor in graph.tensors}
    return with_reductions(graph.replaced(layers=layers), found)


def _representatives(world: World, own: Cluster, groups: Sequence[Sequence[str]]) -> dict[str, str]:
    """For the first device of each group of every host: the device that is measured for it.

    Equal are devices of one kind, type and number of threads that have equal neighbours.
    """
    here = []
    for group in groups:
        device, load = own.device[group[0]], load_beside(own, group[0])
        key = [device.kind, device.type, device.threads, load.companions, load.core_sharing]
        here.append([group[0], key])
    first: dict[str, str] = {}
    found = {}
    for told in world.exchange("comparing devices", here):
        for name, key in told:
            found[name] = first.setdefault(repr(key), name)
    return found


def _with_twins(
    world: World,
    observed: Observed,
    own: Cluster,
    groups: Sequence[Sequence[str]],
    merged: Sequence[DeviceTimings],
    stands_for: Mapping[str, str],
) -> list[DeviceTimings]:
    """Timings that hold for the twins of their devices too, after a spot check of each."""
    full = {timing.measured_on: timing for timing in merged}
    twins: dict[str, list[str]] = {name: [] for name in full}
    for name, standing in stands_for.items():
        if name != standing:
            twins[standing].append(name)
    times = {}
    for group in groups:
        standing = stands_for[group[0]]
        if twins[standing]:
            times[group[0]] = measure_spot(observed, own, group[0], full[standing])
    told = world.exchange(
        "checking devices of equal type", {"times": times, "groups": [list(g) for g in groups]}
    )
    every = {name: value for one in told for name, value in one["times"].items()}
    members = {group[0]: group for one in told for group in one["groups"]}
    return [
        timing.model_copy(
            update={
                "devices": (
                    *timing.devices,
                    *(device for name in twins[timing.measured_on] for device in members[name]),
                ),
                "checks": compare(every, of=timing.measured_on, names=twins[timing.measured_on]),
            }
        )
        for timing in merged
    ]


@contextlib.contextmanager
def _kept_busy(world: World, own: Cluster) -> Iterator[None]:
    """Inside, this host's processors work while others of the same machine still measure."""
    processors = [device for device in own.device.values() if device.kind == "cpu"]
    if not world.shares_machine or not processors:
        yield
        return
    with companions(len(processors), threads=processors[0].threads):
        yield


def merge_conditions(
    found: Sequence[Conditions], *, hosts: Sequence[str], cluster: Cluster
) -> Conditions:
    """What the figures of several hosts depend on, as one record.

    Where hosts differ in words, all of them are listed; of numbers, the one that matters most.
    Links whose times are far from any line count as unstable.
    """

    def words(values: Sequence[str]) -> str:
        if len(set(values)) == 1:
            return values[0]
        return ", ".join(f"{value} ({host})" for host, value in zip(hosts, values, strict=True))

    links = tuple(
        f"link {link.source} -> {link.target}"
        for link in cluster.links
        if (link.error_fraction or 0.0) > UNSTABLE_LINK
    )
    return found[0].model_copy(
        update={
            "torch": words([one.torch for one in found]),
            "python": words([one.python for one in found]),
            "processor": words([one.processor for one in found]),
            "load_average": max(one.load_average for one in found),
            "concurrent_ranks": max(one.concurrent_ranks for one in found),
            "core_sharing": max(one.core_sharing for one in found),
            "unstable": (*(name for one in found for name in one.unstable), *links),
        }
    )
