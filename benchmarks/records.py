"""What benchmark scripts share: their flags, their records, how these are shown and written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
"""``{"measure", "value", "unit", "conditions"}``."""


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the flags of every benchmark; ``doc`` is the script's own docstring."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--quick", action="store_true", help="fewer cells and repeats, same measures")
    made.add_argument("--json", type=Path, help="also write the records to this file")
    return made


def record(measure: str, value: float, unit: str, **conditions: object) -> Record:
    """One measured figure and what it depends on."""
    return {"measure": measure, "value": value, "unit": unit, "conditions": conditions}


def publish(records: Sequence[Record], path: Path | None) -> None:
    """Print the records as a table, and write them to ``path`` if there is one."""
    wide = max((len(r["measure"]) for r in records), default=0)
    for one in records:
        value = one["value"]
        shown = f"{value:>12}" if isinstance(value, int) else f"{value:>12.6g}"
        about = ", ".join(f"{k} {v}" for k, v in one["conditions"].items())
        print(f"{one['measure']:<{wide}} {shown} {one['unit']:<6} {about}")
    if path is not None:
        path.write_text(json.dumps(list(records), indent=1) + "\n")
