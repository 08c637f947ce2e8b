"""What the top package publishes is what its code says: the run report's schema, its commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from executor.cli import app
from executor.schemas import DOCUMENTS, schema_text

SCHEMA = Path(__file__).parents[2] / "docs" / "schema"


def test_the_published_schema_is_current(request: pytest.FixtureRequest) -> None:
    file = SCHEMA / "run-report-1.schema.json"
    if request.config.getoption("--update-golden"):
        file.write_text(schema_text("run-report"))
    assert file.read_text() == schema_text("run-report"), "run pytest --update-golden"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_document_has_a_schema(name: str) -> None:
    result = CliRunner().invoke(app, ["schema", name])
    assert (result.exit_code, result.stdout) == (0, schema_text(name))
    assert (SCHEMA / f"{name}-1.schema.json").is_file()


def test_every_command_is_there_once() -> None:
    names = [command.callback.__name__ for command in app.registered_commands if command.callback]
    assert len(names) == len(set(names))
    expected = {"devices", "profile", "refit", "plan", "explain", "check", "diff", "schema"}
    assert expected | {"run", "verify"} <= set(names)
