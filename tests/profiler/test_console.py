from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from profiler.console import commands, note, write_file, write_json
from profiler.errors import Change, Conflict, InfeasiblePlanError, InvalidInputError, StalePlanError

app = commands("Commands that end in every way.")


@app.command()
def end(how: str) -> None:
    errors: dict[str, BaseException] = {
        "input": InvalidInputError("no file x"),
        "stale": StalePlanError("made for another model"),
        "infeasible": InfeasiblePlanError(
            [Conflict(limit="batch_size", subject="", text="batch_size 8")],
            reason="l0 needs 3 GiB, but h/a has 2 GiB",
            remedies=[[Change(limit="batch_size", subject="", text="less")]],
        ),
        "interrupt": KeyboardInterrupt(),
    }
    if how in errors:
        raise errors[how]
    note("working")
    write_json({"how": how})


@app.command()
def other() -> None:
    """A second command: typer turns an application of one into that command."""


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("input", 2, "error: no file x\n"),
        ("stale", 4, "error: made for another model\n"),
        ("interrupt", 130, "interrupted\n"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(how: str, code: int, message: str) -> None:
    result = CliRunner().invoke(app, ["end", how])
    assert (result.exit_code, result.stderr, result.stdout) == (code, message, "")


def test_an_infeasible_request_exits_with_3_and_names_the_remedy() -> None:
    result = CliRunner().invoke(app, ["end", "infeasible"])
    assert result.exit_code == 3
    assert "1. less" in result.stderr


def test_usage_errors_exit_with_2_in_plain_text() -> None:
    result = CliRunner().invoke(app, ["end"])
    assert result.exit_code == 2
    assert "Missing argument 'how'" in result.stderr
    assert result.stderr.isascii()


def test_stdout_carries_only_the_result() -> None:
    result = CliRunner().invoke(app, ["end", "well"])
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        '{\n "how": "well"\n}\n',
        "working\n",
    )


def test_a_mounted_application_keeps_its_error_handling() -> None:
    root = commands("Root.")
    root.add_typer(app)
    assert CliRunner().invoke(root, ["end", "stale"]).exit_code == 4


def test_dash_is_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_file("-", "text")
    assert capsys.readouterr().out == "text\n"
    write_file(str(tmp_path / "x.txt"), "text\n")
    assert (tmp_path / "x.txt").read_text() == "text\n"
