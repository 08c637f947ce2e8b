"""The Plan document: what runs where, and the evidence for it.

``spec`` alone is obeyed; ``estimate``, ``search`` and ``warnings`` are evidence that the executor
never reads. ``plan_id`` is a digest of ``inputs`` and ``spec``: same inputs, same bytes. A person
may edit ``spec``; then the id no longer fits, and ``check`` says so.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from planner.request import Destination, Objective, PlanRequest, Split
from profiler.documents import Document, Estimated, Record, digest

INPUT = "input"
"""As a transfer's source: the model's inputs, held by the root rank."""
OUTPUT = "output"
"""As a transfer's target: the model's answer, gathered on the root rank."""


StageSplit = Literal["none", "batch", "tensor"]
"""How the ranks of a stage divide its work."""


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


class Alternative(Record):
    """A plan that was not chosen; ``objective_s`` is absent when it does not fit."""

    plan: str
    objective_s: Estimated | None = None
    why_not: str


class IdleDevice(Record):
    """A device the plan leaves out, and why."""

    device: str
    reason: str


class Fallback(Record):
    """The best plan without any one of ``devices``, which are equal and lose the same.

    ``slowdown`` is the part of the plan's objective that it takes more (below 0: another root is
    better). Without an ``objective_s`` there is no such plan, and ``note`` says why.
    """

    devices: tuple[str, ...] = Field(min_length=1)
    objective_s: Estimated | None = None
    slowdown: Estimated | None = None
    plan: str | None = None
    note: str = ""


class BaselineRecord(Record):
    """The plan that was in use, on the inputs of this one, beside the best that was found.

    ``verdict``: ``same``, the best is the plan in use; ``kept``, the best was less than
    ``min_gain`` better (or only as good), and this plan is still the one in use; ``changed``, this
    plan is the best found; ``unfit``, the plan in use breaks a rule on these inputs.
    ``objective_s`` is that of the plan in use (absent if unfit), ``found_s`` that of the best
    found, ``gain`` the part of the former that the latter saves. ``summary`` says what differs.
    Where the objective is what the devices come to, ``devices`` and ``found_devices`` are that of
    both, and ``gain`` is in these unless they are equal.
    """

    plan_id: str
    verdict: Literal["same", "kept", "changed", "unfit"]
    objective_s: float | None = None
    found_s: float
    devices: float | None = None
    found_devices: float | None = None
    gain: float | None = None
    min_gain: float = Field(default=0.0, ge=0, lt=1)
    summary: str


class SplitCost(Record):
    """The plan's objective with a stage split in one way; ``how`` says which devices, shares or
    slices, or why it cannot be."""

    split: StageSplit
    objective_s: Estimated | None = None
    how: str


class StageChoice(Record):
    """How a stage on several devices is split, beside the other ways on the same devices."""

    stage: str
    split: StageSplit
    costs: tuple[SplitCost, ...]


LimitName = Literal["max_latency_s", "min_items_per_s", "max_devices"]
"""A limit of the request that a plan as a whole keeps."""


class LimitRecord(Record):
    """A limit of the request, what the plan has of it, and what it costs: ``without_s`` is the
    least objective seen without it, absent where that was not looked for."""

    limit: LimitName
    allowed: float
    actual: Estimated
    without_s: Estimated | None = None


class DevicesRecord(Record):
    """What the devices with a rank come to, where that is the objective: no plan that keeps the
    limits comes to less than ``bound``. Price: an hour, in the currency of the prices."""

    what: Literal["devices", "price"]
    total: float
    bound: float


class WishPrice(Record):
    """What one wish of the request costs: the best plan without it, from a search of its own.

    ``kind`` is the field of the request, ``wish`` says it in words, ``subject`` is the layers, the
    device or the split that it is about. ``verdict``: ``costs``, a plan without it is better by
    ``gain_s``; ``free``, none is (proved); ``open``, none was found, and none is below ``bound_s``;
    ``skipped``, ``note`` says why. ``plan`` is the better one in a line.
    """

    kind: str
    wish: str
    subject: str = ""
    verdict: Literal["costs", "free", "open", "skipped"]
    objective_s: Estimated | None = None
    bound_s: Estimated | None = None
    gain_s: Estimated | None = None
    plan: str | None = None
    note: str = ""


class SplitPrice(Record):
    """What it would cost to split the work in a way that the plan does not: the best plan with it.

    ``verdict``: ``costs``, that one takes ``loss_s`` more; ``free``, it is as good; ``impossible``,
    there is no such plan; ``open``, none was found; ``skipped``. Nothing that uses it is below
    ``bound_s``. ``note`` says among which plans it was looked for, or why there is none.
    """

    split: Split
    verdict: Literal["costs", "free", "impossible", "open", "skipped"]
    objective_s: Estimated | None = None
    bound_s: Estimated | None = None
    loss_s: Estimated | None = None
    plan: str | None = None
    note: str = ""


class SearchRecord(Record):
    """The certificate: ``objective_s`` was reached, nothing below ``bound_s`` exists in ``space``.

    ``gap`` = (objective - bound) / bound; ``status`` is ``optimal`` when it is zero to 1e-9.
    Where the devices are the objective (``devices``), ``objective_s`` is the period of plans that
    come to no more, and ``optimal`` says that neither can be less. ``limits`` are those of the
    request, ``wishes`` the prices of its other wishes, ``splits`` those of the allowed ways to
    split that the plan does not use. ``baseline`` is there if the plan was made beside one that
    was in use, ``fallbacks`` if they were asked for.
    """

    solver: str
    status: Literal["optimal", "feasible"]
    objective: Objective
    objective_s: float
    bound_s: float
    gap: float
    space: str
    candidates: int
    devices: DevicesRecord | None = None
    limits: tuple[LimitRecord, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    choices: tuple[StageChoice, ...] = ()
    idle: tuple[IdleDevice, ...] = ()
    wishes: tuple[WishPrice, ...] = ()
    splits: tuple[SplitPrice, ...] = ()
    baseline: BaselineRecord | None = None
    fallbacks: tuple[Fallback, ...] = ()


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
