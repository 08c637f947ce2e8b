"""Profiles are complete, resumed after an interruption, and refused where they cannot be right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from profiler.cluster import Cluster
from profiler.errors import InvalidInputError
from profiler.measure import Effort
from profiler.profile import Profile
from profiler.session import ProfileOptions, profile_captured, profile_model
from tests.support.builders import GIB, make_cluster
from tests.support.captures import captured

QUICK = Effort(min_samples=2, max_samples=2, budget_s=5.0)


@pytest.fixture(autouse=True)
def _short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """How exact times are is not asked here: runs of layers are timed for a moment only."""
    monkeypatch.setattr("profiler.segments.BLOCK_S", 0.01)


def here(num: int = 1) -> Cluster:
    return make_cluster(
        {f"cpu:{i}": GIB for i in range(num)}, types={f"cpu:{i}": "p" for i in range(num)}
    )


def quick(options: ProfileOptions | None = None, **changes: object) -> Profile:
    arguments = {"cluster": here(), "batch_sizes": [1, 4], "effort": QUICK, **changes}
    return profile_captured(captured("mlp"), options=options or ProfileOptions(), **arguments)  # type: ignore[arg-type]


def test_every_distinct_layer_is_measured_at_every_size_on_every_kind_of_device() -> None:
    made = quick(cluster=here(2))
    (timings,) = made.timings  # two devices of one kind
    assert timings.devices == ("h/cpu:0", "h/cpu:1")
    assert set(timings.layers) == {layer.twin for layer in made.model.layers}
    for rows in timings.layers.values():
        assert [row.items for row in rows] == [1, 4]
        assert all(row.median_s > 0 and row.samples == 2 for row in rows)
    assert timings.baseline_bytes > 2**26
    assert timings.dispatch_s > 0
    assert {segment.items for segment in timings.segments} == {1, 4}
    assert made.conditions.torch == torch.__version__
    assert Profile.parse(made.to_text(as_json=True), name="p", is_json=True) == made


def test_an_interrupted_profile_goes_on_where_it_was(tmp_path: Path) -> None:
    journal = tmp_path / "p.partial"

    def stop(what: str, done: float) -> None:
        if "measuring layers" in what and done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(ProfileOptions(journal=journal, progress=stop))
    kept = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert kept
    first = kept[0]["measurement"]
    # A figure that nothing could measure: if it is in the profile, it was not measured again.
    lines = journal.read_text().replace(f'"samples": {first["samples"]}', '"samples": 77')
    journal.write_text(lines + '{"device": "h/cpu:0", "twin": "cut sh')
    made = quick(ProfileOptions(journal=journal))
    samples = {row.samples for rows in made.timings[0].layers.values() for row in rows}
    assert 77 in samples


def test_a_journal_of_another_cluster_is_not_continued(tmp_path: Path) -> None:
    journal = tmp_path / "p.partial"
    quick(ProfileOptions(journal=journal))
    journal.write_text(journal.read_text().replace('"samples": 2', '"samples": 77'))
    other = make_cluster({"cpu:0": 2 * GIB}, types={"cpu:0": "p"})
    made = quick(ProfileOptions(journal=journal), cluster=other)
    assert {row.samples for rows in made.timings[0].layers.values() for row in rows} == {2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_sizes": []}, "batch sizes must be 1 or more"),
        ({"batch_sizes": [0, 2]}, "batch sizes must be 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        quick(**changes)


def test_devices_that_are_not_here_are_named() -> None:
    text = """
kind: Cluster
format_version: '1.0'
hosts:
- {name: a, devices: [{name: 'cuda:0', type: Z9, kind: cuda, memory_bytes: 1GiB}]}
"""
    with pytest.raises(InvalidInputError, match="a/cuda:0 is a CUDA device; this machine has"):
        profile_model(
            torch.nn.Linear(4, 4), torch.zeros(2, 4), cluster=Cluster.parse(text, name="c")
        )


@pytest.mark.distributed
@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured_and_leaves_no_process(tmp_path: Path) -> None:
    output = tmp_path / "profile.json"
    command = [
        sys.executable, "-m", "executor", "profile", "tests.support.zoo:resnet50",
        "-o", str(output), "--batch-sizes", "8,32", "--cpu-devices", "2", "--budget", "60",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    partial = tmp_path / "profile.json.partial"
    deadline = time.monotonic() + 90
    while not (partial.exists() and len(partial.read_text().splitlines()) > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children  # a companion keeps the other device busy
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors
    assert not output.exists()
    assert len(partial.read_text().splitlines()) > 3
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
