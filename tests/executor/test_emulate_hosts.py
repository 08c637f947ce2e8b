"""Emulated hosts for real: rates, quotas, limits, and that nothing of them is ever left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from executor.emulate import EmulatedHosts, emulated, registry, teardown
from executor.emulate.hosts import attach, bring_up
from executor.emulate.launch import run_on_one
from profiler.errors import EmulationError, InvalidInputError, RankFailedError
from tests.support.emulation import (
    GIB,
    MB,
    MIB,
    ROOT,
    Peers,
    grow,
    hosts_command,
    link,
    make_cluster,
    require_emulation,
)

require_emulation()
pytestmark = pytest.mark.root

SOON_S = 10.0


def traces(name: str) -> list[str]:
    """What there is of an emulated cluster."""
    places = [registry.NAMESPACES, registry.DIRECTORY, *Path("/sys/fs/cgroup").glob("*")]
    places.append(Path("/sys/fs/cgroup"))
    return [str(found) for place in places for found in place.glob(f"{name}*")]


def python(*arguments: str) -> list[str]:
    return [sys.executable, "-S", *arguments]


class TestRates:
    """Payload of TCP connections, within a tenth of what was asked for."""

    LINKS = (
        link("a>b", 20 * MB),
        link("b>a", 5 * MB),
        # One source, two targets.
        link("b>c", 20 * MB, "fan-out"),
        link("b>d", 20 * MB, "fan-out"),
        # Two sources, one target.
        link("c>a", 20 * MB, "fan-in"),
        link("d>a", 20 * MB, "fan-in"),
        # Two sites: everything from a and b's side to the other and, apart, both ways in the air.
        link("a>c", 20 * MB, "site"),
        link("a>d", 20 * MB, "site"),
        link("c>d", 10 * MB, "air"),
        link("d>c", 10 * MB, "air"),
        link("e>c", 20 * MB, "sites"),
        link("e>d", 20 * MB, "sites"),
        link("f>c", 20 * MB, "sites"),
        link("f>d", 20 * MB, "sites"),
    )

    @pytest.fixture(scope="class")
    @staticmethod
    def peers() -> Iterator[Peers]:
        cluster = make_cluster(
            dict.fromkeys("abcdef", 1), links=TestRates.LINKS, default_bytes_per_s=40 * MB
        )
        with emulated(cluster) as hosts:
            found = Peers(hosts)
            yield found
            found.close()

    @pytest.mark.parametrize(
        ("flow", "rate"), [("a>b", 20 * MB), ("b>a", 5 * MB), ("e>f", 40 * MB)]
    )
    def test_each_direction_has_its_rate(self, flow: str, rate: float, peers: Peers) -> None:
        num_bytes = max(2_000_000, int(rate / 10))
        measured = sorted(peers.rate(flow, num_bytes=num_bytes) for _ in range(3))
        assert measured[1] == pytest.approx(rate, rel=0.1)

    @pytest.mark.parametrize("num_bytes", [100_000, 500_000])
    def test_short_messages_are_not_faster(self, num_bytes: int, peers: Peers) -> None:
        fastest = min(peers.seconds("b>a", num_bytes=num_bytes) for _ in range(3))
        assert num_bytes / fastest <= 1.1 * 5 * MB

    def test_directions_do_not_disturb_each_other(self, peers: Peers) -> None:
        fast, slow = peers.rates("a>b", "b>a", num_bytes=2_000_000)
        assert fast == pytest.approx(20 * MB, rel=0.1)
        assert slow == pytest.approx(5 * MB, rel=0.1)

    @pytest.mark.parametrize(
        ("flows", "rate"),
        [
            (["b>c", "b>d"], 20 * MB),
            (["c>a", "d>a"], 20 * MB),
            (["c>d", "d>c"], 10 * MB),
            (["e>c", "e>d", "f>c", "f>d"], 20 * MB),
            (["e>c", "f>d"], 20 * MB),
        ],
    )
    def test_links_on_one_wire_share_its_rate(
        self, flows: list[str], rate: float, peers: Peers
    ) -> None:
        together = peers.rate(*flows, num_bytes=8_000_000 // len(flows))
        assert together == pytest.approx(rate, rel=0.1)
        # One alone has all of it.
        assert peers.rate(flows[0], num_bytes=2_000_000) == pytest.approx(rate, rel=0.1)


@pytest.fixture(scope="module")
def hosts() -> Iterator[EmulatedHosts]:
    cluster = make_cluster(
        {"small": 1, "free": 1}, cores={"small": 0.25}, memory={"small": 64 * MIB}
    )
    with emulated(cluster) as found:
        yield found


def output(hosts: EmulatedHosts, name: str, *command: str) -> str:
    with hosts.popen(name, command, stdout=subprocess.PIPE, text=True) as process:
        found, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return str(found)


BURN = """
import time
begun, used = time.perf_counter(), time.process_time()
while time.perf_counter() - begun < 1.0:
    pass
