"""Running plans: ranks, transfers, aggregation, verification.

Loads torch on first use only, so that the command line can read plans without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executor.rehearsal import rehearse
    from executor.report import RunReport
    from executor.running import RunOptions, run
    from executor.session import RunResult, Scattered, Session
    from executor.verification import verify

__all__ = [
    "RunOptions",
    "RunReport",
    "RunResult",
    "Scattered",
    "Session",
    "rehearse",
    "run",
    "verify",
]

_HOMES = {
    "RunOptions": "executor.running",
    "RunReport": "executor.report",
    "RunResult": "executor.session",
    "Scattered": "executor.session",
    "Session": "executor.session",
    "rehearse": "executor.rehearsal",
    "run": "executor.running",
    "verify": "executor.verification",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use (PEP 562): `import executor` stays light.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
