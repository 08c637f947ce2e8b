from __future__ import annotations

import itertools
import time
from collections import Counter

import numpy as np
import pytest

from benchmarks.large import Shape, hierarchical_cluster, roofline_profile
from planner import plan
from planner.check import check_plan
from planner.cost import CostModel
from planner.figures import Figures
from planner.pools import find_pools
from planner.problem import PlanningProblem
from planner.request import Objective, PlanRequest, Split
from planner.solvers.base import SolveLimits, SolverResult, SolveStatus
from planner.solvers.master import Master, Supply, sound_prices
from planner.solvers.template_master import Columns, settle
from planner.solvers.template_pricing import Pricing, TemplateStage
from planner.solvers.template_tables import StageFigures
from planner.solvers.templates import TemplateSolver
from profiler.cluster import Cluster, DefaultLink, Device, Group, Host
from profiler.profile import Profile
from tests.support.builders import chain_graph, make_profile

SMALL = Shape(num_blocks=10, hidden=1024, inner=4096, key_value=256, vocabulary=8192, tokens=64)
SLOW = DefaultLink(latency_s=1e-3, bytes_per_s=1e5, send_occupancy=0.5, receive_occupancy=0.25)
FAST = DefaultLink(latency_s=1e-5, bytes_per_s=1e8)


def racks(num_racks: int, hosts: int, devices: int, *, kinds: int = 1) -> Cluster:
    """Racks of hosts of devices; every rack has one kind."""
    all_hosts, groups = [], []
    for r in range(num_racks):
        here = [f"r{r}h{h}" for h in range(hosts)]
        all_hosts += [
            Host(
                name=name,
                inner_link=FAST,
                devices=tuple(
                    Device(name=f"d{d}", type=f"kind{r % kinds}", memory_bytes=10**6)
                    for d in range(devices)
                ),
            )
            for name in here
        ]
        link = DefaultLink(latency_s=1e-4, bytes_per_s=1e6)
        groups.append(Group(name=f"rack{r}", members=tuple(here), inner_link=link))
    return Cluster(hosts=tuple(all_hosts), groups=tuple(groups), default_link=SLOW)


def profile_on(cluster: Cluster, layers: list[float], *, slower: float = 2.0) -> Profile:
    """``layers`` are seconds on kind0; every further kind is ``slower`` times as slow."""
    seconds = {
        d.type: [t * slower ** int(d.type[-1]) for t in layers] for d in cluster.device.values()
    }
    return make_profile(
        chain_graph(len(layers), floats_per_item=25),
        cluster,
        seconds={name: seconds[d.type] for name, d in cluster.device.items()},
    )


def problem_on(profile: Profile, **wishes: object) -> PlanningProblem:
    asked = {"batch_size": 32, "splits": (Split.LAYERS, Split.PIPELINES), **wishes}
    return PlanningProblem.build(profile, PlanRequest.model_validate(asked), microbatch=1)


def solve(problem: PlanningProblem) -> SolverResult:
    limits = SolveLimits(deadline=time.monotonic() + 60)
    return TemplateSolver().solve(problem, cost=CostModel(problem), limits=limits)


def pricing_of(problem: PlanningProblem) -> Pricing:
    pools = find_pools(problem)
    return Pricing(StageFigures(problem, Figures(problem), pools).tables(pools.best))


# --- pricing -------------------------------------------------------------------------------------


def all_templates(pricing: Pricing, num_layers: int) -> list[tuple[TemplateStage, ...]]:
    """Every way to run the layers on kinds of device, inside pools or not."""
    tables, found = pricing.tables, []
    for size in range(1, num_layers + 1):
        for cuts in itertools.combinations(range(1, num_layers), size - 1):
            ends = [*cuts, num_layers]
            for kinds in itertools.product(range(tables.num_kinds), repeat=size):
                for begins in itertools.product((True, False), repeat=size - 1):
                    stages = tuple(
                        TemplateStage(t, j, e, b)
                        for t, j, e, b in zip(kinds, [0, *cuts], ends, (True, *begins), strict=True)
                    )
                    if allowed(pricing, stages):
                        found.append(stages)
    return found


