"""Linear and integer programs of placements, solved by OR-Tools: the one file here that imports it.

Integer programs come as :class:`~planner.solvers.integer_model.IntegerModel` and go to CP-SAT,
linear ones are built up column by column and go to GLOP.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from ortools.linear_solver import pywraplp
from ortools.sat.python import cp_model

from planner.solvers.base import SolveLimits, SolveStatus
from planner.solvers.integer_model import IntegerModel

LARGEST_SUM = 2**31 - 1
"""With presolve, 0-1 variables of one inequality must not add up to more (google/or-tools#5293)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerAnswer:
    """Values by variable (empty without an answer) and a lower bound on the objective."""

    status: SolveStatus
    values: tuple[int, ...]
    bound: float


def solve_integer(model: IntegerModel, limits: SolveLimits) -> IntegerAnswer:
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
        if row.when is not None:
            constraint.only_enforce_if(literal(row.when))
    for variable, value in model.hints.items():
        translated.add_hint(variables[variable], value)
    translated.minimize(variables[model.objective])
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = limits.workers
    solver.parameters.random_seed = limits.seed
    solver.parameters.max_time_in_seconds = max(0.01, limits.remaining_s())
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
    if status == cp_model.UNKNOWN:
        return IntegerAnswer(status=SolveStatus.UNKNOWN, values=(), bound=bound)
    raise AssertionError(f"CP-SAT calls the model invalid: {status}")


class LinearMaster:
    """Minimise ``costs @ x`` over columns ``x >= 0`` that are added one by one.

    Rows are ``lower <= sum <= upper``.
    """

    def __init__(self, rows: list[tuple[float, float]]) -> None:
        self._solver = pywraplp.Solver.CreateSolver("GLOP")
        self._rows = [self._solver.Constraint(lower, upper) for lower, upper in rows]
        self._objective = self._solver.Objective()
        self._objective.SetMinimization()
        self._columns: list[pywraplp.Variable] = []

    def add(self, cost: float, entries: Mapping[int, float]) -> None:
        """One more column with coefficients by row."""
        column = self._solver.NumVar(0.0, self._solver.infinity(), "")
        self._objective.SetCoefficient(column, cost)
        for row, value in entries.items():
            self._rows[row].SetCoefficient(column, value)
        self._columns.append(column)

    def set_cost(self, column: int, cost: float) -> None:
        """Change what a column costs; columns count from 0 in the order they were added."""
        self._objective.SetCoefficient(self._columns[column], cost)

    def solve(self) -> tuple[float, list[float], list[float]] | None:
        """Objective, price of each row and value of each column, or None if it failed."""
        if self._solver.Solve() != pywraplp.Solver.OPTIMAL:
            return None
        prices = [row.dual_value() for row in self._rows]
        return self._objective.Value(), prices, [x.solution_value() for x in self._columns]
