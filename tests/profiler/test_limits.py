from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from profiler import discover, limits
from profiler.cgroups import hierarchy, own_groups
from profiler.limits import (
    available_cores,
    host_name,
    memory_limits,
    processor_quota,
    tightest_quota,
)
from tests.support.control_groups import machine

MIB = 2**20


def version_1(tmp_path: Path, *, group: str = "/box") -> Path:
    return machine(
        tmp_path,
        {"cpu tree": "cpu,cpuacct", "memory": "memory"},
        own=f"3:memory:{group}\n2:cpuacct,cpu:{group}\n0::/\n",
        files={
            "cpu tree/cpu.cfs_quota_us": "-1",
            "cpu tree/cpu.cfs_period_us": "100000",
            "cpu tree/box/cpu.cfs_quota_us": "2500",
            "cpu tree/box/cpu.cfs_period_us": "10000",
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.usage_in_bytes": str(7 * MIB),
            "memory/box/memory.limit_in_bytes": str(64 * MIB),
            "memory/box/memory.usage_in_bytes": str(30 * MIB),
            "memory/box/memory.stat": f"cache 5\ntotal_inactive_file {10 * MIB}\n",
        },
    )


def version_2(tmp_path: Path) -> Path:
    return machine(
        tmp_path,
        {"fs": "unified"},
        own="0::/outer/inner\n",
        files={
            "fs/cgroup.controllers": "cpuset cpu memory",
            "fs/outer/cpu.max": "150000 100000",
            "fs/outer/memory.max": str(64 * MIB),
            "fs/outer/memory.current": str(50 * MIB),
            "fs/outer/memory.stat": "anon 1\ninactive_file 0\n",
            "fs/outer/inner/cpu.max": "max 100000",
            "fs/outer/inner/memory.max": str(100 * MIB),
            "fs/outer/inner/memory.current": str(20 * MIB),
        },
    )


def test_the_processs_own_group_counts(tmp_path: Path) -> None:
    proc = version_1(tmp_path)
    assert processor_quota(proc=proc) == 0.25
    assert available_cores(proc=proc) == 1
    # 64 MiB, of which 30 are used and 10 of these are files that the kernel would drop
    assert memory_limits(proc=proc) == (64 * MIB, 44 * MIB)


def test_groups_above_limit_too(tmp_path: Path) -> None:
    proc = version_2(tmp_path)
    assert processor_quota(proc=proc) == 1.5
    # inner: 100 MiB, 80 left; outer: 64 MiB, 14 left
    assert memory_limits(proc=proc) == (64 * MIB, 14 * MIB)


def test_without_limits_the_machine_counts(tmp_path: Path) -> None:
    proc = version_1(tmp_path, group="/")
    assert processor_quota(proc=proc) is None
    assert memory_limits(proc=proc)[0] == psutil.virtual_memory().total


def test_a_container_sees_its_part_of_the_tree(tmp_path: Path) -> None:
    proc = machine(
        tmp_path,
        {"memory": "memory"},
        own="3:memory:/docker/abc/job\n",
        root="/docker/abc",
        files={"memory/job/memory.limit_in_bytes": "1000"},
    )
    found = own_groups("memory", proc=proc)
    assert found is not None
    assert found[1] == [tmp_path / "memory/job", tmp_path / "memory"]
    assert memory_limits(proc=proc)[0] == 1000


@pytest.mark.parametrize("own", ["0::/../other\n", "0::/elsewhere\n", ""])
def test_a_group_outside_of_the_mount_is_not_followed(tmp_path: Path, own: str) -> None:
    proc = machine(
        tmp_path,
        {"fs": "unified"},
        own=own,
        root="/docker/abc",
        files={"fs/cgroup.controllers": "cpu", "fs/cpu.max": "50000 100000"},
    )
    found = own_groups("cpu", proc=proc)
    assert found is not None
    assert found[1] == [tmp_path / "fs"]
    assert processor_quota(proc=proc) == 0.5


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("unified", {"fs/cgroup.controllers": "cpu", "fs/cpu.max": "20000 80000"}),
        ("cpu", {"fs/cpu.cfs_quota_us": "20000", "fs/cpu.cfs_period_us": "80000"}),
    ],
)
def test_a_quota_tells_how_often_it_was_used_up(
    tmp_path: Path, kind: str, settings: dict[str, str]
) -> None:
    own = "0::/\n" if kind == "unified" else "4:cpu:/\n"
    files = {**settings, "fs/cpu.stat": "nr_periods 90\nnr_throttled 17\nthrottled_time 5\n"}
    quota = tightest_quota(proc=machine(tmp_path, {"fs": kind}, own=own, files=files))
    assert quota is not None
    assert (quota.cores, quota.period_s) == (0.25, 0.08)
    assert quota.throttled() == 17
    (tmp_path / "fs/cpu.stat").write_text("nr_throttled 19\n")
    assert quota.throttled() == 19


def test_a_controller_of_version_1_wins_over_the_unified_tree(tmp_path: Path) -> None:
    proc = machine(
        tmp_path,
        {"unified": "unified", "cpu": "cpu"},
        own="",
        files={"unified/cgroup.controllers": "memory"},
    )
    cpu, memory = hierarchy("cpu", proc=proc), hierarchy("memory", proc=proc)
    assert cpu is not None
    assert memory is not None
    assert (cpu.version, memory.version) == (1, 2)


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    assert hierarchy("cpu", proc=tmp_path) is None
    assert processor_quota(proc=tmp_path) is None
    assert memory_limits(proc=tmp_path)[0] == psutil.virtual_memory().total


def test_the_launcher_says_what_the_host_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPORTION_HOST", "board-0")
    assert host_name() == "board-0"
    assert discover.discover().hosts[0].name == "board-0"
    assert discover.discover(host="mine").hosts[0].name == "mine"
    monkeypatch.delenv("APPORTION_HOST")
    monkeypatch.setattr(limits.socket, "gethostname", lambda: "node.lab.example")
    assert host_name() == "node"


@pytest.mark.parametrize(
    ("quota", "num_devices", "speed"),
    [(None, 1, "x2"), (0.25, 1, "x0.25"), (0.5, 2, "x0.25"), (2.0, 1, "x2"), (8.0, 1, "x2")],
)
def test_a_part_of_a_core_stands_in_the_type(
    quota: float | None, num_devices: int, speed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discover, "processor_quota", lambda: quota)
    monkeypatch.setattr(
        discover, "available_cores", lambda: 2 if quota is None else max(1, min(2, int(quota)))
    )
    devices = discover.discover(cpu_devices=num_devices).hosts[0].devices
    assert [d.type for d in devices] == [f"{discover.processor_name()} {speed}"] * num_devices
