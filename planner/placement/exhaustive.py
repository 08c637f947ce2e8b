"""Every placement of a tiny problem, one after another: the oracle of the tests."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from planner.placement.answer import Placement
from planner.placement.check import check_latency, check_loads
from planner.placement.problem import PlacementProblem
from profiler.errors import InvalidInputError

MAX_PLACEMENTS = 10**6


def best_loads(problem: PlacementProblem, *, contiguous: bool) -> tuple[float, Placement | None]:
    """The least largest load, infinite without a feasible placement."""
    best, found = math.inf, None
    for devices in _devices(problem):
        seen = check_loads(problem, devices, contiguous=contiguous)
        if not seen.violations and seen.objective_s < best:
            best, found = seen.objective_s, Placement(devices=devices)
    return best, found


def best_latency(problem: PlacementProblem, *, max_jobs: int) -> tuple[float, Placement | None]:
    """The least latency of one sample, infinite without a feasible placement."""
    best, found = math.inf, None
    for devices in _devices(problem):
        placed = [i for i, d in enumerate(devices) if not problem.places[d].is_host]
        for numbers in itertools.product(range(max_jobs), repeat=len(placed)):
            jobs = [0] * len(devices)
            for i, number in zip(placed, numbers, strict=True):
                jobs[i] = number
            seen = check_latency(problem, devices, tuple(jobs), max_jobs=max_jobs)
            if not seen.violations and seen.objective_s < best:
                best, found = seen.objective_s, Placement(devices=devices, jobs=tuple(jobs))
    return best, found


def _devices(problem: PlacementProblem) -> Iterator[tuple[int, ...]]:
    count = len(problem.places) ** len(problem.groups)
    if count > MAX_PLACEMENTS:
        raise InvalidInputError(
            f"{count} placements are too many to try (at most {MAX_PLACEMENTS}): use a solver"
        )
    for chosen in itertools.product(range(len(problem.places)), repeat=len(problem.groups)):
        devices = [0] * len(problem.operators)
        for members, device in zip(problem.groups, chosen, strict=True):
            for i in members:
                devices[i] = device
        yield tuple(devices)
