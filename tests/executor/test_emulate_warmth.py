"""Cores are kept warm for hosts that wait for their turns, and by nobody afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from executor.emulate import emulated
from executor.emulate import hosts as emulate_hosts
from executor.emulate.hosts import EmulatedHosts
from executor.emulate.layout import layout
from executor.emulate.warmth import warm_cores
from profiler.cgroups import hierarchy
from profiler.cluster import Cluster
from tests.support.emulation import ROOT, make_cluster, require_emulation

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are Linux's")

SOON_S = 60.0
"""Processes of the lowest priority take their time on a busy machine."""


def children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except FileNotFoundError:
        return []


def asking(cores: dict[str, float], *, keep_warm: bool = True) -> Cluster:
    made = make_cluster(dict.fromkeys(cores, 1), cores=cores)
    assert made.emulate is not None
    emulate = made.emulate.model_copy(update={"keep_warm": keep_warm})
    return made.model_copy(update={"emulate": emulate})


def keepers(owner: int) -> list[int]:
    """The processes below ``owner`` that keep cores warm, once there is one for each core."""
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        for child in children(owner):
            if len(found := children(child)) == len(os.sched_getaffinity(0)):
                return found
        time.sleep(0.05)
    raise AssertionError("no keepers")


def all_end(pids: list[int]) -> bool:
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_every_core_has_a_process_that_yields_to_all_others() -> None:
    with warm_cores():
        found = keepers(os.getpid())
        deadline = time.monotonic() + SOON_S
        while any(len(os.sched_getaffinity(pid)) > 1 for pid in found):
            assert time.monotonic() < deadline
        cores = [core for pid in found for core in os.sched_getaffinity(pid)]
        assert sorted(cores) == sorted(os.sched_getaffinity(0))
        assert {os.sched_getscheduler(pid) for pid in found} == {os.SCHED_IDLE}
    assert all_end(found)


def test_beside_hosts_they_are_in_a_group_that_goes_with_these() -> None:
    require_emulation()
    with emulated(asking({"a": 0.5})) as hosts:
        found = keepers(os.getpid())
        tree = hierarchy("cpu")
        assert tree is not None
        group = tree.mount / f"{hosts.name}-warm"
        inside = {int(pid) for pid in (group / "cgroup.procs").read_text().split()}
        assert inside.issuperset(found)
        if (group / "cpu.idle").exists():
            assert (group / "cpu.idle").read_text().strip() == "1"
    assert not group.exists()
    assert all_end(found)


def test_a_killed_owner_leaves_none() -> None:
    code = (
        "import time\n"
        "from executor.emulate.warmth import warm_cores\n"
        "with warm_cores():\n"
        "    time.sleep(1000)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    found = keepers(owner.pid)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert all_end(found)


@pytest.mark.parametrize(
    ("cores", "asked", "warm"),
    [({"a": 0.5}, True, True), ({"a": 1.0, "b": 2.0}, True, False), ({"a": 0.5}, False, False)],
)
def test_only_hosts_that_wait_need_it(
    cores: dict[str, float], asked: bool, warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[bool] = []

    @contextmanager
    def noted(command: list[str]) -> Iterator[None]:
        assert any("0123abcd-warm" in word for word in command)
        began.append(True)
        yield

    monkeypatch.setattr(emulate_hosts, "warm_cores", noted)
    cluster = asking(cores, keep_warm=asked)
    with EmulatedHosts(cluster, layout(cluster, token="0123abcd"), {}).kept_warm():
        assert bool(began) == warm


def test_hosts_come_down_though_others_leave_those_processes_no_time() -> None:
    require_emulation()
    core = min(os.sched_getaffinity(0))
    hog = subprocess.Popen(
        [sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"]
    )
    try:
        with emulated(asking({"a": 0.5})):
            found = keepers(os.getpid())
            time.sleep(1.0)
        assert all_end(found)
    finally:
        hog.kill()
        hog.wait()
