"""Control groups of both versions, written into directories that look like them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from executor.emulate import groups
from executor.emulate.layout import HostLayout, layout
from profiler.errors import EmulationError
from tests.support.control_groups import machine
from tests.support.emulation import GIB, make_cluster


def host(*, cores: float | None = 0.25, memory: int | None = GIB) -> HostLayout:
    cluster = make_cluster(
        {"a": 1},
        cores={} if cores is None else {"a": cores},
        memory={} if memory is None else {"a": memory},
    )
    return layout(cluster, token="0123abcd").hosts[0]


def version_1(tmp_path: Path) -> Path:
    return machine(tmp_path, {"cpu": "cpu", "memory": "memory"}, own="1:cpu:/\n2:memory:/deep\n")


def version_2(tmp_path: Path) -> Path:
    return machine(
        tmp_path,
        {"fs": "unified"},
        own="0::/deep\n",
        files={"fs/cgroup.controllers": "cpu memory", "fs/cgroup.subtree_control": "memory"},
    )


def written(directory: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in directory.iterdir()}


def test_version_1(tmp_path: Path) -> None:
    made = groups.plan_group(host(), proc=version_1(tmp_path))
    groups.make(made)
    cpu, memory = tmp_path / "cpu/apportion-0123abcd-0", tmp_path / "memory/apportion-0123abcd-0"
    assert written(cpu) == {"cpu.cfs_period_us": "10000", "cpu.cfs_quota_us": "2500"}
    assert written(memory) == {"memory.limit_in_bytes": str(GIB)}
    assert made.process_files == (cpu / "cgroup.procs", memory / "cgroup.procs")


def test_version_2(tmp_path: Path) -> None:
    proc = version_2(tmp_path)
    made = groups.plan_group(host(), proc=proc)
    groups.make(made)
    both = tmp_path / "fs/apportion-0123abcd-0"
    assert written(both) == {"cpu.max": "2500 10000", "memory.max": str(GIB)}
    assert made.process_files == (both / "cgroup.procs",)
    # Only what is not enabled yet is enabled.
    (tmp_path / "fs/cgroup.subtree_control").write_text("memory")
    groups.enable("memory", proc=proc)
    assert (tmp_path / "fs/cgroup.subtree_control").read_text() == "memory"
    groups.enable("cpu", proc=proc)
    assert (tmp_path / "fs/cgroup.subtree_control").read_text() == "+cpu"


def test_version_1_keeps_a_host_on_its_processors(tmp_path: Path) -> None:
    proc = machine(
        tmp_path,
        {"cpu": "cpu", "memory": "memory", "sets": "cpuset"},
        own="",
        files={"sets/cpuset.mems": "0-1\n"},
    )
    made = groups.plan_group(host(), processors=(1, 3), proc=proc)
    groups.make(made)
    directory = tmp_path / "sets/apportion-0123abcd-0"
    assert written(directory) == {"cpuset.cpus": "1,3", "cpuset.mems": "0-1"}
    assert made.process_files[-1] == directory / "cgroup.procs"
    assert groups.plan_group(host(), proc=proc).process_files == made.process_files[:-1]


def test_version_2_keeps_a_host_on_its_processors(tmp_path: Path) -> None:
    proc = machine(
        tmp_path, {"fs": "unified"}, own="", files={"fs/cgroup.controllers": "cpu memory cpuset"}
    )
    made = groups.plan_group(host(), processors=(1,), proc=proc)
    groups.make(made)
    (directory,) = made.directories
    assert written(directory)["cpuset.cpus"] == "1"


@pytest.mark.parametrize("version", [1, 2])
def test_who_may_take_all_of_its_processors_has_no_quota(version: int, tmp_path: Path) -> None:
    trees = (
        {"cpu": "cpu", "memory": "memory", "sets": "cpuset"} if version == 1 else {"fs": "unified"}
    )
    files = {"sets/cpuset.mems": "0\n", "fs/cgroup.controllers": "cpu memory cpuset"}
    proc = machine(
        tmp_path, trees, own="", files={k: v for k, v in files.items() if k.split("/")[0] in trees}
    )
    whole = groups.plan_group(host(cores=2.0), processors=(0, 1), proc=proc)
    assert not whole.quotas
    assert {"cpuset.cpus"} <= {write.file.name for write in whole.writes}
    assert {"cpu.shares", "cpu.weight"} & {write.file.name for write in whole.writes}
    assert groups.plan_group(host(cores=1.5), processors=(0, 1), proc=proc).quotas
    assert groups.plan_group(host(cores=2.0), proc=proc).quotas


def test_where_hosts_cannot_be_kept_on_processors_the_kernel_chooses(tmp_path: Path) -> None:
    proc = version_1(tmp_path)
    assert groups.plan_group(host(), processors=(1,), proc=proc) == groups.plan_group(
        host(), proc=proc
    )


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        # A quarter of the weight of a core, which is 20 * 1024 and 2000.
        (version_1, {"cpu/cpu.shares": "5120", "memory/memory.swappiness": "0"}),
        (version_2, {"fs/cpu.weight": "500", "fs/memory.swap.max": "0"}),
    ],
)
def test_settings_that_a_kernel_may_lack_are_written_where_they_are(
    kernel: Callable[[Path], Path], expected: dict[str, str], tmp_path: Path
) -> None:
    made = groups.plan_group(host(), proc=kernel(tmp_path))
    files = {
        tmp_path / name.replace("/", "/apportion-0123abcd-0/"): text
        for name, text in expected.items()
    }
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("default")
    groups.make(made)
    assert {file: file.read_text() for file in files} == files


def test_a_host_without_limits_has_groups_and_no_settings(tmp_path: Path) -> None:
    made = groups.plan_group(host(cores=None, memory=None), proc=version_1(tmp_path))
    assert len(made.directories) == 2
    assert made.writes == ()


def test_a_missing_controller_matters_only_when_it_is_needed(tmp_path: Path) -> None:
    proc = machine(tmp_path, {"cpu": "cpu"}, own="")
    assert len(groups.plan_group(host(memory=None), proc=proc).directories) == 1
    with pytest.raises(EmulationError, match=r"host 'a' has a limit for memory.*'memory': mount"):
        groups.plan_group(host(), proc=proc)


def test_a_container_whose_processes_are_at_the_top_is_told_what_to_do(tmp_path: Path) -> None:
    proc = version_2(tmp_path)
    control = tmp_path / "fs/cgroup.subtree_control"
    control.unlink()
    control.mkdir()
    with pytest.raises(EmulationError, match=r"writing \+cpu to .*mkdir .*/fs/init"):
        groups.enable("cpu", proc=proc)


def test_a_tree_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    made = groups.plan_group(host(), proc=version_1(tmp_path))
    (tmp_path / "memory").rmdir()
    with pytest.raises(EmulationError, match="is /sys/fs/cgroup mounted for writing"):
        groups.make(made)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
        ("memory.events", "low 0\noom 5\noom_kill 2\n"),
    ],
)
def test_kills_are_counted(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert groups.memory_kills([tmp_path / "gone", tmp_path]) == 2
    assert groups.memory_kills([tmp_path / "gone"]) == 0


def test_what_keeps_cores_warm_weighs_least(tmp_path: Path) -> None:
    for proc, place, name, least in (
        (version_1(tmp_path / "1"), "cpu", "cpu.shares", "2"),
        (version_2(tmp_path / "2"), "fs", "cpu.weight", "1"),
    ):
        made = groups.plan_idle_group("apportion-0123abcd-warm", proc=proc)
        (directory,) = made.directories
        assert directory.parent.name == place
        assert [(write.file.name, write.text) for write in made.writes] == [
            (name, least),
            ("cpu.idle", "1"),
        ]
