"""Placement of the operators of a graph on accelerators and host processors, with proof."""

from planner.placement.problem import Charging, Flow, Operator, Place, PlacementProblem

__all__ = ["Charging", "Flow", "Operator", "Place", "PlacementProblem"]