def allowed(pricing: Pricing, stages: tuple[TemplateStage, ...]) -> bool:
    tables, run = pricing.tables, 0
    ways = {(hop.source, hop.target) for hop in tables.outside}
    for at, stage in enumerate(stages):
        run = 1 if stage.begins else run + 1
        before = stages[at - 1] if at else None
        if before is not None and stage.begins and (before.kind, stage.kind) not in ways:
            return False
        if not stage.begins:
            if before is None or before.kind != stage.kind or tables.inside[stage.kind] is None:
                return False
            if tables.runs[stage.kind] and run > tables.runs[stage.kind]:
                return False
    return True


def price_of(pricing: Pricing, stages: tuple[TemplateStage, ...], prices: np.ndarray) -> float:
    pieces: list[tuple[int, int]] = []
    for stage in stages:
        endless = pricing.tables.runs[stage.kind] == 0
        if stage.begins or endless:
            pieces.append((stage.kind, 1))
        else:
            pieces[-1] = (stage.kind, pieces[-1][1] + 1)
    return sum(prices[t, s - 1] for t, s in pieces)


@pytest.mark.parametrize("devices", [1, 3, 20])  # one a host; pools; pools that count as endless
@pytest.mark.parametrize("seed", range(4))
def test_the_least_price_is_that_of_all_templates(devices: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = list(rng.uniform(0.01, 0.05, size=4))
    problem = problem_on(profile_on(racks(4, 2, devices, kinds=2), layers))
    pricing = pricing_of(problem)
    prices = np.cumsum(rng.uniform(0.5, 1.5, (pricing.tables.num_kinds, pricing.most)), axis=1)
    templates = all_templates(pricing, 4)
    periods = [pricing.period_s(stages) for stages in templates]
    times = [*sorted(rng.choice(periods, 6)), 0.8 * min(periods), 10.0]
    for within, (price, template) in zip(
        times, pricing.cheapest(prices, times, below=[np.inf] * len(times)), strict=True
    ):
        costs = [
            price_of(pricing, stages, prices)
            for stages, period in zip(templates, periods, strict=True)
            if period <= within
        ]
        assert price == pytest.approx(min(costs, default=np.inf))
        if template is not None:
            assert template.period_s <= within
            assert price_of(pricing, template.stages, prices) == pytest.approx(price)


def test_a_run_is_no_longer_than_a_pool() -> None:
    # Six equal layers, one a device within 0.03 s; pools of two: three pieces of two.
    problem = problem_on(profile_on(racks(4, 2, 2), [0.02] * 6))
    pricing = pricing_of(problem)
    prices = np.array([[1.0, 1.5]] * pricing.tables.num_kinds)
    ((price, template),) = pricing.cheapest(prices, [0.03], below=[np.inf])
    assert template is not None
    assert price == pytest.approx(4.5)
    assert [size for _, size in template.pieces] == [2, 2, 2]


# --- master --------------------------------------------------------------------------------------


def test_pieces_come_from_taking_pools_apart() -> None:
    # Two pools of four make two pipelines of three devices, and one of two ones.
    master = Master(Supply({(0, 4): 2}, (4,)))
    master.add({(0, 3): 1})
    master.add({(0, 1): 2})
    relaxed = master.relax([3, 2])
    assert relaxed.value == pytest.approx(8.0)
    counts, splits = master.round_down([3, 2], 100, relaxed.counts, SolveLimits())
    assert 3 * counts[0] + 2 * counts[1] == 8
    assert sum(counts) in (3, 4)
    assert splits


def test_rounding_takes_no_more_than_is_wanted() -> None:
    master = Master(Supply({(0, 1): 10}, (1,)))
    master.add({(0, 1): 1})
    counts, _ = master.round_down([2], 7, [3.5], SolveLimits())
    assert counts == (3,)


def test_sound_prices_make_no_piece_dearer_in_parts() -> None:
    raised = sound_prices(np.array([[1.0, 0.5, 2.0, 0.0]]), (4,))
    assert raised.tolist() == [[1.0, 2.0, 3.0, 4.0]]


# --- bound and plan ------------------------------------------------------------------------------


def test_equal_devices_are_used_without_loss() -> None:
    # 8 devices of 0.04 s an item: 32 items in 0.16 s, which no plan can beat.
    result = solve(problem_on(profile_on(racks(1, 4, 2), [0.01] * 4)))
    assert result.status is SolveStatus.OPTIMAL
    assert result.objective_s == pytest.approx(0.16)


def test_no_template_means_infeasible() -> None:
    problem = problem_on(profile_on(racks(2, 2, 2), [0.01] * 4), max_bytes={})
    tight = problem_on(problem.profile, reserve_bytes=10**6)
    assert solve(tight).status is SolveStatus.INFEASIBLE


@pytest.mark.parametrize(
    ("wishes", "reason"),
    [
        ({"objective": Objective.LATENCY}, "throughput only"),
        ({"max_stages": 2}, "number of stages"),
        ({"splits": (Split.LAYERS,)}, "one pipeline only"),
    ],
)
def test_what_it_cannot_take_is_said(wishes: dict[str, object], reason: str) -> None:
    problem = problem_on(profile_on(racks(2, 2, 2), [0.01] * 4), **wishes)
    assert reason in (TemplateSolver().rejects(problem) or "")


@pytest.mark.parametrize("seed", range(3))
def test_every_piece_stands_in_one_pool_and_no_device_twice(seed: int) -> None:
    profile = roofline_profile(SMALL, hierarchical_cluster(150, 3, seed=seed))
    problem = problem_on(profile, batch_size=600)
    result = solve(problem)
    assert result.assignment is not None
    assert result.bound_s is not None
    assert result.bound_s <= result.objective_s <= 1.05 * result.bound_s  # type: ignore[operator]
    assert max(Counter(result.assignment.devices).values()) == 1
    assert sum(p.items for p in result.assignment.pipelines) == 600


@pytest.mark.parametrize("types", [1, 4])
def test_a_large_plan_keeps_every_rule(types: int) -> None:
    profile = roofline_profile(SMALL, hierarchical_cluster(300, types, seed=types))
    made = plan(profile, PlanRequest(batch_size=900, microbatch_size=1))
    assert made.search.solver == "templates"
    assert made.search.gap < 0.03
    assert check_plan(made, profile) == ()  # its figures agree to 1e-9


def test_the_same_question_gives_the_same_plan() -> None:
    profile = roofline_profile(SMALL, hierarchical_cluster(200, 3))
    request = PlanRequest(batch_size=400, microbatch_size=1)
    assert plan(profile, request).plan_id == plan(profile, request).plan_id


def test_work_and_bound_are_flat_in_the_number_of_copies() -> None:
    # Twice or eight times the devices for as many times the items: the same real optimum.
    found = []
    for times in (1, 2, 8):
        problem = problem_on(
            profile_on(racks(4 * times, 2, 3, kinds=2), [0.01, 0.03, 0.02, 0.015]),
            batch_size=64 * times,
        )
        pools = find_pools(problem)
        # The root stands apart from its kind, and is not copied: leave it out.
        tables = StageFigures(problem, Figures(problem), pools).tables(pools.best)
        columns = Columns(tables, pools, problem.num_microbatches, SolveLimits())
        proved, kept = settle(columns, 0.0)
        assert kept is not None
        found.append((proved, kept.period_s, columns.priced))
    for proved, kept_s, priced in found[1:]:
        assert proved == pytest.approx(found[0][0], rel=5e-3)
        assert kept_s == pytest.approx(found[0][1], rel=5e-3)
        assert priced <= 2 * found[0][2]
