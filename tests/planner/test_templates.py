from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.large import Shape, hierarchical_cluster, roofline_profile
from planner import plan
from planner.check import check_plan
from planner.cost import CostModel
from planner.figures import Figures
from planner.findings import Severity
from planner.pools import find_pools
from planner.problem import PlanningProblem
from planner.request import Objective, PlanRequest, Split
from planner.slices import slices_within
from planner.solvers.base import (
    TOLERANCE,
    PipelineAssignment,
    SolveLimits,
    SolverResult,
    SolveStatus,
    StageAssignment,
)
from planner.solvers.master import Master, Supply, sound_prices
from planner.solvers.placing import PlacedPipeline, shared
from planner.solvers.template_master import Columns, settle
from planner.solvers.template_modes import Mode
from planner.solvers.template_pricing import Pricing, TemplateStage, pieces_of
from planner.solvers.template_tables import StageFigures
from planner.solvers.templates import TemplateSolver
from profiler.cluster import Cluster, DefaultLink, Device, Group, Host
from profiler.graph import SliceRegion
from profiler.profile import Profile
from tests.properties.test_check_agrees import written
from tests.support.builders import chain_graph, make_profile, make_region

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


def profile_on(
    cluster: Cluster,
    layers: list[float],
    *,
    slower: float = 2.0,
    regions: tuple[SliceRegion, ...] = (),
) -> Profile:
    """``layers`` are seconds on kind0; every further kind is ``slower`` times as slow."""
    seconds = {
        d.type: [t * slower ** int(d.type[-1]) for t in layers] for d in cluster.device.values()
    }
    return make_profile(
        chain_graph(len(layers), floats_per_item=25, regions=regions),
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
    """Every way to run the layers on kinds of device, inside pools or not, divided or not."""
    tables, found = pricing.tables, []
    for size in range(1, num_layers + 1):
        for cuts in itertools.combinations(range(1, num_layers), size - 1):
            ends = [*cuts, num_layers]
            for modes in itertools.product(tables.modes, repeat=size):
                for begins in itertools.product((True, False), repeat=size - 1):
                    stages = tuple(
                        TemplateStage(m.kind, j, e, b, m.width)
                        for m, j, e, b in zip(modes, [0, *cuts], ends, (True, *begins), strict=True)
                    )
                    if allowed(pricing, stages):
                        found.append(stages)
    return found


def allowed(pricing: Pricing, stages: tuple[TemplateStage, ...]) -> bool:
    tables, run = pricing.tables, 0
    ways = {(hop.source, hop.target) for hop in tables.outside}
    for at, stage in enumerate(stages):
        run = stage.width if stage.begins else run + stage.width
        before = stages[at - 1] if at else None
        if before is not None and stage.begins and (before.kind, stage.kind) not in ways:
            return False
        if not stage.begins and (
            before is None or before.kind != stage.kind or not tables.inside[stage.kind]
        ):
            return False
        if tables.runs[stage.kind] and run > tables.runs[stage.kind]:
            return False
    return True


def price_of(pricing: Pricing, stages: tuple[TemplateStage, ...], prices: np.ndarray) -> float:
    return sum(prices[t, s - 1] for t, s in pieces_of(stages, pricing.tables.runs))


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


def test_the_least_price_is_that_of_all_templates_with_divided_stages() -> None:
    divided = 0
    for seed, devices in itertools.product(range(4), (2, 5, 20)):
        rng = np.random.default_rng(seed)
        layers = list(rng.uniform(0.01, 0.05, size=3))
        regions = (make_region([0], units=3), make_region([1, 2], units=5, divided=0.7))
        problem = problem_on(
            profile_on(racks(2, 2, devices), layers, regions=regions), splits=tuple(Split)
        )
        pricing = pricing_of(problem)
        assert {mode.width for mode in pricing.tables.modes} >= {1, 2}
        prices = np.cumsum(rng.uniform(0.5, 1.5, (pricing.tables.num_kinds, pricing.most)), axis=1)
        templates = all_templates(pricing, 3)
        periods = [pricing.period_s(stages) for stages in templates]
        times = [*sorted(rng.choice(periods, 6)), min(periods), 0.8 * min(periods), 10.0]
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
                divided += any(stage.width > 1 for stage in template.stages)
    assert divided > 10


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


# --- stages that several devices of a host divide -------------------------------------------------


def random_line(
    rng: random.Random, problem: PlanningProblem, modes: Sequence[Mode], hosts: Sequence[list[str]]
) -> list[StageAssignment] | None:
    """Consecutive stages, each in some mode on devices of one host, which are taken away."""
    stages, at = [], 0
    while at < problem.num_layers:
        end = rng.randint(at + 1, problem.num_layers)
        mode = rng.choice(modes)
        free = [
            host for host in hosts if len(host) >= mode.width and host[0] != problem.cluster.root
        ]
        layers = tuple(range(at, end))
        slices = slices_within(problem, rng.choice(mode.slicings), layers)
        if not free or (mode.width > 1 and not slices):
            return None
        host = rng.choice(free)
        devices = tuple(host.pop() for _ in range(mode.width))
        shares = (problem.microbatch,) * mode.width
        stages.append(StageAssignment(layers=layers, devices=devices, shares=shares, slices=slices))
        at = end
    return stages


def test_no_plan_with_divided_stages_beats_the_bound() -> None:
    seen = Counter[str]()
    for seed in range(12):
        rng = random.Random(seed)
        layers = [rng.uniform(0.01, 0.05) for _ in range(4)]
        regions = (
            make_region([0, 1], units=rng.choice((2, 4, 7)), divided=rng.choice((1.0, 0.8))),
            make_region([3], units=4, how=rng.choice(("sum", "concat"))),  # type: ignore[arg-type]
        )
        cluster = racks(2, 2, 4, kinds=rng.choice((1, 2)))
        # Few items for many devices: dividing a stage is of use.
        problem = problem_on(
            profile_on(cluster, layers, regions=regions),
            splits=tuple(Split),
            batch_size=rng.choice((4, 6, 32)),
        )
        cost, result = CostModel(problem), solve(problem)
        assert result.assignment is not None
        assert result.bound_s is not None
        assert "2 or 4 like devices of one host" in result.space
        seen.update(stage.split for stage in result.assignment.stages)
        modes = StageFigures(problem, cost.figures, find_pools(problem)).modes.all
        for _ in range(60):
            hosts = [[f"{h.name}/{d.name}" for d in h.devices] for h in cluster.hosts]
            lines = [random_line(rng, problem, modes, hosts) for _ in range(rng.randint(1, 4))]
            made = [
                PlacedPipeline(PipelineAssignment(items=1, stages=tuple(x)), 0.1)
                for x in lines
                if x
            ]
            assignment = shared(problem, made)
            if assignment is not None:
                seen["priced"] += 1
                seen["divided"] += any(stage.slices for stage in assignment.stages)
                price = cost.evaluate(assignment)
                assert price.period_s >= result.bound_s * (1 - TOLERANCE)
    assert seen["priced"] > 200
    assert seen["divided"] > 100
    assert seen["tensor"]


def test_layers_too_large_for_a_device_are_divided_inside_hosts() -> None:
    # Layers of 1.2 MB and devices of 1 MB: each takes two of them at least.
    graph = chain_graph(
        3,
        floats_per_item=25,
        weight_bytes=1_200_000,
        regions=tuple(make_region([i], twin="region") for i in range(3)),
    )
    cluster = racks(2, 10, 4, kinds=2)
    seconds = {d: [0.02 + 0.01 * ("r1" in d)] * 3 for d in cluster.device}
    profile = make_profile(graph, cluster, seconds=seconds)
    wishes = {"batch_size": 400, "reserve_bytes": 0}
    problem = problem_on(profile, splits=tuple(Split), **wishes)
    result = solve(problem)
    assert result.assignment is not None
    assert "other slices were left out" in result.space
    assert {stage.split for stage in result.assignment.stages} == {"tensor"}
    for stage in result.assignment.stages:
        assert len({cluster.host_of[device].name for device in stage.devices}) == 1
    assert result.objective_s <= 1.1 * (result.bound_s or 0.0)  # type: ignore[operator]
    made = written(profile, problem, result.assignment)
    assert [x for x in check_plan(made, profile) if x.severity is Severity.ERROR] == []
    assert solve(problem_on(profile, **wishes)).status is SolveStatus.INFEASIBLE


def test_devices_of_endless_pools_are_counted_one_by_one() -> None:
    # Hosts of 20: more than a piece may have.
    profile = profile_on(racks(1, 3, 20), [0.02] * 4, regions=(make_region([0]), make_region([2])))
    for splits in ((Split.LAYERS, Split.PIPELINES), tuple(Split)):
        result = solve(problem_on(profile, splits=splits, batch_size=64))
        assert result.assignment is not None
        assert max(Counter(result.assignment.devices).values()) == 1
        assert result.objective_s <= 1.2 * (result.bound_s or 0.0)  # type: ignore[operator]
