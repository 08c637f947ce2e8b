"""One profile of several hosts: what is merged, what is refused, and real processes doing it."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from profiler.cluster import Cluster, Device, Host, Link
from profiler.errors import StalePlanError
from profiler.profile import Conditions, DeviceTimings, Measurement, Profile, TwinCheck
from profiler.session import observe
from profiler.spotcheck import compare, differing, measure_spot
from profiler.together import itemwise_everywhere, merge_conditions, require_same_model
from tests.support.builders import make_cluster, make_graph
from tests.support.captures import captured
from tests.support.hosts import Ended, hosts

# --- merging -------------------------------------------------------------------------------------


def conditions(**changes: object) -> Conditions:
    figures = {
        "torch": "2.13.0",
        "python": "3.11.7",
        "dtype": "float32",
        "processor": "Xeon",
        "load_average": 0.5,
        **changes,
    }
    return Conditions.model_validate(figures)


def measured(error: float | None) -> Cluster:
    device = Device(name="cpu", type="t", memory_bytes=9)
    link = Link(source="a", target="b", latency_s=0.0, bytes_per_s=1.0, error_fraction=error)
    made = tuple(Host(name=name, devices=(device,)) for name in "ab")
    return Cluster(hosts=made, links=(link,))


def test_conditions_of_equal_hosts_read_as_of_one() -> None:
    merged = merge_conditions([conditions()] * 2, hosts=["a", "b"], cluster=measured(0.3))
    assert merged == conditions()


def test_conditions_that_differ_name_their_hosts_and_the_worst_counts() -> None:
    merged = merge_conditions(
        [
            conditions(unstable=("l0 on a/cpu",)),
            conditions(torch="2.9.1", processor="Board", load_average=3.0, core_sharing=2.0),
        ],
        hosts=["a", "b"],
        cluster=measured(None),
    )
    assert merged.torch == "2.13.0 (a), 2.9.1 (b)"
    assert merged.processor == "Xeon (a), Board (b)"
    assert merged.python == "3.11.7"
    assert (merged.load_average, merged.core_sharing) == (3.0, 2.0)
    assert merged.unstable == ("l0 on a/cpu",)


def test_a_link_whose_times_jump_makes_the_profile_unstable() -> None:
    merged = merge_conditions([conditions()] * 2, hosts=["a", "b"], cluster=measured(0.6))
    assert merged.unstable == ("link a -> b",)


def test_another_model_on_one_host_is_stale_and_both_are_named() -> None:
    require_same_model(["a", "b"], [("sha256:1", "2.13.0")] * 2)
    with pytest.raises(StalePlanError) as caught:
        require_same_model(
            ["a", "b", "c"],
            [("sha256:1", "2.13.0"), ("sha256:2", "2.9.1"), ("sha256:1", "2.13.0")],
        )
    assert "sha256:1 on a (torch 2.13.0), c (torch 2.13.0)" in str(caught.value)
    assert "sha256:2 on b (torch 2.9.1)" in str(caught.value)


def test_a_layer_is_itemwise_only_if_every_host_found_it_so() -> None:
    graph = make_graph([(0, 1), (1, 2)], 3)
    merged = itemwise_everywhere(graph, [[True, True, False], [True, False, False]])
    assert [layer.itemwise for layer in merged.layers] == [True, False, False]
    assert merged.fingerprint == graph.fingerprint


# --- twins ---------------------------------------------------------------------------------------


def timings(seconds: dict[str, float], **more: object) -> DeviceTimings:
    def rows(time_s: float) -> tuple[Measurement, ...]:
        fixed = {"spread": 0.0, "samples": 3, "peak_bytes": 0}
        return tuple(
            Measurement(items=n, median_s=n * time_s, **fixed)  # type: ignore[arg-type]
            for n in (1, 4)
        )

    layers = {twin: rows(time_s) for twin, time_s in seconds.items()}
    return DeviceTimings.model_validate(
        {"measured_on": "a/cpu", "devices": ("a/cpu",), "layers": layers, **more}
    )


def test_a_spot_check_times_runs_of_layers_against_given_figures() -> None:
    made = captured("mlp")
    observed = observe(made, [4])
    cluster = make_cluster({"cpu": 2**30}, types={"cpu": "p"})
    rows = {
        twin: (Measurement(items=4, median_s=1.0, spread=0.0, samples=1, peak_bytes=0),)
        for twin in observed.bench.built
    }
    like = DeviceTimings(measured_on="h/cpu", devices=("h/cpu",), layers=rows)
    # Layers that would take a second take some microseconds.
    assert 0 < measure_spot(observed, cluster, "h/cpu", like) < 0.01


def test_twins_within_five_percent_are_fine_and_others_are_warned_of() -> None:
    checks = compare(
        {"a/cpu": 1.0, "b/cpu": 1.04, "c/cpu": 1.2, "d/cpu": 0.8},
        of="a/cpu",
        names=["b/cpu", "c/cpu", "d/cpu"],
    )
    assert [check.ratio for check in checks] == [1.04, 1.2, 0.8]
    slow, fast = differing([timings({"l": 1.0}, checks=checks)])
    assert "c/cpu takes 1.2 times as long as a/cpu" in slow
    assert "more than 5 % apart" in slow
    assert "d/cpu takes 0.8 times" in fast


def test_checks_do_not_change_the_digest_of_older_profiles() -> None:
    plain = timings({"l": 1.0})
    assert "checks" not in plain.canonical()
    checked = timings({"l": 1.0}, checks=(TwinCheck(device="b/cpu", ratio=1.1),))
    assert plain.content_digest() != checked.content_digest()


# --- real processes ------------------------------------------------------------------------------

MODEL = """
import os, torch
from torch import nn

