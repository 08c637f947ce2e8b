from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from profiler.cli import app
from profiler.cluster import Cluster


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("APPORTION_HOST", raising=False)


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    return result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sample", "0"), "--sample is a number of pairs, 1 or more; not 0"),
        (("--at-once", "-1"), "--at-once is a number of pairs"),
        (("--link-seconds", "0"), "--link-seconds is a time above 0 s, not 0"),
        (("--link-seconds", "nan"), "--link-seconds is a time above 0 s"),
        (("--find-wires",), "--find-wires: needs several hosts"),
        (("--sample", "1", "--at-once", "1"), "--sample, --at-once: needs several hosts"),
        (("--host", "a/b"), "no spaces and no slashes"),
        (("--links", "always"), "has one device, so there is no link to measure"),
        (("--links", "perhaps"), "perhaps"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags: tuple[str, ...], message: str) -> None:
    assert message in refused("devices", *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--by-type",), "--by-type: needs several hosts"),
        (("--links", "always"), "one process cannot measure links"),
    ],
)
def test_one_host_cannot_do_what_several_can(
    flags: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    assert message in refused("profile", "m:f", "-o", str(tmp_path / "p.json"), *flags)


def test_a_host_may_be_given_a_name(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    result = CliRunner().invoke(app, ["devices", "--host", "board", "-o", str(file)])
    assert result.exit_code == 0, result.output
    assert [host.name for host in Cluster.load(file).hosts] == ["board"]


@pytest.mark.distributed
def test_the_link_within_a_machine_is_measured_if_asked(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    flags = ["--cpu-devices", "2", "--links", "always", "--link-seconds", "0.2", "-o", str(file)]
    result = CliRunner().invoke(app, ["devices", "--host", "board", *flags])
    assert result.exit_code == 0, result.output
    (link,) = Cluster.load(file).links
    assert (link.source, link.target) == ("board", "board")
    assert link.error_fraction is not None
    assert Cluster.load(file).link("board/cpu:0", "board/cpu:1") == link
