"""Links that share a wire, measured between emulated hosts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from executor.emulate import emulated
from executor.emulate.launch import run_on_all
from profiler.cluster import Cluster
from tests.support.emulation import link, make_cluster, require_emulation

require_emulation()

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

RATE = 5e6

SHORT = """
import profiler.linkprobe, profiler.occupancy
profiler.linkprobe.LONGEST_S = 0.06
profiler.occupancy.MAX_WINDOWS = 4
profiler.occupancy.WINDOW_S = 0.05
from executor.cli import main
main()
"""
"""What transfers take from computing is not asked here, and measured as briefly as possible; the
longest message takes 0.05 s, not 0.2 s, which is the same line."""


def test_links_of_one_wire_that_are_measured_at_once_are_not_taken_for_slow(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ends = ("a>c", "a>d", "b>c", "b>d")
    there = [link(one, RATE, "there") for one in ends]
    back = [link(f"{one[2]}>{one[0]}", RATE, "back") for one in ends]
    asked = make_cluster(dict.fromkeys("abcd", 1), links=[*there, *back], default_bytes_per_s=125e6)
    target = tmp_path / "cluster.yaml"
    argv = [sys.executable, "-c", SHORT, "devices", "-o", str(target)]
    argv += ["--sample", "2", "--link-seconds", "0.3", "--timeout", "30"]
    with emulated(asked) as hosts:
        assert run_on_all(hosts, argv).status == 0
    measured = Cluster.load(target)
    found = [measured.link(f"{a}/cpu:0", f"{b}/cpu:0") for a, b in ("ad", "da", "bc", "cb")]
    for one in found:
        assert one.bytes_per_s == pytest.approx(RATE, rel=0.1)
    assert "hinder each other" in capfd.readouterr().err
