"""Every formula of docs/cost-model.md on worlds whose numbers fit in a comment."""

from __future__ import annotations

import pytest

from planner.cost import CostModel, PlanCost
from planner.flows import Flow, Routing, find_flows
from planner.problem import PlanningProblem
from planner.request import PlanRequest
from planner.solvers.base import Assignment, PipelineAssignment, StageAssignment
from profiler.cluster import Link
from profiler.graph import ModelGraph
from profiler.profile import PRELUDE, Measurement, Profile
from tests.support.builders import (
    chain_graph,
    inputs_on_one_wire,
    make_cluster,
    make_graph,
    make_profile,
)

GIB = 2**30


def stage(layers: str, devices: str, shares: tuple[int, ...], **more: bool) -> StageAssignment:
    return StageAssignment(
        layers=tuple(int(x) for x in layers),
        devices=tuple(f"h/{d}" for d in devices),
        shares=shares,
        **more,
    )


def price(
    profile: Profile,
    *stages: StageAssignment,
    batch: int = 8,
    microbatch: int = 2,
    routing: Routing = Routing.RELAY,
) -> PlanCost:
    problem = PlanningProblem.build(profile, PlanRequest(batch_size=batch), microbatch=microbatch)
    return CostModel(problem).evaluate(Assignment.single(stages, items=batch, routing=routing))


def price_side(profile: Profile, side: Assignment, *, microbatch: int) -> PlanCost:
    problem = PlanningProblem.build(profile, PlanRequest(batch_size=8), microbatch=microbatch)
    return CostModel(problem).evaluate(side)


def chain3(
    devices: str = "ab",
    *,
    slow: float = 2.0,
    occupancy: float = 0.0,
    latency_s: float = 0.1,
    links: tuple[Link, ...] = (),
) -> Profile:
    # One item takes 1 s on a and `slow` on the others, a layer. A tensor is 25 floats, 100 bytes
    # an item, the input 32; a link takes 0.1 s and moves 1000 bytes/s.
    graph = make_graph([(0, 1), (1, 2)], 3, floats_per_item=25)
    cluster = make_cluster(
        dict.fromkeys(devices, GIB),
        latency_s=latency_s,
        bytes_per_s=1000.0,
        occupancy=occupancy,
        links=links,
    )
    seconds = {d: [1.0 if d == "a" else slow] * 3 for d in devices}
    return make_profile(graph, cluster, seconds=seconds)


def test_one_stage_on_the_root_costs_its_computing_only() -> None:
    cost = price(chain3(), stage("012", "a", (2,)))
    # 3 layers x 2 items x 1 s a microbatch, 4 microbatches; nothing moves.
    assert cost.period_s == pytest.approx(24.0)
    assert cost.latency_s == pytest.approx(24.0)
    assert cost.wires == {}


def test_period_is_the_busiest_stage_or_wire() -> None:
    cost = price(chain3(), stage("01", "a", (2,)), stage("2", "b", (2,)))
    # Stage 0: 2 x 2 x 1 = 4 s; stage 1: 2 x 2 = 4 s; wire: 0.1 + 200/1000 = 0.3 s; 4 of each.
    assert [s.busy_s for s in cost.stages] == pytest.approx([4.0, 4.0])
    assert cost.wires == pytest.approx({"h/a -> h/b": 1.2, "h/b -> h/a": 1.2})
    assert cost.period_s == pytest.approx(16.0)
    # 4 + 0.3 + 4 + 0.3 for the first microbatch, then 3 more at the busiest server's 4 s.
    assert cost.latency_s == pytest.approx(8.6 + 3 * 4)


def test_occupancy_takes_time_from_both_ends() -> None:
    cost = price(chain3(occupancy=0.5), stage("01", "a", (2,)), stage("2", "b", (2,)))
    # Sending t1 holds a for 0.15 s; b receives t1 and sends t2: 0.15 s each. a is also the root:
    # receiving t2 holds it for another 0.15 s, unless one batch is all there is to do.
    assert cost.stages[0].busy_s == pytest.approx(4.15)
    assert cost.stages[1].busy_s == pytest.approx(4.3)
    assert [s.batch_s for s in cost.stages] == pytest.approx([4 * 4.3] * 2)
    assert cost.period_s == pytest.approx(17.2)
    assert cost.latency_s == pytest.approx(4 + 0.3 + 4 + 0.3 + 3 * 4.3)


