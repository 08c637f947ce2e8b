"""What a solver is given and what it gives back.

A solver is one file, one class with this Protocol, one line in the registry.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Protocol

from planner.flows import Routing
from planner.request import Split, StageSplit
from planner.slices import Slicing

if TYPE_CHECKING:
    from planner.cost import CostModel
    from planner.problem import PlanningProblem

TOLERANCE = 1e-9
"""Plans whose objectives differ by less than this fraction are equally good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageAssignment:
    """Layers, and the devices that run them with their shares of a microbatch, in rank order.

    With ``slices`` the stage is split by tensor: every rank takes all items, and computes these
    regions only in part.
    """

    layers: tuple[int, ...]
    devices: tuple[str, ...]
    shares: tuple[int, ...]
    whole_batch: bool = False
    slices: Slicing = ()

    @property
    def split(self) -> StageSplit:
        """How its devices divide the work."""
        if self.slices:
            return "tensor"
        return "batch" if len(self.devices) > 1 else "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineAssignment:
    """A whole copy of the model: stages in topological order, how tensors travel between them, and
    the items that it takes of every batch."""

    items: int
    stages: tuple[StageAssignment, ...]
    routing: Routing = Routing.RELAY

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices with a stage, in stage order."""
        return tuple(device for stage in self.stages for device in stage.devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A solver's answer: pipelines side by side, which take the items of a batch in this order."""

    pipelines: tuple[PipelineAssignment, ...]

    @classmethod
    def single(
        cls,
        stages: Sequence[StageAssignment],
        *,
        items: int,
        routing: Routing = Routing.RELAY,
    ) -> Assignment:
        """One pipeline that takes all ``items``."""
        return cls(
            pipelines=(PipelineAssignment(items=items, stages=tuple(stages), routing=routing),)
        )

    @property
    def stages(self) -> tuple[StageAssignment, ...]:
        """The stages of all pipelines, in order."""
        return tuple(stage for pipeline in self.pipelines for stage in pipeline.stages)

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices with a stage, in the order of pipelines and stages."""
        return tuple(device for pipeline in self.pipelines for device in pipeline.devices)

    def uses(self, split: Split) -> bool:
        """Whether it splits the work in this way, wherever."""
        match split:
            case Split.LAYERS:
                return any(len(pipeline.stages) > 1 for pipeline in self.pipelines)
            case Split.PIPELINES:
                return len(self.pipelines) > 1
            case _:
                return any(stage.split == split.value for stage in self.stages)


class SolveStatus(StrEnum):
    """What a solver knows about its own answer."""

    OPTIMAL = "optimal"  # no better plan exists in the space it searched
    FEASIBLE = "feasible"  # valid; better ones may exist (see the gap)
    INFEASIBLE = "infeasible"  # proved: no plan in its space fits
    UNKNOWN = "unknown"  # neither plan nor proof


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveLimits:
    """How long and how to search.

    ``deadline`` is on the clock of ``time.monotonic``. Plans that are not better than
    ``cutoff_s`` are of no use: a solver that proves there are none stops with UNKNOWN and a bound.
    A plan at or below ``goal_s`` is good enough: the search stops there.
    """

    deadline: float = field(default_factory=lambda: time.monotonic() + 30.0)
    workers: int = 1
    seed: int = 0
    cutoff_s: float | None = None
    goal_s: float = -math.inf

    def remaining_s(self) -> float:
        """Seconds left, at least zero."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def expired(self) -> bool:
        """Whether the time is used up."""
        return time.monotonic() >= self.deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverResult:
    """Answer and evidence. ``assignment`` is present exactly when a plan was found.

    ``bound_s`` holds for the plans that ``space`` describes, or is absent when nothing is proved.
    ``candidates`` counts the plans or partial plans that were priced.
    """

    status: SolveStatus
    assignment: Assignment | None
    objective_s: float | None
    bound_s: float | None
    space: str
    candidates: int


class Solver(Protocol):
    """Finds an assignment of layers to devices.

    Solvers see a validated problem and the shared cost model, and nothing else: no files, no
    torch, no output. Same problem, limits and seed give the same answer.
    """

    name: ClassVar[str]

    def rejects(self, problem: PlanningProblem) -> str | None:
        """Why this solver cannot take ``problem``, or None."""

    def solve(
        self, problem: PlanningProblem, *, cost: CostModel, limits: SolveLimits
    ) -> SolverResult:
        """The best assignment it can find and what it can prove about it."""
