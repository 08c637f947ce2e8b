"""Times of layers corrected by what the pieces of a run took.

A rank's piece is busy for ``layers + dispatch + messages``. ``dispatch`` was measured, what
messages take from the processor is what the cost model will charge for them; the rest is its
layers', and the ratio of that to what the profile says is their factor.

* A layer that ran gets the factor of its stage; where twins of it ran in several stages, the mean
  of theirs, by how many of them were there.
* A rank that divides a stage computes some layers in full and slices of others; its joins are not
  counted. Layers that ran in full elsewhere on the device get their factor there, and what is left
  of the rank's time corrects what slicing saves (``refit_slices``). Without such a run all that
  the rank computed gets its factor, and slicing is taken to save what the profile says.
* Layers that did not run on a device get the mean factor of those that did, as single layers get
  the ratio of measured runs of layers when they are profiled. Left as they were, the planner would
  move work to whatever has not been measured yet.
* Between two item counts that were measured the factor is linear in the logarithm of the count,
  beyond them it is that of the nearest. The measured counts themselves become rows of the profile.
* Devices whose figures were measured together stay together unless they ran the same layers and
  differ by more than :data:`SAME`. A device of the kind that did not run stays with those that
  are closest to the profile.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from profiler import lookup
from profiler.cluster import Cluster
from profiler.errors import InvalidInputError
from profiler.evidence import Exchange, RankEvidence, SliceEvidence, parted_s
from profiler.graph import ModelGraph, SliceRegion
from profiler.profile import DeviceTimings, Measurement
from profiler.refit_slices import UNCHANGED, RunSlice, SlicesSeen, refit_slices
from profiler.units import format_seconds

LEAST_PIECES = 5
SAME = 0.05
MOST = 10.0
"""A stage that is further off than this did not run what was measured."""

COMMON = 0.5
"""Two devices are compared if the layers that both ran are this part of what each ran."""

Rows = Mapping[str, Sequence[Measurement]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefittedTimes:
    """The corrected timings; what changed and what was not used, as lines for people."""

    timings: tuple[DeviceTimings, ...]
    used: int
    changes: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """What one rank showed: its layers by twin, its slices of others, and the seconds that are
    theirs and the loop's."""

    device: str
    twins: Mapping[str, int]
    slices: tuple[RunSlice, ...]
    items: int
    layers_s: float
    dispatch_s: float
    pieces: int
    spread: float

    @property
    def copies(self) -> Mapping[str, int]:
        """How often each twin is in the stage, whole or sliced."""
        found = Counter(self.twins)
        for x in self.slices:
            for twin, count in x.twins.items():
                found[twin] += x.count * count
        return found

    def full_s(self, rows: Rows) -> float:
        """What the profile says of the layers that were computed in full."""
        return sum(
            count * lookup.time_s(rows[twin], self.items)
            for twin, count in self.twins.items()
            if twin in rows
        )

    def expected_s(self, timings: DeviceTimings) -> float:
        """What the profile says of the layers and slices."""
        return self.full_s(timings.layers) + sum(
            x.expected_s(timings, self.items) for x in self.slices
        )


def refit_times(
    timings: Sequence[DeviceTimings],
    evidence: Sequence[RankEvidence],
    cluster: Cluster,
    graph: ModelGraph,
) -> RefittedTimes:
    """``timings`` corrected by what ranks took; ``cluster`` has the links that they now price with,
    ``graph`` the regions that they divide.

    Raises:
        InvalidInputError: a stage took ten times as long as its layers, or a tenth.
    """
    stages: dict[str, list[_Stage]] = defaultdict(list)
    ignored = []
    regions = {region.twin: region for region in graph.regions}
    for one in evidence:
        strange = [x.region for x in one.slices if x.region not in regions]
        if one.pieces < LEAST_PIECES:
            ignored.append(f"rank {one.rank} on {one.device} ran {one.pieces} pieces only")
        elif one.unthrottled:
            ignored.append(_unthrottled(one))
        elif strange:
            ignored.append(
                f"rank {one.rank} on {one.device} ran slices of regions that the profile lacks"
            )
        else:
            slices = tuple(_run_slice(x, regions[x.region], graph) for x in one.slices)
            stages[one.device].append(_stage(one, cluster, slices))
    made: list[DeviceTimings] = []
    changes: list[str] = []
    for group in timings:
        seen = {name: stages[name] for name in group.devices if stages.get(name)}
        if not seen:
            made.append(group)
            continue
        for ran in seen.values():
            for stage in ran:
                _require_plausible(stage, group)
        for devices in _alike(group, seen):
            own = [stage for name in devices for stage in seen.get(name, ())]
            made.append(_corrected(group, devices, own))
            changes += _changes(group, made[-1], own)
    return RefittedTimes(
        timings=tuple(made),
        used=sum(len(ran) for ran in stages.values()),
        changes=tuple(changes),
        ignored=tuple(ignored),
    )


