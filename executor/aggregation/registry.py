"""Which class computes which strategy."""

from __future__ import annotations

from typing import cast

from executor.aggregation.base import Aggregator
from executor.aggregation.choice import MaxAggregator, VoteAggregator
from executor.aggregation.concat import ConcatAggregator
from executor.aggregation.linear import MeanAggregator, SumAggregator, WeightedMeanAggregator
from executor.aggregation.listing import GatherAggregator, StackAggregator
from planner.planfile import Combining
from planner.strategies import load_own

AGGREGATORS: tuple[type[Aggregator], ...] = (
    ConcatAggregator,
    SumAggregator,
    MeanAggregator,
    WeightedMeanAggregator,
    MaxAggregator,
    VoteAggregator,
    GatherAggregator,
    StackAggregator,
)
"""Those that come with apportion: one for each of ``planner.strategies.STRATEGIES``."""


def make_aggregator(wanted: Combining) -> Aggregator:
    """The plan's strategy with its parameters: one of ours, else a user's by entry point.

    Raises:
        InvalidInputError: there is none of this name.
    """
    for aggregator in AGGREGATORS:
        if aggregator.name == wanted.strategy:
            return aggregator(wanted)
    return cast(type[Aggregator], load_own(wanted.strategy))(wanted)
