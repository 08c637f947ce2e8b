"""Why not otherwise: the plans that were not chosen, and the devices that stay idle.

Every figure comes from pricing or from solving again under one more condition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from planner.cost import CostModel, PlanCost
from planner.lower import describe_bottleneck
from planner.problem import PlanningProblem
from planner.request import Objective, Split
from planner.rules import RuleOutcome
from planner.searchrecord import Alternative, IdleDevice
from planner.solvers.base import TOLERANCE, Assignment, SolverResult, SolveStatus
from profiler.units import format_bytes, format_seconds

Resolve = Callable[[PlanningProblem], SolverResult]
"""Solves a variant of the problem within the time that is left."""

MAX_DEVICES = 256
"""Of more devices, none is priced by solving again: what is proved of all plans must do."""

MAX_PRICED = 6
"""Kinds of idle device that are priced by solving again; the rest share a shorter reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The plan that others are compared with."""

    problem: PlanningProblem
    assignment: Assignment
    price: PlanCost
    objective_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """Another plan for a variant of the problem, or why there is none."""

    name: str
    problem: PlanningProblem
    assignment: Assignment | None
    objective_s: float | None
    why_not: str


def rule_rivals(
    applied: Sequence[tuple[PlanningProblem, Sequence[RuleOutcome]]], chosen: Chosen
) -> list[Rival]:
    """The rules people use, each at its best microbatch size."""
    outcomes: dict[int, list[tuple[PlanningProblem, RuleOutcome]]] = {}
    for problem, found in applied:
        for position, outcome in enumerate(found):
            outcomes.setdefault(position, []).append((problem, outcome))
    rivals = []
    for tried in outcomes.values():
        priced = [
            (price.objective_s(problem.request.objective), problem, outcome, price)
            for problem, outcome in tried
            if (price := outcome.price) is not None
        ]
        if not priced:
            problem, outcome = tried[-1]
            rivals.append(_lacking(problem, outcome.name, outcome.why_not))
            continue
        _, problem, outcome, price = min(priced, key=lambda p: p[0])
        rivals.append(_priced(problem, outcome.name, outcome.assignment, price, chosen))
    return rivals


def split_rivals(
    others: Sequence[PlanningProblem], chosen: Chosen, resolve: Resolve
) -> list[Rival]:
    """The best plans that may use fewer ways to split the work than the chosen one does.

    ``others`` are the problems at other microbatch sizes.
    """
    problem = chosen.problem
    if len(problem.devices) > MAX_DEVICES:
        return []
    rivals = []
    for name, splits in _fewer_splits(problem, chosen.assignment).items():
        problems = [problem]
        if splits == (Split.PIPELINES,):  # quickly solved; many microbatches are even shares
            problems += [p for p in others if p.microbatch != problem.microbatch]
        tried = []
        for here in problems:
            request = here.request.model_copy(update={"splits": splits})
            result = resolve(replace(here, request=request))
            tried.append((result.objective_s is None, result.objective_s or 0.0, result, here))
        *_, result, here = min(tried, key=lambda t: t[:2])
        if result.assignment is None:
            rivals.append(_lacking(here, name, f"no such plan fits (solver {result.status})"))
            continue
        price = CostModel(here).evaluate(result.assignment)
        rivals.append(_priced(here, name, result.assignment, price, chosen))
    return rivals


def _fewer_splits(problem: PlanningProblem, assignment: Assignment) -> dict[str, tuple[Split, ...]]:
    """Ways of splitting that are less than what was allowed, and that ``assignment`` exceeds."""
    possible = {
        Split.LAYERS: Split.LAYERS in problem.request.splits and problem.num_layers > 1,
        Split.BATCH: problem.batch_splits,
        Split.TENSOR: problem.tensor_splits and len(problem.devices) > 1,
        Split.PIPELINES: problem.one_pipeline() is None,
    }
    allowed = tuple(split for split in Split if possible[split])
    found: dict[str, tuple[Split, ...]] = {}
    for name, splits in (
        ("one pipeline", tuple(s for s in allowed if s is not Split.PIPELINES)),
        ("no tensor split", tuple(s for s in allowed if s is not Split.TENSOR)),
        ("layers only", (Split.LAYERS,)),
        ("batch only", (Split.BATCH,)),
        ("tensor only", (Split.TENSOR,)),
        ("pipelines side by side only", (Split.PIPELINES,)),
    ):
        fewer = set(splits) < set(allowed)
        exceeded = any(assignment.uses(split) for split in Split if split not in splits)
        if fewer and exceeded and splits not in found.values():
            found[name] = splits
    return found


def idle_rivals(
    chosen: Chosen, resolve: Resolve, *, bound_s: float
) -> tuple[list[IdleDevice], list[Rival]]:
    """Why each device without a stage has none, and the best plans that use one of them.

    No plan has an objective below ``bound_s``, whatever devices it uses.
    """
    problem = chosen.problem
    used = set(chosen.assignment.devices)
    reasons: dict[str, str] = {}
    rivals: list[Rival] = []
    for members in problem.classes:
        idle = [device for device in members if device not in used]
        if not idle:
            continue
        if len(problem.devices) > MAX_DEVICES:
            reason = _left_over(problem, chosen, idle[0], bound_s)
        elif len(rivals) >= MAX_PRICED:
            reason = _cheapest_way_in(problem, chosen, idle[0])
        else:
            forced = [device for device in members if device in used] + idle[:1]
            result = resolve(problem.requiring(forced))
            rivals.append(_forced(chosen, idle[0], result))
            reason = rivals[-1].why_not
        reasons.update(dict.fromkeys(idle, reason))
    listed = []
    for device in problem.cluster.device:
        if device not in used:
            reason = reasons.get(device, "the request forbids every layer on it")
            listed.append(IdleDevice(device=device, reason=reason))
    return listed, rivals


def as_alternatives(rivals: Sequence[Rival]) -> tuple[Alternative, ...]:
    """Rivals for the plan file, best first; the ones that do not fit last."""
    ordered = sorted(rivals, key=lambda r: (r.objective_s is None, r.objective_s or 0.0, r.name))
    return tuple(
        Alternative(plan=r.name, objective_s=r.objective_s, why_not=r.why_not) for r in ordered
    )


def _lacking(problem: PlanningProblem, name: str, why_not: str) -> Rival:
    return Rival(name=name, problem=problem, assignment=None, objective_s=None, why_not=why_not)


def _priced(
    problem: PlanningProblem,
    name: str,
    assignment: Assignment | None,
    price: PlanCost,
    chosen: Chosen,
) -> Rival:
    objective_s = price.objective_s(problem.request.objective)
    slower = _slower(objective_s, chosen)
    same = assignment == chosen.assignment and problem.microbatch == chosen.problem.microbatch
    why = "this is the plan" if same else slower or "equally good"
    if slower and not chosen.problem.request.objective.counts_latency:
        assert assignment is not None
        why = describe_bottleneck(assignment, price)
    return Rival(
        name=name,
        problem=problem,
        assignment=assignment,
        objective_s=objective_s,
        why_not=why,
    )


def _slower(objective_s: float, chosen: Chosen) -> str:
    """By how much ``objective_s`` is worse, or nothing if it is not."""
    if objective_s <= chosen.objective_s * (1 + TOLERANCE):
        return ""
    if chosen.objective_s <= 0:
        return f"{format_seconds(objective_s)} instead of none"
    return f"{objective_s / chosen.objective_s - 1:+.1%} time"


def _forced(chosen: Chosen, device: str, result: SolverResult) -> Rival:
    """What the best plan with ``device`` costs."""
    problem, objective_s = chosen.problem, result.objective_s
    if result.assignment is None or objective_s is None:
        if result.bound_s is not None and result.bound_s > chosen.objective_s:
            why = f"every plan with it takes at least {format_seconds(result.bound_s)}"
        elif problem.targets.limited:
            why = "no plan with a stage on it keeps every limit, or none was found"
            if result.status is SolveStatus.INFEASIBLE:
                why = "no plan with a stage on it fits and keeps every limit"
                if problem.request.objective in (Objective.DEVICES, Objective.PRICE):
                    why = "with it as well it is more than the least that keeps the limits"
        else:
            why = _no_room(problem, device)
        return _lacking(problem, f"with {device}", why)
    ours, theirs = format_seconds(chosen.objective_s), format_seconds(objective_s)
    what = "latency" if problem.request.objective.counts_latency else "period"
    slower = _slower(objective_s, chosen)
    if slower:
        proof = "" if result.status is SolveStatus.OPTIMAL else " found"
        why = f"the best plan{proof} with a stage on it has a {what} of {theirs} instead of {ours}"
        if theirs == ours:
            why += f" ({slower})"
    elif not problem.request.objective.counts_latency:
        bottleneck = describe_bottleneck(chosen.assignment, chosen.price)
        why = f"a stage on it leaves the {what} at {ours}: {bottleneck}"
    else:
        why = f"a stage on it does not bring the {what} below {ours}"
    return Rival(
        name=f"with {device}",
        problem=problem,
        assignment=result.assignment,
        objective_s=objective_s,
        why_not=why,
    )


def _no_room(problem: PlanningProblem, device: str) -> str:
    """Why nothing was found with ``device``: memory for the smallest layer, or no proof."""
    room = problem.capacity_bytes(device) - problem.reserve_bytes(device)
    graph = problem.graph
    weights = min(
        (graph.weight_bytes([i]), i)
        for i in range(problem.num_layers)
        if device in problem.allowed[i]
    )
    if weights[0] > room:
        return (
            f"its smallest layer, {graph.layers[weights[1]].name}, weighs "
            f"{format_bytes(weights[0])}; {format_bytes(max(0, room))} are free"
        )
    return (
        f"no plan with a stage on it fits: {format_bytes(max(0, room))} are free for weights, "
        "activations and buffers"
    )


def _left_over(problem: PlanningProblem, chosen: Chosen, device: str, bound_s: float) -> str:
    """What a device among very many could bring at most."""
    graph, room = problem.graph, problem.capacity_bytes(device) - problem.reserve_bytes(device)
    if all(graph.weight_bytes([i]) > room for i in range(problem.num_layers)):
        return _no_room(problem, device)
    most = chosen.objective_s / bound_s - 1 if bound_s > 0 else 1.0
    return (
        f"it is left over; with it or without, no plan is more than {max(0.0, most):.2%} better "
        "than this one"
    )


def _cheapest_way_in(problem: PlanningProblem, chosen: Chosen, device: str) -> str:
    """What it costs at least to bring the smallest microbatch of any tensor to ``device``."""
    symbols = problem.graph.symbols_at(problem.microbatch)
    size = min(tensor.num_bytes(symbols) for tensor in problem.graph.tensors)
    links = [problem.links[end, device] for end in problem.cluster.device if end != device]
    seconds = min(link.transfer_time_s(size) for link in links)
    share = problem.num_microbatches * seconds / chosen.objective_s if chosen.objective_s else 0.0
    return (
        f"no better plan with it was found; its fastest link needs {format_seconds(seconds)} for "
        f"the smallest tensor of a microbatch ({share:.1%} of the objective)"
    )
