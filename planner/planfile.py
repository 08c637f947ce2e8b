"""The Plan document: what runs where, and the evidence for it.

``spec`` alone is obeyed; ``estimate``, ``search`` and ``warnings`` are evidence that the executor
never reads. ``plan_id`` is a digest of ``inputs`` and ``spec``: same inputs, same bytes. A person
may edit ``spec``; then the id no longer fits, and ``check`` says so.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from planner.request import Destination, PlanRequest, StageSplit
from planner.searchrecord import SearchRecord
from profiler.documents import Document, Estimated, Record, digest

INPUT = "input"
"""As a transfer's source: the model's inputs, held by the root rank."""
OUTPUT = "output"
"""As a transfer's target: the model's answer, gathered on the root rank."""


def place(pipeline: int, stage: int) -> str:
    """How transfers name a stage.

    >>> place(0, 2)
    'pipeline0.stage2'
    """
    return f"pipeline{pipeline}.stage{stage}"


class ModelInput(Record):
    """The model the plan was made for; ``graph`` is its fingerprint."""

    ref: str
    source: str
    dtype: str
    graph: str
    num_layers: int
    weight_bytes: int


class FileInput(Record):
    """A document the plan was made from."""

    ref: str
    fingerprint: str


class PlanInputs(Record):
    """Everything the plan depends on."""

    model: ModelInput
    cluster: FileInput
    profile: FileInput
    request: PlanRequest


class Schedule(Record):
    """How microbatches move: ``streaming`` sends each on as soon as it is computed.

    ``microbatch_size`` items travel together; a rank receives up to ``depth`` of them ahead.
    """

    name: Literal["streaming"] = "streaming"
    microbatch_size: int
    depth: int = Field(default=2, ge=1)


class Combining(Record):
    """A strategy with its parameters (``planner.strategies`` says which takes what).

    ``dim`` is that of the output's own shape; ``weights`` are one a member of an ensemble; ``ties``
    say what a vote that is a draw gives.
    """

    strategy: str = "concat"
    dim: int | None = None
    weights: tuple[float, ...] | None = None
    ties: Literal["smallest"] | None = None


class OutputCombining(Combining):
    """How the parts of one output over items are put together, if not end to end."""

    tensor: str


class Aggregation(Combining):
    """How partial results become the answer, and who has it then.

    Of an ensemble, ``strategy`` puts together the answers of its ``members``; else, the parts that
    answer for different items. ``outputs`` lists outputs whose parts over items are put together
    in a way of their own, such as a mean over items. ``destination``: ``root``, the answer is on
    rank ``root_rank``; ``all``, on every rank; ``scattered``, each rank keeps that of its items.
    """

    destination: Destination = Destination.ROOT
    root_rank: int = 0
    members: tuple[str, ...] | None = None
    outputs: tuple[OutputCombining, ...] | None = None

    def over_items(self, tensor: str) -> Combining:
        """How the parts of an output that hold different items are put together."""
        own = next((x for x in self.outputs or () if x.tensor == tensor), None)
        if own is not None:
            return own
        return Combining() if self.members is not None else self


class Slices(Record):
    """Units of a region's axis (``profiler.graph.SliceRegion``) for each rank of a stage, in rank
    order: rank r holds those behind the units of the ranks before it."""

    region: str
    units: tuple[int, ...]


class Stage(Record):
    """A set of layers, and the ranks that run it.

    ``split`` is ``none`` (one rank), ``batch`` (each rank holds the whole stage and computes
    its ``shares`` of every microbatch, in rank order) or ``tensor`` (every rank computes all items,
    so each share is the whole microbatch, on its ``slices`` of the regions named there; other
    layers of the stage are computed by every rank). ``whole_batch``: the stage waits for the
    whole batch, because a layer in it looks across items.
    """

    index: int
    layers: tuple[str, ...]
    split: StageSplit = "none"
    ranks: tuple[int, ...]
    shares: tuple[int, ...]
    slices: tuple[Slices, ...] = ()
    whole_batch: bool = False

    def fractions(self, position: int) -> tuple[str, ...]:
        """The different slices of the rank at ``position``, as units of all: ``3/4``."""
        return tuple(
            dict.fromkeys(
                f"{x.units[position]}/{sum(x.units)}"
                for x in self.slices
                if position < len(x.units)
            )
        )


class Pipeline(Record):
    """One full copy of the model; it computes ``items`` of every batch, in pipeline order."""

    index: int
    items: int
    stages: tuple[Stage, ...]


class RankBinding(Record):
    """A process and the device (``host/device``) it uses. Rank 0 feeds and gathers.

    ``hypothetical``: no such device is there, so that the plan cannot be run.
    """

    rank: int
    device: str
    device_type: str
    hypothetical: Literal[True] | None = None


class Transfer(Record):
    """A tensor that moves between stages, from the input, or to the output.

    ``source`` and ``target`` are ``pipelineP.stageS``, ``input`` or ``output``; a stage may pass
    on what it received. ``num_bytes`` is for one microbatch (one batch if ``whole_batch``).
    """

    source: str
    target: str
    tensor: str
    shape: tuple[int | str, ...]
    dtype: str
    num_bytes: int


class PlanSpec(Record):
    """The decision. Nothing else in the file is obeyed."""

    backend: Literal["gloo"] = "gloo"
    schedule: Schedule
    aggregation: Aggregation
    pipelines: tuple[Pipeline, ...]
    ranks: tuple[RankBinding, ...]
    transfers: tuple[Transfer, ...]


class RankMemory(Record):
    """The memory ledger of one rank, in bytes; see ``planner.memory``."""

    weights_bytes: int
    state_bytes: int
    activations_bytes: int
    buffers_bytes: int
    reserve_bytes: int
    capacity_bytes: int

    @property
    def total_bytes(self) -> int:
        """All that the plan puts on the device, with the reserve."""
        return (
            self.weights_bytes
            + self.state_bytes
            + self.activations_bytes
            + self.buffers_bytes
            + self.reserve_bytes
        )


class RankEstimate(Record):
    """How one rank is expected to spend a microbatch (a batch, if its stage waits for one).

    ``join_s`` is for exchanging partial results with the other ranks of a stage split by tensor.
    """

    rank: int
    compute_s: Estimated
    join_s: Estimated = 0.0
    receive_s: Estimated
    send_s: Estimated
    busy_fraction: Estimated
    memory: RankMemory


class HypotheticalPart(Record):
    """A device, or a link (``A -> B``, ``A <-> B``), that nobody measured; ``basis`` says what its
    figures rest on."""

    where: str
    basis: str


class HypotheticalEstimate(Record):
    """The figures of a plan that rests on what was not measured, at both ends of its range.

    The same decision, priced with all hypothetical times low, and with all of them high.
    """

    parts: tuple[HypotheticalPart, ...] = Field(min_length=1)
    period_low_s: Estimated
    period_high_s: Estimated
    latency_low_s: Estimated
    latency_high_s: Estimated


class Estimate(Record):
    """What the plan is expected to do.

    ``period_s`` is the time between finished batches when batches follow each other,
    ``latency_s`` the time of one batch alone. ``error_fraction`` comes from the profile.
    ``bottleneck`` starts with what is busy for all of ``period_s``: ``pipeline0.stage1``,
    ``wire node-a/cpu -> node-b/cpu``, or ``wire NAME`` for links that share a wire.
    ``hypothetical`` is there if the plan uses devices or links that were not measured.
    """

    period_s: Estimated
    latency_s: Estimated
    items_per_s: Estimated
    error_fraction: Estimated
    bottleneck: str
    ranks: tuple[RankEstimate, ...]
    hypothetical: HypotheticalEstimate | None = None


class PlanWarning(Record):
    """Something a reviewer should know; ``code`` is stable."""

    code: str
    message: str


class Plan(Document):
    """A reviewed decision, and what it rests on."""

    kind: Literal["Plan"] = "Plan"
    format_version: str = "1.0"
    plan_id: str
    created_by: str
    inputs: PlanInputs
    spec: PlanSpec
    estimate: Estimate
    search: SearchRecord
    warnings: tuple[PlanWarning, ...] = ()

    def expected_id(self) -> str:
        """The id that belongs to the present ``inputs`` and ``spec``."""
        return plan_id(self.inputs, self.spec)


def plan_id(inputs: PlanInputs, spec: PlanSpec) -> str:
    """Digest of what the plan was made from and what it decides."""
    return digest(f'{{"inputs":{inputs.canonical()},"spec":{spec.canonical()}}}')