def build():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(*blocks, nn.Linear(64, 5)), torch.randn(2, 64)

def differs():
    width = 64 + int(os.environ["RANK"])
    return nn.Linear(width, 5), torch.randn(2, width)
"""

SHORT = """
import os, signal, sys
import profiler.occupancy, profiler.residency, profiler.segments
profiler.occupancy.MAX_WINDOWS = 4
profiler.occupancy.WINDOW_S = 0.05
profiler.segments.BLOCK_S = 0.02
profiler.residency.NUM_RUNS = 1
rank = int(os.environ["RANK"])
"""

COMMAND = """
from executor.cli import main
main()
"""

QUICK = ("--batch-sizes", "1,2", "--budget", "0.5", "--timeout", "30", "--link-seconds", "0.2")


def profile(
    tmp_path: Path, model: str, *arguments: str, num: int = 2, before: str = ""
) -> list[Ended]:
    (tmp_path / "tiny.py").write_text(MODEL)
    script = ["-c", SHORT + before + COMMAND, "profile", model, "-o", "p.json"]
    with hosts(num, [*script, *QUICK, *arguments], cwd=tmp_path) as running:
        return running.wait_all(timeout_s=240)


def cluster_file(tmp_path: Path, *names: str, links: tuple[Link, ...] = ()) -> str:
    device = Device(name="cpu:0", type="made up", memory_bytes=2**30, threads=1)
    made = tuple(Host(name=name, cores=1, devices=(device,)) for name in names)
    Cluster(hosts=made, links=links).dump(tmp_path / "cluster.yaml")
    return "cluster.yaml"


def both_ways(error: float | None) -> tuple[Link, ...]:
    return tuple(
        Link(source=a, target=b, latency_s=1.0, bytes_per_s=7.0, error_fraction=error, shares="w")
        for a, b in (("h0", "h1"), ("h1", "h0"))
    )


@pytest.mark.distributed
def test_two_hosts_measure_into_one_profile_with_measured_links(tmp_path: Path) -> None:
    # The hosts in the file are in another order than the ranks: names count. What people wrote of
    # links is measured, but that they share a wire is kept.
    given = cluster_file(tmp_path, "h1", "h0", links=both_ways(None))
    ended = profile(tmp_path, "tiny:build", "-c", given)
    assert [one.code for one in ended] == [0, 0], ended
    made = Profile.load(tmp_path / "p.json")
    assert [t.measured_on for t in made.timings] == ["h0/cpu:0", "h1/cpu:0"]
    assert made.cluster.root == "h1/cpu:0"
    assert made.batch_sizes == (1, 2)
    for link in made.cluster.links:
        assert link.error_fraction is not None
        assert link.bytes_per_s > 1e6
        assert link.shares == "w"
    assert not list(tmp_path.glob("*.partial"))
    assert "p.json  Sequential" in ended[0].out
    assert ended[1].out == ""


@pytest.mark.distributed
def test_measured_links_are_not_measured_again_and_twins_are_checked(tmp_path: Path) -> None:
    given = cluster_file(tmp_path, "h0", "h1", links=both_ways(0.1))
    ended = profile(tmp_path, "tiny:build", "-c", given, "--by-type")
    assert [one.code for one in ended] == [0, 0], ended
    made = Profile.load(tmp_path / "p.json")
    assert {link.bytes_per_s for link in made.cluster.links} == {7.0}
    (timings_of_both,) = made.timings
    assert timings_of_both.devices == ("h0/cpu:0", "h1/cpu:0")
    (check,) = timings_of_both.checks
    assert check.device == "h1/cpu:0"
    # The same machine: alike, but for what else runs on it.
    assert 0.1 < check.ratio < 10
    warned = "h1/cpu:0 takes" in ended[0].err
    assert warned == (abs(check.ratio - 1) > 0.05)


@pytest.mark.distributed
def test_another_model_on_one_host_is_refused(tmp_path: Path) -> None:
    ended = profile(tmp_path, "tiny:differs", "--links", "never")
    assert [one.code for one in ended] == [4, 4], ended
    assert "do not have the same model" in ended[0].err + ended[1].err
    assert "on h1 (torch" in ended[0].err + ended[1].err
    assert not (tmp_path / "p.json").exists()


@pytest.mark.distributed
def test_a_cluster_of_other_hosts_is_refused(tmp_path: Path) -> None:
    ended = profile(tmp_path, "tiny:build", "-c", cluster_file(tmp_path, "h0", "h7"))
    assert [one.code for one in ended] == [2, 2], ended
    assert "no rank runs on h7; rank 1 on h1: not in the cluster" in ended[0].err


@pytest.mark.distributed
def test_a_model_that_one_host_lacks_ends_all(tmp_path: Path) -> None:
    gone = "\nif rank == 1:\n    os.chdir('/')\n    sys.path[0] = '/'\n"
    ended = profile(tmp_path, "tiny:build", "--links", "never", before=gone)
    assert [one.code for one in ended] == [2, 2], ended
    assert "rank 1 on host h1 gave up: " in ended[0].err
    assert "tiny" in ended[0].err


DIES = """
import profiler.journal
keep = profiler.journal.Journal.add
def add(self, device, twin, measurement):
    keep(self, device, twin, measurement)
    if rank == 1 and sum(map(len, self.done[device].values())) >= 2:
        os.kill(os.getpid(), signal.SIGKILL)
