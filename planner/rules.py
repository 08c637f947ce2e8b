"""What people do without a planner: split evenly, by memory, by speed, or use the best device.

Baselines that every plan is compared with. Each rule ignores what it does not look at, so its
plan may not fit or may break the request; then it says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from planner.alike import LikeDevices
from planner.cost import CostModel, PlanCost
from planner.flows import Routing
from planner.problem import PlanningProblem
from planner.request import Split
from planner.slices import Slicing
from planner.slicings import MAX_WIDTH, even_slicing, slicing_by_speed
from planner.solvers.base import Assignment, PipelineAssignment, StageAssignment
from profiler.units import format_bytes

SLICES_BY_SPEED = "slices of all layers, by speed"

MAX_TRIED = 256
"""Of more devices, one of each kind is tried for the best single one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleOutcome:
    """What a rule gives: an assignment that fits and keeps the request, or why it has none."""

    name: str
    assignment: Assignment | None
    price: PlanCost | None
    why_not: str = ""


def apply_rules(problem: PlanningProblem, cost: CostModel) -> tuple[RuleOutcome, ...]:
    """Every rule's outcome, in a fixed order."""
    return (
        _best_single(problem, cost),
        *(_proportional(name, weigh, problem, cost) for name, weigh in WEIGHTS.items()),
        *(_copies(name, weigh, problem, cost) for name, weigh in COPIES.items()),
        *_sliced(problem, cost),
    )


def line(
    problem: PlanningProblem, devices: Sequence[str], counts: Sequence[int]
) -> tuple[StageAssignment, ...]:
    """Stages of ``counts`` consecutive layers on ``devices``; a device without layers is left
    out."""
    stages, start = [], 0
    for device, count in zip(devices, counts, strict=True):
        if count:
            layers = tuple(range(start, start + count))
            waits = not problem.whole_batch.isdisjoint(layers)
            stages.append(
                StageAssignment(
                    layers=layers,
                    devices=(device,),
                    shares=(problem.batch if waits else problem.microbatch,),
                    whole_batch=waits,
                )
            )
            start += count
    return tuple(stages)


