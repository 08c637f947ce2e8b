"""What would be built for a cluster, without building it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from executor.emulate import requirements
from executor.emulate.frames import Frames
from executor.emulate.layout import MAX_HOSTS, Layout, layout, quota
from executor.emulate.network import build_steps
from executor.emulate.requirements import shortfalls
from profiler.cluster import Cluster
from profiler.errors import EmulationError, InvalidInputError
from profiler.limits import available_cores, memory_limits
from tests.support.emulation import GIB, MB, link, make_cluster

ABCD = {"a": 1, "b": 1, "c": 1, "d": 1}


def made(cluster: Cluster) -> Layout:
    return layout(cluster, token="0123abcd")


def queues(plan: Layout) -> Mapping[str, list[tuple[float, str]]]:
    names = [host.name for host in plan.hosts]
    return {
        name: [(q.bytes_per_s, "".join(names[t] for t in q.targets)) for q in plan.queues[i]]
        for i, name in enumerate(names)
    }


def wires(plan: Layout) -> Mapping[str, list[str]]:
    names = [host.name for host in plan.hosts]
    return {w.name: [f"{names[a]}>{names[b]}" for a, b in w.pairs] for w in plan.wires}


def lines(plan: Layout, tool: str) -> list[str]:
    return [line for step in build_steps(plan) if step.argv[0] == tool for line in step.lines]


def test_every_host_has_names_and_an_address_of_its_own() -> None:
    plan = made(make_cluster({f"h{i}": 1 for i in range(MAX_HOSTS)}))
    for names in (
        [host.address for host in plan.hosts],
        [host.mac for host in plan.hosts],
        [*plan.namespaces],
        [host.port for host in plan.hosts],
    ):
        assert len(set(names)) == len(names)
    assert plan.hosts[0].address == "10.77.0.1"
    assert all(name.startswith("apportion-0123abcd-") for name in plan.namespaces)


def test_links_without_a_common_wire_have_queues_of_their_own() -> None:
    plan = made(make_cluster(ABCD, links=[link("a>b", 1 * MB), link("a>c", 2 * MB)]))
    assert queues(plan) == {"a": [(1 * MB, "b"), (2 * MB, "c")], "b": [], "c": [], "d": []}
    assert plan.wires == ()


def test_the_default_rate_is_for_pairs_that_no_link_names() -> None:
    plan = made(
        make_cluster({"a": 1, "b": 1, "c": 1}, links=[link("a>b", MB)], default_bytes_per_s=9e3)
    )
    assert queues(plan) == {
        "a": [(MB, "b"), (9e3, "c")],
        "b": [(9e3, "a"), (9e3, "c")],
        "c": [(9e3, "a"), (9e3, "b")],
    }


def test_a_wire_of_one_source_is_one_queue_there() -> None:
    plan = made(make_cluster(ABCD, links=[link("a>b", MB, "w"), link("a>c", MB, "w")]))
    assert queues(plan)["a"] == [(MB, "bc")]
    assert plan.wires == ()


@pytest.mark.parametrize(
    "pairs",
    [
        ["a>c", "b>c"],  # a common target
        ["a>c", "a>d", "b>c", "b>d"],  # two sites
        ["a>b", "b>a"],  # the air: both directions
        ["a>b", "c>d"],  # nothing in common but the wire
    ],
)
def test_a_wire_of_several_sources_has_a_place_of_its_own(pairs: list[str]) -> None:
    plan = made(make_cluster(ABCD, links=[link(pair, MB, "w") for pair in pairs]))
    assert wires(plan) == {"w": pairs}
    # Every packet of it is led there, and meets its queue by both ends.
    tc = lines(plan, "tc")
    assert sum("mirred egress redirect dev w0" in line for line in tc) == len(pairs)
    assert sum(" dev w0 " in line and "match ip src" in line for line in tc) == len(pairs)


@pytest.mark.parametrize(("rate", "frame"), [(1e5, 1514), (3e6, 3000), (80e6, 65014), (1e9, 65014)])
def test_rates_leave_room_for_headers(rate: float, frame: int) -> None:
    plan = made(make_cluster({"a": 1, "b": 1}, links=[link("a>b", rate)]))
    (bits,) = [m[1] for line in lines(plan, "tc") if (m := re.search(r"htb rate (\d+)bit", line))]
    # Of every frame, headers of Ethernet, IP and TCP with its time stamps are no payload.
    assert int(bits) == round(8 * rate * frame / (frame - 14 - 20 - 32))
    assert f"route add 10.77.0.2/32 dev eth0 mtu {frame - 14}" in lines(plan, "ip")


def test_a_pair_has_frames_of_its_slower_direction() -> None:
    plan = made(make_cluster(ABCD, links=[link("a>b", 2 * MB), link("b>a", 4 * MB)]))
    frames = Frames(plan)
    assert frames.between(0, 1) == frames.between(1, 0) == 2000
    assert frames.between(0, 2) == 65014
    ways = [line.split(maxsplit=2)[2] for line in lines(plan, "ip") if line.startswith("route add")]
    assert [way for way in ways if "mtu 1986" in way] == [
        "10.77.0.2/32 dev eth0 mtu 1986",
        "10.77.0.1/32 dev eth0 mtu 1986",
    ]
    assert len(ways) == 4 * 3


def test_acknowledgements_wait_for_nothing() -> None:
    plan = made(make_cluster({"a": 1, "b": 1}, links=[link("a>b", MB)]))
    free = [line for line in lines(plan, "tc") if line.endswith("flowid 1:0")]
    # Headers of TCP have 5 to 15 words; each length goes with its own total length.
    assert [int(line.split("match u16 ")[1].split()[0]) for line in free] == [*range(40, 81, 4)]
    assert all(" prio 1 " in line for line in free)
    assert all(" prio 2 " in x for x in lines(plan, "tc") if "match ip dst" in x)


@pytest.mark.parametrize("rate", [1e4, 1e6, 1e8, 1e10])
def test_bursts_are_short(rate: float) -> None:
    plan = made(make_cluster({"a": 1, "b": 1}, links=[link("a>b", rate)]))
    (burst,) = [int(m[1]) for x in lines(plan, "tc") if (m := re.search(r"ceil .* burst (\d+)", x))]
    # A millisecond at the rate, or two frames.
    assert burst <= max(2 * 1514, 1.05 * 0.001 * rate)
    # Longer packets are cut: TCP hands over 64 KiB as one.
    assert any("tbf rate" in x and f"burst {burst} " in x for x in lines(plan, "tc")) == (
        burst < 65536
    )


def test_class_and_queue_numbers_do_not_meet() -> None:
    names = {f"h{i}": 1 for i in range(40)}
    pairs = [f"{a}>{b}" for a in names for b in names if a != b]
    plan = made(make_cluster(names, links=[link(pair, MB, "air") for pair in pairs]))
    for step in build_steps(plan):
        for device in ("w0", "eth0"):
            classes = [x.split()[7] for x in step.lines if x.startswith(f"class add dev {device} ")]
            handles = [
                x.split()[x.split().index("handle") + 1]
                for x in step.lines
                if x.startswith(f"qdisc add dev {device} ")
            ]
            assert len(set(classes)) == len(classes)
            assert len(set(handles)) == len(handles)
            assert all(int(c.removeprefix("1:"), 16) < 0xFFFF for c in classes)


def test_a_cluster_that_does_not_say_how_is_refused() -> None:
    plain = make_cluster({"a": 1}).model_copy(update={"emulate": None})
    with pytest.raises(InvalidInputError, match="no emulate section; add one, for instance"):
        made(plain)
    with pytest.raises(
        InvalidInputError, match=rf"has {MAX_HOSTS + 1} hosts; one .* at most {MAX_HOSTS}"
    ):
        made(make_cluster({f"h{i}": 1 for i in range(MAX_HOSTS + 1)}))


@pytest.mark.parametrize("cores", [0.01, 0.05, 0.1, 0.25, 1.0, 1.5, 64.0])
def test_quotas_are_what_the_kernel_takes(cores: float) -> None:
    quota_us, period_us = quota(cores)
    assert quota_us / period_us == pytest.approx(cores, rel=0.01)
    assert quota_us >= 1000
    assert 10_000 <= period_us <= 1_000_000
    quota_us, period_us = quota(cores, 0.002)
    assert quota_us / period_us == pytest.approx(cores, rel=0.01)
    assert period_us == max(2000, round(1000 / cores))


def test_what_is_missing_is_said_before_anything_is_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(requirements.sys, "platform", "linux")
    monkeypatch.setattr(requirements.shutil, "which", lambda tool: f"/bin/{tool}")
    monkeypatch.setattr(requirements.os, "geteuid", lambda: 0)
    requirements.require_tools()
    monkeypatch.setattr(requirements.os, "geteuid", lambda: 1000)
    with pytest.raises(EmulationError, match=r"need root.* this is user 1000: use sudo"):
        requirements.require_tools()
    missing = {"tc", "nsenter"}
    monkeypatch.setattr(requirements.shutil, "which", lambda x: None if x in missing else x)
    with pytest.raises(EmulationError, match=r"need tc, nsenter.* install iproute2 util-linux"):
        requirements.require_tools()
    monkeypatch.setattr(requirements.sys, "platform", "darwin")
    with pytest.raises(EmulationError, match="of Linux; this is darwin"):
        requirements.require_tools()


def test_what_the_machine_cannot_give_is_said() -> None:
    cores, (total, _) = available_cores(), memory_limits()
    cluster = make_cluster(
        {"a": 1, "b": 3},
        cores={"a": cores, "b": 0.5},
        memory={"a": 2 * total, "b": 2 * GIB},
    )
    found = "\n".join(shortfalls(cluster, made(cluster)))
    assert f"the hosts have {cores + 0.5:g} cores together, this machine has {cores}" in found
    assert re.search(r"host a has .*iB of memory, this machine has", found)
    assert "host b is limited to 2.00 GiB of memory, and plans may use 3.00 GiB" in found
    fitting = make_cluster({"a": 1}, cores={"a": 1.0}, memory={"a": GIB})
    assert shortfalls(fitting, made(fitting)) == ()
