"""Points of a Pareto front, each with what is proved of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.alternatives import Chosen
from planner.search import Search
from planner.solvers.base import TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A plan with its certificate, and the search that it comes from."""

    chosen: Chosen
    search: Search
    devices: int
    period_bound_s: float
    latency_bound_s: float
    fewest: bool

    @property
    def period_s(self) -> float:
        """Time between batches."""
        return self.chosen.price.period_s

    @property
    def latency_s(self) -> float:
        """Time of one batch."""
        return self.chosen.price.latency_s

    @property
    def gap(self) -> float:
        """The larger relative distance of a time from its bound."""
        return max(
            value / bound - 1 if bound > 0 else (math.inf if value > 0 else 0.0)
            for value, bound in (
                (self.period_s, self.period_bound_s),
                (self.latency_s, self.latency_bound_s),
            )
        )

    @property
    def proved(self) -> bool:
        """Whether nothing dominates the plan."""
        return self.fewest and self.gap <= TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Points that do not dominate each other, by devices and latency."""

    points: tuple[Point, ...]
    last: Search
    space: str
    open_regions: int
    searches: int
    numbers: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """Whether everything was looked at and proved."""
        return not self.open_regions and all(point.proved for point in self.points)


@dataclass(frozen=True, slots=True)
class Found:
    """A plan on up to ``most`` devices, and the search for its period."""

    most: int
    chosen: Chosen
    search: Search

    @property
    def period_s(self) -> float:
        """Time between batches."""
        return self.chosen.price.period_s

    @property
    def latency_s(self) -> float:
        """Time of one batch."""
        return self.chosen.price.latency_s


@dataclass(frozen=True, slots=True)
class Region:
    """Two neighbours on up to so many devices, and the least latency that is open between them."""

    quick: Found
    busy: Found
    above_s: float
    middle: bool = True

    @property
    def size(self) -> float:
        """How much may lie between: the product of the logarithms of both ratios."""
        period = self.quick.period_s / max(self.busy.period_s, 1e-300)
        latency = self.busy.latency_s / max(self.above_s, 1e-300)
        return math.log(max(period, 1.0)) * math.log(max(latency, 1.0))
