"""What the ranks of a stage that is split by tensor have to do: their slices, and all the rest.

A region (``profiler.graph.SliceRegion``) can be divided if it lies wholly inside the stage and has
a unit for each rank. How a group of devices divides its regions is chosen in ``planner.slicings``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.communication import join_messages, join_s
from planner.figures import Figures
from planner.problem import PlanningProblem


@dataclass(frozen=True, slots=True)
class RegionUnits:
    """Units of a region (by its position in the graph) for each rank, in rank order."""

    region: int
    units: tuple[int, ...]


Slicing = tuple[RegionUnits, ...]
"""Regions that the ranks of a stage divide."""


def slices_within(problem: PlanningProblem, slicing: Slicing, layers: Sequence[int]) -> Slicing:
    """Those of ``slicing`` whose regions lie wholly among ``layers``."""
    here = set(layers)
    return tuple(x for x in slicing if here.issuperset(problem.region_layers[x.region]))


def divided_layers(problem: PlanningProblem, slices: Slicing) -> frozenset[int]:
    """The layers of these regions."""
    return frozenset(i for x in slices for i in problem.region_layers[x.region])


def whole_s(
    figures: Figures, layers: Sequence[int], slices: Slicing, device: str, items: int
) -> float:
    """Seconds of a rank for what its stage does not divide: other layers, prelude, dispatch."""
    graph, divided = figures.problem.graph, divided_layers(figures.problem, slices)
    total = figures.dispatch_s(device)
    total += sum(figures.time_s(i, device, items) for i in layers if i not in divided)
    if any(graph.layers[i].uses_prelude for i in layers):
        total += figures.prelude_s(device, items)
    return total


def slice_times(
    figures: Figures, slices: RegionUnits, devices: Sequence[str], items: int
) -> list[float]:
    """Seconds of each rank for its slice of a region."""
    return [
        figures.slice_s(slices.region, device, items, units)
        for device, units in zip(devices, slices.units, strict=True)
    ]


def joins_s(figures: Figures, slices: RegionUnits, devices: Sequence[str], items: int) -> float:
    """Seconds of a region's joins."""
    region = figures.problem.graph.regions[slices.region]
    return sum(join_s(figures, join, devices, slices.units, items) for join in region.joins)


def exchanged(
    figures: Figures, slices: RegionUnits, devices: Sequence[str], items: int
) -> Iterator[tuple[str, str, float]]:
    """Source, target and seconds of every message of a region's joins."""
    for join in figures.problem.graph.regions[slices.region].joins:
        for phase in join_messages(figures, join, devices, slices.units, items):
            yield from phase


@dataclass(frozen=True, slots=True)
class ComputeTimes:
    """Seconds of a stage's computing, of each rank's own part of it, and of all joins."""

    stage_s: float
    ranks_s: tuple[float, ...]
    join_s: float


def compute_times(
    figures: Figures,
    layers: Sequence[int],
    devices: Sequence[str],
    shares: Sequence[int],
    slices: Slicing,
) -> ComputeTimes:
    """One run of a stage. Ranks wait for each other at the joins of every region that they divide,
    so the slowest rank counts there, region by region, and once for all the rest."""
    ends = list(zip(devices, shares, strict=True))
    if not slices:
        ranks = tuple(figures.compute_s(layers, device, items) for device, items in ends)
        return ComputeTimes(max(ranks), ranks, 0.0)
    own = [whole_s(figures, layers, slices, device, items) for device, items in ends]
    stage_s, join_s = max(own), 0.0
    for x in slices:
        times = slice_times(figures, x, devices, shares[0])
        own = [a + b for a, b in zip(own, times, strict=True)]
        stage_s += max(times)
        join_s += joins_s(figures, x, devices, shares[0])
    return ComputeTimes(stage_s, tuple(own), join_s)
