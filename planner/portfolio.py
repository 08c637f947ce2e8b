"""One answer from the solvers that suit a problem: a second one where the first leaves a gap."""

from __future__ import annotations

import math
from dataclasses import replace

from planner.cost import CostModel
from planner.flows import Routing
from planner.problem import PlanningProblem
from planner.solvers import choose_solver, load_solver
from planner.solvers.base import TOLERANCE, SolveLimits, SolverResult, SolveStatus
from planner.solvers.slots import Slots


def solve(
    problem: PlanningProblem, *, cost: CostModel, name: str | None, limits: SolveLimits
) -> tuple[str, SolverResult]:
    """The result, and the names of the solvers it comes from.

    The chain solver charges wires to pairs of devices; where several pairs share one, or where
    whole batches and microbatches alternate, it leaves a gap that CP-SAT may close. It also passes
    tensors on through every stage; where sending them past is better, CP-SAT looks for more.
    """
    solver = choose_solver(problem, name=name)
    result = solver.solve(problem, cost=cost, limits=limits)
    if name is not None or solver.name != "chain" or result.objective_s is None:
        return solver.name, result
    useful = min(result.objective_s, limits.cutoff_s or result.objective_s) * (1 - TOLERANCE)
    open_gap = (result.bound_s or 0.0) < useful or _direct_s(problem, cost, result) < useful
    second = load_solver("cp_sat")
    good_enough = result.objective_s <= limits.goal_s
    if not open_gap or good_enough or limits.expired or second.rejects(problem) is not None:
        return solver.name, result
    cutoff = result.objective_s * (1 - TOLERANCE / 2)
    other = second.solve(
        problem,
        cost=cost,
        limits=replace(limits, cutoff_s=min(cutoff, limits.cutoff_s or cutoff)),
    )
    return f"{solver.name}, {second.name}", _joined(problem, cost, result, other)


def _direct_s(problem: PlanningProblem, cost: CostModel, result: SolverResult) -> float:
    """The objective of the plan when tensors go straight to where they are read."""
    assert result.assignment is not None
    price = cost.evaluate(replace(result.assignment, routing=Routing.DIRECT))
    return price.objective_s(problem.request.objective) if price.fits else math.inf


def _joined(
    problem: PlanningProblem, cost: CostModel, one: SolverResult, other: SolverResult
) -> SolverResult:
    """The better plan, and what both proofs give together."""
    best = one if other.assignment is None else other
    assert best.objective_s is not None
    assert one.bound_s is not None
    bound = other.bound_s if other.bound_s is not None else one.bound_s
    if _same_space(problem, cost):
        space, bound = one.space, max(one.bound_s, bound)
    elif best is one:
        space, bound = one.space, one.bound_s
    else:
        space, bound = f"{one.space}; or {other.space}", min(one.bound_s, bound)
    bound = min(bound, best.objective_s)
    proved = best.objective_s - bound <= TOLERANCE * bound
    return SolverResult(
        status=SolveStatus.OPTIMAL if proved else SolveStatus.FEASIBLE,
        assignment=best.assignment,
        objective_s=best.objective_s,
        bound_s=bound,
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
