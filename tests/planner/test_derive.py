"""The second cost model against figures worked out by hand."""

from __future__ import annotations

import pytest

from planner.check import rederive
from planner.derive import Derived
from planner.request import PlanRequest
from profiler.cluster import Link
from profiler.graph import ModelGraph
from profiler.profile import DeviceTimings, Measurement, Profile
from tests.support.builders import (
    GIB,
    chain_graph,
    inputs_on_one_wire,
    make_cluster,
    make_graph,
    make_profile,
)
from tests.support.plans import Part, make_plan

# A message of n float32 x 256 takes 0.1 s + 1024 n B / 10240 B/s = 0.1 (n + 1) s; half of it
# keeps its ends from computing. The input x is 32 B an item.
CLUSTER = make_cluster(
    {"a": GIB, "b": GIB, "c": GIB}, latency_s=0.1, bytes_per_s=10240.0, occupancy=0.5
)


def profile_of(graph: ModelGraph) -> Profile:
    ones = [1.0] * len(graph.layers)
    seconds = {"a": ones, "b": [2.0] * len(ones), "c": [3.0] * len(ones)}
    return make_profile(graph, CLUSTER, seconds=seconds, peak_bytes_per_item=2000)


def derived(profile: Profile, *parts: Part, batch: int = 8, micro: int = 2) -> Derived:
    request = PlanRequest(batch_size=batch, microbatch_size=micro)
    return rederive(make_plan(profile, parts, request=request), profile)


def test_a_chain_of_two_takes_durations_plus_the_longest_again() -> None:
    # Stage 0: 4 s, sends 0.3 s half occupied, and as the root receives the answer likewise;
    # stage 1 on b: 8 s, receives 0.15, sends 0.15.
    found = derived(
        profile_of(chain_graph(4)),
        Part(layers=[0, 1], devices=["h/a"]),
        Part(layers=[2, 3], devices=["h/b"]),
    )
    assert found.busy_s["pipeline0.stage0"] == pytest.approx(4 * 4.3)
    assert found.busy_s["pipeline0.stage1"] == pytest.approx(4 * 8.3)
    assert found.busy_s["wire h/a -> h/b"] == pytest.approx(4 * 0.3)
    assert found.period_s == pytest.approx(33.2)
    assert found.items_per_s == pytest.approx(8 / 33.2)
    # 4 + 0.3 + 8 + 0.3 and three more of the longest, 8.3; the input stays on a.
    assert found.latency_s == pytest.approx(12.6 + 3 * 8.3)
    assert [x.busy_fraction for x in found.ranks] == pytest.approx([4.3 / 8.3, 1.0])


def test_a_slow_link_is_the_server_that_the_rest_waits_for() -> None:
    # Two layers of 8 items: 0.1 (n + 1) s a message becomes 10 + n s at a hundredth of the speed.
    links = [
        Link(
            source="h/a",
            target="h/b",
            latency_s=10.0,
            bytes_per_s=1024.0,
            send_occupancy=0.5,
            receive_occupancy=0.5,
        ),
        Link(source="h/b", target="h/a", latency_s=0.0, bytes_per_s=1024.0),
    ]
    cluster = make_cluster({"a": GIB, "b": GIB}, links=links)
    profile = make_profile(chain_graph(2), cluster, seconds={"a": [1, 1], "b": [2, 2]})
    found = derived(profile, Part(layers=[0], devices=["h/a"]), Part(layers=[1], devices=["h/b"]))
    # The wire takes 12 s four times; both ends lose 6 s of each to it: a 2 + 6, b 4 + 6.
    assert found.busy_s == pytest.approx(
        {
            "pipeline0.stage0": 4 * 8.0,
            "pipeline0.stage1": 4 * 10.0,
            "wire h/a -> h/b": 4 * 12.0,
            "wire h/b -> h/a": 4 * 2.0,
        }
    )
    # The first microbatch is across at 2 + 12, the last 3 x 12 later; then 4 s, and 2 s back.
    assert found.latency_s == pytest.approx(2 + 12 + 3 * 12 + 4 + 2)


def test_a_batch_split_is_as_slow_as_its_slowest_rank() -> None:
    found = derived(
        profile_of(chain_graph(2)),
        Part(layers=[0], devices=["h/a"]),
        Part(layers=[1], devices=["h/b", "h/c"], shares=[1, 1]),
    )
    # Computes max(2, 3), receives one item each: 0.2 s half occupied; sends likewise.
    assert found.busy_s["pipeline0.stage1"] == pytest.approx(4 * 3.2)
    # a sends both pieces: 2 + 0.2; the answers count as one message of two items: 0.3, half
    # occupied.
    assert found.busy_s["pipeline0.stage0"] == pytest.approx(4 * 2.35)
    first = 2 + 0.2 + 3
    assert found.latency_s == pytest.approx(first + 3 * 3.2 + 0.4)


