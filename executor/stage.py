"""A rank's part of a plan: read from its bundle, built, its weights filled.

Imports as little as it can: every rank holds it in memory, and capturing is not a rank's business.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from executor.collectives import StageJoins
from executor.schedule import Schedule, StageRole
from executor.sockets import StageSockets
from executor.transport import Transport
from executor.waiting import WaitingStage, Waits, waiting_program
from planner.planfile import Plan
from profiler.build import build_stage
from profiler.graph import ModelGraph
from profiler.operators import changed_inputs
from profiler.program import Shard, StageProgram, WeightPort
from profiler.weights import Recipe, cut


@dataclass(frozen=True, kw_only=True)
class StageModule:
    """A stage ready to run on this rank; ``changes`` are inputs it may modify in place. ``joins``
    are those with other ranks that divide it. In place of the inputs ``awaited`` its module takes
    objects that it asks for the tensor (``wait()``) where it first reads it."""

    role: StageRole
    program: StageProgram
    module: nn.Module
    device: torch.device
    changes: frozenset[str] = frozenset()
    joins: StageJoins | None = None
    awaited: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class RankBundle:
    """A bundle as one rank reads it. ``program`` is None for a rank without a stage.

    ``waits`` are set in a rehearsal: what the stage waits for 1, 2, ... items.
    """

    directory: Path
    plan: Plan
    graph: ModelGraph
    threads: dict[int, int]
    program: StageProgram | None
    recipes: dict[str, Recipe]
    waits: Waits | None

    @staticmethod
    def read(directory: Path, rank: int) -> RankBundle:
        """The bundle in ``directory`` for ``rank``."""
        shared = json.loads((directory / "bundle.json").read_text())
        own = json.loads((directory / f"rank-{rank}.json").read_text())
        return RankBundle(
            directory=directory,
            plan=Plan.parse(json.dumps(shared["plan"]), name="plan", is_json=True),
            graph=ModelGraph.model_validate_json(json.dumps(shared["graph"])),
            threads={int(k): v for k, v in shared["threads"].items()},
            program=None if own["program"] is None else StageProgram.from_data(own["program"]),
            recipes=own["recipes"],
            waits=own["waits"] and Waits(**own["waits"]),
        )


def connect_joins(
    bundle: RankBundle, schedule: Schedule, *, rank: int, transport: Transport
) -> StageJoins | None:
    """Connect the rank to those that divide its stage with it; None where none do.

    Before any of them reads weights: some of these may have to come from rank 0, which reads its
    own when the others have theirs.
    """
    role = schedule.role(rank)
    if role is None or bundle.program is None or bundle.waits is not None:
        return None
    place = schedule.stages[role.place]
    if place.split != "tensor":
        return None
    sockets = StageSockets.connect(transport, place.ranks, rank)
    return StageJoins(sockets, ranks=place.ranks, rank=rank)


def load_stage(
    bundle: RankBundle,
    schedule: Schedule,
    *,
    rank: int,
    device: torch.device,
    read: Callable[[str, Recipe, Shard | None, torch.Tensor], None],
    joins: StageJoins | None = None,
) -> StageModule | None:
    """Build the rank's stage and fill its weights; None for a rank without a stage.

    ``read`` fills a tensor by a recipe, or with the shard of what that makes. Tied weights of one
    stage are held once. ``joins`` reach the ranks that divide the stage with this one.
    """
    role = schedule.role(rank)
    if role is not None and bundle.waits is not None:
        program = waiting_program(bundle.graph, role)
        return StageModule(
            role=role,
            program=program,
            module=WaitingStage(bundle.graph, program, bundle.waits),
            device=torch.device("cpu"),
            awaited=frozenset(program.inputs),
        )
    if role is None or bundle.program is None:
        return None
    constants = load_file(bundle.directory / "constants.safetensors")
    held: dict[str, torch.Tensor] = {}

    def weight(port: WeightPort) -> torch.Tensor:
        if port.constant:
            return cut(constants[port.weight], port.shard).clone().to(device)
        recipe = bundle.recipes[port.weight]
        key = json.dumps([recipe, port.shard and asdict(port.shard)], sort_keys=True)
        if key not in held:
            value = torch.empty(port.shape, dtype=getattr(torch, port.dtype), device=device)
            read(port.weight, recipe, port.shard, value)
            held[key] = value
        return held[key]

    return StageModule(
        role=role,
        program=bundle.program,
        module=build_stage(
            bundle.program,
            device=device,
            weight=weight,
            join=None if joins is None else joins.join,
            awaited=frozenset(bundle.program.inputs),
        ),
        device=device,
        awaited=frozenset(bundle.program.inputs),
        changes=changed_inputs(bundle.program),
        joins=joins,
    )