def _unthrottled(one: RankEvidence) -> str:
    ration = one.throttling
    assert ration is not None
    return (
        f"rank {one.rank} on {one.device} used up its processor quota in "
        f"{100 * ration.fraction:.0f} % of the periods of {format_seconds(ration.period_s)}, with "
        f"pieces of {format_seconds(one.busy_s)}: they show its processor without the quota; "
        "run larger batches"
    )


def _run_slice(one: SliceEvidence, region: SliceRegion, graph: ModelGraph) -> RunSlice:
    twins = Counter(graph.layers[graph.layer_index[name]].twin for name in region.layers)
    return RunSlice(region=region, twins=twins, units=one.units, count=one.count)


def _stage(one: RankEvidence, cluster: Cluster, slices: tuple[RunSlice, ...]) -> _Stage:
    layers_s, dispatch_s = parted_s(one, _messages_s(one, cluster))
    return _Stage(
        device=one.device,
        twins=one.twins,
        slices=slices,
        items=one.items,
        layers_s=layers_s,
        dispatch_s=dispatch_s,
        pieces=one.pieces,
        spread=one.spread,
    )


def _messages_s(one: RankEvidence, cluster: Cluster) -> float:
    """Seconds a piece that its messages keep the device from computing, by the cost model."""

    def taken(exchange: Exchange, source: str, target: str, *, sending: bool) -> float:
        link = cluster.link(source, target)
        part = link.send_occupancy if sending else link.receive_occupancy
        return exchange.count * part * link.transfer_time_s(exchange.num_bytes)

    return sum(taken(x, x.device, one.device, sending=False) for x in one.receives) + sum(
        taken(x, one.device, x.device, sending=True) for x in one.sends
    )


def _require_plausible(stage: _Stage, timings: DeviceTimings) -> None:
    if not set(stage.copies) & set(timings.layers):
        raise InvalidInputError(f"the profile knows none of the layers that {stage.device} ran")
    expected_s = stage.expected_s(timings)
    if not expected_s or not 1 / MOST <= stage.layers_s / expected_s <= MOST:
        raise InvalidInputError(
            f"{stage.device} took {format_seconds(stage.layers_s)} for layers that the profile has "
            f"at {format_seconds(expected_s)} ({stage.items} items): more than {MOST:g} times off "
            "is no drift; profile again"
        )


def _alike(group: DeviceTimings, seen: Mapping[str, Sequence[_Stage]]) -> list[list[str]]:
    """The devices of a group, those together whose figures can stay so."""
    factor = {name: _mean_factor(ran, group) for name, ran in seen.items()}
    kinds: list[list[str]] = []
    for name in sorted(seen, key=lambda n: (factor[n], n)):
        for kind in kinds:
            if all(
                factor[name] <= factor[other] * (1 + SAME)
                or not _comparable(seen[name], seen[other], group)
                for other in kind
            ):
                kind.append(name)
                break
        else:
            kinds.append([name])
    closest = min(kinds, key=lambda kind: min(abs(math.log(factor[n])) for n in kind))
    closest += [name for name in group.devices if name not in seen]
    order = {name: i for i, name in enumerate(group.devices)}
    kinds = [sorted(kind, key=lambda name: order[name]) for kind in kinds]
    return sorted(kinds, key=lambda kind: order[kind[0]])


def _comparable(some: Sequence[_Stage], others: Sequence[_Stage], timings: DeviceTimings) -> bool:
    """Whether two devices ran the same layers for a good part of their time."""
    mine, theirs = _weights(some, timings), _weights(others, timings)
    common = mine.keys() & theirs.keys()
    return all(
        sum(weights[twin] for twin in common) >= COMMON * sum(weights.values())
        for weights in (mine, theirs)
    )


def _weights(stages: Sequence[_Stage], timings: DeviceTimings) -> Mapping[str, float]:
    """Expected seconds by twin of a layer, or of a region of which there were slices."""
    rows, found = timings.layers, defaultdict[str, float](float)
    for stage in stages:
        for twin, count in stage.twins.items():
            if twin in rows:
                found[twin] += count * lookup.time_s(rows[twin], stage.items)
        for x in stage.slices:
            found[f"slices of {x.region.twin}"] += x.expected_s(timings, stage.items)
    return found


def _mean_factor(stages: Sequence[_Stage], timings: DeviceTimings) -> float:
    return sum(x.layers_s for x in stages) / sum(x.expected_s(timings) for x in stages)


