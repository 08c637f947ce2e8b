"""Any stage graph, by OR-Tools CP-SAT.

The model is that of ``stage_graphs`` with an objective of ``stage_times``, from a warm start of
simpler solvers. It is solved twice: in coarse ticks with all that CP-SAT offers, which finds the
plan and proves it up to rounding; then in fine ticks, asking only for something better. Answers
that do not fit by the full memory ledger are cut off and the search repeated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from planner.bounds import objective_bound_s
from planner.cost import CostModel
from planner.flows import Routing
from planner.options import place
from planner.problem import PlanningProblem
from planner.request import Split
from planner.slices import slices_within
from planner.solvers.base import (
    TOLERANCE,
    Assignment,
    SolveLimits,
    Solver,
    SolverResult,
    SolveStatus,
    StageAssignment,
)
from planner.solvers.chain import ChainSolver
from planner.solvers.greedy import GreedySolver
from planner.solvers.integer_solving import LARGEST_SUM, solve_integer
from planner.solvers.slots import Slots
from planner.solvers.stage_graphs import StageGraphs
from planner.solvers.stage_times import StageTimes
from planner.targets import KEPT

MAX_CLAUSES = 3e6
"""Rough size of a model; beyond it building takes longer than is worth it."""

COARSE_TICKS = 10**9
FINE_TICKS = 10**12
LEAST_FINE_S = 1.0


class CpSatSolver:
    """The optimum over all stage graphs, or the best found and a bound."""

    name: ClassVar[str] = "cp_sat"

    def rejects(self, problem: PlanningProblem) -> str | None:
        """Why this solver cannot take ``problem``, or None."""
        if problem.must_use in (Split.TENSOR, Split.PIPELINES):
            return f"it knows no split by {problem.must_use.value}"
        slots = min(len(problem.devices), problem.max_stages)
        graph = problem.graph
        size = slots**3 / 3 + slots**2 * (graph.digraph.number_of_edges() + len(graph.tensors))
        if size > MAX_CLAUSES:
            return f"about {size:.1e} clauses are too many (at most {MAX_CLAUSES:.0e})"
        return None

    def solve(
        self, problem: PlanningProblem, *, cost: CostModel, limits: SolveLimits
    ) -> SolverResult:
        """The best stage graph, and a bound for those described in ``space``."""
        search = _Search(problem, cost, limits)
        search.warm_start()
        start = time.monotonic()
        search.run(COARSE_TICKS, limits)
        if search.nearly_proved:
            # What is left is a matter of rounding: not worth much more than the search itself.
            spent = time.monotonic() - start
            enough = time.monotonic() + max(LEAST_FINE_S, 2 * spent)
            search.run(FINE_TICKS, replace(limits, deadline=min(limits.deadline, enough)))
        return search.result()


class _Search:
    """The best plan and the bound so far."""

    def __init__(self, problem: PlanningProblem, cost: CostModel, limits: SolveLimits) -> None:
        self.problem, self.cost, self.limits = problem, cost, limits
        self.slots = Slots(problem, cost.figures)
        self.best: Assignment | None = None
        self.objective_s = math.inf
        self.bound_s = objective_bound_s(problem, cost.figures)
        self.cutoff_s = problem.targets.most_of(problem.request.objective) * (1 + 2 * KEPT)
        if limits.cutoff_s is not None:
            self.cutoff_s = min(self.cutoff_s, limits.cutoff_s)
        self.excluded: list[tuple[int, tuple[int, ...]]] = []

    @property
    def ceiling_s(self) -> float:
        """Nothing above this is of use."""
        return min(self.objective_s, self.cutoff_s)

    @property
    def nearly_proved(self) -> bool:
        """Whether only rounding may be left between plan and bound."""
        return 0 < self.ceiling_s < math.inf and self.bound_s >= self.ceiling_s * (1 - 1e-3)

    def warm_start(self) -> None:
        """A line of stages and simple rules, with tensors sent directly."""
        chain = ChainSolver()
        spent = self.limits.deadline - 0.7 * self.limits.remaining_s()
        part = replace(self.limits, deadline=spent, cutoff_s=None)
        solvers: list[Solver] = [GreedySolver()]
        if not chain.too_large(self.problem):
            solvers.append(chain)
        for solver in solvers:
            found = solver.solve(self.problem, cost=self.cost, limits=part).assignment
            if found is not None:
                self._keep(
                    Assignment.single(
                        found.stages, items=self.problem.items, routing=Routing.DIRECT
                    )
                )

    def run(self, ticks: int, limits: SolveLimits) -> None:
        """Search in units of the ceiling over ``ticks`` until something is proved."""
        fine = ticks == FINE_TICKS
        while not limits.expired and self.objective_s > self.bound_s * (1 + TOLERANCE):
            if self.objective_s <= limits.goal_s:
                return
            graphs, scale = self._model(ticks)
            answer = solve_integer(graphs.model, limits, presolve=not fine)
            if answer.status is SolveStatus.INFEASIBLE:
                self.bound_s = max(self.bound_s, self.ceiling_s)
                return
            self.bound_s = max(self.bound_s, answer.bound / scale * (1 - 1e-15))
            if not answer.values:
                return
            found = _decode(self.problem, graphs, answer.values)
            before = self.objective_s
            misfits = self._keep(found)
            for stage in misfits:
                self.excluded.append(_held(graphs, answer.values, stage))
            # Without a ceiling the ticks were too coarse; in fine ones, better means again.
            again = before == math.inf > self.objective_s or (fine and self.objective_s < before)
            if not misfits and not again:
                return

    def result(self) -> SolverResult:
        """What was found and proved."""
        space = (
            f"one pipeline; any stages, {self.slots.describe()}; every tensor goes straight from "
            "the stage that computes it to each that reads it"
        )
        best, bound = self.best, self.bound_s
        if best is None or self.objective_s > self.cutoff_s:
            nothing = bound == math.inf
            # What needs the memory of several devices for one stage may not have been looked for.
            proved = nothing and not self.slots.tensor_left_out
            # Nor groups beyond those that there are slots for, where there must be one.
            proved = proved and not (self.problem.must_use and self.slots.left_out)
            return SolverResult(
                status=SolveStatus.INFEASIBLE if proved else SolveStatus.UNKNOWN,
                assignment=None,
                objective_s=None,
                bound_s=None if nothing else bound,
                space=space,
                candidates=self._candidates,
            )
        bound = min(bound, self.objective_s)
        proved = self.objective_s - bound <= TOLERANCE * bound
        return SolverResult(
            status=SolveStatus.OPTIMAL if proved else SolveStatus.FEASIBLE,
            assignment=best,
            objective_s=self.objective_s,
            bound_s=bound,
            space=space,
            candidates=self._candidates,
        )

    @property
    def _candidates(self) -> int:
        return self.problem.num_layers * len(self.slots.slots)

    def _keep(self, assignment: Assignment) -> list[int]:
        """Take a plan if it is the best; the stages that do not fit in memory."""
        must, price = self.problem.must_use, self.cost.evaluate(assignment)
        objective = price.objective_s(self.problem.request.objective)
        as_told = must is None or assignment.uses(must)
        if price.allowed and as_told and objective < self.objective_s:
            self.best, self.objective_s = assignment, objective
        return sorted({r.stage for r in price.shortfalls() if r.stage is not None})

    def _model(self, ticks: int) -> tuple[StageGraphs, float]:
        """The model with the ceiling at ``ticks``, or fewer where sums get too large."""
        ceiling = self.ceiling_s
        if ceiling == math.inf:
            ceiling = _anything_s(self.problem, self.cost, self.slots)
        while True:
            graphs = StageGraphs(self.problem, self.cost.figures, self.slots)
            times = StageTimes(graphs, ceiling_s=ceiling, ceiling_ticks=ticks)
            largest = graphs.model.largest_sum()
            if ticks == FINE_TICKS or largest <= LARGEST_SUM:
                break
            ticks = max(1000, int(ticks * LARGEST_SUM / largest) - 1)
        if self.best is not None:
            graphs.hint(self.best)
        for slot, layers in self.excluded:
            _exclude(graphs, slot, layers)
        return graphs, times.scale


def _anything_s(problem: PlanningProblem, cost: CostModel, slots: Slots) -> float:
    """More than any plan takes: all layers where they are slowest, all tensors over all links, all
    joins of any way to divide regions."""
    figures = cost.figures
    total = sum(
        max(
            figures.compute_s([i], members[0], items)
            for members in problem.classes
            for items in (problem.microbatch, problem.batch)
        )
        for i in range(problem.num_layers)
    )
    for tensor in problem.graph.tensors:
        size = figures.tensor_bytes(tensor.name, problem.batch)
        total += len(problem.devices) * max(
            (link.transfer_time_s(size) for _, link in problem.kinds_of_link()), default=0.0
        )
    total += max(
        (
            sum(slots.divided_s(s, x) for x in slot.option.slicing)
            for s, slot in enumerate(slots.slots)
        ),
        default=0.0,
    )
    return max(4 * problem.num_microbatches * len(problem.devices) * total, 1e-12)


def _order(graphs: StageGraphs, values: Sequence[int]) -> list[int]:
    """Slots with layers, in the order of their stages."""
    held = sorted({s for (_, s), x in graphs.x.items() if values[x]})

    def holds(literal: int) -> bool:
        return bool(values[literal]) if literal >= 0 else not values[-literal - 1]

    return sorted(held, key=lambda s: sum(holds(graphs.before(t, s)) for t in held if t != s))


def _decode(problem: PlanningProblem, graphs: StageGraphs, values: Sequence[int]) -> Assignment:
    order = _order(graphs, values)
    options = [graphs.slots.slots[s].option for s in order]
    stages = []
    for s, option, devices in zip(order, options, place(problem, options), strict=True):
        layers = tuple(i for i in graphs.layers if (i, s) in graphs.x and values[graphs.x[i, s]])
        waits = not problem.whole_batch.isdisjoint(layers)
        stages.append(
            StageAssignment(
                layers=layers,
                devices=devices,
                shares=(problem.batch,) if waits else tuple(n for _, n in option.members),
                whole_batch=waits,
                slices=slices_within(problem, option.slicing, layers),
            )
        )
    return Assignment.single(stages, items=problem.items, routing=Routing.DIRECT)


def _held(graphs: StageGraphs, values: Sequence[int], stage: int) -> tuple[int, tuple[int, ...]]:
    """The slot of a stage, and the layers in it."""
    s = _order(graphs, values)[stage]
    return s, tuple(i for i in graphs.layers if (i, s) in graphs.x and values[graphs.x[i, s]])


def _exclude(graphs: StageGraphs, slot: int, layers: tuple[int, ...]) -> None:
    """Forbid exactly these layers together on a slot, or on one like it."""
    option = graphs.slots.slots[slot].option
    for s in graphs.places:
        if graphs.slots.slots[s].option == option:
            graphs.model.any_of(
                *(
                    -graphs.x[i, s] - 1 if i in layers else graphs.x[i, s]
                    for i in graphs.layers
                    if (i, s) in graphs.x
                )
            )
