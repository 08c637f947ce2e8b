"""The Ensemble document: ``ensemble.yaml``, which lists models that answer for the same inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from profiler.documents import Document, Record
from profiler.errors import InvalidInputError

FILE = "ensemble.yaml"
"""Name of the file that makes a directory an ensemble."""


class MemberFile(Record):
    """One member: a directory (from the file's own), or ``package.module:factory``."""

    ref: str


class EnsembleFile(Document):
    """``ensemble.yaml``: members by reference, and how their answers are put together."""

    kind: Literal["Ensemble"] = "Ensemble"
    format_version: str = "1.0"
    members: tuple[MemberFile, ...]
    combine: str = "mean"
    weights: tuple[float, ...] | None = None
    dim: int | None = None


def ensemble_file(path: Path) -> Path | None:
    """The file behind a reference to an ensemble: itself, or the one in a directory; else None."""
    if path.is_dir():
        return path / FILE if (path / FILE).is_file() else None
    return path if path.suffix in (".yaml", ".yml") else None


def member_refs(file: Path) -> tuple[EnsembleFile, list[str]]:
    """An ensemble's file, and its members as references that can be loaded from here.

    Raises:
        InvalidInputError: unreadable, or fewer than two members.
    """
    listed = EnsembleFile.load(file)
    if len(listed.members) < 2:
        raise InvalidInputError(
            f"{file} lists {len(listed.members)} members; an ensemble needs two or more"
        )
    refs = []
    for member in listed.members:
        beside = file.parent / member.ref
        refs.append(str(beside) if beside.exists() or ":" not in member.ref else member.ref)
    return listed, refs
