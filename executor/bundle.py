"""What a rank is given to start: its stage as data, where its weights are, and the plan.

A bundle is a directory on this machine with ``bundle.json``, one ``rank-R.json`` per rank,
``constants.safetensors`` and, for a model whose weights exist only in memory,
``weights.safetensors``. Nothing in it is code or pickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from executor.distribute import WEIGHTS_FILE
from executor.pipeline import StageModule
from executor.schedule import Schedule
from planner.planfile import Plan
from profiler.build import build_stage
from profiler.capture import Captured
from profiler.documents import write_atomically
from profiler.graph import ModelGraph
from profiler.operators import changed_inputs
from profiler.program import StageProgram, WeightPort
from profiler.weights import Recipe


@dataclass(frozen=True, kw_only=True)
class RankBundle:
    """A bundle as one rank reads it. ``program`` is None for a rank without a stage."""

    directory: Path
    plan: Plan
    graph: ModelGraph
    threads: dict[int, int]
    program: StageProgram | None
    recipes: dict[str, Recipe]

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
        )


def write_bundle(
    directory: Path,
    *,
    plan: Plan,
    captured: Captured,
    threads: dict[int, int],
    shared_disk: bool = True,
) -> Schedule:
    """Write everything the plan's ranks need below ``directory``; returns the plan's schedule.

    ``threads`` are the processor threads each rank computes with. Without ``shared_disk`` other
    ranks cannot read ``directory``: weights that are only there are marked as held by rank 0.
    """
    schedule = Schedule(plan, captured.graph)
    shared = {
        "plan": plan.model_dump(mode="json", exclude_none=True),
        "graph": captured.graph.model_dump(mode="json", exclude_none=True),
        "threads": threads,
    }
    write_atomically(directory / "bundle.json", json.dumps(shared))
    constants = {
        name: tensor.detach().cpu().clone().contiguous()
        for name, tensor in captured.constants.items()
    }
    save_file(constants, directory / "constants.safetensors")
    programs = {b.rank: stage_program(schedule, captured, b.rank) for b in plan.spec.ranks}
    needed = dict.fromkeys(
        captured.stored_as[port.weight]
        for program in programs.values()
        if program is not None
        for port in program.weights
        if not port.constant
    )
    recipes = captured.source.weights.recipes(needed, directory=directory) if needed else {}
    if not shared_disk:
        recipes = {
            name: {"root": recipe["key"]}
            if recipe.get("file") == str(directory / WEIGHTS_FILE)
            else recipe
            for name, recipe in recipes.items()
        }
    for rank, program in programs.items():
        own: dict[str, Any] = {"program": None, "recipes": {}}
        if program is not None:
            own["program"] = program.to_data()
            own["recipes"] = {
                port.weight: recipes[captured.stored_as[port.weight]]
                for port in program.weights
                if not port.constant
            }
        write_atomically(directory / f"rank-{rank}.json", json.dumps(own))
    return schedule


def stage_program(schedule: Schedule, captured: Captured, rank: int) -> StageProgram | None:
    """The part of the model that a rank runs, giving every tensor the plan has it send."""
    role = schedule.role(rank)
    return None if role is None else captured.cutter.part(role.layers)


def load_stage(
    bundle: RankBundle,
    schedule: Schedule,
    *,
    rank: int,
    device: torch.device,
    read: Callable[[str, Recipe, torch.Tensor], None],
) -> StageModule | None:
    """Build the rank's stage and fill its weights; None for a rank without a stage.

    ``read`` fills a tensor by a recipe. Tied weights of one stage are held once.
    """
    role = schedule.role(rank)
    if role is None or bundle.program is None:
        return None
    constants = load_file(bundle.directory / "constants.safetensors")
    held: dict[str, torch.Tensor] = {}

    def weight(port: WeightPort) -> torch.Tensor:
        if port.constant:
            return constants[port.weight].clone().to(device)
        recipe = bundle.recipes[port.weight]
        key = json.dumps(recipe, sort_keys=True)
        if key not in held:
            value = torch.empty(port.shape, dtype=getattr(torch, port.dtype), device=device)
            read(port.weight, recipe, value)
            held[key] = value
        return held[key]

    return StageModule(
        role=role,
        program=bundle.program,
        module=build_stage(bundle.program, device=device, weight=weight),
        device=device,
        changes=changed_inputs(bundle.program),
    )
