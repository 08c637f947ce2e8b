"""Decisions: from a Profile and a PlanRequest to a Plan, with the evidence for choosing it.

Nothing in this package imports torch, so that reading, checking and explaining a plan is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.api import plan
    from planner.planfile import Plan
    from planner.request import PlanRequest
    from planner.supposed import what_if

__all__ = ["Plan", "PlanRequest", "plan", "what_if"]

_HOMES = {
    "Plan": "planner.planfile",
    "PlanRequest": "planner.request",
    "plan": "planner.api",
    "what_if": "planner.supposed",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use (PEP 562): `import planner` stays light for the command line.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