def test_shares_meet_where_their_intervals_overlap() -> None:
    # Items 0-2 of 4 on a, 3 on b; then 0 on c and ... a device serves one rank, so two stages of
    # two ranks need four devices: d repeats c's figures.
    cluster = make_cluster(
        {"a": GIB, "b": GIB, "c": GIB, "d": GIB}, latency_s=0.1, bytes_per_s=10240.0
    )
    profile = make_profile(chain_graph(2), cluster, seconds={d: [1, 1] for d in "abcd"})
    found = derived(
        profile,
        Part(layers=[0], devices=["h/a", "h/b"], shares=[3, 1]),
        Part(layers=[1], devices=["h/c", "h/d"], shares=[1, 3]),
        batch=4,
        micro=4,
    )
    # a -> c one item (0.2 s), a -> d two (0.3 s), b -> d one (0.2 s); d waits 0.5 s.
    wires = {name: s for name, s in found.busy_s.items() if name.endswith(("h/c", "h/d"))}
    assert wires == pytest.approx(
        {"wire h/a -> h/c": 0.2, "wire h/a -> h/d": 0.3, "wire h/b -> h/d": 0.2}
    )
    # Input to b: 32 B, 0.1 + 32 / 10240 s, while a starts at once: b's arrival counts.
    into_b = 0.1 + 32 / 10240
    assert found.latency_s == pytest.approx(into_b + 3 + 0.5 + 3 + 0.2 + 0.4)


def test_links_that_share_a_wire_are_counted_together() -> None:
    links = [
        Link(source="h/a", target=f"h/{end}", latency_s=0.0, bytes_per_s=1024.0, shares="switch")
        for end in "bc"
    ]
    cluster = make_cluster({"a": GIB, "b": GIB, "c": GIB}, links=links)
    profile = make_profile(chain_graph(2), cluster, seconds={"a": [1, 1], "b": [1, 1], "c": [1, 1]})
    found = derived(
        profile,
        Part(layers=[0], devices=["h/a"]),
        Part(layers=[1], devices=["h/b", "h/c"], shares=[1, 1]),
    )
    assert found.busy_s["wire switch"] == pytest.approx(4 * 2.0)


def test_a_whole_batch_stage_waits_for_the_last_microbatch() -> None:
    # l1 on b takes 8 items at once: 16 s; l0 on a 2 s a microbatch of 2; l2 on c 6 s.
    graph = make_graph([(0, 1), (1, 2)], 3, whole_batch=[1])
    found = derived(
        profile_of(graph),
        Part(layers=[0], devices=["h/a"]),
        Part(layers=[1], devices=["h/b"], whole_batch=True),
        Part(layers=[2], devices=["h/c"]),
    )
    # Four messages of 2 items in, four out, 0.3 s each, half occupied: 16 + 0.6 + 0.6.
    assert found.busy_s["pipeline0.stage1"] == pytest.approx(17.2)
    assert found.busy_s["pipeline0.stage0"] == pytest.approx(4 * 2.3)
    assert found.busy_s["pipeline0.stage2"] == pytest.approx(4 * 6.3)
    # Last microbatch leaves a at 2 + 3 x 2.15, arrives 0.3 later; b takes 16 s; then the first
    # piece 0.3 s, c 6 s and three more at 6.3 s, the last answer 0.3 s.
    assert found.latency_s == pytest.approx((2 + 3 * 2.15 + 0.3) + 16 + 0.3 + 6 + 3 * 6.3 + 0.3)


def test_branches_meet_at_the_later_one() -> None:
    # l0 feeds l1 and l2, l3 reads both; l1 on b 4 s, l2 on c 6 s; l0 and l3 cannot share a.
    cluster = make_cluster(dict.fromkeys("abcd", GIB), latency_s=0.1, bytes_per_s=10240.0)
    profile = make_profile(
        make_graph([(0, 1), (0, 2), (1, 3), (2, 3)], 4),
        cluster,
        seconds={"a": [1] * 4, "b": [2] * 4, "c": [3] * 4, "d": [1] * 4},
    )
    request = PlanRequest(batch_size=2, microbatch_size=2)
    parts = [Part(layers=[i], devices=[f"h/{name}"]) for i, name in enumerate("abcd")]
    found = rederive(make_plan(profile, parts, request=request, routing="direct"), profile)
    assert found.latency_s == pytest.approx(2 + 0.3 + 6 + 0.3 + 2 + 0.3)


def test_pipelines_share_wires_and_run_side_by_side() -> None:
    profile = profile_of(chain_graph(2))
    request = PlanRequest(batch_size=8, microbatch_size=2)
    plan = make_plan(
        profile,
        [Part(layers=[0, 1], devices=["h/a"])],
        [Part(layers=[0, 1], devices=["h/b"])],
        items=[6, 2],
        request=request,
    )
    found = rederive(plan, profile)
    # a: 3 microbatches of 4 s, and b's input and answer; b: one of 8 s, which receives 64 B and
    # sends 2 KiB.
    into_b = 0.1 + 64 / 10240
    assert found.busy_s["pipeline0.stage0"] == pytest.approx(12.0 + 0.5 * (into_b + 0.3))
    assert found.busy_s["pipeline1.stage0"] == pytest.approx(8 + into_b / 2 + 0.15)
    assert found.latency_s == pytest.approx(12.0)


