"""How partial results become the answer: one class per strategy.

Which strategy is legal is decided without torch, in ``planner.strategies``; here they compute.
"""

from __future__ import annotations

from executor.aggregation.base import Aggregator
from executor.aggregation.collect import Collector, InPlace, KeptApart
from executor.aggregation.members import combine_answers, combine_tensors
from executor.aggregation.registry import AGGREGATORS, make_aggregator

__all__ = [
    "AGGREGATORS",
    "Aggregator",
    "Collector",
    "InPlace",
    "KeptApart",
    "combine_answers",
    "combine_tensors",
    "make_aggregator",
]