def in_proportion(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers (of layers, of items) in proportion to ``weights``: largest remainders.

    >>> in_proportion(10, [1.0, 1.0, 2.0])
    [3, 2, 5]
    """
    whole = sum(weights)
    if whole <= 0:
        weights, whole = [1.0] * len(weights), float(len(weights))
    exact = [total * weight / whole for weight in weights]
    counts = [int(x) for x in exact]
    by_rest = sorted(range(len(exact)), key=lambda d: (counts[d] - exact[d], d))
    for d in by_rest[: total - sum(counts)]:
        counts[d] += 1
    return counts


def broken_wish(problem: PlanningProblem, stages: Sequence[StageAssignment]) -> str | None:
    """The first wish of the request that ``stages`` do not keep, or None."""
    layers = problem.graph.layers
    if len(stages) > 1 and Split.LAYERS not in problem.request.splits:
        return "the request allows no split between layers"
    if len(stages) > problem.max_stages:
        return f"{len(stages)} stages; the request allows {problem.max_stages}"
    home = {i: s for s, stage in enumerate(stages) for i in stage.layers}
    for i, s in sorted(home.items()):
        if not set(stages[s].devices) <= problem.allowed[i]:
            return f"{layers[i].name} may not run on {stages[s].devices[0]}"
    for group in problem.together:
        if len({home[i] for i in group}) > 1:
            return f"{layers[group[0]].name} and {layers[group[-1]].name} must share a stage"
    used = {device for stage in stages for device in stage.devices}
    missing = sorted(problem.required - used)
    return f"{missing[0]} is left out" if missing else None


def memory_shortfall(price: PlanCost) -> str | None:
    """Which device lacks most memory under ``price``, with both figures, or None."""
    short = price.shortfalls()
    if not short:
        return None
    memory = short[0].memory
    return (
        f"{short[0].device} needs {format_bytes(memory.total_bytes)}, "
        f"has {format_bytes(memory.capacity_bytes)}"
    )


def shortfall(problem: PlanningProblem, price: PlanCost) -> str | None:
    """Why a plan with this ``price`` is not allowed: memory, or a limit of the request; or None."""
    return memory_shortfall(price) or problem.targets.broken(
        period_s=price.period_s,
        latency_s=price.latency_s,
        devices=[rank.device for rank in price.ranks],
    )


def best_routing(
    problem: PlanningProblem, cost: CostModel, stages: Sequence[StageAssignment]
) -> tuple[Assignment, PlanCost]:
    """``stages`` with the routing that serves them best: one that fits before one that does not."""
    routings = [Routing.RELAY] if problem.graph.is_chain else [Routing.RELAY, Routing.DIRECT]
    tried = []
    for routing in routings:
        assignment = Assignment.single(stages, items=problem.items, routing=routing)
        tried.append((assignment, cost.evaluate(assignment)))
    objective = problem.request.objective
    return min(
        tried, key=lambda t: (not t[1].fits, not t[1].keeps_targets, t[1].objective_s(objective))
    )


def _best_single(problem: PlanningProblem, cost: CostModel) -> RuleOutcome:
    name = "best single device"
    best: tuple[float, Assignment, PlanCost] | None = None
    why = ""
    for device in _worth_trying(problem):
        stages = line(problem, [device], [problem.num_layers])
        broken = broken_wish(problem, stages)
        if broken is not None or device not in problem.devices:
            why = why or broken or f"the request forbids {device}"
            continue
        assignment, price = best_routing(problem, cost, stages)
        short = shortfall(problem, price)
        if short is not None:
            why = short
            continue
        objective = price.objective_s(problem.request.objective)
        if best is None or objective < best[0]:
            best = objective, assignment, price
    if best is None:
        return RuleOutcome(name=name, assignment=None, price=None, why_not=why)
    return RuleOutcome(name=f"{name} ({best[1].devices[0]})", assignment=best[1], price=best[2])


def _worth_trying(problem: PlanningProblem) -> list[str]:
    """All devices; of very many, one of each kind."""
    devices = list(problem.cluster.device)
    if len(devices) <= MAX_TRIED:
        return devices
    alike = LikeDevices(problem)
    first: dict[object, str] = {}
    for device in devices:
        first.setdefault(alike.kind(device), device)
    return list(first.values())


def _proportional(
    name: str,
    weigh: Callable[[PlanningProblem, CostModel], list[float]],
    problem: PlanningProblem,
    cost: CostModel,
) -> RuleOutcome:
    counts = in_proportion(problem.num_layers, weigh(problem, cost))
    stages = line(problem, problem.devices, counts)
    broken = broken_wish(problem, stages)
    if broken is not None:
        return RuleOutcome(name=name, assignment=None, price=None, why_not=broken)
    assignment, price = best_routing(problem, cost, stages)
    short = shortfall(problem, price)
    if short is not None:
        return RuleOutcome(name=name, assignment=None, price=None, why_not=short)
    return RuleOutcome(name=name, assignment=assignment, price=price)


def _copies(
    name: str,
    weigh: Callable[[PlanningProblem, CostModel], list[float]],
    problem: PlanningProblem,
    cost: CostModel,
) -> RuleOutcome:
    """The whole model on every device, as data-parallel training does it."""
    why_not = problem.one_pipeline()
    counts = in_proportion(problem.batch, weigh(problem, cost))
    taking = [pair for pair in zip(problem.devices, counts, strict=True) if pair[1]]
    for device, _ in taking:
        barred = [i for i, here in enumerate(problem.allowed) if device not in here]
        if barred:
            why_not = why_not or f"{problem.graph.layers[barred[0]].name} may not run on {device}"
    if why_not is None and not problem.required <= {device for device, _ in taking}:
        why_not = f"{min(problem.required)} is left out"
    if why_not is not None:
        return RuleOutcome(name=name, assignment=None, price=None, why_not=why_not)
    assignment = Assignment(
        pipelines=tuple(
            PipelineAssignment(items=items, stages=line(problem, [device], [problem.num_layers]))
            for device, items in taking
        )
    )
    price = cost.evaluate(assignment)
    short = shortfall(problem, price)
    if short is not None:
        return RuleOutcome(name=name, assignment=None, price=None, why_not=short)
    return RuleOutcome(name=name, assignment=assignment, price=price)


def _sliced(problem: PlanningProblem, cost: CostModel) -> Iterator[RuleOutcome]:
    """Every region sliced over all devices, if the model has regions."""
    devices, width = problem.devices, len(problem.devices)
    if width < 2 or not problem.graph.regions:
        return
    why_not = ""
    barred = [i for i, here in enumerate(problem.allowed) if not here.issuperset(devices)]
    waits = problem.whole_batch | problem.one_device
    if not problem.tensor_splits:
        why_not = "the request allows no tensor split"
    elif width > MAX_WIDTH:
        why_not = f"{width} devices; a tensor split is among {MAX_WIDTH} at most"
    elif barred:
        why_not = f"{problem.graph.layers[barred[0]].name} may not run on all devices"
    elif waits:
        why_not = f"{problem.graph.layers[min(waits)].name} must be on one device"
    slicings: dict[str, Slicing] = {"slices of all layers, even": (), SLICES_BY_SPEED: ()}
    if not why_not:
        by_speed = slicing_by_speed(problem, cost.figures, devices)
        slicings = dict(zip(slicings, (even_slicing(problem, width), by_speed), strict=True))
    for name, slicing in slicings.items():
        if not slicing:
            few = f"no region has a unit for each of {width} devices"
            yield RuleOutcome(name=name, assignment=None, price=None, why_not=why_not or few)
            continue
        stage = StageAssignment(
            layers=tuple(range(problem.num_layers)),
            devices=devices,
            shares=(problem.microbatch,) * width,
            slices=slicing,
        )
        assignment, price = best_routing(problem, cost, [stage])
        short = shortfall(problem, price)
        if short is not None:
            yield RuleOutcome(name=name, assignment=None, price=None, why_not=short)
        else:
            yield RuleOutcome(name=name, assignment=assignment, price=price)


def _evenly(problem: PlanningProblem, cost: CostModel) -> list[float]:  # noqa: ARG001
    return [1.0] * len(problem.devices)


def _by_memory(problem: PlanningProblem, cost: CostModel) -> list[float]:  # noqa: ARG001
    return [float(problem.capacity_bytes(device)) for device in problem.devices]


def _by_speed(problem: PlanningProblem, cost: CostModel) -> list[float]:
    everything = tuple(range(problem.num_layers))
    measured = {name: problem.profile.timings_of[name].measured_on for name in problem.devices}
    # Of devices that share their times the last stands for all: the measured one may be gone.
    stands = {on: name for name, on in measured.items()}
    seconds = {
        on: cost.figures.compute_s(everything, name, problem.microbatch)
        for on, name in stands.items()
    }
    return [1.0 / s if (s := seconds[on]) > 0 else 1.0 for on in measured.values()]


WEIGHTS: Mapping[str, Callable[[PlanningProblem, CostModel], list[float]]] = {
    "even layer counts": _evenly,
    "layer counts by memory": _by_memory,
    "layer counts by speed": _by_speed,
}
"""Rules that cut the layers' order in proportion to something about each device."""

COPIES: Mapping[str, Callable[[PlanningProblem, CostModel], list[float]]] = {
    "whole copies, even items": _evenly,
    "whole copies, items by speed": _by_speed,
}
"""Rules that put the whole model on every device and part the items of a batch among them."""
