"""``plan``: from a profile and a request to a plan with its evidence.

Reads no file and starts no process. Equal inputs give an equal plan, byte for byte, as long as the
search ends before its time limit.
"""

from __future__ import annotations

from pydantic import ValidationError

from planner.aggregation import choose
from planner.baseline import beside, in_use
from planner.device_search import search_plan
from planner.fallbacks import with_fallbacks
from planner.infeasible import explain_failure, unproved
from planner.planfile import Plan
from planner.request import PlanRequest
from planner.search import Search
from planner.unreachable import explain_limits, has_limits, without_limits
from planner.written import Refs, written
from profiler.cluster import Cluster
from profiler.documents import describe
from profiler.errors import ApportionError, InvalidInputError
from profiler.profile import Profile


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
    searched = search_plan(profile, wanted, cluster)
    search = searched.search
    if search.best is None:
        raise failure(search)
    refs = Refs(profile=profile_ref, cluster=cluster_ref)
    best = written(searched, profile, wanted, refs=refs, cluster=cluster)
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


def failure(search: Search) -> ApportionError:
    """Why a search ended without a plan: a proof, with what would make it fit, or want of time."""
    if not search.infeasible:
        return unproved(search.request.limits.time_s)
    evidence = (
        f"tried: {search.candidates} candidates with {search.solver_name or 'bounds'}; "
        "infeasibility is proved."
    )
    if has_limits(search.request):
        clash = explain_limits(
            search.profile, search.request, cluster=search.cluster, evidence=evidence
        )
        if clash is not None:
            return clash
    return explain_failure(
        search.profile,
        without_limits(search.request),
        cluster=search.cluster,
        evidence=evidence,
    )
