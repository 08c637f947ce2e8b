"""A finished search as a plan document, with the evidence for it."""

from __future__ import annotations

from dataclasses import dataclass

from planner.alternatives import as_alternatives
from planner.choices import split_choices
from planner.cost import CostModel
from planner.device_search import Searched
from planner.limit_costs import limit_records
from planner.lower import estimate, lower
from planner.planfile import FileInput, ModelInput, Plan, PlanInputs, plan_id
from planner.request import PlanRequest
from planner.search import gap_of
from planner.searchrecord import SearchRecord, SplitPrice
from planner.solvers.base import TOLERANCE
from planner.split_prices import split_prices
from planner.warnings import plan_warnings
from planner.wish_prices import wish_prices
from profiler.cluster import Cluster
from profiler.profile import Profile

CREATED_BY = "apportion 0.1.0"

_ADOPTIONS = 2  # times that a rival which turns out better, where nothing was proved, is taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Refs:
    """What a plan calls the files that it was made from; without a cluster file, the profile's."""

    profile: str
    cluster: str | None = None


def written(  # noqa: PLR0913  (one parameter an input)
    searched: Searched,
    profile: Profile,
    wanted: PlanRequest,
    *,
    refs: Refs,
    cluster: Cluster | None = None,
    bound_s: float = 0.0,
    priced: bool = True,
) -> Plan:
    """The plan that a search ended with, with its evidence; ``wanted`` is what it is for.

    ``bound_s`` is proved of its objective elsewhere, beside what the search proves. ``priced`` says
    whether what wishes and other ways to split cost is searched too.
    """
    search = searched.search
    assert search.best is not None
    idle, forced, rivals = search.evidence()
    for _ in range(_ADOPTIONS):
        if not search.adopt([*forced, *rivals]):
            break
        idle, forced, rivals = search.evidence()
    splits: tuple[SplitPrice, ...] = ()
    if priced:
        splits, with_split = split_prices(search)
        if search.adopt(with_split):
            idle, forced, rivals = search.evidence()
            splits, _ = split_prices(search)
    chosen = search.best
    bound_s = min(max(bound_s, search.bound_s), chosen.objective_s)
    gap = gap_of(chosen.objective_s, bound_s)
    spec = lower(chosen.problem, chosen.assignment, chosen.price)
    inputs = plan_inputs(profile, wanted, refs=refs, cluster=cluster)
    record = SearchRecord(
        solver=search.solver_name or "bounds",
        status="optimal" if gap <= TOLERANCE and searched.proved else "feasible",
        objective=wanted.objective,
        objective_s=chosen.objective_s,
        bound_s=bound_s,
        gap=gap,
        space=f"{search.space}; {search.microbatches_text()}",
        candidates=search.candidates,
        devices=searched.devices,
        limits=limit_records(chosen, [cost.problem for cost in search.costs], search.resolve),
        alternatives=as_alternatives(rivals),
        choices=split_choices(chosen.problem, chosen.assignment, CostModel(chosen.problem)),
        idle=tuple(idle),
        wishes=wish_prices(search) if priced else (),
        splits=splits,
    )
    figures = estimate(chosen.problem, chosen.assignment, chosen.price)
    return Plan(
        plan_id=plan_id(inputs, spec),
        created_by=CREATED_BY,
        inputs=inputs,
        spec=spec,
        estimate=figures,
        search=record,
        warnings=plan_warnings(
            chosen,
            [*rivals, *forced],
            gap=gap,
            cost=CostModel(chosen.problem),
            estimate=figures,
        ),
    )


def plan_inputs(
    profile: Profile,
    wanted: PlanRequest,
    *,
    refs: Refs,
    cluster: Cluster | None = None,
) -> PlanInputs:
    """What a plan for ``wanted`` depends on, by name and fingerprint."""
    return PlanInputs(
        model=ModelInput(
            ref=profile.model.ref,
            source=profile.model.source,
            dtype=profile.model.dtype,
            graph=profile.model.fingerprint,
            num_layers=len(profile.model.layers),
            weight_bytes=profile.model.total_weight_bytes,
        ),
        cluster=FileInput(
            ref=refs.cluster or refs.profile,
            fingerprint=(cluster or profile.cluster).content_digest(),
        ),
        profile=FileInput(ref=refs.profile, fingerprint=profile.content_digest()),
        request=wanted,
    )
