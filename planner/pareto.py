"""The Pareto front of latency, throughput and number of devices, with a certificate on each point.

For every number of devices ``n`` the ends of the front come first: least latency, then shortest
period, each made as good as it can be in the other time. Between two neighbours ``a`` (quicker) and
``b`` (more throughput) it goes on by epsilon constraints (Haimes, Lasdon, Wismer 1971):

    shortest period with latency <= epsilon,  then least latency with that period

for an epsilon in the middle, or just below the latency of ``b``; if the period of ``a`` comes out,
nothing lies between ``a`` and epsilon. What each search proves is kept (``front_facts``), so a
point is called proved only if all three of its figures are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from planner.alternatives import Chosen
from planner.cost import CostModel
from planner.front_facts import Facts
from planner.front_points import Found, Front, Point, Region
from planner.request import Objective, PlanRequest, Split
from planner.search import Search
from planner.solvers.base import TOLERANCE
from planner.targets import DEVICES, Budget, Targets
from profiler.cluster import Cluster
from profiler.errors import InvalidInputError
from profiler.profile import Profile

STEP = 1e-6
"""Points whose latencies differ by a smaller fraction are one."""

WIDE = 1.05
"""Neighbours whose latencies differ by more than this factor are looked between in the middle."""

MAX_POINTS = 24
"""Points to look for, the ends for every number of devices first."""

MAX_NUMBERS = 12
"""Numbers of devices with a front of their own; of more, these are spread evenly by ratio."""

FIRST, ENDS, PROOFS, BETWEEN = 0.1, 0.5, 0.7, 0.8
"""Parts of the time that are over when the ends of the front of all devices are searched, when
those of all fronts are, when what is open about them was asked again, and when what lies between
was looked at; the rest is for open proofs."""

MANY = 5
"""Of so many devices or more, plans without splits inside a stage are looked for first: there are
far fewer of them, and they cut the search among all short."""

PASSES = 3
"""Times that an open proof is asked for, while time is left."""

LEAST_S = 0.2
"""Seconds that every search gets."""


def find_front(
    profile: Profile,
    request: PlanRequest,
    *,
    cluster: Cluster | None = None,
    max_points: int = MAX_POINTS,
    report: Callable[[str], None] = lambda _: None,
) -> Front:
    """The front for ``request``, whose limits hold for every point; its objective is not used.

    All searches together get the request's time limit. ``report`` is told of progress.

    Raises:
        InvalidInputError: the inputs contradict each other.
    """
    return _Search(profile, request, cluster, max_points, report).run()


@dataclass
class _Search:
    """The points so far and what is proved."""

    profile: Profile
    request: PlanRequest
    cluster: Cluster | None
    max_points: int
    report: Callable[[str], None]
    facts: Facts = field(default_factory=Facts)
    found: list[Found] = field(default_factory=list)
    costs: dict[int, CostModel] = field(default_factory=dict)
    simple: dict[int, CostModel] = field(default_factory=dict)  # without splits inside a stage
    searches: int = 0
    space: str = ""
    unsure: int = 0
    deadline: float = 0.0
    last: Search = field(init=False)

    def run(self) -> Front:
        """The ends for each number of devices, then what lies between neighbours."""
        begun = time.monotonic()
        limit_s = self.request.limits.time_s
        machines = self.cluster or self.profile.cluster
        if self.request.objective.of_devices:
            raise InvalidInputError(
                f"a front has no objective {self.request.objective.value}: it shows every number "
                "of devices; leave the objective out"
            )
        most = min(len(machines.device), self.request.max_devices or len(machines.device))
        numbers = _numbers(most)
        self.unsure += most - len(numbers)
        # What is proved of all devices holds for fewer: they get time of their own, first.
        self.deadline = begun + FIRST * limit_s
        self._ends(numbers[-1])
        for left, n in zip(range(len(numbers), 1, -1), numbers[:-1], strict=False):
            now = time.monotonic()
            self.deadline = now + max(LEAST_S, (begun + ENDS * limit_s - now) / left)
            self._ends(n)
        self._prove(begun + PROOFS * limit_s)
        regions = [region for n in numbers for region in self._regions(n)]
        self.deadline = begun + BETWEEN * limit_s
        while regions and time.monotonic() < self.deadline:
            if len(self._undominated()) >= self.max_points:
                break
            regions.sort(key=lambda region: region.size)
            regions += self._between(regions.pop())
        known = len(self.found)
        self._prove(begun + limit_s)
        self.unsure += len(self.found) > known  # what lies beside a new point was not looked at
        return Front(
            points=tuple(self._points()),
            last=self.last,
            space=self.space,
            open_regions=len(regions) + self.unsure,
            searches=self.searches,
            numbers=tuple(numbers),
        )

    # --- searches --------------------------------------------------------------------------

    def _least_period(self, n: int, latency_s: float) -> Found | None:
        """The shortest period on up to ``n`` devices within a latency."""
        search, bound_s = self._solve(Objective.THROUGHPUT, n, latency_s, share=2)
        self.facts.note_period(devices=n, latency_s=latency_s, bound_s=bound_s)
        return None if search.best is None else Found(n, search.best, search)

    def _least_latency(self, found: Found) -> Found:
        """The same or a better plan of its period: the least latency that it can have."""
        n, period_s = found.most, found.period_s
        search, bound_s = self._solve(Objective.LATENCY, n, period_s, share=2)
        self.facts.note_latency(devices=n, period_s=period_s, bound_s=bound_s)
        best = search.best
        if best is not None and best.price.latency_s < found.latency_s * (1 - TOLERANCE):
            return Found(n, best, found.search)
        return found

    def _solve(
        self, objective: Objective, n: int, limit_s: float, *, share: int
    ) -> tuple[Search, float]:
        """A search for the least of one time under a limit on the other, and what it proves."""
        targets = self._targets(objective, n, limit_s)
        rest_s = self.deadline - time.monotonic()
        limits = self.request.limits.replaced(time_s=max(LEAST_S, rest_s / share))
        request = self.request.replaced(objective=objective, limits=limits)
        best = self._start(objective, targets)
        simple = tuple(x for x in request.splits if x not in (Split.BATCH, Split.TENSOR))
        if simple and simple != request.splits and n >= MANY and request.solver is None:
            limits = limits.replaced(time_s=max(LEAST_S, limits.time_s / 3))
            first = Search(
                self.profile,
                request.replaced(splits=simple, limits=limits),
                self.cluster,
                targets=targets,
                series=self.simple,
                known=best,
            )
            first.run()
            if first.best is not None:
                best = replace(first.best, problem=replace(first.best.problem, request=request))
        search = Search(
            self.profile, request, self.cluster, targets=targets, series=self.costs, known=best
        )
        search.run()
        self.searches += 1
        self.last = search
        if search.best is not None and not self.space:
            self.space = f"{search.space}; {search.microbatches_text()}"
        return search, search.least_s

    def _targets(self, objective: Objective, n: int, limit_s: float) -> Targets:
        machines = self.cluster or self.profile.cluster
        own = Targets.of(self.request, machines)
        latency_s = limit_s if objective is Objective.THROUGHPUT else math.inf
        period_s = limit_s if objective is Objective.LATENCY else math.inf
        budget = Budget(
            what=DEVICES,
            each=dict.fromkeys(machines.device, 1.0),
            root=machines.root,
            most=float(n),
        )
        return replace(
            own,
            max_latency_s=min(own.max_latency_s, latency_s),
            max_period_s=min(own.max_period_s, period_s),
            budgets=(budget, *(x for x in own.budgets if x.what != DEVICES)),
        )

    def _start(self, objective: Objective, targets: Targets) -> Chosen | None:
        """The best known plan within the limits of a search."""
        kept = [
            found.chosen
            for found in self.found
            if targets.keeps(
                period_s=found.period_s,
                latency_s=found.latency_s,
                devices=[rank.device for rank in found.chosen.price.ranks],
            )
        ]
        if not kept:
            return None
        best = min(kept, key=lambda x: x.price.objective_s(objective))
        problem = replace(best.problem, targets=targets)
        return replace(best, problem=problem, objective_s=best.price.objective_s(objective))

    # --- the front -------------------------------------------------------------------------

    def _ends(self, n: int) -> None:
        """The ends of the front on up to ``n`` devices."""
        search, bound_s = self._solve(Objective.LATENCY, n, math.inf, share=3)
        self.facts.note_latency(devices=n, period_s=math.inf, bound_s=bound_s)
        if search.best is None:
            self.report(
                f"{_devices(n)}: {'nothing fits' if search.infeasible else 'nothing found'}"
            )
            return
        self.found.append(Found(n, search.best, search))
        quick = self._least_period(n, search.best.price.latency_s)
        quick = self._noted(quick or self.found[-1])
        busy = self._least_period(n, math.inf)
        busy = self._noted(self._least_latency(busy) if busy else quick)
        self.report(
            f"{_devices(n)}: latency from {quick.latency_s * 1e3:.4g} ms, "
            f"period from {busy.period_s * 1e3:.4g} ms"
        )

    def _regions(self, n: int) -> list[Region]:
        """What is open between the ends on up to ``n`` devices, as far as these are known."""
        within = [found for found in self.found if len(found.chosen.price.ranks) <= n]
        least_s = self.facts.least_latency_s(devices=n, period_s=math.inf)
        if not within:
            self.unsure += least_s < math.inf
            return []
        quick = min(within, key=lambda x: (x.latency_s, x.period_s))
        busy = min(within, key=lambda x: (x.period_s, x.latency_s))
        shortest_s = self.facts.least_period_s(devices=n, latency_s=math.inf)
        if least_s < quick.latency_s * (1 - TOLERANCE) or shortest_s < busy.period_s * (
            1 - TOLERANCE
        ):
            self.unsure += 1  # beyond the ends there may be more
        return self._region(replace(quick, most=n), replace(busy, most=n), quick.latency_s)

    def _noted(self, found: Found) -> Found:
        self.found.append(found)
        return found

    def _region(
        self, quick: Found, busy: Found, above_s: float, *, middle: bool = True
    ) -> list[Region]:
        """What is open between two neighbours, if anything is."""
        if (
            busy.period_s >= quick.period_s * (1 - TOLERANCE)
            or busy.latency_s * (1 - STEP) <= above_s
        ):
            return []
        return [Region(quick, busy, above_s, middle)]

    def _between(self, region: Region) -> list[Region]:
        """Look for a point between two neighbours; what is open then."""
        quick, busy = region.quick, region.busy
        below_s = busy.latency_s * (1 - STEP)
        wide = region.middle and busy.latency_s > WIDE * region.above_s
        epsilon_s = min(below_s, math.sqrt(region.above_s * busy.latency_s)) if wide else below_s
        found = self._least_period(busy.most, epsilon_s)
        bound_s = self.facts.least_period_s(devices=busy.most, latency_s=epsilon_s)
        if found is None or found.period_s >= quick.period_s * (1 - TOLERANCE):
            if bound_s < quick.period_s * (1 - TOLERANCE):
                self.unsure += 1  # time is up: whether anything lies between stays open
                return []
            return self._region(quick, busy, epsilon_s, middle=False) if wide else []
        found = self._noted(self._least_latency(found))
        self.report(
            f"{_devices(found.most)}: {found.latency_s * 1e3:.4g} ms, "
            f"period {found.period_s * 1e3:.4g} ms"
        )
        below = self._region(quick, found, region.above_s)
        return below + (self._region(found, busy, epsilon_s, middle=False) if wide else [])

    def _prove(self, deadline: float) -> None:
        """Ask again about each figure of a point that is not proved, while time is left."""
        for _ in range(PASSES):
            open_ones = [found for found in self._undominated() if not self._point(found).proved]
            for left, found in zip(range(len(open_ones), 0, -1), open_ones, strict=True):
                now = time.monotonic()
                if now >= deadline:
                    return
                self.deadline = now + (deadline - now) / left
                self._ask(found)
            if not open_ones:
                return

    def _ask(self, found: Found) -> None:
        """Look for better plans than ``found``, in each of its figures that is not proved."""
        devices = len(found.chosen.price.ranks)
        if not self._fewest(found):
            other = self._least_period(devices - 1, found.latency_s)
            if other is not None and other.period_s <= found.period_s * (1 + TOLERANCE):
                self._noted(other)
                return
        point = self._point(found)
        if point.period_s > point.period_bound_s * (1 + TOLERANCE):
            other = self._least_period(devices, found.latency_s)
            if other is not None and other.period_s < found.period_s * (1 - TOLERANCE):
                found = self._noted(other)
        point = self._point(found)
        if point.latency_s > point.latency_bound_s * (1 + TOLERANCE):
            better = self._least_latency(replace(found, most=devices))
            if better.latency_s < found.latency_s * (1 - TOLERANCE):
                self._noted(better)

    def _fewest(self, found: Found) -> bool:
        return self.facts.excludes(
            devices=len(found.chosen.price.ranks) - 1,
            period_s=found.period_s,
            latency_s=found.latency_s,
        )

    def _undominated(self) -> list[Found]:
        """Plans that no other known one dominates, by devices and latency."""
        kept: list[Found] = []
        for found in sorted(
            self.found,
            key=lambda x: (len(x.chosen.price.ranks), x.latency_s, x.period_s),
        ):
            if not any(_as_good(other, found) for other in kept):
                kept.append(found)
        return [
            found
            for found in kept
            if not any(other is not found and _as_good(other, found) for other in kept)
        ]

    def _points(self) -> list[Point]:
        return [self._point(found) for found in self._undominated()]

    def _point(self, found: Found) -> Point:
        """A plan with what is proved of it."""
        devices = len(found.chosen.price.ranks)
        period_s = self.facts.least_period_s(devices=devices, latency_s=found.latency_s)
        latency_s = self.facts.least_latency_s(devices=devices, period_s=found.period_s)
        return Point(
            chosen=found.chosen,
            search=found.search,
            devices=devices,
            period_bound_s=min(period_s, found.period_s),
            latency_bound_s=min(latency_s, found.latency_s),
            fewest=self._fewest(found),
        )


def _as_good(one: Found, other: Found) -> bool:
    """Whether ``one`` is at least as good as ``other`` in everything."""
    return (
        len(one.chosen.price.ranks) <= len(other.chosen.price.ranks)
        and one.period_s <= other.period_s * (1 + TOLERANCE)
        and one.latency_s <= other.latency_s * (1 + TOLERANCE)
    )


def _numbers(most: int) -> Sequence[int]:
    """Numbers of devices with a front of their own: all, or some spread evenly by ratio."""
    if most <= MAX_NUMBERS:
        return range(1, most + 1)
    return sorted({round(most ** (i / (MAX_NUMBERS - 1))) for i in range(MAX_NUMBERS)} | {1, most})


def _devices(n: int) -> str:
    return f"up to {n} devices" if n > 1 else "1 device"
