"""Exact search over lines of stages: every cut of the layers' order, every order of devices.

Throughput is a dynamic programme inside a bisection (``chain_period``), latency a shortest path
(``chain_latency``). Where the other time is limited, shortest paths answer for both: the least
latency of plans that keep a period; and, bisecting that, the least period of plans that keep a
latency. On a model whose layers have only one order this is the whole space of stages
that relay what passes through; on a branching model it is a part, and nothing is proved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar

from planner.bounds import period_bound_s
from planner.cost import CostModel
from planner.flows import Routing
from planner.options import MAX_WORK, Option, OptionSet, find_options, place, stage_on
from planner.problem import PlanningProblem
from planner.request import Split
from planner.solvers.base import (
    Assignment,
    SolveLimits,
    SolverResult,
    SolveStatus,
)
from planner.solvers.chain_latency import LatencySearch
from planner.solvers.chain_period import PeriodSearch
from planner.solvers.chain_tables import ChainTables, Progress, Step
from planner.targets import KEPT

MAX_ENTRIES = 10**8
"""Sets of used devices, times last devices, times layers, that are tabulated (8 bytes each)."""

ONE_PIPELINE = "one pipeline"
"""How a space of single pipelines begins."""

MAX_TRIALS = 200
"""Trial periods of one solve; a bound is left if they do not suffice."""

ENDLESS_S = 1e300
"""A period that any plan keeps: finite, to tell it from what cannot be."""

KEPT_BY = (1 + KEPT) * (1 + 1e-11)
"""Times a limit: what a programme leaves in, so that no allowed plan is lost to rounding."""

_PROOF = 1e-12  # a plan better by less than this fraction is not better: rounding


class ChainSolver:
    """The optimum over consecutive runs of layers, for both objectives."""

    name: ClassVar[str] = "chain"

    def tables(
        self, problem: PlanningProblem, cost: CostModel, found: OptionSet | None = None
    ) -> ChainTables:
        """The tables of a problem and its options, made once for the same figures."""
        found = found or options_of(problem, cost)
        known = cost.figures.tables.get(found)
        if not isinstance(known, ChainTables):
            known = cost.figures.tables[found] = ChainTables(problem, cost.figures, found)
        return known.of(problem)

    def rejects(self, problem: PlanningProblem) -> str | None:
        """Why this solver cannot take ``problem``, or None."""
        if not problem.graph.is_chain:
            return "the model branches: its layers have more than one order"
        if problem.must_use is Split.PIPELINES:
            return "it plans one pipeline"
        return self.too_large(problem)

    def too_large(self, problem: PlanningProblem) -> str | None:
        """Why the devices are too many to enumerate, or None."""
        states = math.prod(len(members) + 1 for members in problem.classes)
        entries = states * len(problem.classes) * problem.num_layers
        if entries > MAX_ENTRIES:
            return (
                f"{_size(states)} sets of devices times {problem.num_layers} layers are too many "
                f"({_size(entries)} entries; at most {_size(MAX_ENTRIES)})"
            )
        return None

    def solve(
        self, problem: PlanningProblem, *, cost: CostModel, limits: SolveLimits
    ) -> SolverResult:
        """The best line of stages, and a bound for the lines described in ``space``."""
        tables = self.tables(problem, cost)
        space = f"{ONE_PIPELINE}; {describe_lines(problem, tables.found)}"
        if not tables.root_can_stay_empty:
            return _nothing(space)
        progress = Progress()
        decode = _Decoder(problem, cost, tables.options)
        with suppress(TimeoutError):  # ``progress`` holds what is known by then
            most_s = problem.targets.other_than(problem.request.objective) * KEPT_BY
            if problem.request.objective.counts_latency:
                LatencySearch(tables).run(decode, limits, progress, batch_s=most_s)
            elif most_s < math.inf:
                _Bisection(tables, limits, progress).run(_Within(tables, decode, most_s).reach)
            else:
                _Bisection(tables, limits, progress).run(_Free(tables, decode).reach)
        return _result(problem, space, progress)


def options_of(
    problem: PlanningProblem, cost: CostModel, *, max_work: float = MAX_WORK
) -> OptionSet:
    """The options of a problem, found once for the same figures."""
    max_work = min(max_work, problem.option_work)
    known = cost.figures.tables.get(max_work)
    if not isinstance(known, OptionSet):
        known = find_options(problem, cost.figures, max_work=max_work)
        cost.figures.tables[max_work] = known
    return known


class _Decoder:
    """From steps on options to stages on devices."""

    def __init__(
        self, problem: PlanningProblem, cost: CostModel, options: tuple[Option, ...]
    ) -> None:
        self.problem, self.cost, self.options = problem, cost, options
        self.latency_s = math.inf  # of the last plan, if it is allowed
        self.routings = (
            (Routing.RELAY,) if problem.graph.is_chain else (Routing.RELAY, Routing.DIRECT)
        )

    def keep(self, steps: list[Step], progress: Progress) -> float:
        """Put the plan of ``steps`` into ``progress`` if it is better; its objective."""
        options = [self.options[step.option] for step in steps]
        stages = tuple(
            stage_on(self.problem, option, devices, range(step.start, step.end))
            for step, option, devices in zip(
                steps, options, place(self.problem, options), strict=True
            )
        )
        least = self.latency_s = float("inf")
        for routing in self.routings:
            assignment = Assignment.single(stages, items=self.problem.items, routing=routing)
            price = self.cost.evaluate(assignment)
            objective = price.objective_s(self.problem.request.objective)
            if price.allowed:
                least = min(least, objective)
                self.latency_s = min(self.latency_s, price.latency_s)
                if objective < progress.objective_s:
                    progress.assignment, progress.objective_s = assignment, objective
        return least


class _Free:
    """Lines that keep a period."""

    def __init__(self, tables: ChainTables, decode: _Decoder) -> None:
        self.search, self.decode = PeriodSearch(tables), decode

    def reach(self, trial: float, limits: SolveLimits, progress: Progress) -> float | None:
        """The period of a plan that keeps ``trial`` as the programme counts it, or None."""
        steps = self.search.reach(trial, limits, progress)
        return None if steps is None else self.decode.keep(steps, progress)


class _Within:
    """Lines that keep a period and whose latency is within a limit."""

    def __init__(self, tables: ChainTables, decode: _Decoder, latency_s: float) -> None:
        self.search, self.decode, self.latency_s = LatencySearch(tables), decode, latency_s

    def reach(self, trial: float, limits: SolveLimits, progress: Progress) -> float | None:
        """The least period seen of plans that keep ``trial`` as the programme counts it; None if
        it is proved that none of them is within the latency."""
        found = _Latencies(self.decode, progress)
        least = Progress()
        quick = replace(limits, cutoff_s=self.latency_s, goal_s=self.latency_s)
        try:
            self.search.run(found, quick, least, batch_s=trial)
        finally:
            progress.priced += least.priced
        if least.bound_s >= self.latency_s * (1 - 2 * _PROOF):
            return None
        return found.period_s


class _Latencies:
    """Keeps plans by their period for one search, and tells another their latency."""

    def __init__(self, decode: _Decoder, kept: Progress) -> None:
        self.decode, self.kept, self.period_s = decode, kept, math.inf

    def keep(self, steps: list[Step], progress: Progress) -> float:
        """See :class:`planner.solvers.chain_tables.Decode`."""
        self.period_s = min(self.period_s, self.decode.keep(steps, self.kept))
        progress.objective_s = min(progress.objective_s, self.decode.latency_s)
        return self.decode.latency_s


class _Bisection:
    """The least period for which there is a plan; what is known goes to ``progress``."""

    def __init__(self, tables: ChainTables, limits: SolveLimits, progress: Progress) -> None:
        self.limits, self.progress = limits, progress
        progress.bound_s = period_bound_s(tables.problem, tables.figures)

    def run(self, reach: Callable[[float, SolveLimits, Progress], float | None]) -> None:
        """Bisect until nothing better is left. ``reach`` gives the period of a plan for a trial
        period (a longer one where the programme leaves something out), or None if there is none.

        Raises:
            TimeoutError: the deadline has passed; ``progress`` holds what is known.
        """
        limits, progress = self.limits, self.progress
        trial = ENDLESS_S if limits.cutoff_s is None else limits.cutoff_s
        true = True  # the programme's value of the last plan is its true one
        asked = False
        for _ in range(MAX_TRIALS):
            period_s = reach(trial, limits, progress)
            if period_s is None:
                progress.bound_s = (
                    float("inf") if trial == ENDLESS_S else max(progress.bound_s, trial)
                )
                if progress.relaxed_s == float("inf"):
                    return
            else:
                true = period_s <= trial
                progress.relaxed_s = min(progress.relaxed_s, trial, period_s)
            if progress.objective_s <= limits.goal_s:
                return
            low, high = progress.bound_s, progress.relaxed_s * (1 - _PROOF)
            # Where pairs of devices share a wire, plans cost more than the programme says, and
            # there is no exact value to prove: stop when the bound is known well enough.
            if low >= high or (not true and high - low < 1e-7 * high):
                return
            # Halve while the interval is wide; then ask for the proof at once, every other time.
            middle = (low * high) ** 0.5 if low > 0 else high / 2
            asked = true and not asked and high - low < 0.02 * high
            trial = high if asked or not low < middle < high else middle


def _size(count: int) -> str:
    """A count that may have thousands of digits."""
    if count < 10**6:
        return str(count)
    return f"10^{math.log10(count):.1f}"


def describe_lines(problem: PlanningProblem, options: OptionSet) -> str:
    """What the stages of a line may be."""
    lines = "stages are consecutive runs of layers"
    if not problem.graph.is_chain:
        lines += " in the captured order"
    return f"{lines}, {options.describe(problem)}; a tensor that skips a stage is passed on by it"


def _nothing(space: str) -> SolverResult:
    return SolverResult(
        status=SolveStatus.INFEASIBLE,
        assignment=None,
        objective_s=None,
        bound_s=None,
        space=space,
        candidates=0,
    )


def _result(problem: PlanningProblem, space: str, progress: Progress) -> SolverResult:
    proved = problem.graph.is_chain
    if progress.assignment is None:
        whole = progress.bound_s == float("inf") and proved
        return SolverResult(
            status=SolveStatus.INFEASIBLE if whole else SolveStatus.UNKNOWN,
            assignment=None,
            objective_s=None,
            bound_s=progress.bound_s if proved and progress.bound_s < float("inf") else None,
            space=space,
            candidates=progress.priced,
        )
    bound = min(progress.objective_s, progress.bound_s) if proved else None
    if bound is not None and progress.objective_s <= bound * (1 + 2 * _PROOF):
        bound = progress.objective_s
    return SolverResult(
        status=SolveStatus.OPTIMAL if bound == progress.objective_s else SolveStatus.FEASIBLE,
        assignment=progress.assignment,
        objective_s=progress.objective_s,
        bound_s=bound,
        space=space,
        candidates=progress.priced,
    )
