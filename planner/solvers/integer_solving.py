"""Integer models solved by OR-Tools CP-SAT: the one file that imports it."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

from ortools.sat.python import cp_model

from planner.solvers.base import SolveLimits, SolveStatus
from planner.solvers.integer_model import IntegerModel

LARGEST_SUM = 2**31 - 1
"""With presolve, 0-1 variables of one inequality must not add up to more: OR-Tools 9.15 keeps such
sums in 32 bits and then calls the rest optimal (google/or-tools#5293; the property tests met it).
Without presolve there is no such limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerAnswer:
    """Values by variable (empty without an answer) and a lower bound on the objective.

    ``refused``: CP-SAT calls the model invalid (its sums are too large); nothing is known then.
    """

    status: SolveStatus
    values: tuple[int, ...]
    bound: float
    refused: bool = False


def solve_integer(
    model: IntegerModel, limits: SolveLimits, *, presolve: bool = True
) -> IntegerAnswer:
    """What CP-SAT says about ``model``. An interrupt stops it and reaches the caller."""
    translated = cp_model.CpModel()
    variables = [
        translated.new_bool_var("") if upper == 1 else translated.new_int_var(0, upper, "")
        for upper in model.upper
    ]

    def literal(x: int) -> cp_model.LiteralT:
        return variables[x] if x >= 0 else variables[-x - 1].negated()

    for clause in model.clauses:
        translated.add_bool_or([literal(x) for x in clause])
    for choice in model.choices:
        translated.add_exactly_one([literal(x) for x in choice])
    for row in model.inequalities:
        total = cp_model.LinearExpr.weighted_sum(
            [variables[v] for _, v in row.terms], [c for c, _ in row.terms]
        )
        constraint = translated.add(total <= row.upper)
        if row.when:
            constraint.only_enforce_if([literal(x) for x in row.when])
    for variable, value in model.hints.items():
        translated.add_hint(variables[variable], value)
    translated.minimize(variables[model.objective])
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = limits.workers
    solver.parameters.random_seed = limits.seed
    solver.parameters.max_time_in_seconds = max(0.01, limits.remaining_s())
    solver.parameters.cp_model_presolve = presolve
    solver.parameters.stop_after_first_solution = limits.goal_s == math.inf
    solver.parameters.presolve_inclusion_work_limit = 0  # the part of #5293
    # In a thread of its own, because the call does not return for an interrupt.
    solver.parameters.catch_sigint_signal = False
    outcome: list[object] = []
    thread = threading.Thread(target=lambda: outcome.append(solver.solve(translated)), daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(timeout=0.1)
    except BaseException:
        solver.stop_search()
        thread.join()
        raise
    status = outcome[0] if outcome else cp_model.UNKNOWN
    if status == cp_model.INFEASIBLE:
        return IntegerAnswer(status=SolveStatus.INFEASIBLE, values=(), bound=0.0)
    bound = max(0.0, solver.best_objective_bound)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        values = tuple(int(solver.value(variable)) for variable in variables)
        proved = status == cp_model.OPTIMAL
        return IntegerAnswer(
            status=SolveStatus.OPTIMAL if proved else SolveStatus.FEASIBLE,
            values=values,
            bound=bound,
        )
    refused = status != cp_model.UNKNOWN
    return IntegerAnswer(
        status=SolveStatus.UNKNOWN, values=(), bound=0.0 if refused else bound, refused=refused
    )
