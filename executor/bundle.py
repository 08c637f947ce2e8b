"""What a rank is given to start: its stage as data, where its weights are, and the plan.

A bundle is a directory on this machine with ``bundle.json``, one ``rank-R.json`` per rank,
``constants.safetensors`` and, for a model whose weights exist only in memory,
``weights.safetensors``. Nothing in it is code or pickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from executor.distribute import WEIGHTS_FILE
from executor.schedule import Schedule
from planner.planfile import Plan
from profiler.capture import Captured
from profiler.documents import write_atomically
from profiler.program import StageProgram


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