def test_feeding_and_collecting_for_other_pipelines_is_charged_to_the_stage_on_the_root() -> None:
    profile = chain3(slow=1.0, occupancy=0.5)
    side = Assignment(
        pipelines=tuple(
            PipelineAssignment(
                stages=(stage("012", device, (2,)),), items=items, routing=Routing.RELAY
            )
            for device, items in (("a", 2), ("b", 6))
        )
    )
    cost = price_side(profile, side, microbatch=2)
    # b gets 3 microbatches of 64 bytes and returns 200: 0.5 x 3 x (0.164 + 0.3) s a batch of the
    # root, all of it beside its only microbatch.
    assert cost.stages[0].batch_s == pytest.approx(6.0 + 0.696)
    assert cost.stages[1].batch_s == pytest.approx(3 * (6.0 + 0.232))
    assert cost.ranks[0].send_s == pytest.approx(0.5 * 3 * 0.164)
    assert cost.ranks[0].receive_s == pytest.approx(0.5 * 3 * 0.3)


def test_a_batch_split_runs_at_its_slowest_rank_and_moves_pieces() -> None:
    cost = price(chain3(slow=1.0), stage("012", "ab", (1, 1)))
    # Each rank: 3 layers x 1 item. b gets 32 bytes and returns 100: 0.132 and 0.2 s a microbatch.
    assert cost.stages[0].compute_s == pytest.approx(3.0)
    assert cost.wires == pytest.approx({"h/a -> h/b": 4 * 0.132, "h/b -> h/a": 4 * 0.2})
    assert cost.period_s == pytest.approx(12.0)
    assert cost.latency_s == pytest.approx(0.132 + 3.0 + 0.2 + 3 * 3.0)


def test_groups_exchange_the_items_that_both_hold() -> None:
    profile = chain3("abcd", slow=1.0, latency_s=0.0)
    cost = price(
        profile,
        stage("0", "ab", (3, 1)),
        stage("12", "cd", (2, 2)),
        batch=4,
        microbatch=4,
    )
    # a holds items 0-2, b item 3; c items 0-1, d items 2-3.
    # a -> c: 2 items, a -> d: 1, b -> d: 1, of 100 bytes each.
    assert cost.wires["h/a -> h/c"] == pytest.approx(0.2)
    assert cost.wires["h/a -> h/d"] == pytest.approx(0.1)
    assert cost.wires["h/b -> h/d"] == pytest.approx(0.1)
    between = next(h for h in cost.pipelines[0].hops if (h.source, h.target) == (0, 1))
    assert between.duration_s == pytest.approx(0.2)  # c: 0.2, d: 0.1 + 0.1


def test_an_uncut_tensor_goes_whole_from_the_first_rank_to_every_rank() -> None:
    profile = chain3("abc", slow=1.0, latency_s=0.0)
    data = profile.model.model_dump()
    data["tensors"][1].update(shape=(50,), batch_dim=None)  # t0: 200 bytes
    model = ModelGraph.model_validate(data, strict=False)
    profile = profile.model_copy(update={"model": model})
    cost = price(profile, stage("0", "a", (2,)), stage("12", "bc", (1, 1)))
    assert cost.wires["h/a -> h/b"] == pytest.approx(4 * 0.2)
    assert cost.wires["h/a -> h/c"] == pytest.approx(4 * 0.2)


def test_a_whole_batch_stage_runs_once_and_its_neighbours_send_every_microbatch() -> None:
    graph = make_graph([(0, 1), (1, 2)], 3, floats_per_item=25, whole_batch=[1])
    cluster = make_cluster(
        dict.fromkeys("abc", GIB), latency_s=0.0, bytes_per_s=1000.0, occupancy=1.0
    )
    profile = make_profile(graph, cluster, seconds={d: [1.0] * 3 for d in "abc"})
    cost = price(
        profile,
        stage("0", "a", (2,)),
        stage("1", "b", (8,), whole_batch=True),
        stage("2", "c", (2,)),
    )
    # a: (2 + 0.2) x 4, and the root's 0.2 x 4 for c's answers; b: 8 + 4 x 0.2 in + 4 x 0.2 out,
    # once; c: (2 + 0.2 + 0.2) x 4.
    assert [s.batch_s for s in cost.stages] == pytest.approx([9.6, 9.6, 9.6])
    assert [s.runs for s in cost.stages] == [4, 1, 4]
    # The last microbatch leaves a at 2 + 3 x 2.2 = 8.6 and is with b at 8.8; b ends at 16.8;
    # c: first at 17.0 + 2, then 3 x 2.4 = 26.2; out at 26.4.
    assert cost.latency_s == pytest.approx(26.4)


