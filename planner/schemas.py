"""JSON Schemas of the documents, for editors and for other programs."""

from __future__ import annotations

import json

from planner.frontfile import ParetoFront
from planner.planfile import Plan
from planner.request import PlanRequest
from profiler.cluster import Cluster
from profiler.documents import Document
from profiler.ensemblefile import EnsembleFile
from profiler.profile import Profile

DOCUMENTS: dict[str, type[Document]] = {
    "cluster": Cluster,
    "ensemble": EnsembleFile,
    "profile": Profile,
    "plan-request": PlanRequest,
    "plan": Plan,
    "pareto-front": ParetoFront,
}
"""Documents by the name that ``apportion schema`` takes."""


def schema_text(name: str) -> str:
    """The schema of a kind of document, as it stands in ``docs/schema/``."""
    return document_schema(DOCUMENTS[name])


def document_schema(document: type[Document]) -> str:
    """The schema of a document as text."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **document.model_json_schema(),
    }
    return json.dumps(schema, indent=1) + "\n"
