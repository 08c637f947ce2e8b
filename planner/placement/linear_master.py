"""Linear programs of placements, built up column by column and solved by OR-Tools GLOP."""

from __future__ import annotations

from collections.abc import Mapping

from ortools.linear_solver import pywraplp


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
