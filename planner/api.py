"""``plan``: from a profile and a request to a plan with its evidence.

Reads no file and starts no process. Equal inputs give an equal plan, byte for byte, as long as the
search ends before its time limit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from planner.alternatives import (
    Chosen,
    Rival,
    as_alternatives,
    idle_rivals,
    rule_rivals,
    split_rivals,
)
from planner.bounds import objective_bound_s
from planner.cost import CostModel
from planner.infeasible import explain_failure, unproved
from planner.lower import estimate, lower
from planner.planfile import (
    FileInput,
    ModelInput,
    Plan,
    PlanInputs,
    PlanWarning,
    SearchRecord,
    plan_id,
)
from planner.portfolio import solve
from planner.problem import PlanningProblem
from planner.request import PlanRequest
from planner.solvers.base import TOLERANCE, SolveLimits, SolverResult, SolveStatus
from planner.warnings import plan_warnings
from profiler.cluster import Cluster
from profiler.documents import describe
from profiler.errors import ApportionError, InvalidInputError
from profiler.profile import Profile

CREATED_BY = "apportion 0.1.0"

_PASSES = 3  # over the microbatch sizes that are still open, while time is left
_LEAST_FRACTION = 0.05  # of the time limit that every solve gets
_EVIDENCE_FRACTION = 0.5  # of the time limit may go into pricing alternatives, on top


def plan(
    profile: Profile,
    request: PlanRequest | None = None,
    *,
    profile_ref: str = "profile.json",
    cluster: Cluster | None = None,
    cluster_ref: str | None = None,
    **wishes: object,
) -> Plan:
    """The best plan that can be found for ``request``, with the evidence for choosing it.

    ``wishes`` are fields of a :class:`PlanRequest`, instead of ``request``. ``cluster`` may change
    memory and links of the profile's cluster and leave devices out. ``profile_ref`` and
    ``cluster_ref`` are what the plan file calls its inputs.

    Raises:
        InvalidInputError: the inputs contradict each other or themselves.
        InfeasiblePlanError: nothing fits; ``error.conflicts`` says what stands in the way.
    """
    wanted = _request(request, wishes)
    search = _Search(profile, wanted, cluster)
    search.run()
    if search.best is None:
        raise _failure(search)
    idle, forced = idle_rivals(search.best, search.resolve, bound_s=search.bound_s)
    if search.adopt(forced):  # possible only where nothing was proved
        idle, forced = idle_rivals(search.best, search.resolve, bound_s=search.bound_s)
    chosen, result = search.best, search.results[search.best.problem.microbatch]
    rivals = rule_rivals(search.costs, chosen) + split_rivals(chosen, search.resolve)
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
        idle=tuple(idle),
    )
    return Plan(
        plan_id=plan_id(inputs, spec),
        created_by=CREATED_BY,
        inputs=inputs,
        spec=spec,
        estimate=estimate(chosen.problem, chosen.assignment, chosen.price),
        search=record,
        warnings=_warnings(chosen, search, [*rivals, *forced]),
    )


def microbatch_sizes(profile: Profile, request: PlanRequest) -> tuple[int, ...]:
    """The microbatch sizes worth trying: asked for, or measured ones that divide the batch."""
    if request.microbatch_size is not None:
        return (request.microbatch_size,)
    batch = request.batch_size
    if profile.model.static_batch is not None:
        return (batch,)
    measured = {n for n in profile.batch_sizes if n <= batch and batch % n == 0}
    return tuple(sorted(measured | {batch}))


@dataclass
class _Search:
    """One solve per microbatch size, sharing the time limit; then variants of the best."""

    profile: Profile
    request: PlanRequest
    cluster: Cluster | None
    best: Chosen | None = None
    results: dict[int, SolverResult] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    costs: list[CostModel] = field(default_factory=list)
    solver_names: dict[str, None] = field(default_factory=dict)
    candidates: int = 0
    evidence_deadline: float = 0.0

    def run(self) -> None:
        """Solve for every microbatch size; better ones cut the later searches short."""
        sizes = microbatch_sizes(self.profile, self.request)[::-1]
        problems = [
            PlanningProblem.build(self.profile, self.request, cluster=self.cluster, microbatch=size)
            for size in sizes
        ]
        limit = self.request.limits.time_s
        end = time.monotonic() + limit
        self.costs = [CostModel(problem) for problem in problems]
        open_ones = list(self.costs)
        for _ in range(_PASSES):
            for left, cost in zip(range(len(open_ones), 0, -1), open_ones, strict=True):
                now = time.monotonic()
                self._solve(cost, now + max(_LEAST_FRACTION * limit, (end - now) / left))
            open_ones = [cost for cost in open_ones if self._open(cost)]
            if time.monotonic() > end - _LEAST_FRACTION * limit:
                break
        self.evidence_deadline = time.monotonic() + _EVIDENCE_FRACTION * limit

    def resolve(self, problem: PlanningProblem) -> SolverResult:
        """A variant of the chosen problem, in a part of the time that is left."""
        now = time.monotonic()
        return solve(
            problem,
            cost=CostModel(problem),
            name=self.request.solver,
            limits=SolveLimits(
                deadline=now + max(0.2, (self.evidence_deadline - now) / 3),
                workers=self.request.limits.workers,
                seed=self.request.limits.seed,
            ),
        )[1]

    def adopt(self, rivals: Sequence[Rival]) -> bool:
        """Make the best of ``rivals`` the plan; whether it is better than the present one."""
        assert self.best is not None
        present = self.best
        for rival in rivals:
            if rival.assignment is None or rival.objective_s is None:
                continue
            if rival.objective_s < self.best.objective_s * (1 - TOLERANCE):
                self.best = Chosen(
                    problem=present.problem,
                    assignment=rival.assignment,
                    price=CostModel(present.problem).evaluate(rival.assignment),
                    objective_s=rival.objective_s,
                )
        return self.best is not present

    @property
    def bound_s(self) -> float:
        """What is proved over all microbatch sizes."""
        assert self.best is not None
        bounds = [self.best.objective_s]
        for cost in self.costs:
            result = self.results[cost.problem.microbatch]
            if result.status is not SolveStatus.INFEASIBLE:
                known = result.bound_s
                if known is None:
                    known = objective_bound_s(cost.problem, cost.figures)
                bounds.append(known)
        return min(bounds)

    @property
    def solver_name(self) -> str:
        """The solvers that were used, in the order of their first use."""
        return ", ".join(dict.fromkeys(n for names in self.solver_names for n in names.split(", ")))

    @property
    def gap(self) -> float:
        """Relative distance of the plan from what is proved."""
        assert self.best is not None
        if self.best.objective_s <= self.bound_s:
            return 0.0
        # A bound of zero proves nothing; the gap must still be a number.
        return (self.best.objective_s - self.bound_s) / max(self.bound_s, 1e-300)

    def microbatches_text(self) -> str:
        """The microbatch sizes that were searched."""
        sizes = sorted(cost.problem.microbatch for cost in self.costs)
        if len(sizes) == 1:
            return f"microbatches of {sizes[0]}"
        return f"microbatches of {', '.join(map(str, sizes[:-1]))} or {sizes[-1]}"

    def _open(self, cost: CostModel) -> bool:
        """Whether more time could find a better plan at this microbatch size."""
        result = self.results[cost.problem.microbatch]
        if result.status in (SolveStatus.OPTIMAL, SolveStatus.INFEASIBLE):
            return False
        if cost.problem.microbatch in self.ended:
            return False
        return (
            self.best is None
            or result.bound_s is None
            or result.bound_s < self.best.objective_s * (1 - TOLERANCE)
        )

    def _solve(self, cost: CostModel, deadline: float) -> None:
        problem = cost.problem
        cutoff = None if self.best is None else self.best.objective_s * (1 + TOLERANCE)
        name, result = solve(
            problem,
            cost=cost,
            name=self.request.solver,
            limits=SolveLimits(
                deadline=deadline,
                workers=self.request.limits.workers,
                seed=self.request.limits.seed,
                cutoff_s=cutoff,
            ),
        )
        self.results[problem.microbatch] = result
        if time.monotonic() < deadline:
            self.ended.add(problem.microbatch)  # it knows no more, however long it may take
        self.solver_names[name] = None
        self.candidates += result.candidates
        if result.assignment is None or result.objective_s is None:
            return
        found = Chosen(
            problem=problem,
            assignment=result.assignment,
            price=cost.evaluate(result.assignment),
            objective_s=result.objective_s,
        )
        if self.best is None or _better(found, self.best):
            self.best = found


def _better(one: Chosen, other: Chosen) -> bool:
    """Less of the objective; among equals less latency, then fewer devices."""
    if abs(one.objective_s - other.objective_s) > TOLERANCE * other.objective_s:
        return one.objective_s < other.objective_s
    if abs(one.price.latency_s - other.price.latency_s) > TOLERANCE * other.price.latency_s:
        return one.price.latency_s < other.price.latency_s
    return len(one.assignment.devices) < len(other.assignment.devices)


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


def _failure(search: _Search) -> ApportionError:
    if any(r.status is not SolveStatus.INFEASIBLE for r in search.results.values()):
        return unproved(search.request.limits.time_s)
    return explain_failure(
        search.profile,
        search.request,
        cluster=search.cluster,
        microbatches=tuple(cost.problem.microbatch for cost in search.costs),
        evidence=f"tried: {search.candidates} candidates with {search.solver_name}; "
        "infeasibility is proved.",
    )


def _warnings(chosen: Chosen, search: _Search, rivals: Sequence[Rival]) -> tuple[PlanWarning, ...]:
    return plan_warnings(chosen, rivals, gap=search.gap, cost=CostModel(chosen.problem))
