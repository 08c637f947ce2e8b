from __future__ import annotations

import math

import pytest

from profiler.catalogue import find_device, find_link
from profiler.cluster import Cluster, DefaultLink, Device, Host, Link
from profiler.errors import InvalidInputError
from profiler.graph import ModelGraph
from profiler.interval import End, cluster_at, profile_at
from profiler.profile import PRELUDE, Profile
from profiler.roofline import ModelWork, reached_ceiling, sheet_ceiling
from profiler.sheet_times import LEAST_ERROR, SHEET_FRACTION, sheet_timings
from profiler.upgrade_links import with_link_speed, with_wire_speed
from profiler.upgrades import on_cluster, with_device, with_memory, with_speed
from tests.support.builders import GIB, chain_graph, make_profile

EPYC = "AMD EPYC 7763 64-Core Processor x64"
SIZES = (1, 2, 4, 8)


def heavy_graph(flops_per_item: float = 5.0176e9, num_layers: int = 3) -> ModelGraph:
    """Layers that an EPYC 7763 computes in 1 ms an item at its data-sheet peak; few bytes."""
    graph = chain_graph(num_layers)
    layers = tuple(x.replaced(flops_per_item=flops_per_item) for x in graph.layers)
    return graph.replaced(layers=layers)


def measured(
    types: dict[str, str],
    seconds: dict[str, list[float]],
    *,
    graph: ModelGraph | None = None,
    fixed_fraction: float = 0.0,
    links: tuple[Link, ...] = (),
) -> Profile:
    cluster = Cluster(
        hosts=tuple(
            Host(
                name=host,
                devices=(
                    Device(
                        name="cuda:0" if "NVIDIA" in kind else "cpu:0",
                        type=kind,
                        kind="cuda" if "NVIDIA" in kind else "cpu",
                        memory_bytes=8 * GIB,
                        threads=64,
                    ),
                ),
            )
            for host, kind in types.items()
        ),
        links=links,
    )
    named = {name: seconds[name.split("/")[0]] for name in cluster.device}
    return make_profile(
        graph or heavy_graph(),
        cluster,
        seconds=named,
        batch_sizes=SIZES,
        fixed_fraction=fixed_fraction,
    )


def times(profile: Profile, device: str, twin: str = "twin0") -> list[float]:
    return [row.median_s for row in profile.timings_of[device].layers[twin]]


def test_the_roofline_is_the_larger_of_computing_and_moving() -> None:
    work = ModelWork(heavy_graph())
    ceiling = sheet_ceiling(find_device("epyc-7763"), "float32")
    # l1 reads and writes 256 floats an item, and has 1000 bytes of weights.
    done = work.of("twin1", 2)
    assert (done.flops, done.num_bytes) == (2 * 5.0176e9, 1000 + 2 * 2 * 256 * 4)
    assert ceiling.least_s(done) == pytest.approx(2e-3)
    idle = ModelWork(heavy_graph(flops_per_item=0.0)).of("twin1", 2)
    assert ceiling.least_s(idle) == pytest.approx((1000 + 4096) / 204.8e9)


def test_a_device_like_the_measured_one_gets_the_measured_times() -> None:
    profile = measured({"a": EPYC}, {"a": [0.004, 0.002, 0.003]}, fixed_fraction=0.3)
    found = sheet_timings(profile, "new/cpu:0", find_device("epyc-7763"))
    for twin, rows in profile.timings[0].layers.items():
        expected = [row.median_s for row in rows]
        assert [row.median_s for row in found.layers[twin]] == pytest.approx(expected)


def test_the_efficiency_carries_over_to_another_device() -> None:
    # Half the peak on the EPYC (2 ms an item against 1): half of 7.3728 Tflop/s on the larger one.
    profile = measured({"a": EPYC}, {"a": [0.002] * 3})
    found = sheet_timings(profile, "new/cpu:0", find_device("epyc-9654"))
    expected = [2 * n * 5.0176e9 / 7372.8e9 for n in SIZES]
    assert [row.median_s for row in found.layers["twin0"]] == pytest.approx(expected)
    assert found.hypothetical is not None
    assert "efficiency of a/cpu:0" in found.hypothetical.basis
    # All layers are equally efficient: nothing but the least error is left.
    assert found.hypothetical.high == pytest.approx(1 + LEAST_ERROR)
    assert found.hypothetical.low == pytest.approx(1 / (1 + LEAST_ERROR))


def test_overhead_stays_as_it_is_on_a_faster_device() -> None:
    # 1 ms of overhead and 1 ms an item at the full peak.
    profile = measured({"a": EPYC}, {"a": [0.002] * 3}, fixed_fraction=0.5)
    found = sheet_timings(profile, "new/cpu:0", find_device("epyc-9654"))
    expected = [0.001 + n * 5.0176e9 / 7372.8e9 for n in SIZES]
    assert [row.median_s for row in found.layers["twin0"]] == pytest.approx(expected)


