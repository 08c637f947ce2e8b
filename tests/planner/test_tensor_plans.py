"""When plans split by tensor, and what they say of it: from slow links to fast ones."""

from __future__ import annotations

import re

import pytest

from planner import plan
from planner.check import check_plan
from planner.diff import diff
from planner.explain import explain
from planner.markdown import render_markdown
from planner.planfile import Plan
from planner.render import render_text
from planner.request import Objective, PlanRequest, Split
from profiler.profile import Profile
from tests.support.builders import GIB, chain_graph, make_cluster, make_profile, make_region

MBIT = 1e6 / 8
NUM_LAYERS = 8
FLOATS = 2**16
LAYER_S, LATENCY_S = 0.010, 0.0002


def two_devices(bytes_per_s: float, *, slower: float = 1.0) -> Profile:
    """Eight layers of 10 ms, each a region of 12 heads whose output, 256 KiB an item, is summed."""
    graph = chain_graph(
        NUM_LAYERS,
        floats_per_item=FLOATS,
        regions=tuple(  # type: ignore[arg-type]
            make_region([i], units=12, twin="block").model_copy(update={"axis": "heads"})
            for i in range(NUM_LAYERS)
        ),
    )
    cluster = make_cluster({"a": GIB, "b": GIB}, latency_s=LATENCY_S, bytes_per_s=bytes_per_s)
    return make_profile(
        graph,
        cluster,
        seconds={"a": [LAYER_S] * NUM_LAYERS, "b": [slower * LAYER_S] * NUM_LAYERS},
    )


def planned(profile: Profile, **wishes: object) -> Plan:
    request = {"objective": Objective.LATENCY, "batch_size": 1, "reserve_bytes": 0, **wishes}
    made = plan(profile, PlanRequest.model_validate(request))
    assert check_plan(made, profile) == ()
    return made


def sliced_s(bytes_per_s: float) -> float:
    """All layers halved, with a sum of 256 KiB each; the input, 32 bytes, goes to b first."""
    sums = NUM_LAYERS * (LAYER_S / 2 + LATENCY_S + 4 * FLOATS / bytes_per_s)
    return sums + LATENCY_S + 32 / bytes_per_s


@pytest.mark.parametrize("rate", [100, 300, 400, 430, 440, 450, 500, 1000, 2500, 10_000])
def test_slow_links_leave_a_device_idle_and_fast_ones_share_every_layer(rate: int) -> None:
    # Halving saves 5 ms a layer; at 450 Mbit/s a sum takes 4.9 ms, at 430 Mbit/s 5.1 ms.
    made = planned(two_devices(rate * MBIT))
    single_s, tensor_s = NUM_LAYERS * LAYER_S, sliced_s(rate * MBIT)
    (stage,) = made.spec.pipelines[0].stages
    assert stage.split == ("tensor" if tensor_s < single_s else "none")
    assert made.search.objective_s == pytest.approx(min(single_s, tensor_s), rel=1e-9)
    assert made.search.status == "optimal"
    # Whichever it is, the other is told with its time.
    told = {x.plan.split(" (")[0]: x.objective_s for x in made.search.alternatives}
    assert told["best single device"] == pytest.approx(single_s, rel=1e-4)
    assert told["slices of all layers, even"] == pytest.approx(tensor_s, rel=1e-4)


def test_the_crossing_is_where_the_formula_says() -> None:
    low, high = 100 * MBIT, 10_000 * MBIT
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if sliced_s(middle) < NUM_LAYERS * LAYER_S else (middle, high)
    for rate, split in ((low * 0.999, "none"), (high * 1.001, "tensor")):
        assert planned(two_devices(rate)).spec.pipelines[0].stages[0].split == split


def test_unequal_devices_get_unequal_slices() -> None:
    made = planned(two_devices(10_000 * MBIT, slower=2.0))
    (stage,) = made.spec.pipelines[0].stages
    assert {x.units for x in stage.slices} == {(8, 4)}
    assert stage.shares == (1, 1)


def test_throughput_prefers_a_pipeline_that_sends_less() -> None:
    made = planned(two_devices(1000 * MBIT), objective=Objective.THROUGHPUT, batch_size=16)
    assert all(s.split != "tensor" for p in made.spec.pipelines for s in p.stages)


def test_a_plan_says_what_each_way_to_split_a_stage_would_cost() -> None:
    made = planned(two_devices(2500 * MBIT))
    (choice,) = made.search.choices
    assert (choice.stage, choice.split) == ("pipeline0.stage0", "tensor")
    none, batch, tensor = choice.costs
    assert (none.objective_s, none.how) == (pytest.approx(0.08), "h/a")
    assert (batch.objective_s, batch.how) == (None, "a microbatch of one item cannot be parted")
    assert tensor.objective_s == pytest.approx(made.search.objective_s, rel=1e-4)
    assert tensor.how == "6 + 6 heads"
    report = explain(made, name="plan.yaml")
    text = render_text(report)
    assert "2 ranks, tensor: 8 regions sliced" in text
    assert "slices 6/12" in text
    assert re.search(r"split none +80\.0 ms +h/a", text)
    assert "<- chosen" in text
    page = render_markdown(report)
    assert "**tensor**" in page
    assert "a microbatch of one item cannot be parted" in page


def test_a_stage_split_by_batch_says_what_slices_would_cost() -> None:
    made = planned(
        two_devices(1000 * MBIT),
        batch_size=8,
        microbatch_size=8,
        splits=(Split.BATCH, Split.TENSOR),
    )
    (choice,) = made.search.choices
    assert choice.split == "batch"
    none, batch, tensor = (x.objective_s for x in choice.costs)
    assert none is not None
    assert batch is not None
    assert tensor is not None
    assert batch < tensor
    assert batch < none


def test_without_tensor_splits_none_is_planned() -> None:
    made = planned(two_devices(10_000 * MBIT), splits=(Split.LAYERS, Split.BATCH))
    assert [s.split for s in made.spec.pipelines[0].stages] == ["none"]


def test_a_difference_in_slices_is_told() -> None:
    one = planned(two_devices(10_000 * MBIT))
    other = planned(two_devices(10_000 * MBIT, slower=2.0))
    (move,) = diff(one, other).moves
    assert (move.before, move.after) == (
        "h/a (6/12) + h/b (6/12)",
        "h/a (8/12) + h/b (4/12)",
    )
