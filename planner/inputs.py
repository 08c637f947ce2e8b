"""Finding the documents that a plan was made from: by its references, here or beside the plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from planner.planfile import Plan
from profiler.cluster import Cluster
from profiler.errors import InvalidInputError
from profiler.profile import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The documents behind a plan."""

    profile: Profile
    cluster: Cluster


def find_sources(plan: Plan, plan_path: Path | None) -> Sources | None:
    """The profile and cluster that ``plan`` names; None when its profile is not found.

    Raises:
        InvalidInputError: one of them is there and cannot be read.
    """
    beside = plan_path or Path(plan.inputs.profile.ref)
    found = _find(plan.inputs.profile.ref, beside)
    if found is None:
        return None
    profile = Profile.load(found)
    return Sources(profile=profile, cluster=load_cluster(plan, beside, profile))


def load_profile(plan: Plan, plan_path: Path) -> Profile:
    """The profile that ``plan`` names, from the current directory or else the plan's.

    Raises:
        InvalidInputError: there is none, or it cannot be read.
    """
    found = _find(plan.inputs.profile.ref, plan_path)
    if found is None:
        raise InvalidInputError(
            f"the plan's profile {plan.inputs.profile.ref[:200]!r} is neither here nor beside the "
            "plan; say where it is with --profile"
        )
    return Profile.load(found)


def load_cluster(plan: Plan, plan_path: Path, profile: Profile) -> Cluster:
    """The cluster that ``plan`` was made for: the profile's own, or a file of its own.

    A file that is missing or has changed gives the profile's cluster, which then shows as stale.

    Raises:
        InvalidInputError: the file cannot be read as a cluster.
    """
    if profile.cluster.content_digest() == plan.inputs.cluster.fingerprint:
        return profile.cluster
    found = _find(plan.inputs.cluster.ref, plan_path)
    same = plan.inputs.cluster.ref == plan.inputs.profile.ref
    return profile.cluster if found is None or same else Cluster.load(found)


def _find(ref: str, plan_path: Path) -> Path | None:
    try:
        return next((x for x in (Path(ref), plan_path.parent / ref) if x.is_file()), None)
    except (OSError, ValueError):  # a name that no file can have
        return None
