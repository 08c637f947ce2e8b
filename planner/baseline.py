"""A new plan beside the one in use: is the best still the same, and is a change worth it?

The plan in use is judged and priced on the inputs of the new one, by the code of `check`. Where it
is as good, or where the new one gains less than was asked for a change, its decision is kept and
the search's proof is written beside it: the bound is about the question, not about either plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from planner.check_targets import devices_total
from planner.diff import diff, headline
from planner.planfile import Plan, PlanWarning
from planner.reprice import Repriced, reprice
from planner.request import Objective, PlanRequest
from planner.searchrecord import Alternative, BaselineRecord, IdleDevice, LimitRecord, SearchRecord
from profiler.cluster import Cluster
from profiler.documents import describe
from profiler.errors import InvalidInputError, StalePlanError
from profiler.profile import Profile
from profiler.units import format_seconds

TIE = 1e-9
"""Plans closer than this are equally good; also the gap of a proved one."""

_CHOSEN = "this is the plan"


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The plan in use, and the part of its objective that a change must save at least."""

    plan: Plan
    min_gain: float = 0.0

    def request(self, wishes: Mapping[str, object]) -> PlanRequest:
        """What the plan in use was asked for, with ``wishes`` over it.

        Raises:
            InvalidInputError: a wish is none.
        """
        asked = self.plan.inputs.request
        try:
            return PlanRequest.model_validate({**asked.model_dump(), **wishes}, strict=False)
        except ValidationError as error:
            raise InvalidInputError(describe(error, "the request")) from error


def in_use(plan: Plan | None, min_gain: float, profile: Profile) -> Baseline | None:
    """The baseline of a planning question on ``profile``, if there is one.

    Raises:
        StalePlanError: ``plan`` was made for another model.
        InvalidInputError: ``min_gain`` is no part of a time, or is given without a plan.
    """
    if not 0 <= min_gain < 1:
        raise InvalidInputError(
            f"the least gain is a part of the present time, 0 to below 1; not {min_gain}"
        )
    if plan is None:
        if min_gain:
            raise InvalidInputError("a least gain needs a baseline: the plan to gain over")
        return None
    planned, now = plan.inputs.model.graph, profile.model.fingerprint
    if planned != now:
        raise StalePlanError(
            f"the baseline was made for a model with fingerprint {planned[:60]}, the profile is of "
            f"one with {now}: plan without a baseline"
        )
    return Baseline(plan=plan, min_gain=min_gain)


def beside(
    best: Plan, baseline: Baseline, profile: Profile, *, cluster: Cluster | None = None
) -> Plan:
    """The plan to use: ``best`` or the decision in use, with what was decided in its ``search``."""
    machines = cluster or profile.cluster
    now = reprice(baseline.plan, best.inputs, profile, cluster=machines)
    objective = best.inputs.request.objective
    found_s = best.search.objective_s
    if now.derived is None:
        broken = now.broken[0]
        return _with_record(
            best,
            baseline,
            verdict="unfit",
            found_s=found_s,
            summary=f"the plan in use does not fit: {broken.where}: {broken.message}",
        )
    objective_s = now.derived.objective_s(objective)
    gain = (objective_s - found_s) / objective_s if objective_s > 0 else 0.0
    figures = {"objective_s": objective_s, "found_s": found_s, "gain": gain}
    counted = best.search.devices
    if counted is not None:
        total = devices_total(now.plan, machines)
        assert total is not None, "the search had a price of every device"
        if abs(total - counted.total) > TIE * total:
            gain = figures["gain"] = (total - counted.total) / total
        figures |= {"devices": total, "found_devices": counted.total}
    if best.spec == now.plan.spec:
        return _with_record(
            best, baseline, verdict="same", summary="the same plan is still the best", **figures
        )
    change = headline(diff(now.plan, best))
    if gain > TIE and gain >= baseline.min_gain:
        return _with_record(
            best,
            baseline,
            verdict="changed",
            summary=f"the best plan changed, {_gain_text(figures, objective)}: {change}",
            **figures,
        )
    kept = _kept(best, now, figures, baseline=baseline, change=change)
    if gain > TIE:
        summary = (
            f"the plan in use is kept; the best found is {_gain_text(figures, objective)}, less "
            f"than the {baseline.min_gain:.2%} asked for a change: {change}"
        )
    elif gain >= -TIE:
        summary = f"the plan in use is still the best; another is only as good: {change}"
    else:
        summary = f"the plan in use is kept; it is {-gain:.2%} better than the best found"
    return _with_record(kept, baseline, verdict="kept", summary=summary, **figures)


def _gain_text(figures: Mapping[str, float], objective: Objective) -> str:
    what = "latency" if objective.counts_latency else "period"
    before, after = figures.get("devices"), figures.get("found_devices")
    if before is not None and after is not None and before != after:
        return f"{figures['gain']:.2%} better ({objective.value} {before:g} -> {after:g})"
    return (
        f"{figures['gain']:.2%} better ({what} {format_seconds(figures['objective_s'])} -> "
        f"{format_seconds(figures['found_s'])})"
    )


