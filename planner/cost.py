"""What an assignment costs: time between batches, time of one batch, memory of every rank.

This is ``docs/cost-model.md`` in code, the only place where the planner prices a whole plan: every
solver's answer is judged by :meth:`CostModel.evaluate`. ``check`` has its own second version.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.figures import Figures
from planner.latency import StageCost, crowded_inputs, crowded_s
from planner.memory import empty_root_memory
from planner.pipeline_cost import PipelineCost, PipelinePrice, RankCost
from planner.problem import PlanningProblem
from planner.request import Objective
from planner.solvers.base import Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCost:
    """The price of an assignment. ``wires`` are seconds a batch by wire; ``keeps_targets`` says
    whether it keeps the problem's limits on times and devices."""

    period_s: float
    latency_s: float
    pipelines: tuple[PipelineCost, ...]
    ranks: tuple[RankCost, ...]
    wires: dict[str, float]
    keeps_targets: bool = True

    @property
    def stages(self) -> tuple[StageCost, ...]:
        """The stages of all pipelines, in order."""
        return tuple(stage for pipeline in self.pipelines for stage in pipeline.stages)

    def objective_s(self, objective: Objective) -> float:
        """The figure to make small."""
        return self.latency_s if objective.counts_latency else self.period_s

    @property
    def fits(self) -> bool:
        """Whether every rank's memory is enough."""
        return all(r.memory.total_bytes <= r.memory.capacity_bytes for r in self.ranks)

    @property
    def allowed(self) -> bool:
        """Whether it fits and keeps every limit."""
        return self.keeps_targets and self.fits

    def shortfalls(self) -> list[RankCost]:
        """Ranks whose memory is not enough, worst first."""
        short = [r for r in self.ranks if r.memory.total_bytes > r.memory.capacity_bytes]
        return sorted(short, key=lambda r: r.memory.capacity_bytes - r.memory.total_bytes)


class CostModel:
    """Prices assignments of one problem.

    ``figures`` may be those of a problem that differs in nothing but objective and targets.
    """

    def __init__(self, problem: PlanningProblem, *, figures: Figures | None = None) -> None:
        self.problem = problem
        self.figures = figures or Figures(problem)

    def objective_s(self, assignment: Assignment) -> float:
        """The figure to make small."""
        return self.evaluate(assignment).objective_s(self.problem.request.objective)

    def evaluate(self, assignment: Assignment) -> PlanCost:
        """Everything about ``assignment``; it need not fit."""
        priced = [
            PipelinePrice(self.figures, p, pipeline)
            for p, pipeline in enumerate(assignment.pipelines)
        ]
        wires: dict[str, float] = {}
        for pipeline in priced:
            for message in pipeline.messages():
                if message.source != message.target:
                    name = self.problem.wire(message.source, message.target)
                    wires[name] = wires.get(name, 0.0) + message.count * message.seconds
        root = self.problem.cluster.root
        answers = {
            device: self.figures.answer_s(device)
            for device in dict.fromkeys(assignment.devices)
            if self.problem.delivered(device)
        }
        for device, seconds in answers.items():
            name = self.problem.wire(root, device)
            wires[name] = wires.get(name, 0.0) + seconds
        num_microbatches = sum(pipeline.num_microbatches for pipeline in priced)
        crowds: dict[tuple[int, int | None], tuple[float, float]] = {}
        if len(priced) > 1:
            crowds = crowded_inputs(flow for x in priced for flow in x.input_flows())
        for pipeline in priced:
            pipeline.settle(num_microbatches, crowds)
        ranks = [rank for pipeline in priced for rank in pipeline.ranks]
        costs = tuple(pipeline.cost() for pipeline in priced)
        busy = [stage.batch_s for cost in costs for stage in cost.stages]
        if all(rank.device != root for rank in ranks):
            ranks.insert(0, _empty_root(self.figures))
        period_s = max([*busy, *wires.values()])
        latency_s = max(cost.latency_s for cost in costs)
        if len(priced) > 1:
            uses = [use for pipeline in priced for use in pipeline.wire_uses()]
            latency_s = max(latency_s, crowded_s(uses))
        latency_s += max(answers.values(), default=0.0)
        return PlanCost(
            period_s=period_s,
            latency_s=latency_s,
            pipelines=costs,
            ranks=tuple(ranks),
            wires=wires,
            keeps_targets=self.problem.targets.keeps(
                period_s=period_s, latency_s=latency_s, devices=(r.device for r in ranks)
            ),
        )


def _empty_root(figures: Figures) -> RankCost:
    return RankCost(
        device=figures.problem.cluster.root,
        pipeline=None,
        stage=None,
        share=0,
        compute_s=0.0,
        join_s=0.0,
        receive_s=0.0,
        send_s=0.0,
        memory=empty_root_memory(figures),
    )
