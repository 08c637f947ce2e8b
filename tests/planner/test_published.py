"""What the repository publishes is what the code says: schemas, the rules, the commands' flags."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from planner.aggregation import RUNNABLE, STRATEGIES
from planner.cli import app
from planner.findings import RULES
from planner.schemas import DOCUMENTS, schema_text

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_published_schemas_are_current(name: str, request: pytest.FixtureRequest) -> None:
    file = DOCS / "schema" / f"{name}-1.schema.json"
    if request.config.getoption("--update-golden"):
        file.write_text(schema_text(name))
    assert file.read_text() == schema_text(name), "run pytest --update-golden"


def test_schemas_take_sizes_as_people_write_them() -> None:
    schema = json.loads(schema_text("cluster"))
    memory = schema["$defs"]["Device"]["properties"]["memory_bytes"]
    assert {"type": "string"} in memory["anyOf"]


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(heads), *rows]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rules() -> str:
    return table(["code", "rule"], [[f"`{code}`", rule] for code, rule in RULES.items()])


def strategies() -> str:
    return table(
        ["strategy", "right for", "over items"],
        [
            [f"`{x.name}`", x.legal_for, f"no: {x.over_items}" if x.over_items else "yes"]
            for x in STRATEGIES
        ],
    )


@pytest.mark.parametrize(("name", "make"), [("rules", rules), ("strategies", strategies)])
def test_tables_in_the_reference_are_current(
    name: str, make: Callable[[], str], request: pytest.FixtureRequest
) -> None:
    file = DOCS / "plan-file.md"
    text = file.read_text()
    block = f"<!-- {name} -->\n{make()}\n<!-- /{name} -->"
    if request.config.getoption("--update-golden"):
        old = rf"<!-- {name} -->\n.*?<!-- /{name} -->"
        text = re.sub(old, lambda _: block, text, flags=re.DOTALL)
        file.write_text(text)
    assert block in text, "run pytest --update-golden"


def test_runnable_strategies_have_a_rule() -> None:
    assert set(RUNNABLE) <= {x.name for x in STRATEGIES}


@pytest.mark.parametrize("command", ["plan", "explain", "check", "diff", "place", "schema"])
def test_flags_are_frozen(command: str, golden: Callable[[str, str], None]) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "100"})
    golden(f"help_{command}.txt", result.stdout)
