"""One answer from the solvers that suit a problem: more than one where that can help."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from planner.bounds import objective_bound_s
from planner.cost import CostModel
from planner.flows import Routing
from planner.problem import PlanningProblem
from planner.request import Split
from planner.solvers import choose_solver, load_solver
from planner.solvers.base import (
    TOLERANCE,
    Assignment,
    SolveLimits,
    Solver,
    SolverResult,
    SolveStatus,
)
from planner.solvers.chain import ONE_PIPELINE, ChainSolver
from planner.solvers.dealt import SIDE_BY_SIDE
from planner.solvers.pipelines import PipelinesSolver
from planner.solvers.slots import Slots

MANY_DEVICES = 128
"""Of more devices, kinds are planned for, not devices, where that is possible."""

SIDE_FRACTION = 0.3
"""The part of the time that is left for pipelines side by side."""


def solve(
    problem: PlanningProblem, *, cost: CostModel, name: str | None, limits: SolveLimits
) -> tuple[str, SolverResult]:
    """The result, and the names of the solvers it comes from. A named solver answers alone.

    Otherwise one pipeline and several side by side are searched. What takes less time comes first,
    so that its plan cuts the other search short: one line of stages for the time between batches,
    several for the time of one. With very many devices, templates of pipelines answer for both.
    """
    if name is None and problem.must_use is Split.PIPELINES:
        several = PipelinesSolver(ChainSolver())
        return several.name, several.solve(problem, cost=cost, limits=limits)
    if name is None and len(problem.devices) > MANY_DEVICES:
        templates = load_solver("templates")
        if templates.rejects(problem) is None:
            result = templates.solve(problem, cost=cost, limits=limits)
            found = result.assignment is not None or result.status is SolveStatus.INFEASIBLE
            if found or limits.cutoff_s is not None or limits.expired:
                return templates.name, result
    solver = choose_solver(problem, name=name)
    if name is not None:
        return solver.name, solver.solve(problem, cost=cost, limits=limits)
    lines = solver if isinstance(solver, ChainSolver) else ChainSolver()
    beside = PipelinesSolver(lines)
    if beside.rejects(problem) is not None:
        return _single(problem, cost, solver, limits)
    if isinstance(solver, ChainSolver) and not problem.request.objective.counts_latency:
        names, one = _single(problem, cost, solver, _sooner(limits, 1 - SIDE_FRACTION))
        # Whatever devices of several pipelines hold, those of the first of them hold alone.
        # Not if a time is limited: several may keep what one does not.
        nothing = one.status is SolveStatus.INFEASIBLE and not (
            problem.required or problem.targets.limits_times
        )
        if nothing or (one.objective_s is not None and one.objective_s <= limits.goal_s):
            return names, one
        other = beside.solve(problem, cost=cost, limits=_below(limits, one))
    else:
        other = beside.solve(problem, cost=cost, limits=_sooner(limits, SIDE_FRACTION))
        names, one = _single(problem, cost, solver, _below(limits, other))
    return f"{names}, {beside.name}", _either(problem, cost, one, other)


def _sooner(limits: SolveLimits, fraction: float) -> SolveLimits:
    """Limits with a part of the time that is left."""
    return replace(limits, deadline=time.monotonic() + fraction * limits.remaining_s())


def _below(limits: SolveLimits, result: SolverResult) -> SolveLimits:
    """Limits for a search beside one with this result: equally good plans are of no use."""
    if result.objective_s is None:
        return limits
    return replace(limits, cutoff_s=min(result.objective_s, limits.cutoff_s or math.inf))


def _either(
    problem: PlanningProblem, cost: CostModel, one: SolverResult, other: SolverResult
) -> SolverResult:
    """The better of two results for different plans (``one`` if they are equal), with the bound
    for both."""
    bounds = []
    for result in (one, other):
        if result.status is SolveStatus.INFEASIBLE:
            bounds.append(math.inf)
        elif result.bound_s is None:
            bounds.append(objective_bound_s(problem, cost.figures))
        else:
            bounds.append(result.bound_s)
    found = [r for r in (one, other) if r.objective_s is not None]
    best = min(found, key=lambda r: r.objective_s or 0.0) if found else one
    return _result(
        best.assignment,
        best.objective_s,
        min(bounds),
        space=_both_spaces(one.space, other.space),
        candidates=one.candidates + other.candidates,
    )


def _both_spaces(one: str, other: str) -> str:
    """Plans of one pipeline or of several; what is said of the stages of both is said once."""
    if one.removeprefix(ONE_PIPELINE) == other.removeprefix(SIDE_BY_SIDE):
        return f"{ONE_PIPELINE}, or {other}"
    return f"{one}; or {other}"


def _result(
    assignment: Assignment | None,
    objective_s: float | None,
    bound_s: float,
    *,
    space: str,
    candidates: int,
) -> SolverResult:
    """A result with the status that objective and bound give it."""
    if objective_s is not None:
        bound_s = min(bound_s, objective_s)
        proved = objective_s - bound_s <= TOLERANCE * bound_s
        status = SolveStatus.OPTIMAL if proved else SolveStatus.FEASIBLE
    else:
        status = SolveStatus.INFEASIBLE if bound_s == math.inf else SolveStatus.UNKNOWN
    return SolverResult(
        status=status,
        assignment=assignment,
        objective_s=objective_s,
        bound_s=None if bound_s == math.inf else bound_s,
        space=space,
        candidates=candidates,
    )


def _single(
    problem: PlanningProblem, cost: CostModel, solver: Solver, limits: SolveLimits
) -> tuple[str, SolverResult]:
    """The best single pipeline.

    The chain solver charges wires to pairs of devices; where several pairs share one, or where
    whole batches and microbatches alternate, it leaves a gap that CP-SAT may close. It also passes
    tensors on through every stage; where sending them past is better, CP-SAT looks for more.
    """
    result = solver.solve(problem, cost=cost, limits=limits)
    known = [x for x in (result.objective_s, limits.cutoff_s) if x is not None]
    if solver.name != "chain" or not known or result.status is SolveStatus.INFEASIBLE:
        return solver.name, result
    useful = min(known) * (1 - TOLERANCE)
    open_gap = (result.bound_s or 0.0) < useful or _direct_s(problem, cost, result) < useful
    second = load_solver("cp_sat")
    good_enough = min(known) <= limits.goal_s
    if not open_gap or good_enough or limits.expired or second.rejects(problem) is not None:
        return solver.name, result
    cutoff = min(x for x in (useful * (1 + TOLERANCE / 2), limits.cutoff_s) if x is not None)
    other = second.solve(problem, cost=cost, limits=replace(limits, cutoff_s=cutoff))
    return f"{solver.name}, {second.name}", _joined(problem, cost, result, other)


def _direct_s(problem: PlanningProblem, cost: CostModel, result: SolverResult) -> float:
    """The objective of the plan when tensors go straight to where they are read."""
    if result.assignment is None:
        return math.inf
    (alone,) = result.assignment.pipelines
    price = cost.evaluate(Assignment(pipelines=(replace(alone, routing=Routing.DIRECT),)))
    return price.objective_s(problem.request.objective) if price.allowed else math.inf


def _joined(
    problem: PlanningProblem, cost: CostModel, one: SolverResult, other: SolverResult
) -> SolverResult:
    """The better plan, and what both proofs give together."""
    best = one if other.assignment is None else other
    first = one.bound_s or 0.0
    bound = other.bound_s if other.bound_s is not None else first
    if _same_space(problem, cost):
        space, bound = one.space, max(first, bound)
    elif best is one:
        space, bound = one.space, first
    else:
        space, bound = f"{one.space}; or {other.space}", min(first, bound)
    return _result(
        best.assignment,
        best.objective_s,
        bound,
        space=space,
        candidates=one.candidates + other.candidates,
    )


def _same_space(problem: PlanningProblem, cost: CostModel) -> bool:
    """Whether both solvers search the same plans: no tensor skips a layer, no group left out."""
    graph = problem.graph
    for tensor in graph.tensors:
        if tensor.producer is not None:
            written = graph.layer_index[tensor.producer]
            if max(graph.readers[tensor.name], default=written) > written + 1:
                return False
    return not Slots(problem, cost.figures).left_out
