"""Answers to placement questions, and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass

from planner.solvers.base import SolveStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A device for each operator, by position.

    For one sample (latency) ``jobs`` numbers the jobs of each accelerator in the order in which
    it runs them; for loads it is empty.
    """

    devices: tuple[int, ...]
    jobs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementResult:
    """A placement and evidence.

    ``bound_s`` holds for all placements that ``space`` describes. Without a placement the status
    is INFEASIBLE (proved) or UNKNOWN.
    """

    status: SolveStatus
    placement: Placement | None
    objective_s: float | None
    bound_s: float | None
    space: str
    method: str

    @property
    def gap(self) -> float | None:
        """How far the objective may be above the best one, as a fraction of the bound."""
        if self.objective_s is None or self.bound_s is None:
            return None
        if self.objective_s <= self.bound_s:
            return 0.0
        return (self.objective_s - self.bound_s) / self.bound_s if self.bound_s else float("inf")
