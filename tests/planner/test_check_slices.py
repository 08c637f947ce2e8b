"""The rules of tensor splits, one hand edit each, and their figures by hand."""

from __future__ import annotations

import pytest

from planner.check import check_plan, check_spec, rederive
from planner.findings import Severity
from planner.planfile import Plan
from planner.request import PlanRequest, Split
from profiler.graph import Weight
from tests.support.builders import chain_graph, make_region
from tests.support.plans import Part, edit, make_plan
from tests.support.small_plans import REQUEST, Edits, profile_of

REGION = make_region([1, 2], units=4)
OTHER = make_region([3], units=2).model_copy(update={"axis": "heads"})
GRAPH = chain_graph(4, regions=(REGION, OTHER))  # type: ignore[arg-type]
PROFILE = profile_of(GRAPH)
STAGE = "spec.pipelines.0.stages.1"


def tensor_stage(request: PlanRequest = REQUEST) -> Plan:
    """l0 on a; l1, l2 (r1) and l3 (r3) split by tensor over b and c."""
    parts = [
        Part(layers=[0], devices=["h/a"]),
        Part(layers=[1, 2, 3], devices=["h/b", "h/c"], slices={"r1": [3, 1], "r3": [1, 1]}),
    ]
    return make_plan(PROFILE, parts, request=request)


def sliced(region: str, units: list[int]) -> dict[str, object]:
    return {"region": region, "units": units}


def test_a_plan_that_keeps_every_rule_has_no_finding() -> None:
    assert check_plan(tensor_stage(), PROFILE) == ()
    assert check_spec(tensor_stage(), GRAPH) == ()


@pytest.mark.parametrize(
    ("code", "edits", "message"),
    [
        ("slices", {f"{STAGE}.slices.0.units": [3, 2]}, "are 3 + 2 = 5; it has 4 features"),
        ("slices", {f"{STAGE}.slices.0.units": [1, 1]}, "are 1 + 1 = 2; it has 4 features"),
        ("slices", {f"{STAGE}.slices.0.units": [4, 0]}, "each rank needs one at least"),
        ("slices", {f"{STAGE}.slices.0.units": [4]}, "2 ranks have 1 slices of region r1"),
        ("slices", {f"{STAGE}.slices.0.region": "r9"}, "no region 'r9'; it has r1, r3"),
        ("slices", {f"{STAGE}.slices.1.region": "r1"}, "r1 is listed twice"),
        ("slices", {f"{STAGE}.slices": []}, "every rank would compute everything"),
        ("slices", {f"{STAGE}.split": "batch"}, "split batch divides no weights"),
        (
            "slices",
            {"spec.pipelines.0.stages.0.layers": ["l0..1"], f"{STAGE}.layers": ["l2..3"]},
            "region r1 is only partly in it: l1 is in stage 0",
        ),
        (
            "slices",
            {
                f"{STAGE}.ranks": [1, 2, 3],
                f"{STAGE}.shares": [2, 2, 2],
                f"{STAGE}.slices": [sliced("r1", [2, 1, 1]), sliced("r3", [1, 1, 0])],
                "spec.ranks.+": {"rank": 3, "device": "h/d", "device_type": "d"},
            },
            "more ranks than heads: 3 ranks, 2 heads",
        ),
        ("shares", {f"{STAGE}.shares": [1, 1]}, "computes all 2 items of a microbatch"),
        ("shares", {f"{STAGE}.shares": [2]}, "2 ranks have 1 shares"),
        ("split", {f"{STAGE}.whole_batch": True}, "a whole_batch stage has one rank"),
        (
            "split",
            {"spec.pipelines.0.stages.0.split": "tensor"},
            "split tensor needs two ranks or more",
        ),
        (
            "split",
            {"inputs.request.splits": ["layers", "batch"]},
            "2 ranks share it; the request allows no tensor split",
        ),
    ],
)
def test_each_rule_is_checked(code: str, edits: Edits, message: str) -> None:
    found = [x for x in check_plan(edit(tensor_stage(), edits), PROFILE) if x.code == code]
    assert [x for x in found if message in x.message and x.severity is Severity.ERROR], found


def test_state_that_changes_stays_on_one_rank() -> None:
    first, *rest = GRAPH.weights
    changing = Weight(name=rest[0].name, num_bytes=rest[0].num_bytes, state=True)
    graph = GRAPH.model_copy(update={"weights": (first, changing, *rest[1:])})
    wrong = check_spec(tensor_stage(), graph)
    assert "state" in {x.code for x in wrong}


def test_the_figures_of_a_tensor_stage() -> None:
    figures = rederive(tensor_stage(), PROFILE)
    # A layer takes 2 items 4 s on b and 6 s on c. r1: 3/4 of 8 s, 1/4 of 12 s; r3: half of each.
    _, b, c = figures.ranks
    assert (b.compute_s, c.compute_s) == pytest.approx((6 + 2, 3 + 3))
    # Two sums of 2048 bytes, at 0.1 s + 0.2048 s.
    assert b.join_s == pytest.approx(2 * 0.3048)
    assert c.join_s == b.join_s
    # Each rank gets all of t0 (2048 bytes); half of the message keeps it from computing.
    assert (b.receive_s, c.receive_s) == pytest.approx((0.1524, 0.1524))
    # Only the first rank sends.
    assert (b.send_s, c.send_s) == pytest.approx((0.1524, 0.0))
    busy_s = 4 * (6 + 3 + 2 * 0.3048 + 2 * 0.1524)
    assert figures.busy_s["pipeline0.stage1"] == pytest.approx(busy_s)
    assert figures.busy_s["wire h/b -> h/c"] == pytest.approx(4 * 2 * 0.3048)
    assert b.busy_fraction == pytest.approx(4 * (8 + 2 * 0.3048 + 2 * 0.1524) / busy_s)


def test_the_memory_of_a_tensor_stage() -> None:
    _, b, c = rederive(tensor_stage(), PROFILE).ranks
    # Of w1 and w2 3/4 and 1/4, of w3 half each.
    assert (b.memory.weights_bytes, c.memory.weights_bytes) == (2000, 1000)
    # t0 ahead twice, t3 sent by the first rank; a partial of the peer.
    assert b.memory.buffers_bytes == 2 * 2 * 2048 + 2048
    assert c.memory.buffers_bytes == 2 * 2048 + 2048


def test_a_tied_weight_that_the_stage_uses_outside_is_held_whole() -> None:
    graph = chain_graph(4, regions=(make_region([3], weights=[0]),), tied=[(0, 3)])  # type: ignore[arg-type]
    profile = profile_of(graph)
    apart = [
        Part(layers=[0], devices=["h/a"]),
        Part(layers=[1, 2, 3], devices=["h/b", "h/c"], slices={"r3": [3, 1]}),
    ]
    joined = [Part(layers=range(4), devices=["h/b", "h/c"], slices={"r3": [3, 1]})]
    held = [
        [x.memory.weights_bytes for x in rederive(plan, profile).ranks[1:]]
        for plan in (
            make_plan(profile, apart, request=REQUEST),
            make_plan(profile, joined, request=REQUEST),
        )
    ]
    assert held == [[2000 + 750, 2000 + 250], [3000, 3000]]


def test_a_request_without_tensor_splits_is_kept() -> None:
    request = REQUEST.model_copy(update={"splits": (Split.LAYERS, Split.TENSOR)})
    assert check_plan(tensor_stage(request), PROFILE) == ()
