"""How many pipelines of each template run side by side: the linear master and its rounding.

With ``x[c]`` pipelines of template ``c``, each worth ``value[c]`` microbatches a batch, and
``y[t, a, b]`` pieces of ``a + b`` devices of one pool of kind ``t`` taken apart into two,

    maximise    sum of value[c] * x[c]
    subject to  for every kind t and size s: pieces used <= whole pools of that size
                + pieces that taking apart makes - pieces taken apart            (a row per t, s)

The rows' dual prices are what a template pays for its pieces. ``relax`` solves it for real numbers
by GLOP; ``round_down`` for whole ones by CP-SAT. With ``planner.solvers.cp_sat`` the only file that
touches OR-Tools.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ortools.linear_solver import pywraplp
from ortools.sat.python import cp_model

from planner.solvers.base import SolveLimits
from planner.solvers.chain_segments import Floats

Piece = tuple[int, int]
"""A kind of device, and how many of them in one pool."""

ROOM = 3
"""Copies of a template, more or fewer than in real numbers, that rounding may take."""


@dataclass(frozen=True, slots=True)
class Supply:
    """Whole pools by kind and size. ``runs[t]``: the largest piece of kind ``t`` that counts."""

    pools: Mapping[Piece, int]
    runs: tuple[int, ...]

    @property
    def pieces(self) -> list[Piece]:
        """Every piece that there may be."""
        return [(t, s) for t, most in enumerate(self.runs) for s in range(1, most + 1)]

    @property
    def splits(self) -> list[tuple[int, int, int]]:
        """Kind and sizes of the two parts of every way to take a piece apart."""
        return [
            (t, a, s - a)
            for t, most in enumerate(self.runs)
            for s in range(2, most + 1)
            for a in range(1, s // 2 + 1)
        ]

    def worth(self, prices: Floats) -> float:
        """What everything costs together; ``prices[t, s - 1]`` of a piece."""
        return math.fsum(count * prices[t, s - 1] for (t, s), count in self.pools.items())


@dataclass(frozen=True, slots=True)
class Relaxed:
    """The real optimum over the known templates, how often each, and the pieces' prices."""

    value: float
    counts: tuple[float, ...]
    prices: Floats


class Master:
    """The programme over the templates added so far."""

    def __init__(self, supply: Supply) -> None:
        self.supply = supply
        self._needs: list[Mapping[Piece, int]] = []
        self._solver = pywraplp.Solver.CreateSolver("GLOP")
        solver = self._solver
        self._row = {
            piece: solver.Constraint(-solver.infinity(), float(supply.pools.get(piece, 0)))
            for piece in supply.pieces
        }
        for t, a, b in supply.splits:
            taken = solver.NumVar(0.0, solver.infinity(), "")
            self._row[t, a + b].SetCoefficient(taken, 1.0)
            for size, made in {a: 1.0 + (a == b), b: 1.0 + (a == b)}.items():
                self._row[t, size].SetCoefficient(taken, -made)
        self._columns: list[pywraplp.Variable] = []
        solver.Objective().SetMaximization()

    def add(self, needs: Mapping[Piece, int]) -> None:
        """Another template, that takes so many of each piece."""
        column = self._solver.NumVar(0.0, self._solver.infinity(), "")
        for piece, count in needs.items():
            self._row[piece].SetCoefficient(column, float(count))
        self._columns.append(column)
        self._needs.append(dict(needs))

    def relax(self, values: Sequence[int]) -> Relaxed:
        """The optimum in real numbers when the templates are worth ``values``."""
        objective = self._solver.Objective()
        for column, value in zip(self._columns, values, strict=True):
            objective.SetCoefficient(column, float(value))
        status = self._solver.Solve()
        assert status == pywraplp.Solver.OPTIMAL, f"GLOP ended with status {status}"
        runs = self.supply.runs
        prices = np.full((len(runs), max(1, *runs)), np.inf)
        for (t, s), row in self._row.items():
            prices[t, s - 1] = max(0.0, row.dual_value())
        return Relaxed(
            value=objective.Value(),
            counts=tuple(column.solution_value() for column in self._columns),
            prices=sound_prices(prices, runs),
        )

    def round_down(
        self,
        values: Sequence[int],
        wanted: int,
        hint: Sequence[float],
        limits: SolveLimits,
        effort_s: float = 1.0,
    ) -> tuple[tuple[int, ...], dict[tuple[int, int, int], int]]:
        """Whole numbers of each template worth up to ``wanted`` together, and what is taken apart.

        Near ``hint``, with ``effort_s`` on CP-SAT's own clock, so that the answer is the same on
        every machine. Worth zero if time is short.
        """
        model = cp_model.CpModel()
        pools = self.supply.pools
        total = {t: sum(s * n for (u, s), n in pools.items() if u == t) for t, _ in pools}
        columns = []
        rows: dict[Piece, list[tuple[int, cp_model.IntVar]]] = {p: [] for p in self.supply.pieces}
        for needs, value, near in zip(self._needs, values, hint, strict=True):
            taken: dict[int, int] = {}
            for (t, s), count in needs.items():
                taken[t] = taken.get(t, 0) + s * count
            most = min(total.get(t, 0) // n for t, n in taken.items())
            most = min(most, wanted) if value > 0 else 0
            # Whole numbers lie near the real ones: a few copies more or less of each template.
            whole = math.floor(near + 1e-6)
            most = min(most, whole + ROOM)
            column = model.new_int_var(min(most, max(0, whole - ROOM)), most, "")
            columns.append(column)
            model.add_hint(column, min(most, whole))
            for piece, count in needs.items():
                rows[piece].append((count, column))
        splits = {}
        for t, a, b in self.supply.splits:
            splits[t, a, b] = split = model.new_int_var(0, total.get(t, 0) // (a + b), "")
            rows[t, a + b].append((1, split))
            for size, made in {a: 1 + (a == b), b: 1 + (a == b)}.items():
                rows[t, size].append((-made, split))
        for piece, terms in rows.items():
            model.add(
                cp_model.LinearExpr.weighted_sum([v for _, v in terms], [c for c, _ in terms])
                <= pools.get(piece, 0)
            )
        worth = cp_model.LinearExpr.weighted_sum(columns, list(values))
        model.add(worth <= wanted)
        model.maximize(worth)
        solver = cp_model.CpSolver()
        # Two strategies at least: local search finds in a moment what one alone does not. In turns,
        # so that the answer does not depend on the machine.
        solver.parameters.num_workers = max(2, limits.workers)
        solver.parameters.interleave_search = True
        solver.parameters.random_seed = limits.seed
        solver.parameters.max_time_in_seconds = max(0.01, limits.remaining_s())
        solver.parameters.max_deterministic_time = effort_s
        status = solver.solve(model)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return tuple(0 for _ in columns), {}
        return (
            tuple(int(solver.value(column)) for column in columns),
            {key: int(solver.value(split)) for key, split in splits.items()},
        )


def sound_prices(prices: Floats, runs: Sequence[int]) -> Floats:
    """``prices`` raised until no piece is dearer in parts than whole.

    Then whatever a cluster's pools are taken apart into costs at most what the pools cost.
    """
    raised = prices.copy()
    for t, most in enumerate(runs):
        for s in range(2, most + 1):
            parts = max(raised[t, a - 1] + raised[t, s - a - 1] for a in range(1, s // 2 + 1))
            raised[t, s - 1] = max(raised[t, s - 1], parts)
    return raised