print((time.process_time() - used) / (time.perf_counter() - begun))
"""


def test_a_quota_limits_processor_time(hosts: EmulatedHosts) -> None:
    assert float(output(hosts, "small", *python("-c", BURN))) == pytest.approx(0.25, rel=0.15)


AFFINITY = "import os; print(sorted(os.sched_getaffinity(0)))"


def test_hosts_run_on_the_processors_that_are_theirs() -> None:
    """All of them, if other tests' hosts have left too little; also for who finds them later."""
    cluster = make_cluster({"a": 1, "b": 1, "c": 1}, cores={"a": 0.125, "b": 0.25})
    hosts, instance = bring_up(cluster)
    try:
        (recorded,) = (x for x in registry.instances() if x.name == instance.name)
        assert recorded.shares == instance.shares
        for found in (hosts, attach(cluster, recorded)):
            for name, share in zip("abc", recorded.shares, strict=True):
                inside = json.loads(output(found, name, *python("-c", AFFINITY)))
                assert inside == [processor for processor, _ in share] or (
                    not share and set(inside) >= os.sched_getaffinity(0)
                )
                assert len(share) <= 1
    finally:
        with registry.locked():
            teardown.take_down(instance)


THROTTLED = """
import json, time
from executor.throttling import Throttling
def stretch(work_s, rest_s):
    throttling, begun = Throttling(), time.perf_counter()
    while time.perf_counter() - begun < 1.0:
        until = time.perf_counter() + work_s
        while time.perf_counter() < until:
            pass
        time.sleep(rest_s)
    return throttling.within(time.perf_counter() - begun)
print(json.dumps([stretch(0.5, 0.0), stretch(0.0005, 0.02)]))
"""


def test_a_process_knows_how_often_its_quota_was_used_up(hosts: EmulatedHosts) -> None:
    busy, resting = json.loads(output(hosts, "small", sys.executable, "-c", THROTTLED))
    assert busy[0] == resting[0] > 0
    assert busy[1] > 0.8
    assert resting[1] < 0.4


def test_a_host_out_of_memory_is_named_with_its_limit(hosts: EmulatedHosts) -> None:
    output(hosts, "small", *python("-c", grow(32)))
    before = hosts.memory_kills("small")
    with pytest.raises(RankFailedError, match=r"host small ran out .* killed 1 .* limit of 64\.0"):
        run_on_one(hosts, "small", python("-c", grow(128)))
    assert hosts.memory_kills("small") == before + 1
    output(hosts, "free", *python("-c", grow(128)))


LIMITS = (
    "from profiler.limits import *; import json;"
    "print(json.dumps([host_name(), available_cores(), processor_quota(), *memory_limits()]))"
)


