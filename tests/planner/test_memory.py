from __future__ import annotations

import pytest

from planner.cost import CostModel, PlanCost
from planner.flows import Routing
from planner.problem import PlanningProblem
from planner.request import PlanRequest
from planner.solvers.base import Assignment, StageAssignment
from profiler.graph import ModelGraph
from profiler.profile import Profile
from tests.support.builders import make_cluster, make_graph, make_profile


def profile_of(
    graph: ModelGraph, devices: dict[str, int] | None = None, *, peak: int = 0, **heap: float
) -> Profile:
    devices = devices or {"a": 10**6, "b": 10**6, "c": 10**6}
    cluster = make_cluster(devices)
    seconds = {d: [1.0] * len(graph.layers) for d in devices}
    return make_profile(graph, cluster, seconds=seconds, peak_bytes_per_item=peak, **heap)  # type: ignore[arg-type]


def evaluate(
    profile: Profile, *stages: StageAssignment, routing: Routing = Routing.RELAY, **wishes: object
) -> PlanCost:
    request = PlanRequest.model_validate({"batch_size": 8, "reserve_bytes": 0, **wishes})
    problem = PlanningProblem.build(profile, request, microbatch=2)
    return CostModel(problem).evaluate(
        Assignment.single(stages, items=problem.batch, routing=routing)
    )


def on(device: str, *layers: int, share: int = 2, whole: bool = False) -> StageAssignment:
    return StageAssignment(
        layers=layers, devices=(f"h/{device}",), shares=(share,), whole_batch=whole
    )


CHAIN = make_graph([(0, 1), (1, 2)], 3, floats_per_item=25, weight_bytes=1000)
# Tensors: x 32 bytes an item, t0 .. t2 100 bytes an item.


def test_the_ledger_of_a_middle_stage() -> None:
    cost = evaluate(profile_of(CHAIN, peak=7), on("a", 0), on("b", 1), on("c", 2))
    memory = cost.ranks[1].memory
    assert memory.weights_bytes == 1000
    # t0 (received, 2 items) is alive while l1 allocates 2 x 7 bytes.
    assert memory.activations_bytes == 200 + 14
    # Two microbatches of t0 in and of t1 out.
    assert memory.buffers_bytes == 2 * (200 + 200)


def test_the_root_also_holds_a_batch_of_inputs_and_outputs() -> None:
    cost = evaluate(profile_of(CHAIN), on("a", 0), on("b", 1, 2))
    # x and t2 for 8 items; t0 out twice. x comes from the root itself: no buffer.
    assert cost.ranks[0].memory.buffers_bytes == 8 * (32 + 100) + 2 * 200


def test_a_root_without_a_stage_has_a_ledger() -> None:
    cost = evaluate(profile_of(CHAIN), on("b", 0, 1, 2), reserve_bytes=50)
    root = cost.ranks[0]
    assert (root.device, root.stage) == ("h/a", None)
    assert root.memory.total_bytes == 8 * (32 + 100) + 50


def test_tied_weights_count_once_a_stage() -> None:
    graph = make_graph([(0, 1), (1, 2)], 3, weight_bytes=1000, tied=[(0, 2)])
    together = evaluate(profile_of(graph), on("a", 0, 1, 2))
    apart = evaluate(profile_of(graph), on("a", 0, 1), on("b", 2))
    assert [r.memory.weights_bytes for r in together.ranks] == [2000]
    assert [r.memory.weights_bytes for r in apart.ranks] == [2000, 1000]


def test_state_is_listed_apart_from_weights() -> None:
    data = CHAIN.model_dump()
    data["weights"][1]["state"] = True
    graph = ModelGraph.model_validate(data, strict=False)
    memory = evaluate(profile_of(graph), on("a", 0, 1, 2)).ranks[0].memory
    assert (memory.weights_bytes, memory.state_bytes) == (2000, 1000)


