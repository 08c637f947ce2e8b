"""The search for a plan over microbatch sizes, sharing the time that there is.

Sizes that were measured come first, the most promising before the others; sizes between them follow
where their bound leaves room for a better plan and time is left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from planner.alternatives import Chosen, Rival, idle_rivals, rule_rivals, split_rivals
from planner.bounds import objective_bound_s
from planner.cost import CostModel
from planner.microbatches import microbatch_sizes
from planner.portfolio import solve
from planner.problem import PlanningProblem
from planner.request import PlanRequest
from planner.rules import RuleOutcome, apply_rules
from planner.searchrecord import IdleDevice
from planner.shortfall import plainly_nothing
from planner.solvers import load_solver
from planner.solvers.base import TOLERANCE, SolveLimits, SolverResult, SolveStatus
from planner.targets import KEPT, Targets
from profiler.cluster import Cluster
from profiler.profile import Profile

PASSES = 3
"""Passes over the microbatch sizes that are still open, while time is left."""

LEAST_FRACTION = 0.05
"""Of the time limit that every solve gets."""

EVIDENCE_FRACTION = 0.5
"""Of the time limit that may go into pricing alternatives, on top."""

UNUSED_FRACTION = 0.1
"""Of its time, what a search leaves that has stopped by itself: CP-SAT ends somewhat before its
limit when time was what it lacked."""

SERIES_WORK = 1.5e8
"""As ``options.MAX_WORK``, for each of a series of searches, and for pipelines side by side."""


@dataclass
class Search:
    """One solve per microbatch size; then variants of the best.

    ``targets`` go before those of the request. A plan at or below ``goal_s`` ends the search.
    ``series`` keeps what was looked up for a microbatch size for later searches of the same kind;
    ``known`` is a plan to begin with: nothing worse is looked for.
    """

    profile: Profile
    request: PlanRequest
    cluster: Cluster | None
    targets: Targets | None = None
    goal_s: float = -math.inf
    series: dict[int, CostModel] | None = None
    known: Chosen | None = None  # a plan to begin with
    best: Chosen | None = None
    results: dict[int, SolverResult] = field(default_factory=dict)
    untried: list[int] = field(default_factory=list)  # sizes that may keep a limit on times
    ended: set[int] = field(default_factory=set)  # sizes whose search stopped by itself
    costs: list[CostModel] = field(default_factory=list)  # of sizes that were measured
    rules: list[tuple[PlanningProblem, tuple[RuleOutcome, ...]]] = field(default_factory=list)
    bounds_s: dict[int, float] = field(default_factory=dict)  # before any solve, by size
    solver_names: dict[str, None] = field(default_factory=dict)
    candidates: int = 0
    evidence_deadline: float = 0.0

    def run(self) -> None:
        """Solve for every microbatch size; better ones cut the later searches short."""
        sizes = microbatch_sizes(self.profile, self.request)
        limit = self.request.limits.time_s
        end = time.monotonic() + limit
        self.best = self.known
        self.costs = self._promising(sizes.measured)
        if self.series is None or self.best is None:
            self.rules = [(cost.problem, apply_rules(cost.problem, cost)) for cost in self.costs]
        if self.request.solver is None:  # a named solver answers alone
            self._begin()
        self._pass(self.costs, end)
        # What does not fit at the smallest size fits at no other; but it may be in time there.
        hopeless = self.infeasible and not self._limited
        more = sizes.between[:1] if hopeless else sizes.between
        between = [] if time.monotonic() > end else self._promising(more)
        self._pass(between, end, stop_at=end)
        self.untried = [x for x in more if x not in self.results] if self._limited else []
        open_ones = [c for c in (*self.costs, *between) if self._open(c)]
        for _ in range(PASSES - 1):
            if time.monotonic() > end - LEAST_FRACTION * limit:
                break
            self._pass(open_ones, end)
            open_ones = [cost for cost in open_ones if self._open(cost)]
        self.evidence_deadline = time.monotonic() + EVIDENCE_FRACTION * limit

    def resolve(self, problem: PlanningProblem) -> SolverResult:
        """A variant of the chosen problem, in a part of the time that is left.

        By the solver that was asked for, if it takes the variant.
        """
        now, name = time.monotonic(), self.request.solver
        if name is not None and load_solver(name).rejects(problem) is not None:
            name = None
        return solve(
            problem,
            cost=CostModel(problem),
            name=name,
            limits=SolveLimits(
                deadline=now + max(0.2, (self.evidence_deadline - now) / 3),
                workers=self.request.limits.workers,
                seed=self.request.limits.seed,
            ),
        )[1]

    def adopt(self, rivals: Sequence[Rival]) -> bool:
        """Make the best of ``rivals`` the plan; whether it is better than the present one.

        That can be only where nothing was proved.
        """
        assert self.best is not None
        present = self.best
        for rival in rivals:
            if rival.assignment is None or rival.objective_s is None:
                continue
            if rival.objective_s < self.best.objective_s * (1 - TOLERANCE):
                self.best = Chosen(
                    problem=replace(
                        rival.problem, request=self.request, required=frozenset(), must_use=None
                    ),
                    assignment=rival.assignment,
                    price=CostModel(rival.problem).evaluate(rival.assignment),
                    objective_s=rival.objective_s,
                )
        return self.best is not present

    def evidence(self) -> tuple[list[IdleDevice], list[Rival], list[Rival]]:
        """Why not otherwise: the devices that stay idle, the best plans that use one of them, and
        other plans that were not chosen."""
        assert self.best is not None
        chosen = self.best
        idle, forced = idle_rivals(chosen, self.resolve, bound_s=self.bound_s)
        rules = list(self.rules)
        others = [problem for problem, _ in rules]
        if all(problem.microbatch != chosen.problem.microbatch for problem in others):
            rules.append((chosen.problem, apply_rules(chosen.problem, CostModel(chosen.problem))))
        rivals = rule_rivals(rules, chosen) + split_rivals(others, chosen, self.resolve)
        return idle, forced, rivals

    @property
    def bound_s(self) -> float:
        """What is proved over all microbatch sizes."""
        assert self.best is not None
        bounds = [self.best.objective_s]
        for size, result in self.results.items():
            if result.status is not SolveStatus.INFEASIBLE:
                bounds.append(max(self.bounds_s[size], result.bound_s or 0.0))
        if min(bounds[1:], default=0.0) > bounds[0] * (1 + TOLERANCE):
            # A rival of another kind than what was searched: only what holds for all plans holds.
            return min(bounds[0], *self.bounds_s.values())
        return min(bounds)

    @property
    def least_s(self) -> float:
        """No plan has less, found or not; endless if it is proved that there is none."""
        if self.best is not None:
            return self.bound_s
        if self.infeasible:
            return math.inf
        bounds = [
            max(self.bounds_s[size], result.bound_s or 0.0)
            for size, result in self.results.items()
            if result.status is not SolveStatus.INFEASIBLE
        ]
        return min([*bounds, *(self.bounds_s.get(size, 0.0) for size in self.untried)])

    @property
    def solver_name(self) -> str:
        """The solvers that were used, in the order of their first use."""
        return ", ".join(dict.fromkeys(n for names in self.solver_names for n in names.split(", ")))

    @property
    def gap(self) -> float:
        """Relative distance of the plan from what is proved."""
        assert self.best is not None
        return gap_of(self.best.objective_s, self.bound_s)

    @property
    def infeasible(self) -> bool:
        """Whether it is proved of every size that nothing fits and keeps every limit."""
        most_s = self._most_s(self.costs[0].problem) if self.costs else math.inf
        return not self.untried and all(
            r.status is SolveStatus.INFEASIBLE
            or (r.assignment is None and max(self.bounds_s[size], r.bound_s or 0.0) >= most_s)
            for size, r in self.results.items()
        )

    def microbatches_text(self) -> str:
        """The microbatch sizes that were searched."""
        sizes = sorted(self.results)
        if len(sizes) == 1:
            return f"microbatches of {sizes[0]}"
        return f"microbatches of {', '.join(map(str, sizes[:-1]))} or {sizes[-1]}"

    def _begin(self) -> None:
        """Nothing worse than what people do by rule is looked for."""
        for problem, outcomes in self.rules:
            for outcome in outcomes:
                if outcome.assignment is None or outcome.price is None:
                    continue
                found = Chosen(
                    problem=problem,
                    assignment=outcome.assignment,
                    price=outcome.price,
                    objective_s=outcome.price.objective_s(self.request.objective),
                )
                if self.best is None or _better(found, self.best):
                    self.best = found

    def _promising(self, sizes: Sequence[int]) -> list[CostModel]:
        """Sizes with least bound first; of equal ones the largest."""
        costs = []
        for size in sizes:
            cost = self._cost(size)
            problem = cost.problem
            self.bounds_s[size] = objective_bound_s(problem, cost.figures)
            costs.append(cost)
        return sorted(
            costs, key=lambda c: (self.bounds_s[c.problem.microbatch], -c.problem.microbatch)
        )

    def _cost(self, size: int) -> CostModel:
        """The cost model for a microbatch size, with what is known of it."""
        known = None if self.series is None else self.series.get(size)
        if known is None:
            problem = PlanningProblem.build(
                self.profile, self.request, cluster=self.cluster, microbatch=size
            )
            if self.series is not None:
                problem = replace(problem, option_work=SERIES_WORK)
        else:
            problem = replace(known.problem, request=self.request)
        if self.targets is not None:
            problem = replace(problem, targets=self.targets)
        cost = CostModel(problem, figures=None if known is None else known.figures)
        if self.series is not None:
            self.series.setdefault(size, cost)
        return cost

    def _pass(
        self, costs: Sequence[CostModel], end: float, *, stop_at: float = float("inf")
    ) -> None:
        """One solve for each size, in equal parts of the time until ``end``."""
        least = LEAST_FRACTION * self.request.limits.time_s
        for left, cost in zip(range(len(costs), 0, -1), costs, strict=True):
            now = time.monotonic()
            if now > stop_at or self._reached:
                return
            self._solve(cost, now + max(least, (end - now) / left))

    def _open(self, cost: CostModel) -> bool:
        """Whether more time could find a better plan at this microbatch size."""
        result = self.results.get(cost.problem.microbatch)
        if cost.problem.microbatch in self.ended:
            return False
        if result is None or result.status in (SolveStatus.OPTIMAL, SolveStatus.INFEASIBLE):
            return False
        return (
            self.best is None
            or result.bound_s is None
            or result.bound_s < self.best.objective_s * (1 - TOLERANCE)
        )

    def _solve(self, cost: CostModel, deadline: float) -> None:
        problem = cost.problem
        useful_s = math.inf if self.best is None else self.best.objective_s * (1 + TOLERANCE)
        useful_s = min(useful_s, self._most_s(problem))
        cutoff = None if useful_s == math.inf else useful_s
        known = self.bounds_s[problem.microbatch]
        if cutoff is not None and known >= cutoff:
            self.results[problem.microbatch] = _ruled_out(known)
            return
        if plainly_nothing(problem):
            self.results[problem.microbatch] = replace(
                _ruled_out(math.inf), status=SolveStatus.INFEASIBLE, bound_s=None
            )
            return
        begun = time.monotonic()
        name, result = solve(
            problem,
            cost=cost,
            name=self.request.solver,
            limits=SolveLimits(
                deadline=deadline,
                workers=self.request.limits.workers,
                seed=self.request.limits.seed,
                cutoff_s=cutoff,
                goal_s=self.goal_s,
            ),
        )
        self.results[problem.microbatch] = result
        if deadline - time.monotonic() > UNUSED_FRACTION * (deadline - begun):
            self.ended.add(problem.microbatch)
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

    @property
    def space(self) -> str:
        """What was searched for the chosen plan, in words."""
        assert self.best is not None
        own = self.results.get(self.best.problem.microbatch)
        spaces = [result.space for result in (own, *self.results.values()) if result is not None]
        return next((space for space in spaces if space), "plans by simple rules")

    @property
    def _limited(self) -> bool:
        """Whether a time of a batch is limited."""
        return any(cost.problem.targets.limits_times for cost in self.costs)

    @property
    def _reached(self) -> bool:
        """Whether a plan is good enough."""
        return self.best is not None and self.best.objective_s <= self.goal_s

    def _most_s(self, problem: PlanningProblem) -> float:
        """Beyond what the request allows of the time that plans are compared by."""
        return problem.targets.most_of(self.request.objective) * (1 + 2 * KEPT)


def gap_of(objective_s: float, bound_s: float) -> float:
    """Relative distance of an objective from its bound."""
    if objective_s <= bound_s:
        return 0.0
    # A bound of zero proves nothing; the gap must still be a number.
    return (objective_s - bound_s) / max(bound_s, 1e-300)


def _ruled_out(bound_s: float) -> SolverResult:
    """A size at which no plan is better than one that is known."""
    return SolverResult(
        status=SolveStatus.UNKNOWN,
        assignment=None,
        objective_s=None,
        bound_s=bound_s,
        space="",
        candidates=0,
    )


def _better(one: Chosen, other: Chosen) -> bool:
    """Less of the objective; among equals less latency, then fewer devices."""
    if abs(one.objective_s - other.objective_s) > TOLERANCE * other.objective_s:
        return one.objective_s < other.objective_s
    if abs(one.price.latency_s - other.price.latency_s) > TOLERANCE * other.price.latency_s:
        return one.price.latency_s < other.price.latency_s
    return len(one.assignment.devices) < len(other.assignment.devices)
