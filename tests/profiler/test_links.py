"""Links measured for real between processes of this machine, and one of them going away."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from profiler.cluster import Cluster
from tests.support.hosts import Ended, free_port, hosts

pytestmark = pytest.mark.distributed

SHORT = """
import os, signal, sys, time
import profiler.pairs, profiler.occupancy
profiler.occupancy.MAX_WINDOWS = 4
profiler.occupancy.WINDOW_S = 0.05
profiler.pairs.TOGETHER_S = 0.1
rank = int(os.environ["RANK"])
"""
"""Before the command: what is measured matters here less than that it is."""

QUICK = ("--timeout", "30", "--link-seconds", "0.2")

COMMAND = """
from executor.cli import main
main()
"""


def devices(
    tmp_path: Path, num: int, *arguments: str, before: str = "", world_size: int | None = None
) -> list[Ended]:
    script = ["-c", SHORT + before + COMMAND, "devices", "-o", "cluster.yaml", *QUICK, *arguments]
    with hosts(num, script, cwd=tmp_path, world_size=world_size) as running:
        return running.wait_all()


def test_two_hosts_become_one_cluster_with_measured_links(tmp_path: Path) -> None:
    ended = devices(tmp_path, 2)
    assert [one.code for one in ended] == [0, 0], ended
    assert [one.out for one in ended] == ["", ""]
    cluster = Cluster.load(tmp_path / "cluster.yaml")
    assert [host.name for host in cluster.hosts] == ["h0", "h1"]
    assert cluster.root == "h0/cpu:0"
    assert [(x.source, x.target) for x in cluster.links] == [("h0", "h1"), ("h1", "h0")]
    for link in cluster.links:
        # Loopback on a busy machine: between 10 us and 10 ms, between 50 MB/s and 50 GB/s.
        assert 1e-5 < link.latency_s < 1e-2
        assert 5e7 < link.bytes_per_s < 5e10
        assert link.error_fraction is not None
        assert f"{link.source} -> {link.target}" in ended[0].err
    assert "measuring links: h0 - h1" in ended[0].err
    assert "measuring" not in ended[1].err


def test_hosts_of_several_devices_measure_within_too_and_wires_are_looked_for(
    tmp_path: Path,
) -> None:
    ended = devices(tmp_path, 2, "--cpu-devices", "2", "--find-wires")
    assert [one.code for one in ended] == [0, 0], ended
    cluster = Cluster.load(tmp_path / "cluster.yaml")
    names = ["h0", "h1"]
    assert {(x.source, x.target) for x in cluster.links} == {(a, b) for a in names for b in names}
    assert "looking for shared wires" in ended[0].err


def test_a_sample_stands_for_its_twins(tmp_path: Path) -> None:
    ended = devices(tmp_path, 3, "--sample", "1", "--format", "json")
    assert [one.code for one in ended] == [0, 0, 0], ended
    cluster = Cluster.load(tmp_path / "cluster.yaml")
    assert len(cluster.links) == 6
    assert len({link.bytes_per_s for link in cluster.links}) <= 4  # two measured, their medians
    assert ended[0].err.count("measuring links: h") == 1


def test_links_may_be_left_out(tmp_path: Path) -> None:
    ended = devices(tmp_path, 2, "--links", "never")
    assert [one.code for one in ended] == [0, 0], ended
    assert Cluster.load(tmp_path / "cluster.yaml").links == ()


def test_torchrun_on_two_hosts_is_enough(tmp_path: Path) -> None:
    port = free_port()
    agents = []
    for node in range(2):
        agent = ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node)]
        agent += ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
        command = ["-m", "executor", "devices", "-o", f"of-{node}.yaml", "--links", "never"]
        agents.append([*agent, *command])
    with hosts(2, agents, cwd=tmp_path, cold=True) as running:
        ended = running.wait_all()
    assert [one.code for one in ended] == [0, 0], ended
    # Only rank 0 writes.
    made = Cluster.load(tmp_path / "of-0.yaml")
    assert [host.name for host in made.hosts] == ["h0", "h1"]
    assert not (tmp_path / "of-1.yaml").exists()


# --- faults --------------------------------------------------------------------------------------

DIES = """
if rank == 1:
    profiler.pairs.answer_probe = lambda wire: os.kill(os.getpid(), signal.{signal})
