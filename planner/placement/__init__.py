"""Placement of the operators of a graph on accelerators and host processors, with proof."""

from planner.placement.answer import Placement, PlacementResult
from planner.placement.check import Checked, check_latency, check_loads
from planner.placement.instance import machines, read_instance
from planner.placement.latency import greedy_latency, place_latency
from planner.placement.loads import place_any, place_contiguous
from planner.placement.problem import Charging, Flow, Operator, Place, PlacementProblem

__all__ = [
    "Charging",
    "Checked",
    "Flow",
    "Operator",
    "Place",
    "Placement",
    "PlacementProblem",
    "PlacementResult",
    "check_latency",
    "check_loads",
    "greedy_latency",
    "machines",
    "place_any",
    "place_contiguous",
    "place_latency",
    "read_instance",
]
