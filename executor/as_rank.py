"""``run`` and ``rehearse`` as one of the processes that torchrun has started on a plan's hosts.

Rank 0 has the run prepared, gathers the answer and the reports; the others take part. No rank loads
what capturing a model takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from executor.delivery import kept_items
from executor.placement import placed
from executor.preparation import prepare_apart
from executor.report import RunReport, make_report
from executor.schedule import Schedule
from executor.stage import RankBundle
from executor.tensorfiles import write_index, write_tensors
from executor.torchrun import INPUTS, World, require_world
from planner.inputs import find_sources
from planner.planfile import Plan
from planner.request import Destination
from profiler.environment import Environment


@dataclass(frozen=True, kw_only=True)
class RankRun:
    """What each process of a run was given. ``check`` is called on rank 0 before any work: it
    returns the file of inputs, or raises InvalidInputError."""

    plan: Path
    check: Callable[[], Path]
    outputs: Path | None
    model: str | None
    timeout_s: float


def run_as_rank(run: RankRun, environment: Environment) -> RunReport | None:
    """Take part in a run: the report on rank 0, None elsewhere.

    Raises:
        StalePlanError, InvalidInputError, UnsupportedModelError: the run cannot start; every rank
            is told why.
        RankFailedError: a rank failed, or was not heard of in time.
    """
    plan = Plan.load(run.plan)
    here = placed(environment, plan)
    if here is None:
        return None
    require_world(plan, here)
    world = World(plan, here, timeout_s=run.timeout_s)
    if here.rank != 0:
        world.follow(run.outputs)
        return None
    wanted = plan.spec.aggregation.destination
    with world.leading() as directory:
        inputs = run.check()
        ready = prepare_apart(directory, plan=run.plan, inputs=inputs, model=run.model)
        graph = RankBundle.read(directory, 0).graph
        gathered, started, ran = world.lead(
            directory,
            num_items=ready.num_items,
            symbols=ready.symbols,
            names=None if wanted is Destination.ROOT else ready.names,
            outputs=run.outputs,
        )
        if run.outputs is not None and wanted is Destination.SCATTERED:
            parts = kept_items(plan, ran, ready.names)
            write_index(run.outputs, num_items=ready.num_items, parts=parts)
        elif run.outputs is not None:
            write_tensors(run.outputs, ready.answer(gathered))
    return make_report(
        Schedule(plan, graph),
        started=started,
        ran=ran,
        num_items=ready.num_items,
        start_s=max(s["start_s"] for s in started),
        sources=find_sources(plan, run.plan),
    )


def rehearse_as_rank(
    plan_path: Path, *, batches: int, timeout_s: float, environment: Environment
) -> RunReport | None:
    """Take part in a rehearsal: the report on rank 0, None elsewhere.

    Raises:
        StalePlanError, InvalidInputError, RankFailedError: as for :func:`run_as_rank`.
    """
    plan = Plan.load(plan_path)
    require_world(plan, environment)
    world = World(plan, environment, timeout_s=timeout_s)
    if environment.rank != 0:
        world.follow()
        return None
    from safetensors.torch import save_file

    # Only rank 0 needs what preparing loads.
    from executor.rehearsal import rehearsal_report, require_rehearsable, write_rehearsal, zeros
    from executor.running import RunOptions

    with world.leading() as directory:
        options = RunOptions(timeout_s=timeout_s)
        sources = require_rehearsable(plan, plan_path, options, batches)
        inputs = zeros(plan, sources.profile.model)
        write_rehearsal(directory, plan, sources)
        save_file(inputs.tensors, directory / INPUTS)
        _, started, ran = world.lead(
            directory, num_items=inputs.num_items, symbols=inputs.symbols, repeats=batches
        )
    return rehearsal_report(
        Schedule(plan, sources.profile.model),
        started,
        ran,
        start_s=max(s["start_s"] for s in started),
        sources=sources,
    )
