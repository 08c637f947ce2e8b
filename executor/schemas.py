"""JSON Schemas of all documents: the planner's, and the run report."""

from __future__ import annotations

from executor.report import RunReport
from planner.schemas import DOCUMENTS as PLANNED
from planner.schemas import document_schema
from profiler.documents import Document

DOCUMENTS: dict[str, type[Document]] = {**PLANNED, "run-report": RunReport}
"""Documents by the name that ``apportion schema`` takes."""


def schema_text(name: str) -> str:
    """The schema of a kind of document, as it stands in ``docs/schema/``."""
    return document_schema(DOCUMENTS[name])
