"""Ensembles: several models that answer for the same inputs, as one model source.

An :class:`Ensemble` is captured as one module whose parts are the members, so that a plan may place
each of them, or parts of each, on any devices. Its answer, ``f(X) = sum_i w_i f_i(X)`` or what
else the strategy says, is not part of the module: putting the members' answers together is the
plan's aggregation, on the root.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from profiler.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class Combination:
    """How the members' answers are put together unless a plan says otherwise."""

    strategy: str = "mean"
    weights: tuple[float, ...] | None = None
    dim: int | None = None


class Ensemble(nn.Module):
    """Models that take the same inputs, each of which answers for all of them.

    ``combine`` names the strategy (``mean``, ``weighted_mean``, ``sum``, ``max``, ``vote``,
    ``gather``, ``stack``, ``concat``; docs/aggregation.md), ``weights`` are one a member, ``dim``
    is for ``stack`` and ``concat``. Calling it gives what the members answer, as a tuple: to
    combine that is a plan's work.

    >>> Ensemble([nn.Linear(2, 1), nn.Linear(2, 1)], combine="max").members
    ('member0', 'member1')
    """

    def __init__(
        self,
        members: Iterable[nn.Module],
        *,
        combine: str = "mean",
        weights: Sequence[float] | None = None,
        dim: int | None = None,
    ) -> None:
        """Hold the members.

        Raises:
            InvalidInputError: fewer than two members, or something that is no module.
        """
        super().__init__()
        given = list(members)
        if len(given) < 2:
            raise InvalidInputError(f"an ensemble needs two members or more; it has {len(given)}")
        for position, member in enumerate(given):
            if not isinstance(member, nn.Module):
                raise InvalidInputError(
                    f"member {position} of the ensemble is a {type(member).__name__}; members are "
                    "modules"
                )
            self.add_module(f"member{position}", member)
        self.members = tuple(f"member{i}" for i in range(len(given)))
        self.combination = Combination(
            strategy=combine,
            weights=None if weights is None else tuple(float(w) for w in weights),
            dim=dim,
        )
        self.refs = tuple(type(member).__qualname__ for member in given)
        self.forward = self._forward(given)

    @staticmethod
    def _forward(members: Sequence[nn.Module]) -> Any:
        """A forward with the parameters of the first member's: inputs are named after them."""

        def forward(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
            return tuple(member(*args, **kwargs) for member in members)

        forward.__signature__ = inspect.signature(members[0].forward)  # type: ignore[attr-defined]
        return forward

    def require_callable(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse inputs that some member does not take.

        Raises:
            InvalidInputError: one does not; the message names it.
        """
        for name in self.members:
            member = self.get_submodule(name)
            try:
                inspect.signature(member.forward).bind(*args, **kwargs)
            except TypeError as error:
                raise InvalidInputError(
                    f"{name} ({type(member).__name__}) does not take the inputs of the ensemble, "
                    f"which are those of member0: {error}. Wrap it in a module that does"
                ) from error
