from __future__ import annotations

import pytest

from profiler.cluster import Cluster, Device, Link
from profiler.errors import InvalidInputError

TEXT = """
kind: Cluster
format_version: '1.0'
hosts:
- name: node-a
  cores: 8
  devices:
  - {name: 'cuda:0', type: A100, kind: cuda, memory_bytes: 40GiB, free_bytes: 39GiB}
  - {name: cpu, type: Xeon, memory_bytes: 64GiB, threads: 8}
- name: node-b
  devices:
  - {name: cpu, type: Board, memory_bytes: 4GiB}
links:
- {source: node-a, target: node-b, latency_s: 100us, bytes_per_s: 1Gbit/s, shares: lan}
- {source: node-a/cpu, target: node-b, latency_s: 200us, bytes_per_s: 1Gbit/s}
- {source: node-a, target: node-b/cpu, latency_s: 300us, bytes_per_s: 1Gbit/s}
- {source: node-b, target: node-a/cpu, latency_s: 400us, bytes_per_s: 1Gbit/s}
- {source: node-a, target: node-a, latency_s: 0, bytes_per_s: 10GB/s, send_occupancy: 0.5}
default_link: {latency_s: 1ms, bytes_per_s: 1MB/s, send_occupancy: 1.0, receive_occupancy: 1.0}
"""


def cluster(text: str = TEXT) -> Cluster:
    return Cluster.parse(text, name="cluster.yaml")


def test_devices_are_named_with_their_host() -> None:
    assert list(cluster().device) == ["node-a/cuda:0", "node-a/cpu", "node-b/cpu"]
    assert cluster().root == "node-a/cuda:0"
    assert cluster().host_of["node-b/cpu"].name == "node-b"
    assert cluster().device["node-a/cuda:0"].usable_bytes == 39 * 2**30
    assert cluster().device["node-a/cpu"].usable_bytes == 64 * 2**30


@pytest.mark.parametrize(
    ("source", "target", "latency_s"),
    [
        ("node-a/cpu", "node-b/cpu", 200e-6),  # device to host before host to device
        ("node-a/cuda:0", "node-b/cpu", 300e-6),  # host to device before host to host
        ("node-b/cpu", "node-a/cpu", 400e-6),
        ("node-a/cuda:0", "node-a/cpu", 0.0),  # within a host
        ("node-b/cpu", "node-a/cuda:0", 1e-3),  # the default
    ],
)
def test_the_most_exact_entry_holds(source: str, target: str, latency_s: float) -> None:
    assert cluster().link(source, target).latency_s == pytest.approx(latency_s)


def test_unknown_devices_have_no_link() -> None:
    with pytest.raises(InvalidInputError, match="no device 'node-c/cpu'; the cluster has node-a"):
        cluster().link("node-a/cpu", "node-c/cpu")


def test_free_memory_is_never_more_than_there_is() -> None:
    device = Device(name="d", type="t", memory_bytes=100, free_bytes=200)
    assert device.usable_bytes == 100


def test_moving_nothing_takes_no_time() -> None:
    link = Link(source="a", target="b", latency_s=1.0, bytes_per_s=10.0)
    assert (link.transfer_time_s(0), link.transfer_time_s(20)) == (0.0, 3.0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: node-b", "name: node-a", "host 'node-a' is listed twice"),
        ("{name: cpu, type: Xeon", "{name: 'cuda:0', type: Xeon", "cuda:0 is listed twice"),
        ("target: node-b,", "target: node-c,", "there is no 'node-c'"),
        ("source: node-a/cpu", "source: node-a", "node-a -> node-b is listed twice"),
        ("name: node-b", "name: node/b", "name"),
        ("name: node-b", "name: 'node b'", "name"),
        ("memory_bytes: 4GiB", "memory_bytes: 0", "greater than 0"),
        ("4GiB", "4 gigs", "not a size"),
        ("100us", "-100us", "not a time"),
        ("bytes_per_s: 10GB/s", "bytes_per_s: 0", "above zero"),
        ("occupancy: 0.5", "occupancy: 1.5", "less than or equal to 1"),
        ("threads: 8", "threads: 0", "greater than or equal to 1"),
        ("kind: cuda", "kind: tpu", "kind"),
    ],
)
def test_a_cluster_that_contradicts_itself_is_refused(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(InvalidInputError, match=message):
        cluster(TEXT.replace(old, new, 1))


def test_a_cluster_without_devices_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="the cluster has no device"):
        cluster("kind: Cluster\nformat_version: '1.0'\nhosts: []\n")


def test_ten_thousand_devices_load_quickly() -> None:
    hosts = "".join(
        f"- name: n{i}\n  devices: [{{name: cpu, type: t, memory_bytes: 1GiB}}]\n"
        for i in range(10_000)
    )
    assert len(cluster(f"kind: Cluster\nformat_version: '1.0'\nhosts:\n{hosts}").device) == 10_000


def test_a_replaced_part_forgets_what_followed_from_the_old_one() -> None:
    before = cluster()
    assert before.link("node-a/cuda:0", "node-b/cpu").latency_s == 3e-4
    entry = Link(source="node-a", target="node-b/cpu", latency_s=5e-4, bytes_per_s=1e9)
    after = before.replaced(links=(entry,))
    assert after.link("node-a/cuda:0", "node-b/cpu").latency_s == 5e-4
    assert (after.hosts, after.default_link) == (before.hosts, before.default_link)
    with pytest.raises(ValueError, match="is listed twice"):
        before.replaced(links=(entry, entry))


GROUPED = """
kind: Cluster
format_version: '1.0'
hosts:
- {name: a, inner_link: {latency_s: 1us}, devices: [{name: x, type: T, memory_bytes: 1GiB}, {name: y, type: T, memory_bytes: 1GiB}]}
- {name: b, devices: [{name: x, type: T, memory_bytes: 1GiB}, {name: y, type: T, memory_bytes: 1GiB}]}
- {name: c, devices: [{name: x, type: T, memory_bytes: 1GiB}]}
- {name: d, devices: [{name: x, type: T, memory_bytes: 1GiB}]}
groups:
- {name: rack, members: [a, b], inner_link: {latency_s: 10us}}
- {name: site, members: [rack, c], inner_link: {latency_s: 20us}}
links:
- {source: b/x, target: c/x, latency_s: 5us, bytes_per_s: 1GB/s}
default_link: {latency_s: 1ms}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("source", "target", "latency_s"),
    [
        ("a/x", "a/y", 1e-6),  # inside the host
        ("a/x", "b/x", 1e-5),  # inside the rack
        ("b/x", "b/y", 1e-5),  # a host that says nothing has what its rack has
        ("a/x", "c/x", 2e-5),  # inside the site
        ("a/x", "d/x", 1e-3),  # nothing holds both
        ("b/x", "c/x", 5e-6),  # an entry goes before all of them
        ("c/x", "b/x", 2e-5),  # in its own direction only
    ],
)
def test_what_holds_two_devices_says_their_link(source: str, target: str, latency_s: float) -> None:
    assert cluster(GROUPED).link(source, target).latency_s == pytest.approx(latency_s)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ("[rack, a]", "'a' is in two groups"),
        ("[site]", "'site' is no host or group so far"),
        ("[nobody]", "'nobody' is no host or group so far"),
    ],
)
def test_groups_that_do_not_nest_are_refused(members: str, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        cluster(GROUPED.replace("members: [rack, c]", f"members: {members}"))


def test_a_group_has_a_name_of_its_own() -> None:
    with pytest.raises(InvalidInputError, match="the name of another group or host"):
        cluster(GROUPED.replace("name: site", "name: rack"))
