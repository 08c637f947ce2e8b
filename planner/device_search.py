"""Fewest devices, or least price, that keep the limits of a request: a search over budgets.

Whether any plan keeps a budget is a search of its own that stops at the first plan; what is ruled
out for a budget is ruled out for all smaller ones, so halving finds the least. Of the plans of the
least budget the one with the shortest period is looked for in the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from planner.alternatives import Chosen
from planner.problem import PlanningProblem
from planner.request import PlanRequest
from planner.search import Search
from planner.searchrecord import DevicesRecord
from planner.solvers.base import TOLERANCE
from planner.targets import DEVICES, KEPT, PRICE, Budget
from profiler.cluster import Cluster
from profiler.errors import InvalidInputError
from profiler.profile import Profile

MAX_GROUPS = 2 * 10**6
"""Sets of devices whose totals are listed; of more, there is no search for the least."""

DECIDING = 0.6
"""Of the time, for finding the least budget; the rest is for the best plan within it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """A finished search, and what its plan's devices come to where that is the objective."""

    search: Search
    devices: DevicesRecord | None = None

    @property
    def proved(self) -> bool:
        """Whether no plan's devices can come to less, where that is the objective."""
        return self.devices is None or self.devices.total <= self.devices.bound * (1 + TOLERANCE)


def search_plan(profile: Profile, request: PlanRequest, cluster: Cluster | None = None) -> Searched:
    """The search for the best plan by the objective of ``request``.

    Raises:
        InvalidInputError: the inputs contradict each other; or the least price or number of
            devices is asked of more sets of devices than can be told apart.
    """
    if not request.objective.of_devices:
        search = Search(profile, request, cluster)
        search.run()
        return Searched(search=search)
    return _Least(profile, request, cluster).run()


class _Least:
    """Halving the budgets that a plan may come to."""

    def __init__(self, profile: Profile, request: PlanRequest, cluster: Cluster | None) -> None:
        self.profile, self.request, self.cluster = profile, request, cluster
        self.begun = time.monotonic()
        problem = PlanningProblem.build(
            profile, request, cluster=cluster, microbatch=_any_microbatch(request)
        )
        self.targets = problem.targets
        self.what = DEVICES if problem.targets.budget(PRICE) is None else PRICE
        budget = problem.targets.budget(self.what)
        assert budget is not None
        self.budget: Budget = budget
        self.totals = _totals(problem, budget)

    def run(self) -> Searched:
        """The least budget with a plan, what is ruled out below it, and the best plan of it."""
        limit_s = self.request.limits.time_s
        # Every search gets half of what is left of the time for deciding, the first one too.
        found = self._search(self.budget.most, lambda: DECIDING * limit_s / 2, first=True)
        if found.best is None:
            return Searched(search=found)
        ruled_out = low = 0  # no plan comes to less than these; none was found
        high = self._at(found)
        while low < high:
            middle = (low + high) // 2
            tried = self._search(self.totals[middle], self._share, first=True)
            if tried.best is not None:
                found, high = tried, min(self._at(tried), middle)
                continue
            low = middle + 1
            if tried.infeasible:
                ruled_out = low
        last = self._search(self.totals[high], self._rest, first=False, known=found.best)
        record = DevicesRecord(
            what="devices" if self.what == DEVICES else "price",
            total=self._total(last),
            bound=self.totals[min(ruled_out, high)],
        )
        return Searched(search=last, devices=record)

    def _search(
        self,
        most: float,
        seconds: Callable[[], float],
        *,
        first: bool,
        known: Chosen | None = None,
    ) -> Search:
        """Plans of a budget: the ``first`` that is found, or the best, no worse than ``known``."""
        limits = self.request.limits.replaced(time_s=max(0.1, seconds()))
        targets = self.targets.within(self.what, min(most, self.budget.most))
        search = Search(
            self.profile,
            self.request.replaced(limits=limits),
            self.cluster,
            targets=targets,
            goal_s=math.inf if first else -math.inf,
            known=known and replace(known, problem=replace(known.problem, targets=targets)),
        )
        search.run()
        search.request = self.request
        return search

    def _share(self) -> float:
        """Half of what is left for deciding."""
        return (DECIDING * self.request.limits.time_s - self._spent()) / 2

    def _rest(self) -> float:
        return self.request.limits.time_s - self._spent()

    def _spent(self) -> float:
        return time.monotonic() - self.begun

    def _total(self, search: Search) -> float:
        assert search.best is not None
        return self.budget.total(rank.device for rank in search.best.price.ranks)

    def _at(self, search: Search) -> int:
        """The position of what the found plan comes to."""
        total = self._total(search)
        return min(range(len(self.totals)), key=lambda i: abs(self.totals[i] - total))


def _any_microbatch(request: PlanRequest) -> int:
    """A size for which the problem can be built: what devices come to does not depend on it."""
    return request.microbatch_size or request.batch_size


def _totals(problem: PlanningProblem, budget: Budget) -> list[float]:
    """Everything that plans may come to, ascending."""
    if budget.what == DEVICES:
        return [float(n) for n in range(1, len(problem.cluster.device) + 1)]
    sizes = [len(members) for members in problem.classes]
    number = math.prod(n + 1 for n in sizes)
    if number > MAX_GROUPS:
        raise InvalidInputError(
            f"the least price is searched among at most {MAX_GROUPS} sets of devices; these "
            f"{sum(sizes)} devices in {len(sizes)} classes of equals make {number:.1e}: ask for "
            "the fewest devices (objective devices), or for throughput with max_devices"
        )
    counts = np.indices([n + 1 for n in sizes]).reshape(len(sizes), -1).T[1:]
    found = np.unique(budget.totals(problem.classes, counts))
    # Sums in another order are one total.
    apart = np.diff(found, prepend=-np.inf) > KEPT / 2 * np.abs(found)
    return [float(x) for x in found[apart]]
