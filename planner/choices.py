"""Why each stage is split as it is: the plan with that stage split otherwise on the same devices.

Every figure is the objective of the whole plan, all other stages as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from planner.cost import CostModel
from planner.options import shares_of
from planner.planfile import place
from planner.problem import PlanningProblem
from planner.request import Split, StageSplit
from planner.rules import shortfall
from planner.searchrecord import SplitCost, StageChoice
from planner.slices import slices_within
from planner.slicings import find_slicings, slicing_by_speed
from planner.solvers.base import Assignment, StageAssignment

MAX_STAGES = 64
"""Of more stages on several devices, the first are explained."""

MAX_PRICED = 4096
"""Stages explained times stages of the plan; each is explained by prices of the whole plan."""


def split_choices(
    problem: PlanningProblem, assignment: Assignment, cost: CostModel
) -> tuple[StageChoice, ...]:
    """What each stage on several devices would cost if it were split otherwise."""
    found: list[StageChoice] = []
    most = max(1, min(MAX_STAGES, MAX_PRICED // len(assignment.stages)))
    for p, pipeline in enumerate(assignment.pipelines):
        for s, stage in enumerate(pipeline.stages):
            if len(stage.devices) < 2 or len(found) == most:
                continue

            def priced(
                split: StageSplit,
                ways: Sequence[StageAssignment] | str,
                here: tuple[int, int] = (p, s),
            ) -> SplitCost:
                return _priced(problem, assignment, cost, here, split, ways)

            found.append(
                StageChoice(
                    stage=place(p, s),
                    split=stage.split,
                    costs=(
                        priced("none", list(_on_one(problem, stage))),
                        priced("batch", _by_batch(problem, cost, stage)),
                        priced("tensor", _by_tensor(problem, cost, stage)),
                    ),
                )
            )
    return tuple(found)


def _priced(
    problem: PlanningProblem,
    assignment: Assignment,
    cost: CostModel,
    at: tuple[int, int],
    split: StageSplit,
    ways: Sequence[StageAssignment] | str,
) -> SplitCost:
    if isinstance(ways, str):
        return SplitCost(split=split, how=ways)
    p, s = at
    present = assignment.pipelines[p].stages[s]
    best: SplitCost | None = None
    short = ""
    # The plan's own way first: no other that is only as good stands for it.
    for stage in sorted(ways, key=lambda way: way != present):
        stages = list(assignment.pipelines[p].stages)
        stages[s] = stage
        pipelines = list(assignment.pipelines)
        pipelines[p] = replace(pipelines[p], stages=tuple(stages))
        price = cost.evaluate(Assignment(pipelines=tuple(pipelines)))
        lacking = shortfall(problem, price)
        if lacking is not None:
            short = short or lacking
            continue
        objective_s = price.objective_s(problem.request.objective)
        if best is None or best.objective_s is None or objective_s < best.objective_s:
            best = SplitCost(split=split, objective_s=objective_s, how=_how(problem, stage))
    return best or SplitCost(split=split, how=short)


def _how(problem: PlanningProblem, stage: StageAssignment) -> str:
    if stage.split == "none":
        return stage.devices[0]
    if stage.split == "batch":
        return f"items {' + '.join(str(share) for share in stage.shares)}"
    parts = dict.fromkeys(
        f"{' + '.join(str(n) for n in x.units)} {problem.graph.regions[x.region].axis}"
        for x in stage.slices
    )
    shown = list(parts)[:3]
    return ", ".join(shown) + (", ..." if len(parts) > 3 else "")


def _on_one(problem: PlanningProblem, stage: StageAssignment) -> Iterator[StageAssignment]:
    alike = {problem.class_of[device]: device for device in reversed(stage.devices)}
    for device in sorted(alike.values(), key=stage.devices.index):
        yield replace(stage, devices=(device,), shares=(problem.microbatch,), slices=())


def _by_batch(
    problem: PlanningProblem, cost: CostModel, stage: StageAssignment
) -> list[StageAssignment] | str:
    if stage.split == "batch":
        found = [stage]
    elif Split.BATCH not in problem.request.splits:
        return "the request allows none"
    elif not problem.batch_splits:
        return (
            f"the model was captured for exactly {problem.graph.static_batch} items"
            if problem.graph.static_batch is not None
            else "a microbatch of one item cannot be parted"
        )
    elif problem.microbatch < len(stage.devices):
        return f"{problem.microbatch} items are too few for {len(stage.devices)} ranks"
    else:
        found = []
    found += [
        replace(stage, shares=shares, slices=())
        for shares in shares_of(problem, cost.figures, stage.devices)
    ]
    return found or "no shares leave an item for every rank"


def _by_tensor(
    problem: PlanningProblem, cost: CostModel, stage: StageAssignment
) -> list[StageAssignment] | str:
    if stage.split != "tensor":
        if not problem.graph.regions:
            return "the model has no region that can be sliced"
        if not problem.tensor_splits:
            return "the request allows none"
    whole = replace(stage, shares=(problem.microbatch,) * len(stage.devices))
    ways = [stage] if stage.split == "tensor" else []
    by_speed = slicing_by_speed(problem, cost.figures, stage.devices)
    for slicing in (by_speed, *find_slicings(problem, cost.figures, stage.devices)):
        slices = slices_within(problem, slicing, stage.layers)
        if slices:
            ways.append(replace(whole, slices=slices))
    width = len(stage.devices)
    return ways or f"no region with {width} units or more lies wholly in the stage"
