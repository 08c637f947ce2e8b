"""Placements with the least largest load: contiguous, or any.

Contiguous: :mod:`~planner.placement.contiguous` where down-sets are few, else CP-SAT on
:class:`~planner.placement.model.PlacementModel`. Any: the contiguous answer is the start; bounds
come from columns (:mod:`~planner.placement.column_bound`) and from CP-SAT, better answers from
CP-SAT. Blocks that no better answer separates are merged first, again for each ceiling.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from planner.placement.answer import Placement, PlacementResult
from planner.placement.blocks import Blocks, inseparable, without_appendages
from planner.placement.bounds import load_bound_s
from planner.placement.column_bound import Refutation
from planner.placement.contiguous import best_line
from planner.placement.downsets import down_sets, prefixes
from planner.placement.model import PlacementModel
from planner.placement.pairs import filled, improved
from planner.placement.problem import PlacementProblem
from planner.solvers.base import SolveLimits, SolveStatus
from planner.solvers.integer_solving import LARGEST_SUM, solve_integer

MAX_TABLE = 5 * 10**7
"""Blocks times down-sets, a byte each."""

TICKS = 10**8
COLUMN_TICKS = (600, 1500)
PROVED = 1e-6
"""A bound this close to the objective, as a fraction, is a proof: CP-SAT counts whole ticks."""

NUM_FILLINGS = 8
CLOSE = 0.02
"""A gap of this much is sought first; what time is left goes into closing it further."""

CONTIGUOUS = "devices in a line, tensors flow forwards only"
ANY = "any placement"


def place_contiguous(problem: PlacementProblem, limits: SolveLimits) -> PlacementResult:
    """The best contiguous placement, or the best found in time and a bound."""
    search = _Search(problem, ordered=True)
    method = search.by_down_sets(limits)
    if method is not None:
        return search.result(CONTIGUOUS, method)
    search.by_integers(limits)
    return search.result(CONTIGUOUS, "CP-SAT")


def place_contiguous_by_integers(problem: PlacementProblem, limits: SolveLimits) -> PlacementResult:
    """The same by CP-SAT alone: for graphs with too many down-sets, and to compare."""
    search = _Search(problem, ordered=True)
    search.by_integers(limits)
    return search.result(CONTIGUOUS, "CP-SAT")


def place_any(
    problem: PlacementProblem, limits: SolveLimits, *, start: Placement | None = None
) -> PlacementResult:
    """The best placement without a rule of contiguity, never worse than ``start``.

    Without a ``start`` the best contiguous placement is sought first, and is it.
    """
    search = _Search(problem, ordered=False)
    if start is None:
        start = place_contiguous(problem, _until(limits, limits.remaining_s() * 0.2)).placement
    if start is not None:
        search.keep(start.devices)
    search.by_pairs(_until(limits, limits.remaining_s() * 0.2))
    search.by_filling(_until(limits, limits.remaining_s() * 0.3))
    search.by_columns(_until(limits, limits.remaining_s() * 0.3))
    before = search.objective_s
    search.by_integers(_until(limits, limits.remaining_s() * 0.5))
    if search.objective_s < before:
        search.by_pairs(_until(limits, limits.remaining_s() * 0.5))
    search.by_columns(limits)
    return search.result(ANY, "columns, CP-SAT")


def _until(limits: SolveLimits, seconds: float) -> SolveLimits:
    return replace(limits, deadline=min(limits.deadline, time.monotonic() + seconds))


class _Search:
    """The best placement and the bound so far."""

    def __init__(self, problem: PlacementProblem, *, ordered: bool) -> None:
        self.problem = problem
        self.blocks = without_appendages(Blocks.build(problem, ordered=ordered))
        self.devices: tuple[int, ...] | None = None
        self.objective_s = math.inf
        self.bound_s = load_bound_s(self.blocks)

    @property
    def proved(self) -> bool:
        """Whether nothing better is left to find."""
        return self.bound_s >= self.objective_s * (1 - PROVED) or math.isinf(self.bound_s)

    def keep(self, devices: tuple[int, ...]) -> None:
        """Take a placement of all operators if it is the best."""
        found = self._objective_s(devices)
        if found < self.objective_s:
            self.devices, self.objective_s = devices, found

    def _objective_s(self, devices: tuple[int, ...]) -> float:
        fine = Blocks(problem=self.problem, members=self.problem.groups, ordered=False)
        held: dict[int, list[int]] = defaultdict(list)
        for b, members in enumerate(fine.members):
            held[devices[members[0]]].append(b)
        return max(
            fine.load_s(held[p], c) for c, places in enumerate(self.problem.classes) for p in places
        )

    def by_down_sets(self, limits: SolveLimits) -> str | None:
        """Dynamic programming; None if there are too many down-sets."""
        blocks = self.blocks
        if self.proved:
            return "a block that fits on no device"
        line = best_line(blocks, prefixes(blocks), ceiling_s=self._anything_s(), limits=limits)
        if line is not None and line.devices is not None:
            self.keep(blocks.spread(line.devices))
            blocks = inseparable(blocks, self.objective_s)
            if math.isinf(load_bound_s(blocks)):
                self.bound_s = self.objective_s
                return "blocks that only the best line separates"
        sets = down_sets(blocks, limit=MAX_TABLE // blocks.num_blocks)
        if sets is None:
            return None
        ceiling = min(self.objective_s * (1 + 1e-12), self._anything_s())
        line = best_line(blocks, sets, ceiling_s=ceiling, limits=limits)
        if line is None:
            return None
        if line.devices is not None:
            self.keep(blocks.spread(line.devices))
            self.bound_s = self.objective_s
        elif line.bound_s >= ceiling:
            self.bound_s = self.objective_s
        else:
            self.bound_s = max(self.bound_s, line.bound_s)
        return f"{sets.count} down-sets"

    def _anything_s(self) -> float:
        """More than any load: everything on the slowest device that runs it, all nets cut."""
        times = self.blocks.times_s
        work = math.fsum(np.where(np.isfinite(times), times, 0.0).max(axis=0))
        wire = float(self.blocks.factors.max()) * math.fsum(c for _, c in self.blocks.nets)
        return max((work + wire) * (1 + 1e-9), 1e-12)

    def by_integers(self, limits: SolveLimits) -> None:
        """CP-SAT, from the best placement so far."""
        excluded: list[tuple[Sequence[int], int]] = []
        while not limits.expired and not self.proved:
            ceiling = min(self.objective_s, self._anything_s())
            blocks = inseparable(self.blocks, ceiling)
            if self.devices is not None and math.isinf(load_bound_s(blocks)):
                self.bound_s = self.objective_s
                return
            held = self._held(blocks)
            if held is None and self.devices is not None:
                blocks = self.blocks
                held = self._held(blocks)
            model = self._model(blocks, ceiling)
            for operators, slot in excluded:
                model.exclude(sorted({blocks.block_of[i] for i in operators}), slot)
            if held is not None and not blocks.ordered:
                model.hint(held)
            answer = solve_integer(model.model, limits)
            assert not answer.refused, "CP-SAT calls the model invalid"
            if answer.status is SolveStatus.INFEASIBLE:
                self.bound_s = ceiling if self.devices is not None else math.inf
                return
            self.bound_s = max(self.bound_s, answer.bound / model.scale * (1 - 1e-15))
            if not answer.values:
                return
            devices = model.devices(answer.values)
            misfit = _misfit(blocks, devices)
            if misfit is not None:
                chosen, slot = misfit
                excluded.append(([i for b in chosen for i in blocks.members[b]], slot))
                continue
            before = self.objective_s
            self.keep(blocks.spread(devices))
            if answer.status is SolveStatus.OPTIMAL and before < math.inf:
                return

    def _model(self, blocks: Blocks, ceiling_s: float) -> PlacementModel:
        ticks = TICKS
        while True:
            model = PlacementModel(blocks, ceiling_s=ceiling_s, ticks=ticks)
            largest = model.model.largest_sum()
            if largest <= LARGEST_SUM:
                return model
            ticks = max(1000, int(ticks * LARGEST_SUM / largest) - 1)

    def _held(self, blocks: Blocks) -> tuple[int, ...] | None:
        """The device of each block in the best placement; None if it separates one."""
        if self.devices is None:
            return None
        found: list[int] = []
        for members in blocks.members:
            own = {self.devices[i] for i in members}
            if len(own) > 1:
                return None
            found.extend(own)
        return tuple(found)

    def by_pairs(self, limits: SolveLimits) -> None:
        """Better placements by sharing out the blocks of two devices again, pair after pair."""
        if self.devices is None:
            return
        blocks = self.blocks
        held = self._held(blocks)
        if held is not None:
            found = improved(blocks, held, goal_s=self.bound_s, limits=limits)
            self.keep(blocks.spread(found))

    def by_filling(self, limits: SolveLimits) -> None:
        """More starts for :meth:`by_pairs`: devices filled one by one up to several ceilings."""
        top = self.objective_s if self.devices is not None else 2 * self.bound_s
        best = self.devices, self.objective_s
        for step in range(NUM_FILLINGS):
            if limits.expired or self.proved:
                return
            ceiling = self.bound_s + (top - self.bound_s) * step / NUM_FILLINGS
            blocks = inseparable(self.blocks, ceiling)
            if math.isinf(load_bound_s(blocks)):
                self.bound_s = max(self.bound_s, ceiling)
                continue
            devices = filled(blocks, ceiling_s=ceiling) if ceiling > 0 else None
            if devices is None or _misfit(blocks, devices) is not None:
                continue
            self.devices, self.objective_s = None, math.inf
            self.keep(blocks.spread(devices))
            self.by_pairs(limits)
            if self.objective_s < best[1]:
                best = self.devices, self.objective_s
            self.devices, self.objective_s = best

    def by_columns(self, limits: SolveLimits) -> None:
        """Raise the bound: refute ceilings, first the one that makes the gap small."""
        top = self.objective_s
        if math.isinf(top) or self.proved:
            return
        trial, share = top / (1 + CLOSE), 0.9
        if trial <= self.bound_s:
            trial, share = (top + self.bound_s) / 2, 0.5
        while not limits.expired and trial - self.bound_s > 1e-4 * top:
            part = _until(limits, max(1.0, share * limits.remaining_s()))
            blocks = inseparable(self.blocks, trial)
            if load_bound_s(blocks) > trial or self._refuted(blocks, trial, part):
                self.bound_s = max(self.bound_s, trial)
            else:
                top = trial
            trial, share = (top + self.bound_s) / 2, 0.5

    @staticmethod
    def _refuted(blocks: Blocks, ceiling_s: float, limits: SolveLimits) -> bool:
        attempt = Refutation(blocks, ceiling_s=ceiling_s, ticks=COLUMN_TICKS)
        return attempt.run(limits) is SolveStatus.INFEASIBLE

    def result(self, space: str, method: str) -> PlacementResult:
        """What was found and proved."""
        if self.devices is None:
            nothing = math.isinf(self.bound_s)
            return PlacementResult(
                status=SolveStatus.INFEASIBLE if nothing else SolveStatus.UNKNOWN,
                placement=None,
                objective_s=None,
                bound_s=None if nothing else self.bound_s,
                space=space,
                method=method,
            )
        return PlacementResult(
            status=SolveStatus.OPTIMAL if self.proved else SolveStatus.FEASIBLE,
            placement=Placement(devices=self.devices),
            objective_s=self.objective_s,
            bound_s=min(self.bound_s, self.objective_s),
            space=space,
            method=method,
        )


def _misfit(blocks: Blocks, devices: Sequence[int]) -> tuple[list[int], int] | None:
    """Blocks of a device that do not fit, which sizes in coarse units did not show."""
    held: dict[int, list[int]] = defaultdict(list)
    for b, device in enumerate(devices):
        held[device].append(b)
    for device, chosen in sorted(held.items()):
        memory = blocks.problem.places[device].memory_bytes
        if memory is not None and int(blocks.sizes[chosen].sum()) > memory:
            return chosen, device
    return None
