"""Every error of the tool, one class a kind, with the exit code its command ends with.

An error message says what failed, the two numbers (or names) that clash, and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class ApportionError(Exception):
    """Base of every error that apportion raises on purpose."""

    exit_code: ClassVar[int] = 2


class InvalidInputError(ApportionError, ValueError):
    """What the caller passed cannot be right: a file, a flag, a tensor, a name."""


class UnsupportedModelError(InvalidInputError):
    """The model cannot be captured; the message names the operator and what was tried."""


class EmulationError(ApportionError):
    """This machine cannot stand in for a cluster's hosts: no root, a missing tool or controller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """One limit that stands in the way of every plan, and the smallest change that lifts it."""

    what: str
    needed: str
    available: str
    remedy: str


class InfeasiblePlanError(ApportionError):
    """No plan satisfies the request. ``conflicts`` holds the limits that clash, worst first."""

    exit_code = 3

    def __init__(self, conflicts: Sequence[Conflict], *, evidence: str = "") -> None:
        self.conflicts = tuple(conflicts)
        self.evidence = evidence
        worst = self.conflicts[0]
        remedies = "\n".join(f"  {i}. {c.remedy}" for i, c in enumerate(self.conflicts, start=1))
        message = (
            f"no plan fits: {worst.what} needs {worst.needed}, but {worst.available}\n"
            f"any one of these would make it fit:\n{remedies}"
        )
        super().__init__(f"{message}\n{evidence}" if evidence else message)


class StalePlanError(ApportionError):
    """The plan was made for another model, cluster or profile than the one at hand."""

    exit_code = 4


class RankFailedError(ApportionError):
    """A rank ended before its work was done; the message names rank, device, stage and step."""

    exit_code = 7