def test_what_a_stage_passes_on_stays_alive() -> None:
    # t0 skips l1: with relay, b holds it while l1 runs, and buffers it in and out.
    graph = make_graph([(0, 1), (1, 2), (0, 2)], 3, floats_per_item=25)
    stages = (on("a", 0), on("b", 1), on("c", 2))
    relay = evaluate(profile_of(graph), *stages).ranks[1].memory
    direct = evaluate(profile_of(graph), *stages, routing=Routing.DIRECT).ranks[1].memory
    assert relay.activations_bytes == direct.activations_bytes == 200
    assert relay.buffers_bytes == 2 * (200 + 400)
    assert direct.buffers_bytes == 2 * (200 + 200)


def test_an_output_stays_alive_to_the_end_of_its_stage() -> None:
    data = CHAIN.model_dump()
    data["outputs"] = ("t0", "t2")
    graph = ModelGraph.model_validate(data, strict=False)
    memory = evaluate(profile_of(graph), on("a", 0, 1, 2)).ranks[0].memory
    # While l2 runs: t0 (an output) and t1 (read by l2).
    assert memory.activations_bytes == 400


def test_a_whole_batch_stage_buffers_one_batch() -> None:
    graph = make_graph([(0, 1), (1, 2)], 3, floats_per_item=25, whole_batch=[1])
    cost = evaluate(profile_of(graph), on("a", 0), on("b", 1, share=8, whole=True), on("c", 2))
    assert cost.ranks[1].memory.buffers_bytes == 8 * (100 + 100)


def test_a_tensor_is_buffered_once_however_many_stages_it_goes_to() -> None:
    graph = make_graph([(0, 1), (0, 2)], 3, floats_per_item=25)
    cost = evaluate(profile_of(graph), on("a", 0), on("b", 1), on("c", 2), routing=Routing.DIRECT)
    # a: t0 out once (x2 microbatches), and a batch of x, t1, t2.
    assert cost.ranks[0].memory.buffers_bytes == 2 * 200 + 8 * (32 + 100 + 100)


def test_capacity_is_free_memory_or_less_if_asked() -> None:
    cost = evaluate(profile_of(CHAIN), on("a", 0, 1, 2), max_bytes={"h/a": 5000})
    assert cost.ranks[0].memory.capacity_bytes == 5000
    assert cost.fits
    cost = evaluate(profile_of(CHAIN), on("a", 0, 1, 2), max_bytes={"h/a": 3000})
    assert not cost.fits
    assert [r.device for r in cost.shortfalls()] == ["h/a"]


@pytest.mark.parametrize("reserve", [None, 123])
def test_the_reserve_is_asked_for_or_as_profiled(reserve: int | None) -> None:
    profile = profile_of(CHAIN)
    timings = tuple(t.model_copy(update={"baseline_bytes": 77}) for t in profile.timings)
    profile = profile.model_copy(update={"timings": timings})
    cost = evaluate(profile, on("a", 0, 1, 2), reserve_bytes=reserve)
    assert cost.ranks[0].memory.reserve_bytes == (77 if reserve is None else 123)


def test_a_heap_takes_more_than_the_bytes_alive_on_it() -> None:
    profile = profile_of(CHAIN, peak=7, heap_permille=1000)
    cost = evaluate(profile, on("a", 0), on("b", 1), on("c", 2))
    memory = cost.ranks[1].memory
    # 1000 thousandths for one item are 500 for the two of a microbatch.
    assert memory.activations_bytes == 214 + 107
    # What is on its way leaves no holes, nor does the root's batch of inputs and outputs.
    assert memory.buffers_bytes == 800
    assert cost.ranks[0].memory.buffers_bytes == 1056 + 2 * 200


def test_large_blocks_lie_beside_the_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.memory.MAPPED_BYTES", 200)
    # Two items of t0, t1, t2 are large (200 bytes), of x not (64). All of l1's peak is large.
    profile = profile_of(CHAIN, peak=70, heap_permille=1000, mapped_fraction=1.0)
    memory = evaluate(profile, on("a", 0, 1, 2)).ranks[0].memory
    # On the heap most while l0 runs: x and what l0 allocates. Large: t0 and what l1 allocates.
    assert memory.activations_bytes == (64 + 140) + (64 + 140) // 2 + (200 + 140)
    middle = evaluate(profile, on("a", 0), on("b", 1), on("c", 2)).ranks[1].memory
    assert middle.buffers_bytes == 2 * (200 + 200)