def test_shared_wires_add_up() -> None:
    links = tuple(
        Link(source=a, target=b, latency_s=0.0, bytes_per_s=1000.0, shares="hub")
        for a, b in (("h/a", "h/b"), ("h/b", "h/a"))
    )
    cost = price(chain3(links=links), stage("01", "a", (2,)), stage("2", "b", (2,)))
    assert cost.wires == pytest.approx({"hub": 4 * 0.2 + 4 * 0.2})


def with_prelude(profile: Profile, layers: tuple[int, ...], seconds: float) -> Profile:
    """The profile of a model whose ``layers`` use a prelude of ``seconds`` an item."""
    data = profile.model.model_dump()
    for i in layers:
        data["layers"][i]["uses_prelude"] = True
    row = Measurement(items=1, median_s=seconds, spread=0.0, samples=1, peak_bytes=0)
    timings = tuple(
        t.model_copy(update={"layers": {**t.layers, PRELUDE: (row,)}}) for t in profile.timings
    )
    model = ModelGraph.model_validate(data, strict=False)
    return profile.model_copy(update={"model": model, "timings": timings})


def test_the_prelude_is_paid_once_a_stage_that_uses_it() -> None:
    profile = with_prelude(chain3(), (0, 1), 0.25)
    cost = price(profile, stage("01", "a", (2,)), stage("2", "b", (2,)))
    # One row at one item: two items take twice as long.
    assert [s.compute_s for s in cost.stages] == pytest.approx([4.5, 4.0])


SKIP = make_graph([(0, 1), (1, 2), (0, 2)], 3)


def test_relay_passes_a_skip_through_and_direct_sends_it_past() -> None:
    stages = [(0,), (1,), (2,)]
    relayed = find_flows(SKIP, stages, Routing.RELAY)
    direct = find_flows(SKIP, stages, Routing.DIRECT)
    assert relayed == (
        Flow(None, 0, "x"), Flow(0, 1, "t0"), Flow(1, 2, "t0"), Flow(1, 2, "t1"),
        Flow(2, None, "t2"),
    )  # fmt: skip
    assert set(direct) - set(relayed) == {Flow(0, 2, "t0")}
    assert set(relayed) - set(direct) == {Flow(1, 2, "t0")}


def test_branches_on_two_devices_overlap_in_latency() -> None:
    # 0 -> 1 -> 3 and 0 -> 2 -> 3: l1 on b while l2 runs on c.
    graph = make_graph([(0, 1), (0, 2), (1, 3), (2, 3)], 4, floats_per_item=25)
    cluster = make_cluster(dict.fromkeys("abcd", GIB), latency_s=0.0, bytes_per_s=1000.0)
    profile = make_profile(graph, cluster, seconds={d: [1.0, 5.0, 2.0, 1.0] for d in "abcd"})
    cost = price(
        profile,
        stage("0", "a", (1,)),
        stage("1", "b", (1,)),
        stage("2", "c", (1,)),
        stage("3", "d", (1,)),
        batch=1,
        microbatch=1,
        routing=Routing.DIRECT,
    )
    # a 1, t0 0.1, b 5 (c only 2), t1 0.1, d 1, t3 0.1.
    assert cost.latency_s == pytest.approx(1 + 0.1 + 5 + 0.1 + 1 + 0.1)


def towers() -> Profile:
    # 0 -> 2 and 1 -> 2: two towers and a layer that joins them; 3 follows. One item of them takes
    # 5, 4, 1 and 1 s; the prelude, which all use, 0.5.
    graph = make_graph([(0, 2), (1, 2), (2, 3)], 4, floats_per_item=25)
    cluster = make_cluster(dict.fromkeys("ab", GIB), latency_s=0.0, bytes_per_s=1000.0)
    profile = make_profile(graph, cluster, seconds={d: [5.0, 4.0, 1.0, 1.0] for d in "ab"})
    return with_prelude(profile, (0, 1, 2, 3), 0.5)


