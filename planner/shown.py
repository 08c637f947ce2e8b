"""What is shown of a plan: values without markup, for any way of showing them.

``planner.explain`` fills them from a plan; ``planner.render`` and ``planner.markdown`` draw them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planner.actual import Actual
from planner.request import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class InputsShown:
    """What the plan was made from."""

    model: str
    source: str
    dtype: str
    num_layers: int
    weight_bytes: int
    cluster: str
    profile: str
    error_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultShown:
    """What comes out. The bottleneck's ranks are listed unless it is a wire."""

    objective: Objective
    batch_size: int
    microbatch_size: int
    num_microbatches: int
    period_s: float
    latency_s: float
    items_per_s: float
    bottleneck: str
    bottleneck_ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesShown:
    """What the devices come to where that is the objective, and the least that is not ruled out."""

    what: str
    total: float
    bound: float
    proved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitShown:
    """A limit of the request beside what the plan has, and the objective without it."""

    limit: str
    allowed: float
    actual: float
    without_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HypotheticalShown:
    """What of the plan nobody measured, with the reasons, and its figures at both ends."""

    parts: tuple[tuple[str, str], ...]
    period_s: tuple[float, float]
    latency_s: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofShown:
    """How sure it is that nothing better exists, and among what; and beside the plan in use."""

    solver: str
    status: str
    objective_s: float
    bound_s: float
    gap: float
    space: str
    candidates: int
    baseline: str | None = None
    devices: DevicesShown | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """Tensors that go one way together, ``times`` a batch; ``num_bytes`` is all of them once."""

    source: str
    target: str
    tensors: tuple[str, ...]
    shapes: tuple[str, ...]
    num_bytes: int
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankShare:
    """A rank of a stage, with its items of each run, and its different slices (``3/4``)."""

    rank: int
    device: str
    device_type: str
    items: int
    slices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitShown:
    """The objective with a stage split in one way, and how that is done, or why it cannot be."""

    split: str
    objective_s: float | None
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageShown:
    """What runs together, where, and what leaves it; ``costs`` are of the ways to split it."""

    place: str
    index: int
    layers: tuple[str, ...]
    split: str
    whole_batch: bool
    ranks: tuple[RankShare, ...]
    receives: tuple[Sending, ...]
    sends: tuple[Sending, ...]
    num_regions: int = 0
    costs: tuple[SplitShown, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineShown:
    """A copy of the model with its items of each batch."""

    index: int
    items: int
    stages: tuple[StageShown, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankShown:
    """How a rank spends its time (seconds a run of its stage) and its memory."""

    rank: int
    device: str
    device_type: str
    stage: str | None
    compute_s: float
    join_s: float
    receive_s: float
    send_s: float
    busy_fraction: float
    memory: Mapping[str, int]
    used_bytes: int
    used_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AlternativeShown:
    """A plan that was not chosen; ``worse_fraction`` is its distance from the chosen one."""

    plan: str
    objective_s: float | None
    worse_fraction: float | None
    why_not: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackShown:
    """The best plan without any one of ``devices``; ``slowdown`` is None where there is none."""

    devices: tuple[str, ...]
    objective_s: float | None
    slowdown: float | None
    plan: str | None
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WishShown:
    """What a wish of the request costs; ``planner.planfile.WishPrice`` says what the fields are."""

    kind: str
    wish: str
    subject: str
    verdict: str
    objective_s: float | None
    bound_s: float | None
    gain_s: float | None
    plan: str | None
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPriceShown:
    """What an unused way to split would cost; see ``planner.planfile.SplitPrice``."""

    split: str
    verdict: str
    objective_s: float | None
    bound_s: float | None
    loss_s: float | None
    plan: str | None
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that a reviewer should know."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShown:
    """Where a layer runs; ``layer`` as the plan names it (a module stands for all below it)."""

    layer: str
    place: str
    ranks: tuple[int, ...]
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainReport:
    """Everything that a plan says, in the order in which a reviewer asks."""

    name: str
    plan_id: str
    created_by: str
    inputs: InputsShown
    result: ResultShown
    proof: ProofShown
    aggregation: str
    legal_because: tuple[str, ...]
    destination: str
    root_rank: int
    pipelines: tuple[PipelineShown, ...]
    ranks: tuple[RankShown, ...]
    alternatives: tuple[AlternativeShown, ...]
    idle: tuple[Notice, ...]
    wishes: tuple[WishShown, ...]
    splits: tuple[SplitPriceShown, ...]
    fallbacks: tuple[FallbackShown, ...]
    limits: tuple[LimitShown, ...]
    warnings: tuple[Notice, ...]
    actuals: tuple[Actual, ...]
    next_steps: tuple[tuple[str, str], ...]
    hypothetical: HypotheticalShown | None = None