def _corrected(
    group: DeviceTimings, devices: Sequence[str], stages: Sequence[_Stage]
) -> DeviceTimings:
    """The timings of ``devices``, on some of which ``stages`` ran."""
    rows = group.layers
    counts = sorted({stage.items for stage in stages})
    mean: dict[int, float] = {}
    own: dict[str, dict[int, float]] = defaultdict(dict)
    for items in counts:
        here = [stage for stage in stages if stage.items == items]
        mean[items] = _snapped(_mean_factor(here, group))
        # What ran in full says more of a layer than what also ran in slices.
        found = dict(_factors([stage for stage in here if stage.slices], group))
        found.update(_factors([stage for stage in here if not stage.slices], group))
        for twin, factor in found.items():
            own[twin][items] = factor
    corrected = group.replaced(
        measured_on=group.measured_on if group.measured_on in devices else devices[0],
        devices=tuple(devices),
        dispatch_s=statistics.median(stage.dispatch_s for stage in stages),
        layers={
            twin: _scaled(measured, own.get(twin), mean, stages) for twin, measured in rows.items()
        },
    )
    seen = list(_sliced(corrected, stages))
    return corrected.replaced(slices=refit_slices(corrected, seen)) if seen else corrected


def _sliced(timings: DeviceTimings, stages: Sequence[_Stage]) -> Iterator[SlicesSeen]:
    """What slices took on ranks all of whose sliced layers also ran in full, which says how long
    they take."""
    for stage in stages:
        full = {
            twin
            for other in stages
            if not other.slices and other.items == stage.items
            for twin in other.twins
        }
        if stage.slices and full.issuperset(twin for x in stage.slices for twin in x.twins):
            yield SlicesSeen(
                slices=stage.slices,
                items=stage.items,
                seconds=max(0.0, stage.layers_s - stage.full_s(timings.layers)),
                pieces=stage.pieces,
                spread=stage.spread,
            )


def _factors(stages: Sequence[_Stage], timings: DeviceTimings) -> Mapping[str, float]:
    """The factor of each twin that ran: between those of the stages that it ran in."""
    weighted: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for stage in stages:
        factor = stage.layers_s / stage.expected_s(timings)
        for twin, copies in stage.copies.items():
            if twin in timings.layers:
                weighted[twin] += copies * factor
                count[twin] += copies
    return {twin: _snapped(weighted[twin] / copies) for twin, copies in count.items()}


def _snapped(factor: float) -> float:
    """A factor that says nothing as exactly 1."""
    return 1.0 if abs(factor - 1) < UNCHANGED else factor


def _scaled(
    rows: Sequence[Measurement],
    own: Mapping[int, float] | None,
    mean: Mapping[int, float],
    stages: Sequence[_Stage],
) -> tuple[Measurement, ...]:
    """Measurements times their factors; where the layer ran, the count that it ran at is a row."""
    factors = mean if own is None else own
    scaled = {
        row.items: row.model_copy(update={"median_s": row.median_s * _at(factors, row.items)})
        for row in rows
    }
    for items in own or {}:
        if items not in scaled:
            here = [stage for stage in stages if stage.items == items]
            scaled[items] = Measurement(
                items=items,
                median_s=lookup.time_s(rows, items) * factors[items],
                spread=max(stage.spread for stage in here),
                samples=sum(stage.pieces for stage in here),
                peak_bytes=lookup.peak_bytes(rows, items),
            )
    return tuple(scaled[items] for items in sorted(scaled))


def _at(factors: Mapping[int, float], items: int) -> float:
    """The factor for an item count, from those of the counts that were measured.

    >>> _at({4: 1.0, 16: 2.0}, 8), _at({4: 1.0, 16: 2.0}, 64), _at({4: 1.5}, 1)
    (1.5, 2.0, 1.5)
    """
    counts = sorted(factors)
    if items <= counts[0]:
        return factors[counts[0]]
    if items >= counts[-1]:
        return factors[counts[-1]]
    right = bisect_left(counts, items)
    low, high = counts[right - 1], counts[right]
    weight = math.log(items / low) / math.log(high / low)
    return factors[low] + weight * (factors[high] - factors[low])


def _changes(before: DeviceTimings, after: DeviceTimings, stages: Sequence[_Stage]) -> list[str]:
    """What is new about a group of devices, if anything."""
    if after == before:
        return []
    parted = ""
    if len(after.devices) < len(before.devices):
        rest = [name for name in before.devices if name not in after.devices]
        parted = f", no longer taken to be like {', '.join(rest[:3])}"
    changed = {row.region for row in set(after.slices) - set(before.slices)}
    sliced = f", slices of {len(changed)} kinds of region" if changed else ""
    scales = ", ".join(
        f"x{_mean_factor([s for s in stages if s.items == n], before):.3f} at {n} items"
        for n in sorted({stage.items for stage in stages})
    )
    return [
        f"{', '.join(after.devices[:4])}: layers {scales}, dispatch "
        f"{format_seconds(before.dispatch_s)} became {format_seconds(after.dispatch_s)}{sliced}"
        f"{parted}"
    ]
