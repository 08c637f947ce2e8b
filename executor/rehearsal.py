"""``rehearse``: a plan's real ranks, messages and links, its computing replaced by waiting.

Every rank waits as long as its stage would compute by the profile, and as long as messages would
keep its device from computing; then it sends tensors of the right shapes that hold zeros. Ranks
that divide a stage wait for their joins' estimated time too, and exchange nothing in them. So a
plan for eight unequal devices can be tried on two cores, or on a real network before a weight is
loaded. The loop, the transport and the report are those of a run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from executor.bundle import write_rank, write_shared
from executor.inputs import RunInputs
from executor.preflight import refuse
from executor.report import Compared, RunReport, make_report
from executor.running import RunOptions, load_plan
from executor.schedule import Schedule, StageRole
from executor.session import StartedRanks
from executor.waiting import Waits
from planner.check import check_plan, rederive
from planner.inputs import Sources
from planner.planfile import Plan
from planner.prices import Prices
from profiler.errors import InvalidInputError
from profiler.expressions import BATCH, evaluate
from profiler.graph import ModelGraph

BATCHES = 20


def rehearse(
    plan: Plan | str | Path, *, batches: int = BATCHES, options: RunOptions | None = None
) -> RunReport:
    """Run ``batches`` batches of zeros through ``plan`` with processes of this machine that wait.

    Needs the plan's profile (found by its reference, or ``options.profile``); never the model.

    Raises:
        StalePlanError: the plan was made from another profile or cluster.
        InvalidInputError: the plan breaks a rule, its profile is missing, or ``batches`` < 1.
        RankFailedError: a rank failed; the message says which, where and at what.
    """
    options = options or RunOptions()
    loaded, path = load_plan(plan)
    sources = require_rehearsable(loaded, path, options, batches)
    begun = time.monotonic()
    ranks = StartedRanks(loaded, timeout_s=options.timeout_s, hosts=options.hosts)
    try:
        schedule = write_rehearsal(ranks.directory, loaded, sources)
        ready = ranks.start()
        start_s = time.monotonic() - begun
        inputs = zeros(loaded, sources.profile.model)
        ran, _ = ranks.run(inputs, repeats=batches)
    finally:
        ranks.close()
    return rehearsal_report(schedule, ready, ran, start_s=start_s, sources=sources)


def require_rehearsable(
    plan: Plan, path: Path | None, options: RunOptions, batches: int
) -> Sources:
    """The plan's documents, after checking the plan against them.

    Raises:
        StalePlanError, InvalidInputError: as for :func:`rehearse`.
    """
    if batches < 1:
        raise InvalidInputError(f"batches must be 1 or more: {batches}")
    sources = options.sources(plan, path)
    if sources is None:
        raise InvalidInputError(
            f"a rehearsal waits for the profile's times, and {plan.inputs.profile.ref[:200]!r} is "
            "neither here nor beside the plan"
        )
    refuse(check_plan(plan, sources.profile, cluster=sources.cluster))
    return sources


def rehearsal_report(
    schedule: Schedule,
    ready: Sequence[Mapping[str, object]],
    ran: Sequence[Mapping[str, object]],
    *,
    start_s: float,
    sources: Sources,
) -> RunReport:
    """The report of a rehearsal: that of a run, without memory, which no stage took."""
    made = make_report(
        schedule,
        started=ready,
        ran=ran,
        num_items=schedule.batch_size,
        start_s=start_s,
        sources=sources,
    )
    bare = tuple(
        rank.replaced(memory_bytes=Compared(measured=rank.memory_bytes.measured))
        for rank in made.ranks
    )
    return made.model_copy(update={"rehearsed": True, "ranks": bare})


def zeros(plan: Plan, graph: ModelGraph) -> RunInputs:
    """One batch of inputs that hold zeros."""
    items = plan.inputs.request.batch_size
    symbols = graph.symbols_at(items)
    tensors = {
        name: torch.zeros(
            [evaluate(size, symbols) for size in graph.tensor[name].shape],
            dtype=getattr(torch, graph.tensor[name].dtype),
        )
        for name in graph.inputs
    }
    others = {name: value for name, value in graph.symbols.items() if name != BATCH}
    return RunInputs(tensors=tensors, num_items=items, symbols=others)


def write_rehearsal(directory: Path, plan: Plan, sources: Sources) -> Schedule:
    """Write what the ranks of a rehearsal need below ``directory``; returns the schedule."""
    graph = sources.profile.model
    schedule = Schedule(plan, graph)
    threads = {binding.rank: 1 for binding in plan.spec.ranks}
    write_shared(directory, plan=plan, graph=graph, threads=threads, constants={})
    for rank, seconds in waits(plan, sources, schedule).items():
        write_rank(directory, rank, waits=seconds)
    return schedule


def waits(plan: Plan, sources: Sources, schedule: Schedule) -> dict[int, Waits | None]:
    """What each rank waits for 1, 2, ... items up to its share; None without a stage.

    Its computing by the profile, and in proportion to the items what its messages take from it;
    until the layer that first reads a tensor from another stage, the layers before that.
    """
    prices = Prices(sources.profile, sources.cluster)
    loads = {
        load.rank: load for load in rederive(plan, sources.profile, cluster=sources.cluster).ranks
    }
    found: dict[int, Waits | None] = {}
    for binding in plan.spec.ranks:
        role = schedule.role(binding.rank)
        if role is None:
            found[binding.rank] = None
            continue
        stage = schedule.stages[role.place]
        share = stage.shares[stage.ranks.index(binding.rank)]
        counts = range(1, share + 1)
        load, layers = loads[binding.rank], _positions(role, sources.profile.model)
        messages_s = load.receive_s + load.send_s
        if stage.split == "tensor":
            whole_s = load.compute_s + load.join_s + messages_s
            whole = [whole_s * n / share for n in counts]
            found[binding.rank] = Waits(whole=whole, before={})
            continue
        found[binding.rank] = Waits(
            whole=[
                prices.compute_s(binding.device, layers, n) + messages_s * n / share for n in counts
            ],
            before={
                name: [prices.layers_s(binding.device, ahead, n) for n in counts]
                for name, ahead in _unread(role, sources.profile.model).items()
            },
        )
    return found


def _positions(role: StageRole, graph: ModelGraph) -> tuple[int, ...]:
    return tuple(sorted(graph.layer_index[name] for name in role.layers))


def _unread(role: StageRole, graph: ModelGraph) -> dict[str, tuple[int, ...]]:
    """For each tensor of other stages, the layers before the first that reads it."""
    layers = _positions(role, graph)
    found = {}
    for name in role.receives:
        readers = set(graph.readers[name]).intersection(layers)
        if readers and name not in graph.inputs:
            found[name] = layers[: layers.index(min(readers))]
    return found
