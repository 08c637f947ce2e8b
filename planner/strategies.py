"""The ways to put partial results together, each with the rule that says when it is right.

Legality follows from how the work was divided, which :class:`Parts` states for one output. A
strategy is a class: its name, the parameters it takes, and what it refuses. It knows nothing of
torch; ``executor.aggregation`` has the class of the same name that computes. A user's own comes by
an entry point of the group ``apportion.aggregators``: a class that computes and whose attribute
``strategy`` is a :class:`Strategy`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import entry_points
from typing import Any, ClassVar

from planner.planfile import Combining
from profiler.errors import InvalidInputError
from profiler.expressions import Size

ENTRY_POINTS = "apportion.aggregators"
"""Group of the entry points by which users bring strategies of their own."""


class Kind(StrEnum):
    """What the parts of an output are to each other."""

    ONE = "one piece"
    ITEMS = "different items"
    MEAN = "a mean over different items"
    SUM = "a sum over different items"
    MAX = "the largest over different items"
    BATCH = "different items, of a value for the whole batch"
    MEMBERS = "models that answer for the same items"
    CONTRACTION = "terms of a sum over a split axis"
    COLUMNS = "slices along a split dim"


REDUCTIONS: Mapping[str, Kind] = {"mean": Kind.MEAN, "sum": Kind.SUM, "max": Kind.MAX}
"""What a tensor's ``reduction`` makes of its parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of one output: what they are, and what each holds.

    ``items`` are those of each part, where they differ; ``reduction`` is what the output is over
    its items (``profiler.graph.Tensor``); ``dim`` that along which columns were sliced; ``members``
    the models of an ensemble.
    """

    output: str
    kind: Kind
    dtype: str
    shape: tuple[Size, ...]
    batch_dim: int | None = None
    dim: int | None = None
    items: tuple[int, ...] = ()
    reduction: str | None = None
    members: tuple[str, ...] = ()

    @property
    def is_float(self) -> bool:
        """Whether values may be averaged without leaving their dtype."""
        return "float" in self.dtype or "complex" in self.dtype


class Strategy:
    """A way to put parts together; subclass it for a strategy of your own.

    ``kinds`` are the parts it is right for, ``legal_for`` says so in words, and ``over_items`` why
    parts that hold different items are not among them. ``takes`` are its parameters.
    """

    name: ClassVar[str]
    legal_for: ClassVar[str]
    kinds: ClassVar[frozenset[Kind]]
    over_items: ClassVar[str] = ""
    takes: ClassVar[frozenset[str]] = frozenset()

    def refuses(self, parts: Parts, wanted: Combining) -> str | None:
        """Why it is wrong for these parts with these parameters; ``None`` if it is right."""
        # A reduction of one part is that part.
        alone = REDUCTIONS.get(parts.reduction or "") if parts.kind is Kind.ONE else None
        if parts.kind not in self.kinds and alone not in self.kinds:
            return self._of_another_kind(parts)
        for parameter in ("dim", "weights", "ties"):
            if getattr(wanted, parameter) is not None and parameter not in self.takes:
                return f"{self.name} takes no {parameter}: remove it"
        return self.judge(parts, wanted)

    def judge(self, parts: Parts, wanted: Combining) -> str | None:  # noqa: ARG002
        """What else is wrong with parts of the right kind."""
        return None

    def _of_another_kind(self, parts: Parts) -> str:
        if parts.kind is Kind.ITEMS:
            return f"{self.over_items}. {_capital(self.name)} is for {self.legal_for}"
        if parts.kind is Kind.ONE:
            return f"the plan makes one answer in one piece; {self.name} is for {self.legal_for}"
        if parts.kind is Kind.BATCH:
            return (
                "it is one value for a whole batch, and has no batch dim along which parts could "
                "be joined; that it is the mean, sum or largest over its items was not found "
                "when the model was profiled"
            )
        return f"the parts are {parts.kind}; {self.name} is for {self.legal_for}"


class Concat(Strategy):
    """One after another."""

    name = "concat"
    legal_for = (
        "parts that answer for different items, joined along the batch dim in item order; slices "
        "along a split dim; members' answers one after another along another dim than the batch's"
    )
    kinds = frozenset({Kind.ONE, Kind.ITEMS, Kind.COLUMNS, Kind.MEMBERS})
    takes = frozenset({"dim"})

    def judge(self, parts: Parts, wanted: Combining) -> str | None:
        """The dim must be the one along which the parts follow each other."""
        wrong = _no_such_dim(parts, wanted.dim, most=len(parts.shape) - 1)
        if wrong:
            return wrong
        if parts.kind is Kind.COLUMNS and wanted.dim != parts.dim:
            return (
                f"the parts are slices along dim {parts.dim}, not {wanted.dim}: give dim "
                f"{parts.dim}"
            )
        if parts.kind is Kind.ITEMS and wanted.dim not in (None, parts.batch_dim):
            return (
                f"its items lie along dim {parts.batch_dim}, not {wanted.dim}: leave dim out, or "
                f"give dim {parts.batch_dim}"
            )
        if parts.kind is Kind.MEMBERS and wanted.dim is None:
            return "along which dim do the members' answers follow each other? give dim"
        if parts.kind is Kind.MEMBERS and wanted.dim == parts.batch_dim:
            return (
                f"dim {wanted.dim} is the batch dim: members answer for the same items, so each "
                "item would be answered several times; give another dim, or use stack"
            )
        return None


class Sum(Strategy):
    """Added up."""

    name = "sum"
    legal_for = (
        "a contraction split: each part holds a slice of the summed axis, "
        "f(X, W) = sum_i f_i(X_i, W_i); members of an ensemble; outputs that are a sum over items"
    )
    kinds = frozenset({Kind.CONTRACTION, Kind.SUM, Kind.MEMBERS})
    over_items = "adding them mixes the answers of different items"

    def judge(self, parts: Parts, wanted: Combining) -> str | None:  # noqa: ARG002
        """Numbers only."""
        return _not_bool(parts, "added", "vote counts them")


class Mean(Strategy):
    """Added up and divided by their number."""

    name = "mean"
    legal_for = "members of an ensemble; outputs that are a mean over items, of equal shares"
    kinds = frozenset({Kind.MEAN, Kind.MEMBERS})
    over_items = "averaging them mixes the answers of different items"

    def judge(self, parts: Parts, wanted: Combining) -> str | None:  # noqa: ARG002
        """Floats only; over items, equal shares only."""
        if parts.kind is Kind.MEAN and len(set(parts.items)) > 1:
            shares = " + ".join(str(n) for n in parts.items[:8])
            return (
                f"its parts are means over unequal shares ({shares} items), and their plain mean "
                "counts the items of small shares too much: use weighted_mean, which weighs each "
                "part by its items"
            )
        return _not_float(parts)


class WeightedMean(Strategy):
    """Added up by weight: the items of each part, or given ones."""

    name = "weighted_mean"
    legal_for = (
        "members of an ensemble, with a weight each; outputs that are a mean over items, each part "
        "weighed by its items"
    )
    kinds = frozenset({Kind.MEAN, Kind.MEMBERS})
    over_items = "averaging them, with whatever weights, mixes the answers of different items"
    takes = frozenset({"weights"})

    def judge(self, parts: Parts, wanted: Combining) -> str | None:
        """As many weights as members, none below zero, not all zero; over items none."""
        weights = wanted.weights
        if parts.kind is not Kind.MEMBERS:
            if weights is not None:
                return "over items the weights are the items of each part: remove weights"
            return _not_float(parts)
        members = len(parts.members)
        if weights is None:
            return f"the {members} members need a weight each: give weights, or use mean"
        if len(weights) != members:
            return f"there are {len(weights)} weights for {members} members: give one each"
        if any(not math.isfinite(w) or w < 0 for w in weights) or not sum(weights):
            shown = ", ".join(f"{w:g}" for w in weights[:8])
            return f"weights {shown} make no mean: none may be below zero, nor all of them zero"
        return _not_float(parts)


class Max(Strategy):
    """The largest, element by element."""

    name = "max"
    legal_for = "members of an ensemble; outputs that are the largest over items"
    kinds = frozenset({Kind.MAX, Kind.MEMBERS})
    over_items = "the larger of two answers to different items answers neither"

    def judge(self, parts: Parts, wanted: Combining) -> str | None:  # noqa: ARG002
        """What can be compared."""
        if "complex" in parts.dtype:
            return f"{parts.dtype} numbers have no largest: return their absolute value"
        return None


class Vote(Strategy):
    """What most parts say; of several that are said as often, the smallest."""

    name = "vote"
    legal_for = "members of an ensemble that answer with classes (integers or bool)"
    kinds = frozenset({Kind.MEMBERS})
    over_items = "answers to different items cannot outvote each other"
    takes = frozenset({"ties"})

    def judge(self, parts: Parts, wanted: Combining) -> str | None:  # noqa: ARG002
        """Classes only."""
        if parts.is_float:
            return (
                f"it is {parts.dtype}, and of scores hardly two are ever equal: have the members "
                "return classes, scores.argmax(-1), or use mean, weighted_mean or max"
            )
        return None


class Gather(Strategy):
    """A list of the parts as they are."""

    name = "gather"
    legal_for = "members of an ensemble, whose answers are wanted one by one, in a list"
    kinds = frozenset({Kind.MEMBERS})
    over_items = "a list of parts is not the model's answer"


class Stack(Strategy):
    """Side by side in a new dim."""

    name = "stack"
    legal_for = "members of an ensemble, whose answers are kept side by side in a new dim"
    kinds = frozenset({Kind.MEMBERS})
    over_items = "a new dim is not in the model's answer, and unequal shares do not stack"
    takes = frozenset({"dim"})

    def judge(self, parts: Parts, wanted: Combining) -> str | None:
        """The new dim may be anywhere among the others."""
        return _no_such_dim(parts, wanted.dim, most=len(parts.shape))


STRATEGIES: tuple[Strategy, ...] = (
    Concat(),
    Sum(),
    Mean(),
    WeightedMean(),
    Max(),
    Vote(),
    Gather(),
    Stack(),
)
"""Those that come with apportion, in the order of messages."""

_OWN = {strategy.name: strategy for strategy in STRATEGIES}


def find_strategy(name: str) -> Strategy:
    """The strategy of this name: one of ours, else a user's by entry point.

    Raises:
        InvalidInputError: there is none, or the user's cannot be loaded.
    """
    if name in _OWN:
        return _OWN[name]
    strategy = load_own(name).strategy
    if not isinstance(strategy, Strategy) or strategy.name != name:
        raise InvalidInputError(
            f"entry point {name!r} of {ENTRY_POINTS} has a strategy that is no "
            f"planner.strategies.Strategy called {name!r}"
        )
    return strategy


def load_own(name: str) -> Any:
    """The class behind a user's entry point.

    Raises:
        InvalidInputError: no such entry point, or importing it failed.
    """
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        known = (*_OWN, *sorted(found))
        close = difflib.get_close_matches(name, known, n=1)
        raise InvalidInputError(
            f"there is no aggregation {name[:40]!r}; there are {', '.join(known)}"
            + (f" (did you mean {close[0]}?)" if close else "")
        )
    try:
        own = found[name].load()
    except Exception as error:  # whatever a user's module raises
        raise InvalidInputError(
            f"aggregation {name!r} ({found[name].value}) cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not hasattr(own, "strategy") or not hasattr(own, "join"):
        raise InvalidInputError(
            f"aggregation {name!r} ({found[name].value}) lacks a strategy or a join: see "
            "docs/aggregation.md"
        )
    return own


def legal_choices(parts: Parts) -> list[str]:
    """Strategies that are right for these parts, given the parameters they need."""
    return [s.name for s in STRATEGIES if s.refuses(parts, _with_parameters(s, parts)) is None]


def _with_parameters(strategy: Strategy, parts: Parts) -> Combining:
    """Parameters with which a strategy is right if any are."""
    dim = parts.dim
    if parts.kind is Kind.MEMBERS and strategy.name == "concat":
        dim = next((d for d in range(len(parts.shape)) if d != parts.batch_dim), None)
    weighted = parts.kind is Kind.MEMBERS and "weights" in strategy.takes
    return Combining(
        strategy=strategy.name,
        dim=dim if "dim" in strategy.takes else None,
        weights=(1.0,) * len(parts.members) if weighted else None,
    )


def _no_such_dim(parts: Parts, dim: int | None, *, most: int) -> str | None:
    if dim is None or 0 <= dim <= most:
        return None
    shape = ", ".join(str(size) for size in parts.shape)
    if most < 0:
        return f"it is a single number and has no dim {dim}"
    return f"it has shape [{shape}] and no dim {dim}: dims count from 0 to {most}"


def _not_bool(parts: Parts, done: str, instead: str) -> str | None:
    return f"bool answers cannot be {done}; {instead}" if parts.dtype == "bool" else None


def _not_float(parts: Parts) -> str | None:
    if parts.is_float:
        return None
    return (
        f"it is {parts.dtype}, and a mean of such numbers is none: use vote, sum or max, or have "
        "the members return floats"
    )


def _capital(name: str) -> str:
    return name[0].upper() + name[1:]
