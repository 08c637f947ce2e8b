"""The evidence of a plan's search: its certificate, what was not chosen and why, what wishes cost.

Part of the Plan document (``search``); the executor never reads it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from planner.request import Objective, Split, StageSplit
from profiler.documents import Estimated, Record


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
