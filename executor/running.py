"""``run``: a plan and inputs in, the model's answer and a report out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from executor.session import DEFAULT_TIMEOUT_S, RunResult, Session, StartedRanks
from planner.inputs import Sources, find_sources
from planner.planfile import Plan
from profiler.capture import Captured, capture
from profiler.cluster import Cluster
from profiler.errors import InvalidInputError
from profiler.profile import Profile
from profiler.sources import load_model

if TYPE_CHECKING:
    from executor.emulate import EmulatedHosts


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run: what to check the plan against, and how long to wait for a message.

    Without ``profile``, the one the plan names is used if its file can be found; ``cluster`` is
    the one the plan was made for, if it is not the profile's own. With ``hosts`` (see
    :func:`executor.emulate.emulated`) each rank runs inside the host of its device.
    """

    profile: Profile | None = None
    cluster: Cluster | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    hosts: EmulatedHosts | None = None

    def sources(self, plan: Plan, path: Path | None) -> Sources | None:
        """The documents to check ``plan`` against."""
        if self.profile is None:
            return find_sources(plan, path)
        return Sources(profile=self.profile, cluster=self.cluster or self.profile.cluster)


def run(
    plan: Plan | str | Path,
    inputs: Any,
    *,
    model: str | nn.Module | Captured | None = None,
    options: RunOptions | None = None,
) -> RunResult:
    """Run ``plan`` on ``inputs`` with processes of this machine.

    ``inputs`` are as a call of the model takes them: a tensor, a tuple of arguments, a dict of
    keyword arguments; any number of items. ``model`` overrides the reference in the plan, and is
    needed when the plan was made from a module at hand. For many runs, keep a
    :class:`executor.session.Session` open instead.

    Raises:
        StalePlanError: the plan was made for another model.
        InvalidInputError: the plan breaks a rule, or the inputs do not fit.
        RankFailedError: a rank failed; the message says which, where and at what.
    """
    options = options or RunOptions()
    loaded, path = load_plan(plan)
    with open_session(loaded, path, model, inputs=inputs, options=options) as session:
        return session.run(inputs)


def open_session(
    plan: Plan,
    path: Path | None,
    model: str | nn.Module | Captured | None,
    *,
    inputs: Any,
    options: RunOptions,
) -> Session:
    """A session for a plan; its processes start while the model is being captured.

    Raises:
        StalePlanError, InvalidInputError, RankFailedError: as for :func:`run`.
    """
    sources = options.sources(plan, path)
    started = StartedRanks(plan, timeout_s=options.timeout_s, hosts=options.hosts)
    try:
        captured = model_of(plan, model, path, inputs=inputs)
    except BaseException:
        started.close()
        raise
    return Session(plan, captured, sources=sources, started=started)


def load_plan(plan: Plan | str | Path) -> tuple[Plan, Path | None]:
    """A plan, and the file it came from if it came from one."""
    if isinstance(plan, Plan):
        return plan, None
    return Plan.load(plan), Path(plan)


def model_of(
    plan: Plan, model: str | nn.Module | Captured | None, path: Path | None, *, inputs: Any = None
) -> Captured:
    """The captured model of a plan; for a module at hand, ``inputs`` serve as example.

    Raises:
        InvalidInputError: the plan was made from a module at hand and none is given.
    """
    if isinstance(model, Captured):
        return model
    named = plan.inputs.model
    if model is None:
        if named.source == "module":
            raise InvalidInputError(
                f"the plan was made from a {named.ref} that a script held; pass it: model=..."
            )
        model = named.ref
        beside = None if path is None else path.parent / model
        if named.source != "factory" and beside is not None and not Path(model).exists():
            model = str(beside) if beside.exists() else model
    return capture(load_model(model, inputs if isinstance(model, nn.Module) else None))
