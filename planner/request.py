"""What the user wants: the PlanRequest document (YAML, or built from flags)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from profiler.documents import Bytes, Document, Record, Seconds


class Objective(StrEnum):
    """What to make small: the time between finished batches, the time of one batch, or what the
    devices of a plan come to (their number, their price) that keeps the limits asked for."""

    THROUGHPUT = "throughput"
    LATENCY = "latency"
    DEVICES = "devices"
    PRICE = "price"

    @property
    def counts_latency(self) -> bool:
        """Whether plans are compared by the time of one batch, not by that between batches.

        Plans of equally many devices, or of one price, are compared by the time between batches.
        """
        return self is Objective.LATENCY

    @property
    def of_devices(self) -> bool:
        """Whether what a plan's devices come to goes before any time."""
        return self in (Objective.DEVICES, Objective.PRICE)


class Split(StrEnum):
    """Ways to divide the work that the planner may use.

    Between ``layers`` (stages of a pipeline), a stage's ``batch`` over several devices, its
    weights and work (``tensor``) over several devices, the items of a batch over whole
    ``pipelines`` side by side.
    """

    LAYERS = "layers"
    BATCH = "batch"
    TENSOR = "tensor"
    PIPELINES = "pipelines"


StageSplit = Literal["none", "batch", "tensor"]
"""How the ranks of a stage divide its work."""


class Destination(StrEnum):
    """Who has the answer: the root rank, every rank, or each rank that of its own items."""

    ROOT = "root"
    ALL = "all"
    SCATTERED = "scattered"


class Pin(Record):
    """These layers run on this device (``host/device``), whatever it costs."""

    layers: str
    device: str


class Forbid(Record):
    """These layers never run on this device; without ``layers``, nothing does."""

    device: str
    layers: str | None = None


class Limits(Record):
    """How long and with what seed to search. One worker: the same plan every time, unless time
    runs out first. What the plan's record says beside it (why devices are idle, what wishes cost)
    takes up to as long again."""

    time_s: float = Field(default=30.0, gt=0)
    workers: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)


class PlanRequest(Document):
    """One planning question.

    ``batch_size`` items form a step. ``microbatch_size`` is chosen when absent. Layers are named
    by selectors (``planner.selection``): ``encoder.layer.0..5``, ``lm_head``.
    ``reserve_bytes`` is kept free on every device for the runtime; when absent, the resident
    memory of an empty rank as profiled. ``max_bytes`` caps single devices below what is free.
    ``aggregation`` names the strategy for an ensemble's members, instead of the ensemble's own.

    Whatever the objective, no plan takes longer than ``max_latency_s`` for one batch, finishes
    fewer items a second than ``min_items_per_s``, or has ranks on more than ``max_devices``
    devices (the first device, which feeds and gathers, always has one). ``prices_per_hour`` are
    of devices by full name or by type, in any one currency; they go before those of the cluster.
    """

    kind: Literal["PlanRequest"] = "PlanRequest"
    format_version: str = "1.0"
    objective: Objective = Objective.THROUGHPUT
    batch_size: int = Field(ge=1)
    microbatch_size: int | None = Field(default=None, ge=1)
    splits: tuple[Split, ...] = (
        Split.LAYERS,
        Split.BATCH,
        Split.TENSOR,
        Split.PIPELINES,
    )
    max_stages: int | None = Field(default=None, ge=1)
    max_latency_s: Seconds | None = Field(default=None, gt=0)
    min_items_per_s: float | None = Field(default=None, gt=0)
    max_devices: int | None = Field(default=None, ge=1)
    prices_per_hour: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    reserve_bytes: Bytes | None = Field(default=None, ge=0)
    max_bytes: dict[str, Bytes] = Field(default_factory=dict)
    pins: tuple[Pin, ...] = ()
    forbids: tuple[Forbid, ...] = ()
    keep_together: tuple[str, ...] = ()
    aggregation: str | None = None
    destination: Destination = Destination.ROOT
    solver: str | None = None
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _wanted(self) -> Self:
        if (
            self.objective.of_devices
            and self.min_items_per_s is None
            and self.max_latency_s is None
        ):
            what = "fewest devices" if self.objective is Objective.DEVICES else "least price"
            raise ValueError(
                f"objective {self.objective.value} asks for the {what} that keep a limit: give "
                "min_items_per_s, max_latency_s or both"
            )
        return self