def test_a_process_inside_finds_the_hosts_limits(hosts: EmulatedHosts) -> None:
    name, cores, quota, total, free = json.loads(
        output(hosts, "small", sys.executable, "-c", LIMITS)
    )
    assert (name, cores, quota, total) == ("small", 1, 0.25, 64 * MIB)
    assert 16 * MIB < free < 64 * MIB
    name, _, quota, _, _ = json.loads(output(hosts, "free", sys.executable, "-c", LIMITS))
    assert name == "free"
    assert quota != 0.25


def test_processes_know_their_interface(hosts: EmulatedHosts) -> None:
    seen = dict(line.split("=", 1) for line in output(hosts, "small", "env").splitlines())
    assert seen["GLOO_SOCKET_IFNAME"] == hosts.interface
    assert seen["APPORTION_HOST_ADDRESS"] == hosts.address("small")
    assert seen["OMP_NUM_THREADS"] == "1"
    inside = output(hosts, "small", "ip", "-brief", "address", "show", "dev", hosts.interface)
    assert hosts.address("small") in inside
    assert ":" not in inside.replace("@", "").split("UP")[1], "an IPv6 address bypasses the rates"


def test_what_cannot_be_run_says_so(hosts: EmulatedHosts) -> None:
    with pytest.raises(InvalidInputError, match="no host 'big'; the cluster has small, free"):
        hosts.popen("big", ["true"])
    with pytest.raises(InvalidInputError, match="nothing to run on host small"):
        hosts.popen("small", [])
    assert hosts.popen("small", ["no-such-command"], stderr=subprocess.DEVNULL).wait() == 127


def test_two_clusters_at_once_do_not_meet() -> None:
    cluster = make_cluster({"a": 1, "b": 1}, default_bytes_per_s=MB)
    with emulated(cluster) as one, emulated(cluster) as other:
        peers, others = Peers(one), Peers(other)
        assert peers.seconds("a>b", num_bytes=1000) < 1
        assert others.seconds("b>a", num_bytes=1000) < 1
        peers.close()
        others.close()


def test_an_error_inside_leaves_nothing() -> None:
    names: list[str] = []

    def fail() -> None:
        with emulated(make_cluster({"a": 1})) as hosts:
            names.append(hosts.name)
            subprocess.Popen(hosts.connected("a", ["sleep", "1000"]))
            hosts.popen("a", ["sleep", "1000"], start_new_session=True)
            assert len(traces(hosts.name)) >= 3
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not traces(names[0])


def test_a_refusal_of_the_kernel_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    token = registry.new_token()
    monkeypatch.setattr(registry, "new_token", lambda: token)
    # Each value is fine by itself; no bridge takes a port of this name.
    monkeypatch.setattr("executor.emulate.network.INTERFACE", "a-name-of-more-than-fifteen")
    with pytest.raises(EmulationError, match=r"ip -batch - failed with status .*a-name-of"):
        bring_up(make_cluster({"a": 1}))
    assert not traces(f"apportion-{token}")


OWNER = """
import sys
from executor.emulate import emulated
from profiler.cluster import Cluster
with emulated(Cluster.load(sys.argv[1])) as hosts:
    inside = hosts.popen("a", ["sleep", "1000"])
    print(hosts.name, inside.pid, flush=True)
    inside.wait()
"""


def owner(tmp_path: Path) -> tuple[subprocess.Popen[str], str, int]:
    """A process that holds emulated hosts, their name, and a process inside."""
    make_cluster({"a": 1}, cores={"a": 0.5}).dump(tmp_path / "cluster.yaml")
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "cluster.yaml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    name, inside = process.stdout.readline().split()
    return process, name, int(inside)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_what_a_killed_owner_left_is_swept_by_the_next_start(tmp_path: Path) -> None:
    killed, left, inside = owner(tmp_path)
    living, kept, _ = owner(tmp_path)
    try:
        killed.kill()
        killed.wait()
        assert psutil.pid_exists(inside)
        assert traces(left)
        with emulated(make_cluster({"b": 1})):
            assert not traces(left)
            assert gone(inside)
            # Hosts of a process that lives are not touched.
            assert living.poll() is None
            assert len(traces(kept)) >= 3
    finally:
        living.send_signal(signal.SIGINT)
        living.wait(SOON_S)
    assert not traces(kept), "Ctrl-C left something"


