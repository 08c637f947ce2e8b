from __future__ import annotations

import itertools

from planner.pools import Path, find_pools
from planner.problem import PlanningProblem
from planner.request import PlanRequest
from profiler.cluster import Cluster, DefaultLink, Device, Group, Host, Link
from tests.support.builders import chain_graph, make_profile

INNER = DefaultLink(latency_s=1e-6, bytes_per_s=1e10)


def cluster(*, links: tuple[Link, ...] = (), per_host: int = 4) -> Cluster:
    hosts = tuple(
        Host(
            name=f"h{h}",
            inner_link=INNER,
            devices=tuple(
                Device(name=f"d{d}", type="ab"[h % 2], memory_bytes=10**6) for d in range(per_host)
            ),
        )
        for h in range(24)
    )
    groups = tuple(
        Group(
            name=f"rack{r}",
            members=tuple(f"h{h}" for h in range(4 * r, 4 * r + 4)),
            inner_link=DefaultLink(latency_s=1e-5, bytes_per_s=1e9),
        )
        for r in range(6)
    )
    return Cluster(
        hosts=hosts,
        groups=groups,
        links=links,
        default_link=DefaultLink(latency_s=1e-3, bytes_per_s=1e8),
    )


def problem(machines: Cluster) -> PlanningProblem:
    seconds = {
        name: [0.1] if device.type == "a" else [0.2] for name, device in machines.device.items()
    }
    profile = make_profile(chain_graph(1), machines, seconds=seconds)
    return PlanningProblem.build(profile, PlanRequest(batch_size=4), microbatch=1)


def test_pools_are_what_hosts_have_of_a_kind() -> None:
    pools = find_pools(problem(cluster()))
    # The root alone, what its host has left, the others of its type, the other type.
    assert sorted(kind.count for kind in pools.kinds) == [1, 47, 48]
    assert all(len({d.split("/")[0] for d in pool}) == 1 for k in pools.kinds for pool in k.pools)


def test_no_link_is_better_than_the_best_or_worse_than_the_worst() -> None:
    named = (
        Link(source="h2/d1", target="h5", latency_s=5e-2, bytes_per_s=1e3),
        Link(source="h7", target="h7", latency_s=0.0, bytes_per_s=1e12, send_occupancy=0.5),
    )
    machines = cluster(links=named)
    pools = find_pools(problem(machines))
    kind_of = {d: t for t, kind in enumerate(pools.kinds) for pool in kind.pools for d in pool}
    seen: dict[tuple[int, int, bool], list[Path]] = {}
    for a, b in itertools.permutations(machines.device, 2):
        t, u = kind_of[a], kind_of[b]
        inside = t == u and machines.host_of[a] is machines.host_of[b]
        path = Path.of(machines.link(a, b))
        seen.setdefault((t, u, inside), []).append(path)
        for paths, better in ((pools.best, True), (pools.worst, False)):
            limit = paths.inner[t] if inside else paths.outer[t, u]
            joined = limit.better(path) if better else limit.worse(path)
            assert joined == limit, (a, b)
    for (t, u, inside), paths in seen.items():
        best = pools.best.inner[t] if inside else pools.best.outer[t, u]
        assert best.latency_s == min(p.latency_s for p in paths)
        assert best.bytes_per_s == max(p.bytes_per_s for p in paths)


def test_devices_of_one_host_or_behind_one_network_are_classes() -> None:
    # One device a host: a rack's hosts of a type are alike. Several: each host stands for itself.
    assert len(problem(cluster(per_host=1)).classes) == 1 + 12
    assert len(problem(cluster()).classes) == 1 + 24
