"""The RunReport document: what was predicted beside what was measured."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from executor.schedule import Schedule
from planner.planfile import Plan
from profiler.documents import Document, Estimated, Record


class Compared(Record):
    """A figure as the plan estimated it and as it came out; ``ratio`` is measured / predicted."""

    predicted: Estimated | None = None
    measured: Estimated | None = None
    ratio: Estimated | None = None

    @staticmethod
    def of(predicted: float | None, measured: float | None) -> Compared:
        """Both figures and their ratio, where there are two."""
        both = bool(predicted) and measured is not None
        return Compared(
            predicted=predicted,
            measured=measured,
            ratio=measured / predicted if both and predicted and measured is not None else None,
        )


class RankReport(Record):
    """One rank. Times are medians over its full pieces (one microbatch's share each)."""

    rank: int
    device: str
    stage: str | None
    pieces: int
    items_per_piece: int
    compute_s: Compared
    waited_s: Estimated
    memory_bytes: Compared
    weights_bytes: int
    loaded_bytes: int
    baseline_bytes: int


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
    single batch), ``latency_s`` the time of a run of one batch (absent otherwise). ``rehearsed``:
    the ranks waited for the profile's times instead of computing.
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
    ranks: tuple[RankReport, ...]
    outputs: OutputCheck | None = None
    rehearsed: bool = False
    environment: dict[str, str]


def make_report(
    schedule: Schedule,
    *,
    started: Sequence[Mapping[str, Any]],
    ran: Sequence[Mapping[str, Any]],
    num_items: int,
    start_s: float,
) -> RunReport:
    """The report of a run from what its ranks told when ready and when done."""
    plan = schedule.plan
    root = ran[schedule.root]
    steps = len(root["step_ends_s"])
    full_steps = num_items % schedule.batch_size == 0
    period = _period(schedule, ran) if steps >= 3 else None
    wall = float(root["wall_s"])
    one_batch = steps == 1 and num_items == schedule.batch_size
    rate = (
        schedule.batch_size / period
        if period
        else num_items * _repeats(steps, schedule, num_items) / wall
    )
    return RunReport(
        plan_id=plan.plan_id,
        num_items=num_items,
        steps=steps,
        period_s=Compared.of(plan.estimate.period_s, period if full_steps or steps > 3 else None),
        latency_s=Compared.of(plan.estimate.latency_s, wall if one_batch else None),
        items_per_s=Compared.of(plan.estimate.items_per_s if steps >= 3 else None, rate),
        wall_s=wall,
        start_s=start_s,
        ranks=tuple(_rank(schedule, rank, started[rank], ran[rank]) for rank in range(len(ran))),
        environment={
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.node(),
        },
    )


def _repeats(steps: int, schedule: Schedule, num_items: int) -> int:
    return max(1, steps // max(1, -(-num_items // schedule.batch_size)))


def _period(schedule: Schedule, ran: Sequence[Mapping[str, Any]]) -> float | None:
    """Slope of the ends of the steps on the ranks that compute, the slowest of them.

    The first step fills the pipeline and the last may be short: both are left out.
    """
    slopes = []
    for rank in schedule.stage_of:
        ends = ran[rank]["step_ends_s"][:-1]
        if len(ends) >= 2:
            slopes.append((ends[-1] - ends[0]) / (len(ends) - 1))
    return max(slopes, default=None)


def _rank(
    schedule: Schedule, rank: int, started: Mapping[str, Any], ran: Mapping[str, Any]
) -> RankReport:
    plan: Plan = schedule.plan
    binding = next(b for b in plan.spec.ranks if b.rank == rank)
    estimate = next((e for e in plan.estimate.ranks if e.rank == rank), None)
    items = max(ran["items"], default=0)
    full = [i for i, count in enumerate(ran["items"]) if count == items]
    # The first piece touches every weight for the first time; it is not typical.
    typical = full[1:] or full
    compute = statistics.median(ran["computed_s"][i] for i in typical) if typical else None
    waited = statistics.median(ran["waited_s"][i] for i in typical) if typical else 0.0
    return RankReport(
        rank=rank,
        device=binding.device,
        stage=schedule.stage_of.get(rank),
        pieces=len(ran["items"]),
        items_per_piece=items,
        compute_s=Compared.of(estimate.compute_s if estimate else None, compute),
        waited_s=waited,
        memory_bytes=Compared.of(
            float(estimate.memory.total_bytes) if estimate else None, float(ran["peak_bytes"])
        ),
        weights_bytes=started["weight_bytes"],
        loaded_bytes=started["loaded_bytes"],
        baseline_bytes=started["baseline_bytes"],
    )
