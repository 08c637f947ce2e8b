"""What the user wants: the PlanRequest document (YAML, or built from flags)."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from profiler.documents import Bytes, Document, Record


class Objective(StrEnum):
    """What to make small: the time between finished batches, or the time of one batch."""

    THROUGHPUT = "throughput"
    LATENCY = "latency"


class Split(StrEnum):
    """Ways to divide the work that the planner may use.

    Between ``layers`` (stages of a pipeline), a stage's ``batch`` over several devices, the items
    of a batch over whole ``pipelines`` side by side.
    """

    LAYERS = "layers"
    BATCH = "batch"
    PIPELINES = "pipelines"


class Pin(Record):
    """These layers run on this device (``host/device``), whatever it costs."""

    layers: str
    device: str


class Forbid(Record):
    """These layers never run on this device; without ``layers``, nothing does."""

    device: str
    layers: str | None = None


class Limits(Record):
    """How long and with what seed to search. One worker: the same plan every time."""

    time_s: float = Field(default=30.0, gt=0)
    workers: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)


class PlanRequest(Document):
    """One planning question.

    ``batch_size`` items form a step. ``microbatch_size`` is chosen when absent. Layers are named
    by selectors (``planner.selection``): ``encoder.layer.0..5``, ``lm_head``.
    ``reserve_bytes`` is kept free on every device for the runtime; when absent, the resident
    memory of an empty rank as profiled. ``max_bytes`` caps single devices below what is free.
    """

    kind: Literal["PlanRequest"] = "PlanRequest"
    format_version: str = "1.0"
    objective: Objective = Objective.THROUGHPUT
    batch_size: int = Field(ge=1)
    microbatch_size: int | None = Field(default=None, ge=1)
    splits: tuple[Split, ...] = (Split.LAYERS, Split.BATCH, Split.PIPELINES)
    max_stages: int | None = Field(default=None, ge=1)
    reserve_bytes: Bytes | None = Field(default=None, ge=0)
    max_bytes: dict[str, Bytes] = Field(default_factory=dict)
    pins: tuple[Pin, ...] = ()
    forbids: tuple[Forbid, ...] = ()
    keep_together: tuple[str, ...] = ()
    solver: str | None = None
    limits: Limits = Limits()
