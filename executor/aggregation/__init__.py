"""How partial results become the answer: one class per strategy.

Which strategy is legal is decided without torch, in ``planner.aggregation``; here they run.
"""

from __future__ import annotations

from executor.aggregation.base import Aggregator
from executor.aggregation.concat import ConcatAggregator
from profiler.errors import InvalidInputError

AGGREGATORS: tuple[type[Aggregator], ...] = (ConcatAggregator,)


def choose_aggregator(name: str) -> type[Aggregator]:
    """The strategy of this name.

    Raises:
        InvalidInputError: there is none that can be run.
    """
    for aggregator in AGGREGATORS:
        if aggregator.name == name:
            return aggregator
    known = ", ".join(a.name for a in AGGREGATORS)
    raise InvalidInputError(f"aggregation {name!r} cannot be run; there is {known}")


__all__ = ["AGGREGATORS", "Aggregator", "ConcatAggregator", "choose_aggregator"]
