"""Every error of the tool, one class a kind, with the exit code its command ends with.

An error message says what failed, the two numbers (or names) that clash, and what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
class Change:
    """The smallest change of one limit that does what is said of it.

    ``limit`` is its kind (``memory``, ``batch_size``, ``pin``, ...), ``subject`` the device, layers
    or split that it is about. ``now`` and ``becomes`` are figures (bytes, items, stages) where it
    has them; without ``becomes`` the limit is removed.
    """

    limit: str
    subject: str
    text: str
    now: int | None = None
    becomes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """One of the limits that no plan keeps together; ``change``, where there is one, makes a plan
    fit alone."""

    limit: str
    subject: str
    text: str
    now: int | None = None
    change: Change | None = None


class InfeasiblePlanError(ApportionError):
    """No plan satisfies the request.

    ``conflicts`` are limits that no plan keeps together: a ``smallest`` such set where that is
    proved. Each of ``remedies`` makes a plan fit: one change, or several together. ``reason`` says
    what lacks most.
    """

    exit_code = 3

    def __init__(
        self,
        conflicts: Sequence[Conflict],
        *,
        reason: str,
        remedies: Sequence[Sequence[Change]] = (),
        smallest: bool = False,
        evidence: str = "",
    ) -> None:
        self.conflicts = tuple(conflicts)
        self.remedies = tuple(tuple(changes) for changes in remedies)
        self.reason, self.smallest, self.evidence = reason, smallest, evidence
        lines = [f"no plan fits: {reason}", *_clash_lines(self.conflicts, smallest=smallest)]
        lines += _remedy_lines(self.remedies)
        super().__init__("\n".join([*lines, evidence] if evidence else lines))


MAX_LISTED = 12
"""Limits of a clash that a message lists."""


def _clash_lines(conflicts: Sequence[Conflict], *, smallest: bool) -> list[str]:
    count = len(conflicts)
    if not count:
        return []
    if count == 1:
        return [f"no plan keeps this limit: {conflicts[0].text}"]
    alone = [conflict.change is not None for conflict in conflicts]
    if all(alone):
        head = f"these {count} limits clash; without any one of them a plan exists:"
    else:
        fewer = " (no smaller set clashes)" if smallest else ""
        head = f"no plan keeps these {count} limits together{fewer}:"
    lines = [head]
    for conflict, enough in zip(conflicts[:MAX_LISTED], alone, strict=False):
        other = "" if enough or not any(alone) else ": without it alone there is still none"
        lines.append(f"  - {conflict.text}{other}")
    return lines + ([f"  ... {count - MAX_LISTED} more"] if count > MAX_LISTED else [])


def _remedy_lines(remedies: Sequence[Sequence[Change]]) -> list[str]:
    if not remedies:
        return ["no change was found that makes it fit: leave out limits, or add devices"]
    if all(len(changes) == 1 for changes in remedies):
        head = "any one of these would make it fit:"
    else:
        head = f"no single change is enough; these {len(remedies[0])} together would make it fit:"
        remedies = [(change,) for change in remedies[0]]
    return [head, *(f"  {i}. {changes[0].text}" for i, changes in enumerate(remedies, start=1))]


class StalePlanError(ApportionError):
    """The plan was made for another model, cluster or profile than the one at hand."""

    exit_code = 4


class RankFailedError(ApportionError):
    """A rank ended before its work was done; the message names rank, device, stage and step."""

    exit_code = 7


_TOLD = (UnsupportedModelError, InvalidInputError, StalePlanError, RankFailedError)
"""Errors that are made of their message alone."""


def to_data(error: ApportionError) -> dict[str, str]:
    """An error as data for another process: its message, and the kind that it is there."""
    kind = next((kind for kind in _TOLD if isinstance(error, kind)), RankFailedError)
    return {"error": str(error), "kind": kind.__name__}


def from_data(data: Mapping[str, str], *, before: str = "") -> ApportionError:
    """The error that :func:`to_data` told of, with words ``before`` its message."""
    kind = next((kind for kind in _TOLD if kind.__name__ == data.get("kind")), RankFailedError)
    return kind(before + data["error"])