def test_a_part_of_a_processor_has_its_part_of_the_peak() -> None:
    # 16 of 64 cores at the full peak: all of them are four times as fast.
    profile = measured({"a": EPYC.replace("x64", "x16")}, {"a": [0.004] * 3})
    found = sheet_timings(profile, "new/cpu:0", find_device("epyc-7763"))
    assert [row.median_s for row in found.layers["twin0"]] == pytest.approx(
        [0.001 * n for n in SIZES]
    )


def test_layers_of_different_efficiency_widen_the_range() -> None:
    profile = measured({"a": EPYC}, {"a": [0.001, 0.002, 0.004]})
    found = sheet_timings(profile, "new/cpu:0", find_device("epyc-9654")).hypothetical
    assert found is not None
    # Slowness 1, 2, 4 of equal rooflines, 7 in all; quartiles 1 and 4.
    assert found.low == pytest.approx((1 + 1 + 1) / 7)
    assert found.high == pytest.approx((4 + 4 + 4) / 7)


def test_the_nearest_device_is_of_the_same_kind_and_another_one_widens_the_range() -> None:
    # The A10 at a quarter of its peak, the EPYC at all of it.
    profile = measured(
        {"a": EPYC, "b": "NVIDIA A10", "c": "NVIDIA L4"},
        {
            "a": [0.001] * 3,
            "b": [4 * 5.0176e9 / 31.2e12] * 3,
            "c": [2 * 5.0176e9 / 30.3e12] * 3,
        },
    )
    found = sheet_timings(profile, "new/cuda:0", find_device("rtx-3090"))
    assert found.hypothetical is not None
    # 35.6e12 / 936e9 = 38 flops a byte: nearer to the A10 (52) than to the L4 (101).
    assert "efficiency of b/cuda:0" in found.hypothetical.basis
    expected = [4 * n * 5.0176e9 / 35.6e12 for n in SIZES]
    assert [row.median_s for row in found.layers["twin0"]] == pytest.approx(expected)
    assert found.hypothetical.low == pytest.approx(0.5)  # as efficient as the L4


def test_another_kind_and_an_unknown_sheet_widen_the_range_each() -> None:
    wider = math.sqrt(1 / SHEET_FRACTION)
    profile = measured({"a": EPYC}, {"a": [0.002] * 3})
    gpu = sheet_timings(profile, "new/cuda:0", find_device("a10")).hypothetical
    assert gpu is not None
    assert gpu.high == pytest.approx((1 + LEAST_ERROR) * wider)
    strange = measured({"a": "cpu of no name"}, {"a": [0.002] * 3})
    cpu = sheet_timings(strange, "new/cpu:0", find_device("epyc-7763")).hypothetical
    assert cpu is not None
    assert "whose own data sheet is unknown" in cpu.basis
    assert cpu.high == pytest.approx((1 + LEAST_ERROR) * wider)


def test_an_unknown_device_is_taken_to_be_between_half_and_all_of_its_sheet() -> None:
    strange = measured({"a": "cpu of no name"}, {"a": [0.002] * 3})
    seen = reached_ceiling(strange.timings[0], ModelWork(strange.model))
    assert seen.flops_per_s == pytest.approx(5.0176e9 / 0.002)
    found = sheet_timings(strange, "new/cpu:0", find_device("epyc-7763"))
    # 71 % of the peak: sqrt(2) ms an item; at best all of it, 1 ms, at worst half of it, 2 ms.
    assert found.layers["twin0"][0].median_s == pytest.approx(math.sqrt(2) * 1e-3)


def test_the_prelude_is_scaled_like_the_layers_together() -> None:
    profile = measured({"a": EPYC}, {"a": [0.002] * 3})
    (timings,) = profile.timings
    rows = {**timings.layers, PRELUDE: timings.layers["twin0"]}
    with_prelude = profile.replaced(timings=(timings.replaced(layers=rows),))
    found = sheet_timings(with_prelude, "new/cpu:0", find_device("epyc-9654"))
    ratio = 5017.6 / 7372.8
    assert found.layers[PRELUDE][0].median_s == pytest.approx(0.002 * ratio)


def test_a_dtype_without_a_peak_is_refused() -> None:
    profile = measured({"a": EPYC}, {"a": [0.002] * 3})
    half = profile.replaced(model=profile.model.replaced(dtype="bfloat16"))
    with pytest.raises(InvalidInputError, match="v100-pcie-32gb has no data-sheet peak for bfloat"):
        sheet_timings(half, "new/cuda:0", find_device("v100-pcie-32gb"))


