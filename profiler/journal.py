"""Measurements kept while profiling runs, so that an interruption loses none.

One JSON line per measurement after a header that names what they belong to. A journal whose header
differs (other model, cluster, library) is not continued; a line cut short by a crash is dropped.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from pydantic import ValidationError

from profiler.documents import require_writable, write_atomically
from profiler.errors import InvalidInputError
from profiler.profile import Measurement

Done = dict[str, dict[str, dict[int, Measurement]]]
"""Measurements by device, twin and items."""


class Journal:
    """The partial profile beside the file it will become; ``path`` None keeps nothing."""

    def __init__(self, path: Path | None, *, header: dict[str, object]) -> None:
        self.path = path
        self.header = header
        self.done: Done = defaultdict(lambda: defaultdict(dict))
        self.resumed = 0
        if path is not None:
            require_writable(path)
            if path.exists():
                self._read(path)
            else:
                write_atomically(path, json.dumps(header) + "\n")

    def _read(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [json.dumps(self.header)]
        if lines and lines[0] == kept[0]:
            for line in lines[1:]:
                try:
                    data = json.loads(line)
                    found = Measurement.model_validate_json(json.dumps(data["measurement"]))
                    self.done[data["device"]][data["twin"]][found.items] = found
                except (ValueError, KeyError, TypeError, ValidationError):
                    continue
                kept.append(line)
        self.resumed = len(kept) - 1
        write_atomically(path, "\n".join(kept) + "\n")

    def add(self, device: str, twin: str, measurement: Measurement) -> None:
        """Keep one measurement, on disk before this returns.

        Raises:
            InvalidInputError: the journal cannot be written.
        """
        self.done[device][twin][measurement.items] = measurement
        if self.path is None:
            return
        line = json.dumps(
            {"device": device, "twin": twin, "measurement": measurement.model_dump(mode="json")}
        )
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise InvalidInputError(f"cannot write {self.path}: {error}") from error

    def discard(self) -> None:
        """Remove the file: the profile has been written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
