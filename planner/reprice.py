"""A decision on other inputs than those it was made from: does it stand, and what does it cost?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.check import check_plan, rederive, rederive_range
from planner.derive import Derived
from planner.findings import EVIDENCE, Finding, Severity
from planner.planfile import Estimate, Plan, PlanInputs, PlanSpec, RankEstimate, plan_id
from profiler.cluster import Cluster
from profiler.profile import Profile
from profiler.units import format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Repriced:
    """A spec on other inputs. ``broken`` rules keep it from running; then nothing is derived.

    ``plan`` has the spec and an estimate on the new inputs; its search is still of the old ones.
    """

    plan: Plan
    derived: Derived | None
    broken: tuple[Finding, ...]
    warnings: tuple[Finding, ...]


def reprice(plan: Plan, inputs: PlanInputs, profile: Profile, *, cluster: Cluster) -> Repriced:
    """The spec of ``plan`` judged and priced as if it had been made from ``inputs``.

    ``profile`` and ``cluster`` are the documents that ``inputs`` names.
    """
    spec = _marked(plan.spec, profile)
    draft = plan.model_copy(
        update={"inputs": inputs, "spec": spec, "plan_id": plan_id(inputs, spec)}
    )
    findings = [x for x in check_plan(draft, profile, cluster=cluster) if x.code not in EVIDENCE]
    broken = tuple(x for x in findings if x.severity is Severity.ERROR)
    if broken:
        return Repriced(plan=draft, derived=None, broken=broken, warnings=())
    derived = rederive(draft, profile, cluster=cluster)
    estimate = estimated(derived, draft.spec, error_fraction=profile.error_fraction).replaced(
        hypothetical=rederive_range(draft, derived, profile, cluster=cluster)
    )
    return Repriced(
        plan=draft.model_copy(update={"estimate": estimate}),
        derived=derived,
        broken=(),
        warnings=tuple(x for x in findings if x.severity is Severity.WARNING),
    )


def _marked(spec: PlanSpec, profile: Profile) -> PlanSpec:
    """``spec`` with its devices marked as hypothetical where this profile has no measurements."""
    timings = profile.timings_of
    ranks = tuple(
        x.replaced(hypothetical=True if timings[x.device].hypothetical else None)
        if x.device in timings
        else x
        for x in spec.ranks
    )
    return spec if ranks == spec.ranks else spec.replaced(ranks=ranks)


def estimated(derived: Derived, spec: PlanSpec, *, error_fraction: float) -> Estimate:
    """Derived figures as a plan file states them."""
    busiest = max(derived.busy_s, key=lambda name: derived.busy_s[name])
    return Estimate(
        period_s=derived.period_s,
        latency_s=derived.latency_s,
        items_per_s=derived.items_per_s,
        error_fraction=error_fraction,
        bottleneck=f"{busiest}{_on(busiest, spec)}: busy "
        f"{format_seconds(derived.busy_s[busiest])} of every batch",
        ranks=tuple(
            RankEstimate(
                rank=load.rank,
                compute_s=load.compute_s,
                join_s=load.join_s,
                receive_s=load.receive_s,
                send_s=load.send_s,
                busy_fraction=load.busy_fraction,
                memory=load.memory,
            )
            for load in derived.ranks
        ),
    )


def _on(where: str, spec: PlanSpec) -> str:
    """The devices of a stage; nothing for a wire."""
    for pipeline in spec.pipelines:
        for stage in pipeline.stages:
            if where == f"pipeline{pipeline.index}.stage{stage.index}":
                devices = _devices(stage.ranks, spec)
                return f" on {devices[0] if len(devices) == 1 else f'{len(devices)} devices'}"
    return ""


def _devices(ranks: Sequence[int], spec: PlanSpec) -> list[str]:
    named = {binding.rank: binding.device for binding in spec.ranks}
    return [named[rank] for rank in ranks]
