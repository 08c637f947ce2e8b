"""From a solver's answer to the plan file: ranks, stages, transfers, estimate.

Rank 0 is on the cluster's root device, with or without a stage; the other ranks are numbered in
the order of pipelines and stages.
"""

from __future__ import annotations

from dataclasses import replace

from planner.aggregation import choose
from planner.cost import CostModel, PlanCost
from planner.hypothetical import hypothetical_estimate
from planner.memory import BUFFER_DEPTH
from planner.pipeline_cost import PipelineCost, RankCost
from planner.planfile import (
    INPUT,
    OUTPUT,
    Estimate,
    Pipeline,
    PlanSpec,
    RankBinding,
    RankEstimate,
    Schedule,
    Slices,
    Stage,
    Transfer,
    place,
)
from planner.problem import PlanningProblem
from planner.selection import fold
from planner.solvers.base import TOLERANCE, Assignment, PipelineAssignment
from profiler.units import format_seconds


def lower(problem: PlanningProblem, assignment: Assignment, price: PlanCost) -> PlanSpec:
    """The decision in the plan's own terms."""
    graph = problem.graph
    ranks = number_ranks(problem, assignment)
    names = [layer.name for layer in graph.layers]
    folded = {
        layers: fold([names[i] for i in layers], names)
        for layers in dict.fromkeys(stage.layers for stage in assignment.stages)
    }
    pipelines = tuple(
        Pipeline(
            index=p,
            items=pipeline.items,
            stages=tuple(
                Stage(
                    index=s,
                    layers=folded[stage.layers],
                    split=stage.split,
                    ranks=tuple(ranks[device] for device in stage.devices),
                    shares=stage.shares,
                    slices=tuple(
                        Slices(region=graph.regions[x.region].name, units=x.units)
                        for x in stage.slices
                    ),
                    whole_batch=stage.whole_batch,
                )
                for s, stage in enumerate(pipeline.stages)
            ),
        )
        for p, pipeline in enumerate(assignment.pipelines)
    )
    return PlanSpec(
        schedule=Schedule(microbatch_size=problem.microbatch, depth=BUFFER_DEPTH),
        aggregation=choose(problem.profile.model, problem.request),
        pipelines=pipelines,
        ranks=tuple(
            RankBinding(
                rank=rank,
                device=device,
                device_type=problem.cluster.device[device].type,
                hypothetical=True if problem.profile.timings_of[device].hypothetical else None,
            )
            for device, rank in ranks.items()
        ),
        transfers=tuple(
            transfer
            for p, pipeline in enumerate(assignment.pipelines)
            for transfer in _transfers(problem, p, pipeline, price.pipelines[p])
        ),
    )


def number_ranks(problem: PlanningProblem, assignment: Assignment) -> dict[str, int]:
    """The rank of each device of the plan, the root first."""
    order = dict.fromkeys((problem.cluster.root, *assignment.devices))
    return {device: rank for rank, device in enumerate(order)}


def estimate(problem: PlanningProblem, assignment: Assignment, price: PlanCost) -> Estimate:
    """What the plan is expected to do."""
    ranks = number_ranks(problem, assignment)
    by_rank = sorted(price.ranks, key=lambda rank: ranks[rank.device])
    return Estimate(
        period_s=price.period_s,
        latency_s=price.latency_s,
        items_per_s=problem.batch / price.period_s if price.period_s else 0.0,
        error_fraction=problem.profile.error_fraction,
        bottleneck=describe_bottleneck(assignment, price),
        ranks=tuple(
            RankEstimate(
                rank=ranks[rank.device],
                compute_s=rank.compute_s,
                join_s=rank.join_s,
                receive_s=rank.receive_s,
                send_s=rank.send_s,
                busy_fraction=_busy_fraction(rank, price),
                memory=rank.memory,
            )
            for rank in by_rank
        ),
        hypothetical=hypothetical_estimate(
            problem.profile,
            problem.cluster,
            devices=tuple(ranks),
            wires=price.wires,
            price=lambda profile, cluster: CostModel(
                replace(problem, profile=profile, cluster=cluster)
            ).evaluate(assignment),
        ),
    )


def describe_bottleneck(assignment: Assignment, price: PlanCost) -> str:
    """What is busy for the whole period, and how long: a stage, else a wire."""
    for p, pipeline in enumerate(price.pipelines):
        for s, stage in enumerate(pipeline.stages):
            if stage.batch_s >= price.period_s * (1 - TOLERANCE / 10):
                devices = assignment.pipelines[p].stages[s].devices
                on = devices[0] if len(devices) == 1 else f"{len(devices)} devices"
                return f"{place(p, s)} on {on}: busy {format_seconds(stage.batch_s)} of every batch"
    name, seconds = max(price.wires.items(), key=lambda item: item[1])
    return f"wire {name}: busy {format_seconds(seconds)} of every batch"


def _busy_fraction(rank: RankCost, price: PlanCost) -> float:
    if rank.pipeline is None or rank.stage is None or not price.period_s:
        return 0.0
    busy_s = rank.compute_s + rank.join_s + rank.receive_s + rank.send_s
    return price.pipelines[rank.pipeline].stages[rank.stage].runs * busy_s / price.period_s


def _transfers(
    problem: PlanningProblem, p: int, pipeline: PipelineAssignment, price: PipelineCost
) -> tuple[Transfer, ...]:
    """One entry a tensor and pair of stages, by source, target and the tensors' order."""
    runs = {(hop.source, hop.target): hop.runs for hop in price.hops}
    waits = [stage.whole_batch for stage in pipeline.stages]
    last = len(waits)
    found = []
    for flow in sorted(
        price.flows,
        key=lambda f: (
            -1 if f.source is None else f.source,
            last if f.target is None else f.target,
        ),
    ):
        tensor = problem.graph.tensor[flow.tensor]
        whole = all(waits[s] for s in (flow.source, flow.target) if s is not None)
        assert not whole or runs[flow.source, flow.target] == 1
        items = pipeline.items if whole else problem.microbatch
        found.append(
            Transfer(
                source=INPUT if flow.source is None else place(p, flow.source),
                target=OUTPUT if flow.target is None else place(p, flow.target),
                tensor=tensor.name,
                shape=tensor.shape,
                dtype=tensor.dtype,
                num_bytes=tensor.num_bytes(problem.graph.symbols_at(items)),
            )
        )
    return tuple(found)
