from __future__ import annotations

from planner.cost import CostModel
from planner.flows import Routing
from planner.lower import describe_bottleneck, estimate, lower
from planner.planfile import INPUT, OUTPUT, PlanSpec
from planner.problem import PlanningProblem
from planner.request import PlanRequest
from planner.solvers.base import Assignment, StageAssignment
from tests.support.builders import make_cluster, make_graph, make_profile

GRAPH = make_graph([(0, 1), (1, 2)], 3, floats_per_item=25)
PROFILE = make_profile(
    GRAPH,
    make_cluster({"a": 10**6, "b": 10**6, "c": 10**6}, types={"a": "big"}),
    seconds={d: [1.0, 2.0, 3.0] for d in "abc"},
)
PROBLEM = PlanningProblem.build(PROFILE, PlanRequest(batch_size=8), microbatch=2)


def assignment(*parts: tuple[tuple[int, ...], str, tuple[int, ...]]) -> Assignment:
    return Assignment.single(
        [
            StageAssignment(layers=layers, devices=tuple(f"h/{d}" for d in devices), shares=shares)
            for layers, devices, shares in parts
        ],
        items=8,
        routing=Routing.RELAY,
    )


def lowered(plan: Assignment) -> PlanSpec:
    return lower(PROBLEM, plan, CostModel(PROBLEM).evaluate(plan))


def test_rank_zero_is_on_the_root_wherever_its_stage_is() -> None:
    spec = lowered(assignment(((0,), "b", (2,)), ((1, 2), "ac", (1, 1))))
    assert [(r.rank, r.device, r.device_type) for r in spec.ranks] == [
        (0, "h/a", "big"), (1, "h/b", "b"), (2, "h/c", "c"),
    ]  # fmt: skip
    assert [(s.ranks, s.shares, s.split) for s in spec.pipelines[0].stages] == [
        ((1,), (2,), "none"), ((0, 2), (1, 1), "batch"),
    ]  # fmt: skip


def test_a_root_without_a_stage_keeps_its_rank_and_ledger() -> None:
    plan = assignment(((0, 1, 2), "b", (2,)))
    price = CostModel(PROBLEM).evaluate(plan)
    assert [r.device for r in lowered(plan).ranks] == ["h/a", "h/b"]
    ranks = estimate(PROBLEM, plan, price).ranks
    assert [r.rank for r in ranks] == [0, 1]
    assert ranks[0].busy_fraction == 0.0
    assert ranks[0].memory.buffers_bytes == 8 * (32 + 100)


def test_transfers_name_each_tensor_between_each_pair_once() -> None:
    spec = lowered(assignment(((0,), "a", (2,)), ((1, 2), "bc", (1, 1))))
    assert [(t.source, t.target, t.tensor, t.num_bytes) for t in spec.transfers] == [
        (INPUT, "pipeline0.stage0", "x", 64),
        ("pipeline0.stage0", "pipeline0.stage1", "t0", 200),
        ("pipeline0.stage1", OUTPUT, "t2", 200),
    ]
    assert spec.transfers[1].shape == ("batch", 25)


def test_layers_are_folded() -> None:
    spec = lowered(assignment(((0, 1, 2), "a", (2,))))
    assert spec.pipelines[0].stages[0].layers == ("l0", "l1", "l2")


def test_the_bottleneck_is_a_stage_or_a_wire() -> None:
    plan = assignment(((0, 1), "a", (2,)), ((2,), "b", (2,)))
    text = describe_bottleneck(plan, CostModel(PROBLEM).evaluate(plan))
    assert text.startswith("pipeline0.stage0 on h/a")
    slow = make_profile(
        GRAPH,
        make_cluster({"a": 10**6, "b": 10**6}, latency_s=100.0),
        seconds={d: [1.0] * 3 for d in "ab"},
    )
    problem = PlanningProblem.build(slow, PlanRequest(batch_size=8), microbatch=2)
    text = describe_bottleneck(plan, CostModel(problem).evaluate(plan))
    assert text.startswith("wire h/a -> h/b")
