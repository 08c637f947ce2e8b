from __future__ import annotations

import pytest

from profiler.cluster import Cluster, Device, Host, Link
from profiler.environment import Environment
from profiler.errors import InvalidInputError
from profiler.hosts import (
    Present,
    compare_hosts,
    host_name,
    meet,
    merge_hosts,
    only_host,
    unmeasured,
    with_links,
)
from profiler.world import Identity, unique_names


def host(name: str, *, cores: int | None = 4, threads: int = 2, devices: int = 1) -> Host:
    made = [
        Device(name=f"cpu:{i}", type="t", memory_bytes=9, threads=threads) for i in range(devices)
    ]
    return Host(name=name, cores=cores, devices=tuple(made))


def link(source: str, target: str, rate: float = 1.0, error: float | None = 0.1) -> Link:
    return Link(source=source, target=target, latency_s=0.0, bytes_per_s=rate, error_fraction=error)


def one(name: str, machine: str = "", *, chosen: bool = False, network: str = "n") -> Identity:
    return Identity(host=name, machine=machine or name, network=network, chosen=chosen)


# --- names ---------------------------------------------------------------------------------------


def test_names_that_are_unique_stay() -> None:
    assert unique_names([one("b"), one("a")]) == ("b", "a")


def test_machines_of_one_name_get_their_rank_appended() -> None:
    assert unique_names([one("pi", "m0"), one("x"), one("pi", "m2")]) == ("pi-0", "x", "pi-2")


def test_network_namespaces_of_one_machine_are_hosts() -> None:
    assert unique_names([one("vm", "m", network="1"), one("vm", "m", network="2")]) == (
        "vm-0",
        "vm-1",
    )


def test_two_processes_on_one_host_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="ranks 0 and 2 are both on host a: start one proc"):
        unique_names([one("a"), one("b"), one("a")])
    with pytest.raises(InvalidInputError, match="ranks 0 and 1 are both on host b"):
        unique_names([one("a", "m", chosen=True), one("b", "m")])


def test_two_processes_on_one_machine_with_names_of_their_own_are_two_hosts() -> None:
    assert unique_names([one("a", "m", chosen=True), one("b", "m", chosen=True)]) == ("a", "b")


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="ranks 0 and 1 are both called a"):
        unique_names([one("a", "m0", chosen=True), one("a", "m1", chosen=True)])
    with pytest.raises(InvalidInputError, match="two hosts would be called pi-0"):
        unique_names([one("pi", "m0"), one("pi", "m1"), one("pi-0", "m2")])


@pytest.mark.parametrize("name", ["a b", "a/b", "a\tb"])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match="no spaces and no slashes"):
        host_name(name)


def test_a_name_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPORTION_HOST", "board")
    assert (host_name().host, host_name().chosen) == ("board", True)
    assert host_name("other").host == "other"
    monkeypatch.delenv("APPORTION_HOST")
    assert not host_name().chosen


# --- clusters ------------------------------------------------------------------------------------


def test_hosts_merge_in_rank_order_and_the_first_device_is_the_root() -> None:
    merged = merge_hosts([host("b"), host("a", devices=2)])
    assert list(merged.device) == ["b/cpu:0", "a/cpu:0", "a/cpu:1"]
    assert merged.root == "b/cpu:0"


def test_hosts_without_devices_or_with_one_name_do_not_merge() -> None:
    with pytest.raises(InvalidInputError, match="none of the hosts a, b has a device"):
        merge_hosts([host("a", devices=0), host("b", devices=0)])
    with pytest.raises(InvalidInputError, match="two hosts are called a"):
        merge_hosts([host("a"), host("a")])


def here(name: str, cores: int = 4, num_cuda: int = 0) -> Present:
    return Present(name=name, cores=cores, num_cuda=num_cuda)


def test_a_cluster_of_the_hosts_there_are_is_fine() -> None:
    cluster = Cluster(hosts=(host("a"), host("b")))
    assert compare_hosts(cluster, [here("b", 8), here("a")]) == ()


def test_hosts_that_are_missing_or_strange_are_named() -> None:
    cluster = Cluster(hosts=(host("a"), host("b")))
    with pytest.raises(InvalidInputError, match=r"no rank runs on b\. Start one process on each"):
        compare_hosts(cluster, [here("a")])
    with pytest.raises(InvalidInputError, match="no rank runs on b; rank 1 on c: not in the cl"):
        compare_hosts(cluster, [here("a"), here("c")])


def test_fewer_cores_than_declared_are_warned_of_with_both_numbers() -> None:
    cluster = Cluster(hosts=(host("a", cores=8),))
    assert compare_hosts(cluster, [here("a", 4)]) == (
        "host a is declared with 8 cores and has 4: measured as it is",
    )
    assert compare_hosts(Cluster(hosts=(host("a", cores=None),)), [here("a", 4)]) == ()


def test_a_device_with_more_threads_than_the_host_has_cores_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="a/cpu:0 is declared with 6 threads; host a has 4"):
        compare_hosts(Cluster(hosts=(host("a", threads=6),)), [here("a", 4)])


def test_a_gpu_that_is_not_there_is_refused() -> None:
    gpu = Device(name="cuda:1", type="g", kind="cuda", memory_bytes=9)
    cluster = Cluster(hosts=(Host(name="a", devices=(gpu,)),))
    with pytest.raises(InvalidInputError, match="a/cuda:1 is in the cluster; host a has 1 CUDA"):
        compare_hosts(cluster, [here("a", num_cuda=1)])
    assert compare_hosts(cluster, [here("a", num_cuda=2)]) == ()


def test_a_host_without_a_device_is_refused() -> None:
    cluster = Cluster(hosts=(host("a"), host("b", devices=0)))
    with pytest.raises(InvalidInputError, match="host b has no device in the cluster"):
        compare_hosts(cluster, [here("a"), here("b")])


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_limit_must_be_one(limit: float) -> None:
    alone = Environment(rank=0, world_size=1, master_addr="127.0.0.1", master_port=1)
    with pytest.raises(InvalidInputError, match="the time limit must be above 0 s"):
        meet(alone, timeout_s=limit)


def test_one_host_of_a_cluster() -> None:
    cluster = Cluster(hosts=(host("a"), host("b")), links=(link("a", "b"),))
    assert only_host(cluster, "b") == Cluster(hosts=(host("b"),))


def test_links_that_were_not_measured_are_found() -> None:
    links = (link("a", "b"), link("b", "a", error=None), link("a/cpu:0", "c"), link("c", "a"))
    cluster = Cluster(hosts=(host("a"), host("b"), host("c")), links=links)
    assert unmeasured(cluster) == ("b -> a", "b -> c", "c -> b")


def test_measured_links_take_the_place_of_declared_ones() -> None:
    cluster = Cluster(
        hosts=(host("a"), host("b"), host("c")),
        links=(link("a", "b", 5.0), link("a/cpu:0", "b", 6.0), link("b", "a", 7.0)),
    )
    made = with_links(cluster, [link("a", "b", 50.0), link("a", "a", 60.0)])
    assert [(x.source, x.target, x.bytes_per_s) for x in made.links] == [
        ("a", "b", 50.0),
        ("a", "a", 60.0),
        ("b", "a", 7.0),
    ]
    # Looked up before or after, the new entry holds.
    assert cluster.link("a/cpu:0", "b/cpu:0").bytes_per_s == 6.0
    assert made.link("a/cpu:0", "b/cpu:0").bytes_per_s == 50.0
    assert made.hosts == cluster.hosts
    assert made.default_link == cluster.default_link