def test_hypothetical_devices_give_no_efficiency() -> None:
    profile = measured({"a": EPYC}, {"a": [0.002] * 3})
    supposed = with_speed(profile, "a/cpu:0", 2)
    with pytest.raises(InvalidInputError, match="no device of the profile was measured"):
        sheet_timings(supposed, "new/cpu:0", find_device("epyc-9654"))


BETWEEN = tuple(
    Link(source=a, target=b, latency_s=s, bytes_per_s=1e8, error_fraction=0.1)
    for a, b, s in (("a", "b", 1e-4), ("b", "a", 4e-4), ("a", "c", 2e-4), ("c", "a", 2e-4))
)


def three(links: tuple[Link, ...] = BETWEEN) -> Profile:
    return measured(dict.fromkeys("abc", EPYC), {x: [0.002] * 3 for x in "abc"}, links=links)


def test_a_new_host_is_linked_to_all_others_by_the_standard() -> None:
    grown, name = with_device(three(), find_device("t4"), link=find_link("10gbe"))
    assert name == "t4/cuda:0"
    link = grown.cluster.link("t4/cuda:0", "b/cpu:0")
    assert link.bytes_per_s == pytest.approx(1176.9e6)
    assert link.latency_s == 2e-4
    assert link.hypothetical is not None
    # The latency lies between the least and the largest that was measured.
    assert (link.hypothetical.low, link.hypothetical.high) == (0.5, 2.0)
    assert grown.timings_of[name].hypothetical is not None
    again, second = with_device(grown, find_device("t4"), link=find_link("10gbe"))
    assert second == "t4-2/cuda:0"
    assert again.cluster.link(name, second).hypothetical is not None


def test_a_bus_faster_than_the_software_was_seen_to_be_has_a_wide_range() -> None:
    grown, name = with_device(three(), find_device("t4"), link=find_link("pcie-3-x16"), host="a")
    assert name == "a/cuda:0"
    link = grown.cluster.link(name, "a/cpu:0")
    # Between 1.5 GB/s, a message between processes over gloo, and 15.754 GB/s of the bus.
    assert link.bytes_per_s == pytest.approx(math.sqrt(1.5e9 * 15.754e9))
    assert link.hypothetical is not None
    assert link.hypothetical.high >= math.sqrt(15.754 / 1.5) * (1 - 1e-9)
    # To other hosts it has what its host has.
    assert grown.cluster.link(name, "b/cpu:0").bytes_per_s == 1e8


def test_a_device_in_a_host_gets_the_links_of_the_hosts_first_device() -> None:
    links = (
        Link(source="a/cpu:0", target="b/cpu:0", latency_s=1e-3, bytes_per_s=1e6, shares="nic"),
        Link(source="b/cpu:0", target="a/cpu:0", latency_s=1e-3, bytes_per_s=2e6),
    )
    grown, name = with_device(three(links), find_device("t4"), link=None, host="a")
    there, back = grown.cluster.link(name, "b/cpu:0"), grown.cluster.link("b/cpu:0", name)
    assert (there.bytes_per_s, there.shares, back.bytes_per_s) == (1e6, "nic", 2e6)


def test_both_directions_of_wifi_share_the_air() -> None:
    grown, name = with_device(three(), find_device("raspberry-pi-5-8gb"), link=find_link("wifi-5"))
    there, back = grown.cluster.link(name, "a/cpu:0"), grown.cluster.link("a/cpu:0", name)
    assert there.shares is not None
    assert there.shares == back.shares == grown.cluster.link(name, "b/cpu:0").shares


def test_a_processor_needs_its_memory() -> None:
    with pytest.raises(InvalidInputError, match="say how much"):
        with_device(three(), find_device("epyc-9654"), link=None)
    grown, name = with_device(
        three(), find_device("epyc-9654"), link=None, memory_bytes=GIB, host="b"
    )
    assert (name, grown.cluster.device[name].memory_bytes) == ("b/cpu:1", GIB)


def test_a_faster_device_has_times_of_its_own() -> None:
    profile = three()
    together = profile.replaced(
        timings=(profile.timings[0].replaced(devices=("a/cpu:0", "b/cpu:0", "c/cpu:0")),)
    )
    faster = with_speed(together, "a/cpu:0", 4)
    assert times(faster, "a/cpu:0")[0] == pytest.approx(0.0005)
    assert times(faster, "b/cpu:0")[0] == 0.002
    names = [x.measured_on for x in faster.timings]
    assert len(set(names)) == len(names) == 2
    assert faster.timings_of["b/cpu:0"].hypothetical is None


