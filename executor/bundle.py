"""What a rank is given to start: its stage as data, where its weights are, and the plan.

A bundle is a directory on this machine with ``bundle.json``, one ``rank-R.json`` per rank,
``constants.safetensors`` and, for a model whose weights exist only in memory,
``weights.safetensors``. Nothing in it is code or pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from executor.distribute import WEIGHTS_FILE
from executor.schedule import Schedule
from executor.waiting import Waits
from planner.planfile import Plan
from profiler.capture import Captured
from profiler.documents import write_atomically
from profiler.graph import ModelGraph
from profiler.program import StageProgram
from profiler.sharding.slicing import sliced
from profiler.weights import Recipe


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
    write_shared(
        directory, plan=plan, graph=captured.graph, threads=threads, constants=captured.constants
    )
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
        if program is None:
            write_rank(directory, rank)
            continue
        own = {
            port.weight: recipes[captured.stored_as[port.weight]]
            for port in program.weights
            if not port.constant
        }
        write_rank(directory, rank, program=program, recipes=own)
    return schedule


def write_shared(
    directory: Path,
    *,
    plan: Plan,
    graph: ModelGraph,
    threads: Mapping[int, int],
    constants: Mapping[str, torch.Tensor],
) -> None:
    """Write what all ranks read."""
    shared = {
        "plan": plan.model_dump(mode="json", exclude_none=True),
        "graph": graph.model_dump(mode="json", exclude_none=True),
        "threads": dict(threads),
    }
    write_atomically(directory / "bundle.json", json.dumps(shared))
    held = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in constants.items()}
    save_file(held, directory / "constants.safetensors")


def write_rank(
    directory: Path,
    rank: int,
    *,
    program: StageProgram | None = None,
    recipes: Mapping[str, Recipe] | None = None,
    waits: Waits | None = None,
) -> None:
    """Write what one rank reads: its stage and where its weights are, or how long it waits."""
    own: dict[str, Any] = {
        "program": None if program is None else program.to_data(),
        "recipes": dict(recipes or {}),
        "waits": None if waits is None else asdict(waits),
    }
    write_atomically(directory / f"rank-{rank}.json", json.dumps(own))


def stage_program(schedule: Schedule, captured: Captured, rank: int) -> StageProgram | None:
    """The part of the model that a rank runs, giving every tensor the plan has it send.

    Raises:
        InvalidInputError: its stage is divided in a way that the model's regions do not allow.
    """
    role = schedule.role(rank)
    if role is None:
        return None
    part, stage = captured.cutter.part(role.layers), schedule.stages[role.place]
    if stage.split != "tensor":
        return part
    slices = {one.region: one.units for one in stage.slices}
    return sliced(part, captured.sharding, slices, stage.ranks.index(rank))