def test_a_stage_awaits_a_tensor_where_it_first_reads_it() -> None:
    late = [stage("1", "b", (1,)), stage("023", "a", (1,))]
    cost = price(towers(), *late, batch=1, microbatch=1, routing=Routing.DIRECT)
    # Inputs of 32 bytes take 0.032 s to b. Layer 1 is there at 0.032 + 0.5 + 4 + 0.1 = 4.632,
    # before a, which began at once, has done 0.5 + 5; then two layers. The answer stays on a.
    assert cost.latency_s == pytest.approx(0.5 + 5 + 2)
    # The other way round, a is done at 4.5 and b waits until 0.032 + 0.5 + 5 + 0.1.
    other = [stage("0", "b", (1,)), stage("123", "a", (1,))]
    cost = price(towers(), *other, batch=1, microbatch=1, routing=Routing.DIRECT)
    assert cost.latency_s == pytest.approx(0.032 + 0.5 + 5 + 0.1 + 0.5 + 2)


def test_microbatches_queue_behind_what_came_late() -> None:
    # As above with 3 microbatches of 1: the wait hides behind the busiest stage, b, of 5.5 s, whose
    # last result is there at 0.032 + 0.1 + 3 x 5.5.
    other = [stage("0", "b", (1,)), stage("123", "a", (1,))]
    cost = price(towers(), *other, batch=3, microbatch=1, routing=Routing.DIRECT)
    assert cost.period_s == pytest.approx(3 * 6.5)  # a: 0.5 + 4 + 1 + 1
    first = 0.032 + 0.5 + 5 + 0.1 + 0.5 + 2
    last = 0.032 + 3 * 5.5 + 0.1 + 0.5 + 2
    assert cost.latency_s == pytest.approx(max(last, first + 2 * 6.5))


def test_pipelines_take_turns_on_a_wire_that_they_share() -> None:
    # b and c take one item each, 5 s; its answer, 100 bytes, 0.1 s on the wire that both use.
    back = tuple(
        Link(source=f"h/{d}", target="h/a", latency_s=0.0, bytes_per_s=1000.0, shares="back")
        for d in "bc"
    )
    profile = make_profile(
        make_graph([], 1, floats_per_item=25),
        make_cluster(dict.fromkeys("abc", GIB), latency_s=0.0, bytes_per_s=1000.0, links=back),
        seconds={d: [5.0] for d in "abc"},
    )
    problem = PlanningProblem.build(profile, PlanRequest(batch_size=2), microbatch=1)
    apart = Assignment(
        pipelines=tuple(
            PipelineAssignment(items=1, stages=(stage("0", d, (1,)),), routing=Routing.RELAY)
            for d in "bc"
        )
    )
    cost = CostModel(problem).evaluate(apart)
    assert cost.pipelines[0].latency_s == pytest.approx(0.032 + 5 + 0.1)
    assert cost.latency_s == pytest.approx(0.032 + 5 + 2 * 0.1)


def test_inputs_of_pipelines_part_a_wire_that_they_share() -> None:
    # A microbatch of two items takes 0.064 s alone, for b and c together as for d.
    profile = inputs_on_one_wire(two_s=5.0, one_s=0.001)
    problem = PlanningProblem.build(profile, PlanRequest(batch_size=14), microbatch=2)
    assignment = Assignment(
        pipelines=tuple(
            PipelineAssignment(items=n, stages=(stage("0", d, s),), routing=Routing.RELAY)
            for n, d, s in ((8, "bc", (1, 1)), (6, "d", (2,)))
        )
    )
    cost = CostModel(problem).evaluate(assignment)
    # b and c have two of three connections; d's last is there with all of the batch.
    assert cost.pipelines[0].latency_s == pytest.approx(0.064 + 0.032 + 4 * 5 + 2 * 0.0001)
    assert cost.pipelines[1].latency_s == pytest.approx(7 * 0.064 + 2 * 0.001 + 0.0002)


def test_the_last_partial_microbatch_counts_as_a_whole_one() -> None:
    graph = chain_graph(1)
    profile = make_profile(graph, make_cluster({"a": GIB}), seconds={"a": [1.0]})
    cost = price(profile, stage("0", "a", (3,)), batch=7, microbatch=3)
    assert cost.period_s == pytest.approx(3 * 3.0)
