"""Solvers in order of preference, loaded when they are first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from planner.problem import PlanningProblem
from planner.solvers.base import Solver
from profiler.errors import InvalidInputError

REGISTRY: tuple[tuple[str, str, str], ...] = (
    ("chain", "planner.solvers.chain", "ChainSolver"),
    ("cp_sat", "planner.solvers.cp_sat", "CpSatSolver"),
    ("greedy", "planner.solvers.greedy", "GreedySolver"),
    ("pipelines", "planner.solvers.pipelines", "PipelinesSolver"),
    ("templates", "planner.solvers.templates", "TemplateSolver"),
    ("exhaustive", "planner.solvers.exhaustive", "ExhaustiveSolver"),
)
"""Name, module and class of every solver, the preferred first."""


def solver_names() -> tuple[str, ...]:
    """Names for ``PlanRequest.solver``."""
    return tuple(name for name, _, _ in REGISTRY)


def load_solver(name: str) -> Solver:
    """The solver called ``name``.

    Raises:
        InvalidInputError: there is none.
    """
    for known, module, class_name in REGISTRY:
        if known == name:
            solver: Solver = getattr(import_module(module), class_name)()
            return solver
    raise InvalidInputError(f"no solver is called {name!r}; there are {', '.join(solver_names())}")


def choose_solver(
    problem: PlanningProblem, *, name: str | None, solvers: Sequence[Solver] | None = None
) -> Solver:
    """The named solver, or the first in preference order that takes ``problem``.

    Raises:
        InvalidInputError: unknown name, or none takes the problem; the message lists each solver
            with the reason it gave.
    """
    reasons = []
    names = [solver.name for solver in solvers] if solvers is not None else solver_names()
    if name is not None and name not in names:
        raise InvalidInputError(f"no solver is called {name!r}; there are {', '.join(names)}")
    for position, known in enumerate(names):
        if name in (None, known):
            solver = solvers[position] if solvers is not None else load_solver(known)
            why = solver.rejects(problem)
            if why is None:
                return solver
            reasons.append(f"  {known}: {why}")
    raise InvalidInputError("no solver takes this problem:\n" + "\n".join(reasons))
