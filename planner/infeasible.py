"""Why nothing fits: the limits that clash, and the smallest changes after which something would.

All of it is found by solving again: a remedy that is listed works.
"""

from __future__ import annotations

from planner.clashes import Clash, ClashSearch
from planner.feasibility import Feasibility
from planner.limits import Limit
from planner.remedies import smallest_changes
from planner.request import PlanRequest
from planner.shortfall import shortfall
from profiler.cluster import Cluster
from profiler.errors import ApportionError, Change, Conflict, InfeasiblePlanError
from profiler.profile import Profile


def explain_failure(
    profile: Profile, request: PlanRequest, *, cluster: Cluster | None, evidence: str
) -> InfeasiblePlanError:
    """The error for a request that no plan satisfies. ``evidence`` says how that is known.

    It takes the request's time limit once more, at most.
    """
    question = Feasibility(profile, request, cluster or profile.cluster)
    search = ClashSearch(count=len(question.limits), oracle=question.keeps)
    clash = search.smallest()
    members = [question.limits[i] for i in clash.members]
    # What alone makes a plan fit is in every clash: no limit but these needs to be changed.
    alone = [smallest_changes(question, [limit]) for limit in members]
    conflicts = [
        _conflict(limit, changes[0] if changes else None)
        for limit, changes in zip(members, alone, strict=True)
    ]
    remedies = [changes for changes in alone if changes] or _together(question, search, clash)
    return InfeasiblePlanError(
        conflicts,
        reason=shortfall(question.base, [c.change for c in conflicts if c.change]),
        remedies=remedies,
        smallest=clash.smallest,
        evidence=evidence if clash.irreducible else f"{evidence}\n{_IN_TIME}",
    )


_IN_TIME = "fewer of these limits may clash already: time ran out before that was known."


def unproved(limit_s: float) -> ApportionError:
    """The error when time ran out with neither plan nor proof."""
    return ApportionError(
        f"no plan was found within {limit_s:g} s, and it is not proved that there is none; raise "
        "limits.time_s, or leave out pins, forbids or devices"
    )


def _conflict(limit: Limit, change: Change | None) -> Conflict:
    return Conflict(
        limit=limit.kind.value,
        subject=limit.subject,
        text=limit.text,
        now=limit.now,
        change=change,
    )


def _together(question: Feasibility, search: ClashSearch, clash: Clash) -> list[tuple[Change, ...]]:
    """The fewest changes that make a plan fit together: two, else what is known to be enough."""
    for pair in search.pairs_to_lift(clash):
        changes = smallest_changes(question, [question.limits[i] for i in pair])
        if changes is not None:
            return [changes]
    lifted = search.fewest_to_lift()
    if lifted is None:
        return []
    changes = smallest_changes(question, [question.limits[i] for i in sorted(lifted)])
    return [] if changes is None else [changes]