profiler.journal.Journal.add = add
"""


@pytest.mark.distributed
def test_a_killed_host_is_named_and_a_new_start_goes_on(tmp_path: Path) -> None:
    arguments = ["--links", "never", "-c", cluster_file(tmp_path, "h0", "h1"), "--timeout", "4"]
    begun = time.monotonic()
    ended = profile(tmp_path, "tiny:build", *arguments, before=DIES)
    assert time.monotonic() - begun < 90
    assert [one.code for one in ended] == [7, -signal.SIGKILL], ended
    assert "rank 1 on host h1 gave no sign of life in 4 s" in ended[0].err
    assert "measuring layers" in ended[0].err
    kept = {
        path.name: len(path.read_text().splitlines()) - 1 for path in tmp_path.glob("*.partial")
    }
    assert kept["p.json.h1.partial"] == 2
    assert kept["p.json.h0.partial"] > 0
    assert "p.json.h0.partial; the same command goes on from there" in ended[0].err
    tell = """
import profiler.journal
made = profiler.journal.Journal.__init__
def init(self, path, *, header):
    made(self, path, header=header)
    print("resumed", self.resumed, file=sys.stderr)
profiler.journal.Journal.__init__ = init
"""
    again = profile(tmp_path, "tiny:build", *arguments, before=tell)
    assert [one.code for one in again] == [0, 0], again
    assert f"resumed {kept['p.json.h0.partial']}\n" in again[0].err
    assert "resumed 2\n" in again[1].err
    assert len(Profile.load(tmp_path / "p.json").timings) == 2
    assert not list(tmp_path.glob("*.partial"))


API = """
import profiler, json
from profiler.measure import Effort
made = profiler.profile_model("tiny:build", batch_sizes=[1], effort=Effort(budget_s=0.5))
print(json.dumps([made.content_digest(), sorted(made.timings_of)]))
"""


@pytest.mark.distributed
def test_the_api_gives_every_rank_the_same_profile(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(MODEL)
    # Each with its own hash seed, as on machines of their own: the same all the same.
    with hosts(2, ["-c", SHORT + API], cwd=tmp_path, cold=True) as running:
        ended = running.wait_all(timeout_s=240)
    assert [one.code for one in ended] == [0, 0], ended
    first, second = (json.loads(one.out) for one in ended)
    assert first == second
    assert first[1] == ["h0/cpu:0", "h1/cpu:0"]
