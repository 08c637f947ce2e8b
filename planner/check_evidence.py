"""Whether `estimate` and `search` are what the spec and the profile give.

Where the plan was edited by hand, the evidence is of the plan before: every figure that no longer
holds is then a warning with old and new value, else it is an error. Independent of everything
that makes plans.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from planner.check_prices import price_findings
from planner.derive import Derived, RankLoad
from planner.findings import Finding, Severity, error, warning
from planner.layout import Layout
from planner.planfile import HypotheticalEstimate, Plan, RankEstimate
from planner.prices import Prices
from planner.searchrecord import BaselineRecord, SearchRecord
from profiler.cluster import Cluster
from profiler.profile import Profile
from profiler.units import format_bytes, format_seconds

EXACT = 1e-9
"""Relative difference allowed where the file has full precision."""

ROUNDED = 5.1e-5
"""The same where it has five significant digits."""

OPTIMAL_GAP = 1e-9


def edited(plan: Plan) -> list[Finding]:
    """A warning if inputs or spec are not those that the plan was written with."""
    expected = plan.expected_id()
    if plan.plan_id == expected:
        return []
    return [
        warning(
            "edited",
            "plan_id",
            f"inputs or spec were changed after planning: they have the id {expected}, the file "
            f"says {plan.plan_id[:80]}; estimate and search are of the plan before",
        )
    ]


def memory_findings(derived: Derived, layout: Layout) -> Iterator[Finding]:
    """An error for each rank that needs more memory than it has."""
    for load in derived.ranks:
        memory = load.memory
        over = memory.total_bytes - memory.capacity_bytes
        if over > 0:
            named = {
                "weights": memory.weights_bytes,
                "state": memory.state_bytes,
                "activations": memory.activations_bytes,
                "buffers": memory.buffers_bytes,
                "reserve": memory.reserve_bytes,
            }
            parts = ", ".join(f"{what} {format_bytes(n)}" for what, n in named.items() if n)
            yield error(
                "memory",
                f"rank {load.rank}",
                f"it needs {format_bytes(memory.total_bytes)} ({parts}), but "
                f"{layout.device_of[load.rank]} has {format_bytes(memory.capacity_bytes)}: "
                f"{format_bytes(over)} too much",
            )


def extrapolated(layout: Layout, prices: Prices) -> Iterator[Finding]:
    """A warning for each stage that gets more items at once than were measured."""
    for stage in layout.stages.values():
        for device, share in zip(stage.devices, stage.shares, strict=True):
            most = prices.most_measured(device, stage.layers)
            if share > most:
                yield warning(
                    "extrapolated",
                    stage.place,
                    f"{device} gets {share} items at once; at most {most} were measured, so its "
                    "time and memory are extrapolated",
                )


def estimate_findings(
    plan: Plan, derived: Derived, error_fraction: float, *, severity: Severity
) -> Iterator[Finding]:
    """Every figure of `estimate` that does not follow from the spec."""
    said = plan.estimate
    pairs = {
        "period_s": (said.period_s, derived.period_s),
        "latency_s": (said.latency_s, derived.latency_s),
        "items_per_s": (said.items_per_s, derived.items_per_s),
        "error_fraction": (said.error_fraction, error_fraction),
    }
    differing = _differing(pairs)
    if differing:
        yield _evidence(severity, "estimate", "estimate", "; ".join(differing))
    if [x.rank for x in said.ranks] != [x.rank for x in derived.ranks]:
        yield _evidence(
            severity,
            "estimate",
            "estimate.ranks",
            f"it lists {len(said.ranks)} ranks; the plan has {len(derived.ranks)}, from 0 on",
        )
        return
    for stated, real in zip(said.ranks, derived.ranks, strict=True):
        differing = _rank_differences(stated, real)
        if differing:
            yield _evidence(severity, "estimate", f"rank {real.rank}", "; ".join(differing))
    # `bottleneck` is "pipeline0.stage1 ..." or "wire a -> b: ...": it must be busy all the time.
    busiest = [x for x, s in derived.busy_s.items() if not _differ(s, derived.period_s, EXACT)]
    if not any(re.match(re.escape(name) + r"(\W|$)", said.bottleneck) for name in busiest):
        yield _evidence(
            severity, "estimate", "estimate.bottleneck", f"{said.bottleneck[:80]!r} -> {busiest[0]}"
        )


def hypothetical_findings(
    plan: Plan, profile: Profile, real: HypotheticalEstimate | None, *, severity: Severity
) -> Iterator[Finding]:
    """What the plan owes to figures that nobody measured; an error if it does not say so."""
    for binding in plan.spec.ranks:
        mark = profile.timings_of[binding.device].hypothetical
        if (mark is not None) != bool(binding.hypothetical):
            what = "hypothetical" if mark is not None else "measured"
            yield error(
                "hypothetical",
                f"rank {binding.rank}",
                f"{binding.device} is {what} in the profile, and the plan says otherwise",
            )
    said = plan.estimate.hypothetical
    if real is not None:
        parts = "; ".join(f"{x.where} ({x.basis})" for x in real.parts[:4])
        yield warning(
            "hypothetical",
            "estimate",
            f"nobody measured {parts}: the period is {format_seconds(real.period_low_s)} to "
            f"{format_seconds(real.period_high_s)}",
        )
    if (said is None) != (real is None) or (said and real and said.parts != real.parts):
        listed = [[x.where for x in side.parts] if side else [] for side in (said, real)]
        yield _evidence(
            severity, "estimate", "estimate.hypothetical", f"{listed[0]} -> {listed[1]}"
        )
    elif said is not None and real is not None:
        names = ("period_low_s", "period_high_s", "latency_low_s", "latency_high_s")
        differing = _differing({x: (getattr(said, x), getattr(real, x)) for x in names})
        if differing:
            yield _evidence(severity, "estimate", "estimate.hypothetical", "; ".join(differing))


def search_findings(
    plan: Plan, derived: Derived, cluster: Cluster, *, severity: Severity
) -> Iterator[Finding]:
    """Everything in which the certificate contradicts itself, the spec or the cluster."""
    search = plan.search
    objective = plan.inputs.request.objective
    if search.objective is not objective:
        yield _evidence(
            severity,
            "objective",
            "search.objective",
            f"it is {search.objective.value}; the request asks for {objective.value}",
        )
        return
    real_s = derived.objective_s(objective)
    if _differ(search.objective_s, real_s, EXACT):
        yield _evidence(
            severity,
            "objective",
            "search.objective_s",
            _change("objective_s", search.objective_s, real_s),
        )
    yield from _choices(search, severity)
    if search.bound_s > search.objective_s * (1 + EXACT):
        yield error(
            "bound",
            "search.bound_s",
            f"the bound {search.bound_s} is above the objective {search.objective_s}: nothing "
            "proved can be better than what was found",
        )
    elif _differ(search.gap, _gap(search.objective_s, search.bound_s), EXACT, least=1.0):
        yield error(
            "bound",
            "search.gap",
            f"gap is {search.gap}; objective and bound are "
            f"{_gap(search.objective_s, search.bound_s):.6g} apart",
        )
    if search.status == "optimal" and not search.gap <= OPTIMAL_GAP:
        yield error("status", "search.status", f"it says optimal with a gap of {search.gap}")
    if severity is Severity.WARNING:
        yield warning("certificate", "search", _certificate(search.bound_s, real_s))
    if search.baseline is not None:
        yield from _baseline(search, search.baseline, severity)
    yield from _idle(plan, cluster, severity)
    yield from price_findings(plan, severity)
    yield from _fallbacks(plan, severity)


def _choices(search: SearchRecord, severity: Severity) -> Iterator[Finding]:
    """Stages whose way of splitting is said to cost something else than the plan does."""
    for choice in search.choices:
        for x in choice.costs:
            if x.split == choice.split and (
                x.objective_s is None or _differ(x.objective_s, search.objective_s, ROUNDED)
            ):
                yield _evidence(
                    severity,
                    "objective",
                    "search.choices",
                    f"{choice.stage[:40]}, split {x.split}, is said to make it {x.objective_s}; "
                    f"this plan has {search.objective_s}",
                )


def _baseline(search: SearchRecord, said: BaselineRecord, severity: Severity) -> Iterator[Finding]:
    """Everything in which the record of the plan in use contradicts the plan or itself.

    The plan in use is not at hand: what it costs is believed, unless it is this plan.
    """
    where = "search.baseline"
    ours = said.objective_s if said.verdict in ("same", "kept") else said.found_s
    if ours is None or _differ(search.objective_s, ours, EXACT):
        yield _evidence(
            severity,
            "baseline",
            where,
            f"verdict {said.verdict} with {ours}; this plan has {search.objective_s}",
        )
    if (said.objective_s is None) != (said.verdict == "unfit"):
        yield _evidence(
            severity,
            "baseline",
            where,
            f"verdict {said.verdict} with an objective of {said.objective_s} for the plan in use",
        )
    elif said.objective_s:
        before, after = said.objective_s, said.found_s
        if said.devices and said.found_devices and _differ(said.devices, said.found_devices, EXACT):
            before, after = said.devices, said.found_devices
        gain = (before - after) / before
        if said.gain is None or _differ(said.gain, gain, EXACT, least=1.0):
            yield _evidence(severity, "baseline", where, f"gain is {said.gain}; it is {gain:.6g}")
        worth = gain > EXACT and gain >= said.min_gain
        if worth != (said.verdict == "changed"):
            yield _evidence(
                severity,
                "baseline",
                where,
                f"verdict {said.verdict} at a gain of {gain:.6g} and a least gain of "
                f"{said.min_gain:.6g}",
            )
    fewer = search.devices is not None and said.found_devices != search.devices.total
    if said.found_s < search.bound_s * (1 - EXACT) and not fewer:
        yield error(
            "baseline",
            where,
            f"the best found has {said.found_s}, below the bound {search.bound_s}",
        )


def _certificate(bound_s: float, real_s: float) -> str:
    if real_s < bound_s * (1 - EXACT):
        return (
            f"the edited plan has {format_seconds(real_s)}, below the bound "
            f"{format_seconds(bound_s)}: it is outside what was searched; plan again for a proof"
        )
    above = max(0.0, _gap(real_s, bound_s))
    return (
        "the proof is about the plan before; as far as the edited one is within what was searched, "
        f"it is at most {above:.1%} above the bound {format_seconds(bound_s)}"
    )


def _gap(objective_s: float, bound_s: float) -> float:
    if bound_s > 0:
        return (objective_s - bound_s) / bound_s
    return 0.0 if objective_s <= 0 else float("inf")


def _idle(plan: Plan, cluster: Cluster, severity: Severity) -> Iterator[Finding]:
    busy = _busy(plan)
    idle = [entry.device for entry in plan.search.idle]
    for device in idle:
        if device not in cluster.device or device in busy:
            what = "has a stage" if device in busy else "is not in the cluster"
            yield _evidence(severity, "idle", "search.idle", f"{device} {what}")
    left_out = [device for device in cluster.device if device not in busy and device not in idle]
    if left_out:
        yield _evidence(
            severity,
            "idle",
            "search.idle",
            f"{', '.join(left_out[:4])} have no stage and no reason is given",
        )


def _fallbacks(plan: Plan, severity: Severity) -> Iterator[Finding]:
    """Everything in which what is said of missing devices contradicts the plan or itself.

    The plans without them are not at hand: what they cost is believed.
    """
    busy = _busy(plan)
    for position, said in enumerate(plan.search.fallbacks):
        where = f"search.fallbacks[{position}]"
        unused = [device for device in said.devices if device not in busy]
        if unused:
            yield _evidence(severity, "fallback", where, f"{unused[0]} has no stage to lose")
        if said.objective_s is None or plan.search.objective_s <= 0:
            continue
        slower = said.objective_s / plan.search.objective_s - 1
        if said.slowdown is None or abs(said.slowdown - slower) > ROUNDED * (2 + abs(slower)):
            yield _evidence(
                severity, "fallback", where, f"slowdown is {said.slowdown}; it is {slower:.6g}"
            )


def _busy(plan: Plan) -> set[str]:
    """Devices with a stage."""
    bound = {binding.rank: binding.device for binding in plan.spec.ranks}
    return {
        bound[rank]
        for pipeline in plan.spec.pipelines
        for stage in pipeline.stages
        for rank in stage.ranks
    }


def _rank_differences(stated: RankEstimate, real: RankLoad) -> list[str]:
    times = {
        name: (getattr(stated, name), getattr(real, name))
        for name in ("compute_s", "join_s", "receive_s", "send_s", "busy_fraction")
    }
    found = _differing(times)
    for name, value in real.memory:
        before = getattr(stated.memory, name)
        if before != value:
            found.append(f"{name} {before} -> {value}")
    return found


def _differing(pairs: Mapping[str, tuple[float, float]]) -> list[str]:
    return [
        _change(name, old, new) for name, (old, new) in pairs.items() if _differ(old, new, ROUNDED)
    ]


def _differ(a: float, b: float, tolerance: float, *, least: float = 1e-12) -> bool:
    return not abs(a - b) <= tolerance * max(abs(a), abs(b), least)


def _change(name: str, old: float, new: float) -> str:
    percent = f" ({(new - old) / old:+.1%})" if old and abs(new - old) < 100 * abs(old) else ""
    return f"{name} {old:.10g} -> {new:.10g}{percent}"


def _evidence(severity: Severity, code: str, where: str, message: str) -> Finding:
    return Finding(code=code, severity=severity, where=where, message=message)
