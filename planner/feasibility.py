"""Whether variants of a request have any plan at all, and how that is known.

One pipeline is enough to know, and no time matters: any plan will do.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

from planner.cost import CostModel
from planner.limits import (
    ENDLESS_BYTES,
    Limit,
    LimitKind,
    least_demanding,
    limits_of_feasibility,
    with_memory,
    without,
)
from planner.portfolio import solve
from planner.problem import PlanningProblem
from planner.request import Objective, PlanRequest
from planner.shortfall import plainly_nothing
from planner.slicings import MAX_WIDTH
from planner.solvers import choose_solver
from planner.solvers.base import SolveLimits, SolverResult, SolveStatus
from planner.solvers.chain import ENDLESS_S, ChainSolver
from profiler.cluster import Cluster
from profiler.errors import InvalidInputError
from profiler.profile import Profile

LEAST_S = 1.0
"""Seconds for all questions together, however short the time limit."""


class Feasibility:
    """Questions about one request that no plan satisfies, within its time limit in all."""

    def __init__(self, profile: Profile, request: PlanRequest, cluster: Cluster) -> None:
        self.profile, self.request = profile, request
        self.deadline = time.monotonic() + max(LEAST_S, request.limits.time_s)
        self.base = PlanningProblem.build(
            profile, request, cluster=cluster, microbatch=least_demanding(profile, request)
        )
        self.limits: tuple[Limit, ...] = limits_of_feasibility(self.base)
        self.cluster = _of_use(self.base, self.limits)
        self.asked = 0
        self._answers: dict[frozenset[int], bool | None] = {}
        self._clusters: dict[tuple[tuple[str, int], ...], Cluster] = {}
        self._lines = ChainSolver()

    def keeps(self, held: frozenset[int]) -> bool | None:
        """Whether some plan keeps the limits with these numbers; None if that is not known."""
        if held not in self._answers:
            lifted = [x for i, x in enumerate(self.limits) if i not in held]
            self._answers[held] = self.has_plan(lifted=lifted)
        return self._answers[held]

    def has_plan(
        self,
        *,
        lifted: Collection[Limit] = (),
        memory: Mapping[str, int] | None = None,
        **changes: object,
    ) -> bool | None:
        """Whether some plan fits without the limits ``lifted``, where devices have ``memory`` bytes
        and fields of the request other values; None if neither is known."""
        if time.monotonic() > self.deadline:
            return None
        self.asked += 1
        request = without(self.request, lifted)
        request = request.replaced(**changes, objective=Objective.THROUGHPUT)
        sizes = {
            device: ENDLESS_BYTES
            for limit in lifted
            if limit.kind is LimitKind.MEMORY
            for device in limit.devices
        }
        sizes.update(memory or {})
        try:
            problem = PlanningProblem.build(
                self.profile,
                request,
                cluster=self._with(sizes),
                microbatch=least_demanding(self.profile, request),
            )
        except InvalidInputError:
            return False  # the limits exclude each other
        if plainly_nothing(problem):
            return False
        result = self._any_plan(problem)
        if result.assignment is not None:
            return True
        return False if result.status is SolveStatus.INFEASIBLE else None

    def _with(self, sizes: dict[str, int]) -> Cluster:
        key = tuple(sorted(sizes.items()))
        if key not in self._clusters:
            self._clusters[key] = with_memory(self.cluster, sizes)
        return self._clusters[key]

    def _any_plan(self, problem: PlanningProblem) -> SolverResult:
        left = self.deadline - time.monotonic()
        limits = SolveLimits(
            deadline=time.monotonic() + max(0.1, left / 4),
            workers=self.request.limits.workers,
            seed=self.request.limits.seed,
            goal_s=ENDLESS_S,
        )
        if self.request.solver is not None:
            solver = choose_solver(problem, name=self.request.solver)
            return solver.solve(problem, cost=CostModel(problem), limits=limits)
        alone = not problem.batch_splits and not problem.tensor_splits
        most = min(
            problem.max_stages, problem.num_layers, max(len(members) for members in problem.classes)
        )
        for count in (*(2**k for k in range(most.bit_length()) if 2**k < most), most):
            some = [device for members in problem.classes for device in members[:count]]
            fewer = problem.limited_to(some, items=problem.items)
            if fewer is None or self._lines.rejects(fewer) is not None:
                break
            found = self._lines.solve(fewer, cost=CostModel(fewer), limits=limits)
            # Where each stage is on one device, more of a class than stages are of no use.
            everything = fewer.devices == problem.devices or (alone and count == most)
            if found.assignment is not None or everything or limits.expired:
                return found
        return solve(problem, cost=CostModel(problem), name=None, limits=limits)[1]


def _of_use(base: PlanningProblem, limits: Sequence[Limit]) -> Cluster:
    """The cluster with as many devices of each kind as one pipeline can use, whatever is lifted.

    A pipeline has a stage a layer at most; a stage split by batch has a rank an item at most, one
    split by tensor ``MAX_WIDTH`` of them.
    """
    request = base.request
    width = max(MAX_WIDTH if base.graph.regions else 1, request.microbatch_size or 1)
    most = base.num_layers * width
    kept = {name for x in limits if x.kind is LimitKind.MEMORY for name in x.devices[:most]}
    kept |= {pin.device for pin in request.pins} | {x.device for x in request.forbids}
    gone = set(base.cluster.device) - kept
    if not gone:
        return base.cluster
    hosts = tuple(
        host.replaced(devices=tuple(x for x in host.devices if f"{host.name}/{x.name}" not in gone))
        for host in base.cluster.hosts
    )
    links = tuple(x for x in base.cluster.links if not gone & {x.source, x.target})
    return base.cluster.replaced(hosts=hosts, links=links)
