"""Commands on all emulated hosts, started by torchrun: a plan's ranks, and how they end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from executor.emulate import EmulatedHosts, emulated, launch
from executor.report import RunReport
from profiler.capture import capture
from profiler.errors import InvalidInputError, RankFailedError
from profiler.sources import load_model
from tests.support import running, zoo
from tests.support.builders import make_profile
from tests.support.emulation import MB, grow, hosts_command, link, make_cluster, require_emulation
from tests.support.plans import Part, make_plan

require_emulation()
pytestmark = [pytest.mark.root, pytest.mark.distributed]

MODEL = "tests.support.zoo:mlp"


@pytest.fixture(scope="module")
def hosts() -> Iterator[EmulatedHosts]:
    with emulated(make_cluster({"a": 1, "none": 0, "b": 2}, memory={"b": 64 * 2**20})) as found:
        yield found


def test_a_plan_over_hosts_equals_the_undivided_model(tmp_path: Path) -> None:
    cluster = make_cluster(
        {"near": 2, "far": 1, "spare": 1},
        cores={"near": 1.0, "far": 0.5},
        links=[link("near>far", 20 * MB), link("far>near", 10 * MB)],
        default_bytes_per_s=100 * MB,
    )
    graph = running.observed(capture(load_model(MODEL)))
    seconds = {name: [0.001] * len(graph.layers) for name in ("cpu:0", "cpu:1")}
    profile = make_profile(graph, cluster, seconds=seconds)
    # Ranks 0 and 2 on the first host, 1 on the second: not the order in which torchrun counts.
    plan = make_plan(
        profile,
        [
            Part(layers=layers, devices=[device])
            for layers, device in zip(
                running.thirds(profile), ("near/cpu:0", "far/cpu:0", "near/cpu:1"), strict=True
            )
        ],
        request=running.request(batch_size=8, microbatch_size=3),
    )
    cluster.dump(tmp_path / "cluster.yaml")
    profile.dump(tmp_path / "profile.json")
    plan.dump(tmp_path / "plan.yaml")
    module, _ = zoo.mlp()
    given = torch.randn(19, 8)
    (name,) = graph.inputs
    np.savez(tmp_path / "x.npz", **{name: given.numpy()})
    ran = hosts_command(
        "run",
        tmp_path / "cluster.yaml",
        "--",
        *(sys.executable, "-m", "executor", "run", tmp_path / "plan.yaml", "--model", MODEL),
        *("-i", tmp_path / "x.npz", "-o", tmp_path / "y.npz", "--report", tmp_path / "run.json"),
    )
    assert ran.returncode == 0, ran.stderr
    assert "19 items" in ran.stdout
    with np.load(tmp_path / "y.npz") as answers:
        (answer,) = answers.values()
    with torch.no_grad():
        worst, _ = running.difference(module(given), torch.from_numpy(answer))
    assert worst <= 1
    report = RunReport.load(tmp_path / "run.json")
    assert report.num_items == 19


SCRIPT = """
if [ $APPORTION_HOST = a ]; then
  echo "answer of ${RANK}"
  sleep 1000
fi
echo "cost: 5 $$"
echo "from rank $RANK, ${LOCAL_RANK} here" >&2
sleep $LOCAL_RANK
exit $((4 + LOCAL_RANK))
"""


def test_the_first_failure_counts_and_output_is_kept_apart(
    hosts: EmulatedHosts, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = launch.run_on_all(hosts, ["sh", "-c", SCRIPT], grace_s=0.5)
    assert ended == launch.Ended(status=4, where="rank 1 on host b")
    out, err = capfd.readouterr()
    assert out == "answer of 0\n"
    assert "b: from rank 1, 0 here\n" in err
    assert "b: from rank 2, 1 here\n" in err
    # The shell's own number, not what torchrun makes of two dollars.
    assert "b: cost: 5 $\n" not in err
    assert "Traceback" not in err
    assert "exitcode" not in err
    assert [hosts.num_processes(name) for name in ("a", "b")] == [0, 0]


def test_agents_say_nothing_of_a_run_that_succeeded(
    hosts: EmulatedHosts, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOGLEVEL", raising=False)
    # Host a, whose agent has the store of all, is done last: it ends before the others know.
    script = 'sleep $((1 - RANK > 0)); echo "level ${LOGLEVEL-unset}"'
    ended = launch.run_on_all(hosts, ["sh", "-c", script])
    assert ended == launch.Ended(status=0)
    out, err = capfd.readouterr()
    assert out == "level unset\n"
    assert set(err.splitlines()) == {"b: level unset"}


def test_a_rank_out_of_memory_is_named_by_its_host(hosts: EmulatedHosts) -> None:
    script = f'[ $RANK = 2 ] || exec sleep 1000; exec {sys.executable} -S -c "$1"'
    with pytest.raises(RankFailedError, match=r"host b ran out of memory: .* its limit of 64\.0"):
        launch.run_on_all(hosts, ["sh", "-c", script, "sh", grow(128)], grace_s=0.5)


def test_nothing_to_run(hosts: EmulatedHosts) -> None:
    with pytest.raises(InvalidInputError, match="nothing to run: give a command after --"):
        launch.run_on_all(hosts, [])


def test_a_port_that_is_taken_is_named_before_anything_starts(
    hosts: EmulatedHosts, tmp_path: Path
) -> None:
    first, started = launch.ranked(hosts)[0].name, tmp_path / "started"
    listening = (
        "import socket; x = socket.create_server(('', 29517)); print('ready', flush=True); input()"
    )
    with hosts.popen(
        first,
        [sys.executable, "-S", "-c", listening],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(InvalidInputError, match=f"port 29517 of host {first}: Address already"):
            launch.run_on_all(hosts, ["touch", str(started)], port=29517)
        holder.communicate(b"\n")
    assert not started.exists()


def test_a_host_that_cannot_be_reached_is_named_before_anything_starts(tmp_path: Path) -> None:
    started = tmp_path / "started"
    # Not the module's hosts: what a broken one leaves behind is taken down with it.
    with emulated(make_cluster({"a": 1, "b": 1})) as hosts:

        def turn(way: str) -> None:
            command = hosts.connected("b", ["ip", "link", "set", "dev", hosts.interface, way])
            subprocess.run(command, check=True)

        turn("down")
        with pytest.raises(RankFailedError, match=r"1 of 2 hosts cannot reach a at 10\..*: b \("):
            launch.run_on_all(hosts, ["touch", str(started)])
        assert not started.exists()
        turn("up")
        assert launch.run_on_all(hosts, ["touch", str(started)]) == launch.Ended(status=0)
        assert started.exists()
