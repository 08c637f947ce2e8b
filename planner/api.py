"""``plan``: from a profile and a request to a plan with its evidence.

Reads no file and starts no process. Equal inputs give an equal plan, byte for byte, as long as the
search ends before its time limit.
"""

from __future__ import annotations

from pydantic import ValidationError

from planner.aggregation import choose
from planner.alternatives import as_alternatives
from planner.baseline import beside, in_use
from planner.choices import split_choices
from planner.cost import CostModel
from planner.fallbacks import with_fallbacks
from planner.infeasible import explain_failure, unproved
from planner.lower import estimate, lower
from planner.planfile import (
    FileInput,
    ModelInput,
    Plan,
    PlanInputs,
    SearchRecord,
    plan_id,
)
from planner.request import PlanRequest
from planner.search import Search
from planner.solvers.base import TOLERANCE
from planner.split_prices import split_prices
from planner.warnings import plan_warnings
from planner.wish_prices import wish_prices
from profiler.cluster import Cluster
from profiler.documents import describe
from profiler.errors import ApportionError, InvalidInputError
from profiler.profile import Profile

CREATED_BY = "apportion 0.1.0"

_ADOPTIONS = 2  # times that a rival which turns out better, where nothing was proved, is taken


def plan(  # noqa: PLR0913  (one parameter an input)
    profile: Profile,
    request: PlanRequest | None = None,
    *,
    profile_ref: str = "profile.json",
    cluster: Cluster | None = None,
    cluster_ref: str | None = None,
    baseline: Plan | None = None,
    min_gain: float = 0.0,
    fallbacks: bool = False,
    **wishes: object,
) -> Plan:
    """The best plan that can be found for ``request``, with the evidence for choosing it.

    ``wishes`` are fields of a :class:`PlanRequest`, instead of ``request``. ``cluster`` may change
    memory and links of the profile's cluster and leave devices out. ``profile_ref`` and
    ``cluster_ref`` are what the plan file calls its inputs. ``baseline`` is the plan in use: its
    request holds where nothing else is asked, its decision is kept unless another saves more than
    ``min_gain`` of its objective, and ``search.baseline`` says whether the best plan changed.
    With ``fallbacks``, ``search.fallbacks`` says what the best plan without each device costs.

    Raises:
        StalePlanError: the baseline was made for another model.
        InvalidInputError: the inputs contradict each other or themselves.
        InfeasiblePlanError: nothing fits; ``error.conflicts`` says what stands in the way.
    """
    used = in_use(baseline, min_gain, profile)
    wanted = used.request(wishes) if used and request is None else _request(request, wishes)
    choose(profile.model, wanted)  # before the search: an illegal wish has no plan
    search = Search(profile, wanted, cluster)
    search.run()
    if search.best is None:
        raise _failure(search)
    idle, forced, rivals = search.evidence()
    for _ in range(_ADOPTIONS):
        if not search.adopt([*forced, *rivals]):
            break
        idle, forced, rivals = search.evidence()
    splits, with_split = split_prices(search)
    if search.adopt(with_split):
        idle, forced, rivals = search.evidence()
        splits, _ = split_prices(search)
    chosen, result = search.best, search.results[search.best.problem.microbatch]
    spec = lower(chosen.problem, chosen.assignment, chosen.price)
    inputs = PlanInputs(
        model=ModelInput(
            ref=profile.model.ref,
            source=profile.model.source,
            dtype=profile.model.dtype,
            graph=profile.model.fingerprint,
            num_layers=len(profile.model.layers),
            weight_bytes=profile.model.total_weight_bytes,
        ),
        cluster=FileInput(
            ref=cluster_ref or profile_ref,
            fingerprint=(cluster or profile.cluster).content_digest(),
        ),
        profile=FileInput(ref=profile_ref, fingerprint=profile.content_digest()),
        request=wanted,
    )
    record = SearchRecord(
        solver=search.solver_name,
        status="optimal" if search.gap <= TOLERANCE else "feasible",
        objective=wanted.objective,
        objective_s=chosen.objective_s,
        bound_s=search.bound_s,
        gap=search.gap,
        space=f"{result.space}; {search.microbatches_text()}",
        candidates=search.candidates,
        alternatives=as_alternatives(rivals),
        choices=split_choices(chosen.problem, chosen.assignment, CostModel(chosen.problem)),
        idle=tuple(idle),
        wishes=wish_prices(search),
        splits=splits,
    )
    figures = estimate(chosen.problem, chosen.assignment, chosen.price)
    best = Plan(
        plan_id=plan_id(inputs, spec),
        created_by=CREATED_BY,
        inputs=inputs,
        spec=spec,
        estimate=figures,
        search=record,
        warnings=plan_warnings(
            chosen,
            [*rivals, *forced],
            gap=search.gap,
            cost=CostModel(chosen.problem),
            estimate=figures,
        ),
    )
    decided = best if used is None else beside(best, used, profile, cluster=cluster)
    return with_fallbacks(decided, profile, cluster=cluster) if fallbacks else decided


def _request(request: PlanRequest | None, wishes: dict[str, object]) -> PlanRequest:
    if request is not None:
        if wishes:
            raise InvalidInputError(
                f"give a request or its fields, not both (got also {', '.join(sorted(wishes))})"
            )
        return request
    try:
        return PlanRequest.model_validate(wishes, strict=False)
    except ValidationError as error:
        raise InvalidInputError(describe(error, "the request")) from error


def _failure(search: Search) -> ApportionError:
    if not search.infeasible:
        return unproved(search.request.limits.time_s)
    return explain_failure(
        search.profile,
        search.request,
        cluster=search.cluster,
        evidence=f"tried: {search.candidates} candidates with {search.solver_name}; "
        "infeasibility is proved.",
    )
