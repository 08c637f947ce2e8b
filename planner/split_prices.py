"""What the ways to split the work cost that the plan does not use: the best plan that must use one.

Each is solved again under that condition, at the plan's microbatch size and one more at most.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from planner.alternatives import Chosen, Rival
from planner.cost import CostModel
from planner.fallbacks import describe
from planner.portfolio import solve
from planner.problem import PlanningProblem
from planner.request import Split
from planner.search import Search
from planner.searchrecord import SplitPrice
from planner.solvers.base import TOLERANCE, SolveLimits, SolverResult, SolveStatus
from profiler.errors import InvalidInputError
from profiler.units import format_seconds

TIME_FRACTION = 0.1
"""Of the time limit that pricing all splits may take, on top."""

MAX_DEVICES = 256
"""Of more devices, no split is priced by solving again."""

MAX_SIZES = 2
"""Microbatch sizes at which a split is looked for."""


def split_prices(search: Search) -> tuple[tuple[SplitPrice, ...], list[Rival]]:
    """A price for each way to split that the request allows and the plan does not use, and the
    plans that have these prices."""
    assert search.best is not None
    chosen = search.best
    asked = [
        split
        for split in Split
        if split in search.request.splits and not chosen.assignment.uses(split)
    ]
    end = time.monotonic() + TIME_FRACTION * search.request.limits.time_s
    prices, rivals = [], []
    for left, split in zip(range(len(asked), 0, -1), asked, strict=True):
        why_not = why_no_split(chosen.problem, split)
        now = time.monotonic()
        if why_not:
            prices.append(SplitPrice(split=split, verdict="impossible", note=why_not))
        elif len(chosen.problem.devices) > MAX_DEVICES:
            note = f"more than {MAX_DEVICES} devices"
            prices.append(SplitPrice(split=split, verdict="skipped", note=note))
        elif now >= end:
            note = "no time was left; raise limits.time_s"
            prices.append(SplitPrice(split=split, verdict="skipped", note=note))
        else:
            price, rival = _price(search, chosen, split, now + (end - now) / left)
            prices.append(price)
            rivals += [rival] if rival else []
    return tuple(prices), rivals


def why_no_split(problem: PlanningProblem, split: Split) -> str:
    """Why no plan can split the work in this way, if it is plain; the request allows it."""
    graph, request = problem.graph, problem.request
    if len(problem.devices) < 2:
        return "one device is all there is"
    match split:
        case Split.LAYERS:
            if problem.num_layers < 2:
                return "the model is one layer"
            if request.max_stages == 1:
                return "max_stages is 1"
            if any(len(group) == problem.num_layers for group in problem.together):
                return "all layers are kept together"
        case Split.BATCH:
            if graph.static_batch is not None:
                return f"the model was captured for exactly {graph.static_batch} items"
            if 1 in (problem.batch, request.microbatch_size):
                return "a microbatch of one item cannot be parted"
        case Split.TENSOR:
            if not any(region.units > 1 for region in graph.regions):
                return "the model has no region that can be sliced"
        case Split.PIPELINES:
            return problem.one_pipeline() or ""
    return ""


@dataclass(frozen=True, slots=True)
class _Best:
    """The best plan that uses a split, and what is proved of all that do."""

    problem: PlanningProblem | None = None
    result: SolverResult | None = None
    bound_s: float = math.inf
    unsolved: str = ""

    @property
    def objective_s(self) -> float:
        found = None if self.result is None else self.result.objective_s
        return math.inf if found is None else found


def _price(
    search: Search, chosen: Chosen, split: Split, deadline: float
) -> tuple[SplitPrice, Rival | None]:
    problems = _possible(search, chosen, split)
    best = _best_with(search, problems, split, deadline)
    sizes = " or ".join(str(problem.microbatch) for problem in problems)
    note = f"with microbatches of {sizes}"
    if split is not Split.PIPELINES:
        note = f"in one pipeline {note}"
    if best.problem is None or best.result is None or best.result.assignment is None:
        if best.bound_s == math.inf and not best.unsolved:
            note = "no such plan fits"
            if split is Split.BATCH:
                note += ", or shares by speed leave a rank without items"
            return SplitPrice(split=split, verdict="impossible", note=note), None
        bound_s = best.bound_s if best.bound_s < math.inf else None
        note = best.unsolved or "no such plan was found in the time"
        return SplitPrice(split=split, verdict="open", bound_s=bound_s, note=note), None
    assert best.result.assignment is not None
    found = Chosen(
        problem=best.problem,
        assignment=best.result.assignment,
        price=CostModel(best.problem).evaluate(best.result.assignment),
        objective_s=best.objective_s,
    )
    ours = chosen.objective_s
    worse = best.objective_s > ours * (1 + TOLERANCE)
    price = SplitPrice(
        split=split,
        verdict="costs" if worse else "free",
        objective_s=best.objective_s,
        bound_s=min(best.bound_s, best.objective_s),
        loss_s=max(0.0, best.objective_s - ours) if worse else 0.0,
        plan=describe(found),
        note=note,
    )
    rival = Rival(
        name=f"with {split.value} split",
        problem=best.problem,
        assignment=best.result.assignment,
        objective_s=best.objective_s,
        why_not=f"{format_seconds(best.objective_s)}",
    )
    return price, rival


def _best_with(
    search: Search, problems: Sequence[PlanningProblem], split: Split, deadline: float
) -> _Best:
    """The best plan that must split in this way, over microbatch sizes."""
    best = _Best()
    for left, problem in zip(range(len(problems), 0, -1), problems, strict=True):
        now = time.monotonic()
        if now > deadline and best.result is not None:
            return _Best(best.problem, best.result, min(best.bound_s, search.bound_s))
        cost = CostModel(problem)
        limits = SolveLimits(
            deadline=now + max(0.05, (deadline - now) / left),
            workers=search.request.limits.workers,
            seed=search.request.limits.seed,
            cutoff_s=None if best.objective_s == math.inf else best.objective_s,
        )
        try:
            result = solve(problem, cost=cost, name=search.request.solver, limits=limits)[1]
        except InvalidInputError:
            unsolved = f"no solver for this model can be told to use a {split.value} split"
            return _Best(best.problem, best.result, search.bound_s, unsolved)
        bound_s = math.inf
        if result.status is not SolveStatus.INFEASIBLE:
            # What is proved of all plans holds for those that split so.
            bound_s = max(result.bound_s or 0.0, search.bounds_s.get(problem.microbatch, 0.0))
        better = (result.objective_s or math.inf) < best.objective_s
        best = _Best(
            problem if better else best.problem,
            result if better else best.result,
            min(best.bound_s, bound_s),
        )
    return best


def _possible(search: Search, chosen: Chosen, split: Split) -> Sequence[PlanningProblem]:
    """Problems where the split is of use, that of the chosen plan first, then the most promising:
    a microbatch of one item cannot be parted, and a single one is for one pipeline."""
    sizes = {cost.problem.microbatch: cost.problem for cost in search.costs}
    sizes.pop(chosen.problem.microbatch, None)
    found = [
        problem
        for problem in (chosen.problem, *sizes.values())
        if (split is not Split.BATCH or problem.batch_splits)
        and (split is not Split.PIPELINES or problem.num_microbatches > 1)
    ]
    most = 1 if chosen.problem in found else MAX_SIZES
    return [problem.using(split) for problem in (found or [chosen.problem])[:most]]
