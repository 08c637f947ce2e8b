"""What the repository publishes is what the code says: schemas, the rules, the commands' flags."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from planner.cli import app
from planner.findings import RULES
from planner.schemas import DOCUMENTS, schema_text
from planner.strategies import REDUCTIONS, STRATEGIES, Kind, Parts, legal_choices

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
        ["strategy", "right for", "over different items"],
        [
            [f"`{x.name}`", x.legal_for, f"no: {x.over_items}" if x.over_items else "yes"]
            for x in STRATEGIES
        ],
    )


def splits() -> str:
    """For each way to come to parts of a float output (of classes, where that makes a change)."""
    reductions = {kind: name for name, kind in REDUCTIONS.items()}
    rows = []
    for kind in Kind:
        members = ("a", "b") if kind is Kind.MEMBERS else ()
        for dtype in ("float32", "int64") if members else ("float32",):
            parts = Parts(
                output="y",
                kind=kind,
                dtype=dtype,
                shape=() if kind in reductions else ("batch", 4),
                batch_dim=None if kind in reductions else 0,
                dim=1 if kind is Kind.COLUMNS else None,
                items=(2, 2) if kind in reductions else (),
                members=members,
            )
            legal = ", ".join(f"`{name}`" for name in legal_choices(parts)) or "nothing"
            rows.append([f"{kind}{f' ({dtype})' if members else ''}", legal])
    return table(["the parts are", "legal"], rows)


@pytest.mark.parametrize(
    ("page", "name", "make"),
    [
        ("plan-file.md", "rules", rules),
        ("aggregation.md", "strategies", strategies),
        ("aggregation.md", "splits", splits),
    ],
)
def test_tables_in_the_reference_are_current(
    page: str, name: str, make: Callable[[], str], request: pytest.FixtureRequest
) -> None:
    file = DOCS / page
    text = file.read_text()
    block = f"<!-- {name} -->\n{make()}\n<!-- /{name} -->"
    if request.config.getoption("--update-golden"):
        old = rf"<!-- {name} -->\n.*?<!-- /{name} -->"
        text = re.sub(old, lambda _: block, text, flags=re.DOTALL)
        file.write_text(text)
    assert block in text, "run pytest --update-golden"


@pytest.mark.parametrize(
    "command", ["plan", "explain", "check", "diff", "what-if", "place", "schema"]
)
def test_flags_are_frozen(command: str, golden: Callable[[str, str], None]) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "100"})
    golden(f"help_{command}.txt", result.stdout)
