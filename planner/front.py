"""``front``: from a profile and a request to the Pareto front, and to a plan of each point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.aggregation import choose
from planner.api import failure
from planner.device_search import Searched
from planner.fallbacks import describe
from planner.front_points import Front, Point
from planner.frontfile import FrontPoint, ParetoFront
from planner.pareto import STEP, find_front
from planner.planfile import Plan
from planner.request import Objective, PlanRequest
from planner.targets import Targets, prices_per_hour
from planner.written import CREATED_BY, Refs, plan_inputs, written
from profiler.cluster import Cluster
from profiler.profile import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Fronted:
    """A front as a document, and what it takes to write the plan of a point."""

    front: ParetoFront
    found: Front
    profile: Profile
    request: PlanRequest
    refs: Refs
    cluster: Cluster | None

    def plan(self, number: int) -> Plan:
        """The plan of the point so numbered, from 1 on.

        Its request asks for the throughput within the point's latency and number of devices, so
        ``check`` holds it to these and the same question finds it again.
        """
        point = self.found.points[number - 1]
        wanted = self.request.replaced(
            objective=Objective.THROUGHPUT,
            max_latency_s=point.latency_s,
            max_devices=point.devices,
        )
        targets = Targets.of(wanted, self.cluster or self.profile.cluster)
        chosen = replace(
            point.chosen,
            problem=replace(point.chosen.problem, request=wanted, targets=targets),
            objective_s=point.period_s,
        )
        search = replace(point.search, request=wanted, targets=targets, best=chosen)
        return written(
            Searched(search=search),
            self.profile,
            wanted,
            refs=self.refs,
            cluster=self.cluster,
            bound_s=point.period_bound_s,
            priced=False,
        )


def front(
    profile: Profile,
    request: PlanRequest,
    *,
    refs: Refs,
    cluster: Cluster | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Fronted:
    """Plans of which none is as good as another in latency, throughput and number of devices.

    The limits of ``request`` hold for all of them; all searches together get its time limit.
    ``report`` is told of progress.

    Raises:
        InvalidInputError: the inputs contradict each other or themselves.
        InfeasiblePlanError: no plan keeps the limits.
    """
    choose(profile.model, request)  # before the search: an illegal wish has no plan
    found = find_front(profile, request, cluster=cluster, report=report)
    if not found.points:
        raise failure(found.last)
    prices = prices_per_hour(request, cluster or profile.cluster)
    document = ParetoFront(
        created_by=CREATED_BY,
        inputs=plan_inputs(profile, request, refs=refs, cluster=cluster),
        space=found.space,
        step=STEP,
        complete=found.complete,
        open_regions=found.open_regions,
        searches=found.searches,
        points=tuple(_shown(at, point, prices) for at, point in enumerate(found.points, start=1)),
    )
    return Fronted(
        front=document,
        found=found,
        profile=profile,
        request=request,
        refs=refs,
        cluster=cluster,
    )


def _shown(number: int, point: Point, prices: dict[str, float]) -> FrontPoint:
    used = [rank.device for rank in point.chosen.price.ranks]
    priced = all(device in prices for device in used)
    problem = point.chosen.problem
    return FrontPoint(
        number=number,
        devices=point.devices,
        latency_s=point.latency_s,
        period_s=point.period_s,
        items_per_s=problem.batch / point.period_s if point.period_s else 0.0,
        latency_bound_s=point.latency_bound_s,
        period_bound_s=point.period_bound_s,
        fewest=point.fewest,
        gap=min(point.gap, 1e300),
        proved=point.proved,
        price_per_hour=sum(prices[device] for device in used) if priced else None,
        microbatch_size=problem.microbatch,
        plan=describe(point.chosen),
    )