@pytest.mark.parametrize(
    ("two_s", "latency_s"),
    [(5.0, 0.064 + 0.032 + 4 * 5 + 2 * 0.0001), (0.001, 7 * 0.064 + 2 * 0.001 + 0.0002)],
)
def test_inputs_of_pipelines_part_a_wire_that_they_share(two_s: float, latency_s: float) -> None:
    # b and c get half of two items each, four times, d three times two; 0.064 s alone.
    profile = inputs_on_one_wire(two_s=two_s, one_s=0.001)
    plan = make_plan(
        profile,
        [Part(layers=[0], devices=["h/b", "h/c"], shares=[1, 1])],
        [Part(layers=[0], devices=["h/d"])],
        items=[8, 6],
        request=PlanRequest(batch_size=14, microbatch_size=2),
    )
    assert rederive(plan, profile).latency_s == pytest.approx(latency_s)


def test_the_prelude_is_paid_once_by_every_stage_that_uses_it() -> None:
    graph = chain_graph(2)
    layers = tuple(layer.model_copy(update={"uses_prelude": True}) for layer in graph.layers)
    profile = profile_of(graph.model_copy(update={"layers": layers}))
    row = Measurement(items=1, median_s=0.25, spread=0, samples=3, peak_bytes=50)
    profile = profile.model_copy(
        update={
            "timings": tuple(
                DeviceTimings(**{**dict(t), "layers": {**t.layers, "(prelude)": (row,)}})
                for t in profile.timings
            )
        }
    )
    found = derived(profile, Part(layers=[0, 1], devices=["h/a"]), batch=2)
    # One row at one item: 0.25 s an item beyond it. Both layers 4 s.
    assert found.ranks[0].compute_s == pytest.approx(4.5)
    # Before l0 live: x, 64 B; while l1 runs t0, 2048 B; each allocates 4000, the prelude 100.
    assert found.ranks[0].memory.activations_bytes == 2048 + 4000 + 100


class TestMemory:
    """Ledgers in bytes; t0, t1, ... are 1024 B an item, x is 32 B, each weight 1000 B."""

    def test_what_is_alive_and_what_is_buffered(self) -> None:
        # l0 -> l1 -> l2, l0 -> l2 on a, then l3 on b; microbatches of 2.
        profile = profile_of(make_graph([(0, 1), (1, 2), (0, 2), (2, 3)], 4))
        found = derived(
            profile, Part(layers=[0, 1, 2], devices=["h/a"]), Part(layers=[3], devices=["h/b"])
        )
        a, b = (load.memory for load in found.ranks)
        assert a.weights_bytes == 3000
        # Most while l2 runs: t0 and t1, 2048 B each, and the 4000 it allocates.
        assert a.activations_bytes == 2 * 2048 + 4000
        # Sends t2 twice buffered; the root also has 8 items of x (256 B) and t3 (8192 B).
        assert a.buffers_bytes == 2 * 2048 + 256 + 8192
        assert b.activations_bytes == 2048 + 4000
        assert b.buffers_bytes == 2 * (2048 + 2048)

    def test_what_is_passed_on_stays_alive(self) -> None:
        # t0 is read by l2 on c, and b only passes it on: alive there beside t0's other copy.
        profile = profile_of(make_graph([(0, 1), (1, 2), (0, 2)], 3))
        found = derived(
            profile, *(Part(layers=[i], devices=[f"h/{name}"]) for i, name in enumerate("abc"))
        )
        b = found.ranks[1].memory
        assert b.activations_bytes == 2048 + 4000  # t0, which l1 reads and c needs
        assert b.buffers_bytes == 2 * (2048 + 2 * 2048)  # receives t0, sends t0 and t1

    def test_tied_weights_count_once_a_stage(self) -> None:
        profile = profile_of(make_graph([(0, 1)], 2, tied=[(0, 1)]))
        together = derived(profile, Part(layers=[0, 1], devices=["h/a"]))
        apart = derived(
            profile, Part(layers=[0], devices=["h/a"]), Part(layers=[1], devices=["h/b"])
        )
        assert together.ranks[0].memory.weights_bytes == 1000
        assert [x.memory.weights_bytes for x in apart.ranks] == [1000, 1000]

    def test_a_root_without_stage_only_feeds_and_gathers(self) -> None:
        found = derived(profile_of(chain_graph(2)), Part(layers=[0, 1], devices=["h/b"]))
        root = found.ranks[0].memory
        assert (root.weights_bytes, root.activations_bytes) == (0, 0)
        assert root.buffers_bytes == 8 * 32 + 8 * 1024
        assert found.ranks[1].memory.buffers_bytes == 2 * (64 + 2048)

    def test_a_whole_batch_stage_buffers_a_batch_once(self) -> None:
        graph = make_graph([(0, 1)], 2, whole_batch=[1])
        found = derived(
            profile_of(graph),
            Part(layers=[0], devices=["h/a"]),
            Part(layers=[1], devices=["h/b"], whole_batch=True),
        )
        assert found.ranks[1].memory.buffers_bytes == 8 * 1024 + 8 * 1024