def test_more_memory_leaves_taken_what_is_taken() -> None:
    profile = three()
    host = profile.cluster.hosts[0]
    used = host.devices[0].replaced(free_bytes=6 * GIB)
    hosts = (host.replaced(devices=(used,)), *profile.cluster.hosts[1:])
    larger = with_memory(
        profile.replaced(cluster=profile.cluster.replaced(hosts=hosts)), "a/cpu:0", 2
    )
    assert larger.cluster.device["a/cpu:0"].usable_bytes == (6 + 8) * GIB
    assert larger.timings_of["a/cpu:0"].hypothetical is not None


def test_a_faster_link_holds_for_whatever_entry_did() -> None:
    faster = with_link_speed(three(), "a", "b", 10).cluster
    assert faster.link("a/cpu:0", "b/cpu:0").latency_s == pytest.approx(1e-5)
    assert faster.link("b/cpu:0", "a/cpu:0").latency_s == 4e-4
    # Nothing names b -> c: it gets an entry with a tenth of the default's time.
    other = with_link_speed(three(), "b", "c", 10).cluster
    assert other.link("b/cpu:0", "c/cpu:0").bytes_per_s == pytest.approx(1.5e10)
    assert other.link("c/cpu:0", "b/cpu:0").bytes_per_s == 1.5e9
    # A device of a host whose entry is wider gets one of its own.
    own = with_link_speed(three(), "a/cpu:0", "b/cpu:0", 2).cluster
    assert own.link("a/cpu:0", "b/cpu:0").bytes_per_s == pytest.approx(2e8)
    default = with_link_speed(three(), "default", "default", 10).cluster
    assert default.link("b/cpu:0", "c/cpu:0").bytes_per_s == pytest.approx(1.5e10)
    assert default.link("a/cpu:0", "b/cpu:0").bytes_per_s == 1e8


@pytest.mark.parametrize(
    ("source", "target", "factor", "message"),
    [
        ("a", "d", 2.0, "a link has no end 'd'"),
        ("a", "a", 2.0, "a device sends itself nothing"),
        ("a", "b", 0.0, "a factor is a number above 0"),
        ("a", "b", math.nan, "a factor is a number above 0"),
    ],
)
def test_links_that_cannot_be_faster(source: str, target: str, factor: float, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        with_link_speed(three(), source, target, factor)


def test_wires_are_sped_up_as_one() -> None:
    links = tuple(x.replaced(shares="air") for x in BETWEEN[:2]) + BETWEEN[2:]
    faster = with_wire_speed(three(links), "air", 2).cluster
    assert [x.bytes_per_s for x in faster.links] == pytest.approx([2e8, 2e8, 1e8, 1e8])
    with pytest.raises(InvalidInputError, match="no links share a wire 'fog'; there is air"):
        with_wire_speed(three(links), "fog", 2)


def test_the_ends_of_the_range_change_only_what_is_hypothetical() -> None:
    grown, name = with_device(three(), find_device("t4"), link=find_link("wifi-5"))
    mark = grown.timings_of[name].hypothetical
    assert mark is not None
    for end, factor in ((End.LOW, mark.low), (End.HIGH, mark.high)):
        there = profile_at(grown, end)
        likely = times(grown, name)
        assert times(there, name) == pytest.approx([x * factor for x in likely])
        assert times(there, "a/cpu:0") == times(grown, "a/cpu:0")
    assert cluster_at(three().cluster, End.LOW) == three().cluster
    low, high = (cluster_at(grown.cluster, end).link(name, "a/cpu:0") for end in End)
    # Wi-Fi: between all of what is on air and half of it.
    assert low.bytes_per_s >= 108.3e6 * (1 - 1e-9)
    assert high.bytes_per_s <= 108.3e6 / 2 * (1 + 1e-9)


def test_a_default_link_may_be_hypothetical_too() -> None:
    cluster = three(()).cluster
    faster = with_link_speed(three(()), "default", "default", 2).cluster
    assert isinstance(faster.default_link, DefaultLink)
    assert faster.link("a/cpu:0", "b/cpu:0").hypothetical is not None
    assert cluster.link("a/cpu:0", "b/cpu:0").hypothetical is None


def test_a_profile_on_fewer_devices_keeps_their_times() -> None:
    profile = three()
    fewer = profile.cluster.replaced(hosts=profile.cluster.hosts[:2], links=BETWEEN[:2])
    assert set(on_cluster(profile, fewer).timings_of) == {"a/cpu:0", "b/cpu:0"}
    with pytest.raises(InvalidInputError, match="no timings for c/cpu:0"):
        on_cluster(on_cluster(profile, fewer), profile.cluster)
