"""Fewest devices, least price and the Pareto front against all plans of small random problems."""

from __future__ import annotations

import random
from collections.abc import Iterator

from planner import plan
from planner.check import check_plan
from planner.cost import CostModel
from planner.front import front
from planner.microbatches import microbatch_sizes
from planner.problem import PlanningProblem
from planner.request import Objective, PlanRequest, Split
from planner.solvers.base import SolveLimits
from planner.solvers.exhaustive import ExhaustiveSolver, every_plan
from planner.written import Refs
from profiler.errors import InfeasiblePlanError, InvalidInputError
from profiler.profile import Profile
from tests.support.worlds import random_chain

NEAR = 1e-6
"""Latencies closer than this fraction are one on a front."""

Figures = tuple[float, float, int]
"""Latency, period, devices."""


def questions(count: int, *, devices: int = 3) -> Iterator[tuple[Profile, PlanRequest]]:
    """Small chains, every way of splitting allowed in some; one or two microbatch sizes."""
    seed = found = 0
    while found < count:
        rng = random.Random(seed)
        seed += 1
        profile, request, _ = random_chain(rng, max_layers=4, max_devices=devices)
        wishes = {
            "splits": rng.choice(((Split.LAYERS,), (Split.LAYERS, Split.BATCH), tuple(Split))),
            "keep_together": (),
            "objective": Objective.THROUGHPUT,
        }
        try:
            PlanningProblem.build(
                profile, request.replaced(**wishes), microbatch=request.microbatch_size or 1
            )
        except InvalidInputError:
            continue
        found += 1
        yield profile, request.replaced(**wishes)


def problems(profile: Profile, request: PlanRequest) -> Iterator[PlanningProblem]:
    """One for each microbatch size that the search tries."""
    sizes = microbatch_sizes(profile, request)
    for size in (*sizes.measured, *sizes.between):
        yield PlanningProblem.build(profile, request, microbatch=size)


def all_figures(profile: Profile, request: PlanRequest) -> list[Figures]:
    """Of every plan that fits."""
    found = []
    for problem in problems(profile, request):
        cost = CostModel(problem)
        for assignment in every_plan(problem, cost):
            price = cost.evaluate(assignment)
            if price.allowed:
                found.append((price.latency_s, price.period_s, len(price.ranks)))
    return found


def dominates(one: Figures, other: Figures) -> bool:
    """As good in everything and clearly better in something."""
    return all(a <= b * (1 + 1e-9) for a, b in zip(one, other, strict=True)) and any(
        a < b * (1 - NEAR) for a, b in zip(one, other, strict=True)
    )


def test_the_front_is_that_of_all_plans() -> None:
    complete = points = 0
    for number, (profile, request) in enumerate(questions(40)):
        everything = all_figures(profile, request)
        try:
            made = front(profile, request, refs=Refs(profile="profile.json"))
        except InfeasiblePlanError:
            assert everything == [], number
            continue
        shown = made.front.points
        points += len(shown)
        for point in shown:
            mine = (point.latency_s, point.period_s, point.devices)
            better = [x for x in everything if dominates(x, mine)]
            if point.proved:
                assert better == [], (number, mine, better)
            # Whatever is called a bound is one.
            for latency_s, period_s, devices in everything:
                if devices <= point.devices and latency_s <= point.latency_s:
                    assert period_s >= point.period_bound_s * (1 - 1e-9), (number, mine)
                if devices <= point.devices and period_s <= point.period_s:
                    assert latency_s >= point.latency_bound_s * (1 - 1e-9), (number, mine)
            assert not any(dominates((x.latency_s, x.period_s, x.devices), mine) for x in shown), (
                number
            )
        if made.front.complete:
            complete += 1
            for figures in everything:
                assert any(
                    x.latency_s <= figures[0] * (1 + NEAR)
                    and x.period_s <= figures[1] * (1 + NEAR)
                    and x.devices <= figures[2]
                    for x in shown
                ), (number, figures, shown)
    assert points >= 60
    assert complete >= 30


def test_every_point_is_a_plan_that_check_accepts() -> None:
    for profile, request in questions(6):
        try:
            made = front(profile, request, refs=Refs(profile="profile.json"))
        except InfeasiblePlanError:
            continue
        for point in made.front.points:
            found = made.plan(point.number)
            assert [x for x in check_plan(found, profile) if x.code != "extrapolated"] == []
            assert found.search.objective_s == point.period_s
            assert len(found.spec.ranks) == point.devices
            assert found.search.status == "optimal" or not point.proved


def test_fewest_devices_and_least_price_equal_brute_force() -> None:
    proved = asked = 0
    for number, (profile, request) in enumerate(questions(30, devices=4)):
        rng = random.Random(number)
        figures = all_figures(profile, request)
        if not figures:
            continue
        latency_s, period_s, _ = rng.choice(figures)
        objective = rng.choice((Objective.DEVICES, Objective.PRICE))
        wanted = request.replaced(
            objective=objective,
            min_items_per_s=request.batch_size / (period_s * rng.choice((1.0, 1.2))),
            max_latency_s=latency_s * 1.1 if rng.random() < 0.5 else None,
            prices_per_hour={kind: rng.choice((1.0, 2.5, 0.7)) for kind in types(profile)},
        )
        truths = []
        for problem in problems(profile, wanted):
            best = ExhaustiveSolver().solve(problem, cost=CostModel(problem), limits=SolveLimits())
            if best.assignment is not None:
                budget = problem.targets.budget(objective.value)
                assert budget is not None
                truths.append((round(budget.total(best.assignment.devices), 9), best.objective_s))
        total, least_s = min(truths)
        found = plan(profile, wanted)
        asked += 1
        said = found.search.devices
        assert said is not None
        assert [x for x in check_plan(found, profile) if x.code != "extrapolated"] == []
        assert said.bound <= total * (1 + 1e-9), number
        assert said.total >= total * (1 - 1e-9), number
        if found.search.status == "optimal":
            proved += 1
            assert abs(said.total - total) <= 1e-9 * total, number
            assert least_s is not None
            assert abs(found.search.objective_s - least_s) <= 3e-9 * least_s, number
    assert asked >= 20
    assert proved >= 0.9 * asked


def types(profile: Profile) -> list[str]:
    """The types of the devices."""
    return sorted({device.type for device in profile.cluster.device.values()})
