"""Measured links against links whose figures are known: shaped cables between two namespaces."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from profiler.cluster import Cluster
from tests.support.namespaces import JOIN, Shape, lacking, two_hosts

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(lacking() is not None, reason=f"hosts by hand: {lacking()}"),
]

PAYLOAD = 1448 / 1514
"""Part of what passes a cable that is the message: the rest is Ethernet, IP and TCP headers."""

MEASURE = ["-m", "executor", "devices", "-o", "cluster.yaml", "--timeout", "30"]

FAST, SLOW = Shape("1gbit", "256kb"), Shape("100mbit", "32kb")


BRIEF = """
import profiler.occupancy
profiler.occupancy.MAX_WINDOWS = 4
profiler.occupancy.WINDOW_S = 0.05
"""
"""What transfers take from computing is not asked: it is measured as briefly as possible."""


def measured(
    tmp_path: Path,
    shapes: tuple[Shape, Shape] | None,
    *,
    quota: float | None = None,
    before: str = "",
) -> Cluster:
    # One thread: what two threads do in half a core is another story.
    script = "import profiler.links\n" + JOIN + before
    script += "from profiler import discover; discover.available_cores = lambda: 1\n"
    script += "from executor.cli import main; main()"
    with two_hosts(shapes, quota=quota) as hosts:
        ended = hosts.run([sys.executable, "-c", script, *MEASURE[2:]], cwd=tmp_path)
    assert [one.code for one in ended] == [0, 0], ended
    return Cluster.load(tmp_path / "cluster.yaml")


def test_each_direction_of_a_shaped_cable_is_found(tmp_path: Path) -> None:
    cluster = measured(tmp_path, (SLOW, FAST), before=BRIEF)
    there, back = (cluster.link(f"h{a}/cpu:0", f"h{1 - a}/cpu:0") for a in (0, 1))
    assert there.bytes_per_s == pytest.approx(100e6 / 8 * PAYLOAD, rel=0.05)
    assert back.bytes_per_s == pytest.approx(1e9 / 8 * PAYLOAD, rel=0.05)
    for link in (there, back):
        # Nothing but software is in the way of a short message.
        assert 10e-6 < link.latency_s < 2e-3


def test_a_rationed_processor_pays_for_transfers_and_a_free_one_hardly_does(
    tmp_path: Path,
) -> None:
    free = measured(tmp_path, (SLOW, SLOW))
    rationed = measured(tmp_path, None, quota=0.5)
    for end in ("send_occupancy", "receive_occupancy"):
        # The better of two directions: something else may have disturbed one of them.
        hardly = min(getattr(link, end) for link in free.links)
        much = min(getattr(link, end) for link in rationed.links)
        assert hardly < 0.15
        assert much > hardly + 0.2