"""


@pytest.mark.parametrize(
    ("name", "limit", "said"),
    [
        ("SIGKILL", 60, "rank 2 on host h2 lost rank 1 on host h1 while measuring the link h2"),
        ("SIGSTOP", 3, "in 3 s"),  # whoever notices first: its partner, or rank 0
    ],
    ids=["dies", "hangs"],
)
def test_a_peer_that_goes_away_in_mid_measurement_is_named(
    tmp_path: Path, name: str, limit: int, said: str
) -> None:
    script = ["-c", SHORT + DIES.format(signal=name) + COMMAND]
    arguments = [*script, "devices", "-o", "cluster.yaml", "--timeout", str(limit)]
    begun = time.monotonic()
    with hosts(3, arguments, cwd=tmp_path) as running:
        # Ranks 1 and 2 measure first; rank 0 has no partner in that round.
        ended = {rank: running.wait(rank) for rank in (0, 2)}
    assert time.monotonic() - begun < 60
    assert {one.code for one in ended.values()} == {7}, ended
    # Whoever notices tells what it was doing, and the third repeats it.
    for one in ended.values():
        assert "rank 1 on host h1" in one.err
        assert "measuring" in one.err.partition("error:")[2]
        assert said in one.err
        assert "Traceback" not in one.err
    assert not (tmp_path / "cluster.yaml").exists()


def test_a_host_that_never_comes_is_named(tmp_path: Path) -> None:
    ended = devices(tmp_path, 2, "--timeout", "2", world_size=3)
    assert {one.code for one in ended} == {7}, ended
    assert "rank 2 never came in 2 s" in ended[0].err + ended[1].err
    assert "meeting" in ended[0].err + ended[1].err


def test_an_error_of_one_is_the_error_of_all(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    script = ["-c", SHORT + COMMAND, "devices", "-o", "taken"]
    with hosts(2, script, cwd=tmp_path) as running:
        ended = running.wait_all()
    assert [one.code for one in ended] == [2, 2]
    assert "taken is a directory" in ended[0].err
    assert "rank 0 on host h0 gave up: taken is a directory" in ended[1].err


def test_two_processes_on_one_host_are_refused(tmp_path: Path) -> None:
    script = ["-c", SHORT + COMMAND, "devices", "-o", "c.yaml"]
    nameless = {rank: {"APPORTION_HOST": ""} for rank in range(2)}
    with hosts(2, script, cwd=tmp_path, changed=nameless) as running:
        ended = running.wait_all()
    assert [one.code for one in ended] == [2, 2]
    assert "ranks 0 and 1 are both on host" in ended[0].err


def test_hosts_that_cannot_reach_each_other_are_named(tmp_path: Path) -> None:
    script = ["-c", SHORT + COMMAND, "devices", "-o", "c.yaml", "--timeout", "3"]
    nowhere = {1: {"GLOO_SOCKET_IFNAME": "nowhere0"}}
    with hosts(2, script, cwd=tmp_path, changed=nowhere) as running:
        ended = running.wait_all()
    assert [one.code for one in ended] == [7, 7], ended
    for one in ended:
        assert "rank 1 on host h1 could not connect to all of the 2 hosts (h0, h1)" in one.err
        assert "GLOO_SOCKET_IFNAME" in one.err


API = """
import json, profiler
from profiler.links import LinkOptions
import torch.distributed as dist
dist.init_process_group("gloo")
made = profiler.measure_links(options=LinkOptions(budget_s=0.2))
assert dist.get_world_size() == 2  # the script's own group is left as it was
dist.barrier()
print(json.dumps([(x.source, x.target, x.bytes_per_s) for x in made.links]))
dist.destroy_process_group()
"""


def test_a_script_with_a_group_of_its_own_measures_too(tmp_path: Path) -> None:
    with hosts(2, ["-c", SHORT + API], cwd=tmp_path) as running:
        ended = running.wait_all()
    assert [one.code for one in ended] == [0, 0], ended
    first, second = (json.loads(one.out) for one in ended)
    assert first == second
    assert [(a, b) for a, b, _ in first] == [("h0", "h1"), ("h1", "h0")]