def _with_record(plan: Plan, baseline: Baseline, **fields: object) -> Plan:
    record = BaselineRecord.model_validate(
        {"plan_id": baseline.plan.plan_id, "min_gain": baseline.min_gain, **fields}
    )
    search = plan.search.model_copy(update={"baseline": record})
    return plan.model_copy(update={"search": search})


def _kept(
    best: Plan,
    now: Repriced,
    figures: Mapping[str, float],
    *,
    baseline: Baseline,
    change: str,
) -> Plan:
    """The decision in use on the new inputs, with the proof that was found for them."""
    search, objective_s, gain = best.search, figures["objective_s"], figures["gain"]
    # A plan of another kind than what was searched may be below the bound. That nothing searched
    # is below the plan itself is then still true, and says that.
    # Of more devices than the best found needs, nothing is proved at all.
    more = search.devices is not None and figures["devices"] > search.devices.bound * (1 + TIE)
    outside = objective_s < search.bound_s * (1 - TIE) and not more
    bound_s = min(search.bound_s, objective_s)
    gap = (objective_s - bound_s) / max(bound_s, 1e-300) if objective_s > bound_s else 0.0
    why = f"{gain:.2%} better than the plan in use" if gain > TIE else "no better"
    alternatives = [
        Alternative(plan="best found", objective_s=search.objective_s, why_not=f"{why}: {change}"),
        *(
            x.model_copy(update={"why_not": "this is the best found"})
            if x.why_not == _CHOSEN
            else x
            for x in search.alternatives
        ),
    ]
    record = SearchRecord(
        solver=search.solver,
        status="optimal" if gap <= TIE and not (outside or more) else "feasible",
        objective=search.objective,
        objective_s=objective_s,
        bound_s=bound_s,
        gap=gap,
        space=search.space + ("; the plan in use is of another kind" if outside else ""),
        candidates=search.candidates,
        devices=None
        if search.devices is None
        else search.devices.replaced(
            total=figures["devices"], bound=min(search.devices.bound, figures["devices"])
        ),
        limits=tuple(_limits(search.limits, now)),
        alternatives=tuple(sorted(alternatives, key=_by_objective)),
        idle=tuple(_idle(best, now.plan, gain=gain)),
    )
    return now.plan.model_copy(
        update={
            "created_by": best.created_by,
            "search": record,
            "warnings": tuple(_warnings(best, now, baseline=baseline, gain=gain)),
        }
    )


def _limits(limits: Iterable[LimitRecord], now: Repriced) -> Iterator[LimitRecord]:
    """The limits with what the plan in use has of them."""
    assert now.derived is not None
    actual = {
        "max_latency_s": now.derived.latency_s,
        "min_items_per_s": now.derived.items_per_s,
        "max_devices": float(len(now.plan.spec.ranks)),
    }
    for limit in limits:
        yield limit.replaced(actual=actual[limit.limit])


def _by_objective(x: Alternative) -> tuple[bool, float, str]:
    return x.objective_s is None, x.objective_s or 0.0, x.plan


def _idle(best: Plan, kept: Plan, *, gain: float) -> Iterator[IdleDevice]:
    """Devices that the plan in use leaves out; a reason for those that the best found uses."""
    reasons = {x.device: x.reason for x in best.search.idle}
    used, wanted = _used(kept), _used(best)
    everything = dict.fromkeys((*(x.device for x in best.search.idle), *wanted))
    better = f"is {gain:.2%} better" if gain > TIE else "is not better"
    for device in everything:
        if device not in used:
            why = f"the plan in use leaves it out; the best found with it {better}"
            yield IdleDevice(device=device, reason=reasons.get(device, why))


def _used(plan: Plan) -> list[str]:
    named = {binding.rank: binding.device for binding in plan.spec.ranks}
    return [
        named[rank]
        for pipeline in plan.spec.pipelines
        for stage in pipeline.stages
        for rank in stage.ranks
    ]


_OF_THE_PROFILE = frozenset({"unstable-profile"})
"""Warnings that hold for whatever plan is made from a profile."""


def _warnings(
    best: Plan, now: Repriced, *, baseline: Baseline, gain: float
) -> Iterator[PlanWarning]:
    if gain > TIE:
        yield PlanWarning(
            code="baseline-kept",
            message=f"a plan that is {gain:.2%} better was found and not taken: less than the "
            f"least gain of {baseline.min_gain:.2%}",
        )
    for x in now.warnings:
        yield PlanWarning(code=x.code, message=f"{x.where}: {x.message}")
    yield from (x for x in best.warnings if x.code in _OF_THE_PROFILE)
    batch, micro = best.inputs.request.batch_size, now.plan.spec.schedule.microbatch_size
    if batch % micro:
        yield PlanWarning(
            code="uneven-microbatch",
            message=f"the last microbatch has {batch % micro} items instead of {micro}; the "
            "estimate counts it as a whole one",
        )