def test_namespaces_without_a_record_are_swept() -> None:
    _, instance = bring_up(make_cluster({"a": 1}))
    registry.forget(instance)
    assert traces(instance.name)
    with registry.locked():
        teardown.sweep()
    assert not traces(instance.name)


def test_a_number_that_came_back_is_not_the_owner() -> None:
    ours = registry.Owner.this_process()
    assert ours.lives
    assert not registry.Owner(pid=ours.pid, started=ours.started + 1).lives


class TestCommands:
    """``apportion hosts``."""

    def test_up_status_run_down(self, tmp_path: Path) -> None:
        file = tmp_path / "lab.yaml"
        make_cluster({"a": 1, "b": 2}, cores={"a": 0.5}, memory={"a": GIB}).dump(file)
        try:
            assert hosts_command("up", file).stdout == (
                "a  10.77.0.1    0.5 cores  1.00 GiB\n"
                "b  10.77.0.2    cores not limited  memory not limited\n"
            )
            assert "are up already" in hosts_command("up", file).stderr
            listed = json.loads(hosts_command("status", "--format", "json").stdout)
            (own,) = [one for one in listed if one["cluster"] == str(file)]
            assert (own["owner"], own["leftover"]) == (None, False)
            assert [(h["host"], h["address"], h["processes"]) for h in own["hosts"]] == [
                ("a", "10.77.0.1", 0),
                ("b", "10.77.0.2", 0),
            ]
            assert f"{file}  kept\n  a  10.77.0.1    0 processes" in hosts_command("status").stdout
            ran = hosts_command(
                "run", file, "--on", "b", "--", "sh", "-c", "echo $APPORTION_HOST; exit 3"
            )
            assert (ran.returncode, ran.stdout) == (3, "b\n")
            assert "the command on host b ended with status 3" in ran.stderr
            assert traces(own["name"]), "hosts that were up stay up"
            subprocess.run(["ip", "netns", "delete", f"{own['name']}-1"], check=True)
            broken = hosts_command("run", file, "--on", "a", "--", "true")
            assert (broken.returncode, "a part is gone" in broken.stderr) == (2, True)
            make_cluster({"a": 1}).dump(file)
            changed = hosts_command("run", file, "--on", "a", "--", "true")
            assert changed.returncode == 2
            assert "has changed since its hosts were brought up" in changed.stderr
        finally:
            down = hosts_command("down", file)
        assert down.returncode == 0
        assert not traces(own["name"])
        again = hosts_command("down", file)
        assert (again.returncode, f"no hosts of {file} were up" in again.stderr) == (2, True)

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_signals_end_with_everything_taken_down(
        self, number: signal.Signals, code: int, tmp_path: Path
    ) -> None:
        make_cluster({"a": 1}).dump(tmp_path / "lab.yaml")
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "executor", "hosts", "run", str(tmp_path / "lab.yaml")),
                *("--", "sh", "-c", "echo started; sleep 1000"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        (name,) = [
            one.name
            for one in registry.instances()
            if one.owner is not None and one.owner.pid == process.pid
        ]
        os.kill(process.pid, number)
        assert process.wait(SOON_S) == code
        process.stdout.close()
        assert not traces(name)

    def test_bad_input(self, tmp_path: Path) -> None:
        file = tmp_path / "plain.yaml"
        make_cluster({"a": 1}).model_copy(update={"emulate": None}).dump(file)
        refused = hosts_command("up", file)
        assert (refused.returncode, "no emulate section" in refused.stderr) == (2, True)
        make_cluster({"a": 1}).dump(file)
        missing = hosts_command("run", file, "--on", "c", "--", "true")
        assert (missing.returncode, "there is no host 'c'" in missing.stderr) == (2, True)
