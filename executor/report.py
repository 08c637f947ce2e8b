"""The RunReport document: what was predicted beside what was measured."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from executor.links import LinkTime, Offset, link_times
from executor.measured import RankFigures, period_of, rank_evidence, rank_figures
from executor.schedule import JOINED, Schedule
from planner.actual import OFF
from planner.inputs import Sources
from planner.planfile import RankEstimate
from planner.prices import Prices
from profiler.documents import Document, Estimated, Record
from profiler.evidence import LinkEvidence, RankEvidence, RunEvidence, parted_s
from profiler.expressions import BATCH
from profiler.profile import PRELUDE


class Compared(Record):
    """A figure as the plan estimated it and as it came out; ``ratio`` is measured / predicted.

    ``off``: the ratio is more than a tenth away from 1.
    """

    predicted: Estimated | None = None
    measured: Estimated | None = None
    ratio: Estimated | None = None
    off: bool = False

    @staticmethod
    def of(predicted: float | None, measured: float | None) -> Compared:
        """Both figures and their ratio, where there are two."""
        ratio = measured / predicted if predicted and measured is not None else None
        return Compared(
            predicted=predicted,
            measured=measured,
            ratio=ratio,
            off=ratio is not None and abs(ratio - 1) > OFF,
        )


class RankReport(Record):
    """One rank. Times are those of a typical full piece (its share of one microbatch).

    ``busy_s`` is all but waiting. ``compute_s`` is that without what the plan charges for messages:
    the stage's layers and dispatching, which alone is ``dispatch_s`` (predicted by the profile,
    measured as time of the processor). ``joined_s`` is putting values together with the other ranks
    of a tensor split, slower ones waited for. ``waited_s`` is waiting for inputs, ``held_s`` until
    earlier results had left, ``spread`` the distance of the quartiles of ``busy_s`` over its
    median. ``layers`` are the selectors of its stage, ``prelude`` whether it repeats the work that
    all stages share.
    """

    rank: int
    device: str
    device_type: str
    stage: str | None
    layers: tuple[str, ...] = ()
    prelude: bool = False
    pieces: int
    items_per_piece: int
    busy_s: Compared
    compute_s: Compared
    dispatch_s: Compared
    joined_s: Compared = Compared()
    waited_s: Estimated
    held_s: Estimated
    spread: Estimated
    memory_bytes: Compared
    weights_bytes: int
    loaded_bytes: int
    baseline_bytes: int


class StageReport(Record):
    """One stage: how long it is busy with a microbatch (a batch, if it waits for one).

    Measured is the slowest of its ranks, ``slowest_rank``: computing and handing on, not waiting.
    """

    stage: str
    ranks: tuple[int, ...]
    slowest_rank: int | None
    busy_s: Compared


class LinkReport(Record):
    """Messages of one tensor and size from one rank to another.

    ``time_s`` is one message: latency and bytes over bandwidth of the cluster's link beside the
    median over ``samples``. ``state`` says why there is no measured time: ``hidden``, the receiver
    never had to wait for them; ``unresolved``, they are faster than the two hosts' clocks can be
    compared. ``bytes_per_s`` is what one message reached.
    """

    source: int
    target: int
    source_device: str
    target_device: str
    tensor: str
    num_bytes: int
    messages: int
    state: Literal["measured", "hidden", "unresolved"]
    time_s: Compared
    samples: int
    bytes_per_s: Estimated | None = None


class StageCheck(Record):
    """How far a stage's outputs are from the undivided model's."""

    stage: str
    tensor: str
    max_abs_error: float
    relative_error: float
    identical: bool


class OutputCheck(Record):
    """The verdict of ``verify``."""

    equal: bool
    identical: bool
    tolerance: float
    relative_error: float
    first_diverging_stage: str | None = None
    stages: tuple[StageCheck, ...] = ()


class RunReport(Document):
    """One run of a plan.

    ``period_s`` is the time between finished batches once the pipeline is full (absent for a
    single batch), ``latency_s`` the time of a run of one batch (absent otherwise).
    ``clock_error_s`` is how far off times that compare two hosts may be. ``evidence`` is what
    ``apportion refit`` folds back into the profile. ``rehearsed``: the ranks waited for the
    profile's times instead of computing.
    """

    kind: Literal["RunReport"] = "RunReport"
    format_version: str = "1.0"
    plan_id: str
    num_items: int
    steps: int
    period_s: Compared
    latency_s: Compared
    items_per_s: Compared
    wall_s: float
    start_s: float
    stages: tuple[StageReport, ...] = ()
    links: tuple[LinkReport, ...] = ()
    ranks: tuple[RankReport, ...]
    clock_error_s: float = Field(default=0.0, ge=0)
    outputs: OutputCheck | None = None
    rehearsed: bool = False
    evidence: RunEvidence | None = None
    environment: dict[str, str]


def make_report(
    schedule: Schedule,
    *,
    started: Sequence[Mapping[str, Any]],
    ran: Sequence[Mapping[str, Any]],
    num_items: int,
    start_s: float,
    sources: Sources | None = None,
) -> RunReport:
    """The report of a run from what its ranks told when ready and when done.

    ``sources`` are the documents behind the plan; without them there is no estimate of messages
    and of dispatching.
    """
    import torch  # the document itself is read without it

    plan = schedule.plan
    root = ran[schedule.root]
    steps = len(root["step_ends_s"])
    full_steps = num_items % schedule.batch_size == 0
    wall = float(root["wall_s"])
    offsets = {rank: Offset(*clock) for rank, clock in enumerate(root["clocks"])}
    ends = [[at - offsets[r].seconds for at in ran[r]["step_ends_s"]] for r in schedule.stage_of]
    period = period_of(ends, filling=plan.spec.schedule.depth)
    one_batch = steps == 1 and num_items == schedule.batch_size
    rate = (
        schedule.batch_size / period
        if period
        else num_items * _repeats(steps, schedule, num_items) / wall
    )
    prices = None if sources is None else Prices(sources.profile, sources.cluster)
    figures = [rank_figures(one) for one in ran]
    links = link_times([one["transfers"] for one in ran], offsets)
    evidence = _evidence(schedule, figures, links, root["symbols"], num_items, alone=steps == 1)
    seen = {one.rank: one for one in evidence.ranks}
    return RunReport(
        plan_id=plan.plan_id,
        num_items=num_items,
        steps=steps,
        period_s=Compared.of(plan.estimate.period_s, period if full_steps or steps > 3 else None),
        latency_s=Compared.of(plan.estimate.latency_s, wall if one_batch else None),
        items_per_s=Compared.of(plan.estimate.items_per_s if steps >= 3 else None, rate),
        wall_s=wall,
        start_s=start_s,
        stages=tuple(_stages(schedule, figures)),
        links=tuple(_links(schedule, links, prices)),
        ranks=tuple(
            _rank(
                schedule,
                rank,
                seen.get(rank),
                figures[rank],
                {**started[rank], **ran[rank]},
                prices,
            )
            for rank in range(len(ran))
        ),
        clock_error_s=max(offset.error_s for offset in offsets.values()),
        evidence=evidence,
        environment={
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.node(),
        },
    )


def _repeats(steps: int, schedule: Schedule, num_items: int) -> int:
    return max(1, steps // max(1, -(-num_items // schedule.batch_size)))


def _stages(schedule: Schedule, figures: Sequence[RankFigures | None]) -> Iterator[StageReport]:
    estimates = {e.rank: e for e in schedule.plan.estimate.ranks}
    for where, stage in schedule.stages.items():
        measured = [(f.busy_s, rank) for rank in stage.ranks if (f := figures[rank])]
        slowest = max(measured, default=None)
        expected = [estimates[rank] for rank in stage.ranks if rank in estimates]
        yield StageReport(
            stage=where,
            ranks=stage.ranks,
            slowest_rank=None if slowest is None else slowest[1],
            busy_s=Compared.of(_busy_s(expected), None if slowest is None else slowest[0]),
        )


def _busy_s(ranks: Sequence[RankEstimate]) -> float | None:
    """``busy`` of the cost model: each part is charged at the slowest rank."""
    if not ranks:
        return None
    return (
        max(r.compute_s for r in ranks)
        + max(r.join_s for r in ranks)
        + max(r.receive_s for r in ranks)
        + max(r.send_s for r in ranks)
    )


def _links(
    schedule: Schedule, links: Sequence[LinkTime], prices: Prices | None
) -> Iterator[LinkReport]:
    device = {b.rank: b.device for b in schedule.plan.spec.ranks}
    for one in links:
        source, target = device[one.source], device[one.target]
        predicted = None
        if prices is not None:
            predicted = prices.link(source, target).transfer_time_s(one.num_bytes)
        yield LinkReport(
            source=one.source,
            target=one.target,
            source_device=source,
            target_device=target,
            tensor=one.tensor,
            num_bytes=one.num_bytes,
            messages=one.messages,
            state=one.state,
            time_s=Compared.of(predicted, one.time_s),
            samples=one.samples,
            bytes_per_s=one.num_bytes / one.time_s if one.time_s else None,
        )


def _rank(
    schedule: Schedule,
    rank: int,
    seen: RankEvidence | None,
    figures: RankFigures | None,
    told: Mapping[str, Any],
    prices: Prices | None,
) -> RankReport:
    """``told`` is what the rank said when ready and when done."""
    binding = next(b for b in schedule.plan.spec.ranks if b.rank == rank)
    estimate = next((e for e in schedule.plan.estimate.ranks if e.rank == rank), None)
    where = schedule.stage_of.get(rank)
    expected_s = charged_s = expected_bytes = expected_dispatch_s = None
    if estimate is not None:
        charged_s = estimate.receive_s + estimate.send_s
        expected_s, expected_bytes = estimate.compute_s, float(estimate.memory.total_bytes)
        expected_bytes += told["beyond_bytes"]
    if prices is not None and where is not None:
        expected_dispatch_s = prices.timings(binding.device).dispatch_s
    parted = None if seen is None else parted_s(seen, charged_s or 0.0)
    return RankReport(
        rank=rank,
        device=binding.device,
        device_type=binding.device_type,
        stage=where,
        layers=() if where is None else schedule.stages[where].layers,
        prelude=seen is not None and PRELUDE in seen.twins,
        pieces=len(told["items"]),
        items_per_piece=figures.items if figures else 0,
        busy_s=Compared.of(
            None
            if estimate is None
            else estimate.compute_s + estimate.join_s + estimate.receive_s + estimate.send_s,
            figures.busy_s if figures else None,
        ),
        compute_s=Compared.of(expected_s, sum(parted) if parted else None),
        dispatch_s=Compared.of(expected_dispatch_s, parted[1] if parted else None),
        joined_s=Compared.of(
            None if estimate is None else estimate.join_s, figures.join_s if figures else None
        ),
        waited_s=figures.waited_s if figures else 0.0,
        held_s=figures.held_s if figures else 0.0,
        spread=figures.spread if figures else 0.0,
        memory_bytes=Compared.of(expected_bytes, float(told["peak_bytes"])),
        weights_bytes=told["weight_bytes"],
        loaded_bytes=told["loaded_bytes"],
        baseline_bytes=told["baseline_bytes"],
    )


def _evidence(
    schedule: Schedule,
    figures: Sequence[RankFigures | None],
    links: Sequence[LinkTime],
    symbols: Mapping[str, int],
    num_items: int,
    *,
    alone: bool,
) -> RunEvidence:
    device = {b.rank: b.device for b in schedule.plan.spec.ranks}
    known = {**schedule.graph.symbols, **symbols}
    return RunEvidence(
        plan_id=schedule.plan.plan_id,
        model=schedule.graph.fingerprint,
        symbols={name: size for name, size in sorted(known.items()) if name != BATCH},
        ranks=tuple(
            rank_evidence(
                schedule,
                rank,
                one,
                step_items=min(num_items, schedule.batch_size),
                symbols=symbols,
                alone=alone,
            )
            for rank, one in enumerate(figures)
            if one is not None and one.busy_s > 0
        ),
        links=tuple(
            LinkEvidence(
                source=device[one.source],
                target=device[one.target],
                num_bytes=one.num_bytes,
                time_s=one.time_s,
                samples=one.samples,
                spread=one.spread,
            )
            for one in links
            # Joins go both ways at once: they say little about one message alone.
            if one.time_s is not None and not one.tensor.startswith(JOINED)
        ),
    )
