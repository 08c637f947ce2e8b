"""What a run of a plan measured, as far as a profile can learn from it: part of each RunReport.

The executor writes it, ``profiler.refitting`` reads it; beside it only the profile is needed.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, ValidationError

from profiler.documents import Estimated, Record, describe
from profiler.errors import InvalidInputError

LONG_PIECES = 5
"""Pieces that take so many periods of a quota are throttled in most, whatever comes between."""

THROTTLED = 0.8
"""A processor that is throttled in so many of its quota's periods gets no more than the quota."""


class Exchange(Record):
    """Messages of one size that a rank gets from, or gives to, a device with each piece.

    ``count`` is not whole where some come once in several pieces.
    """

    device: str
    num_bytes: int = Field(ge=0)
    count: Estimated = Field(default=1.0, gt=0)


class SliceEvidence(Record):
    """``units`` of a region of this twin that a rank computed, ``count`` times with each piece."""

    region: str
    units: int = Field(ge=1)
    count: int = Field(default=1, ge=1)


class Throttling(Record):
    """A quota's ``period_s``, and in which part of its periods its time had been used up."""

    period_s: Estimated = Field(gt=0)
    fraction: Estimated = Field(ge=0, le=1)


class RankEvidence(Record):
    """How long one rank took for a piece of ``items`` items, typically, over ``pieces`` of them.

    ``twins`` counts the layers that it computes in full by what they are twins of (with
    ``(prelude)`` if the stage repeats it); ``slices`` are what it computes of other layers.
    ``busy_s`` is all but waiting and joining, ``compute_s`` of it running the stage's module; of
    the processor's time, ``send_s`` is handing results to the transport, ``dispatch_s`` everything
    else. ``joined_s`` went into joins, waiting for slower ranks of the stage included. ``receives``
    and ``sends`` are the messages that come and go with each piece; on the root, where batches
    follow each other, with the piece's part of all inputs that it sends and outputs that it gets.
    ``throttling`` is there if control groups ration the rank's processor.
    """

    rank: int = Field(ge=0)
    device: str
    device_type: str
    twins: dict[str, int]
    items: int = Field(ge=1)
    pieces: int = Field(ge=1)
    busy_s: Estimated = Field(gt=0)
    compute_s: Estimated = Field(ge=0)
    dispatch_s: Estimated = Field(ge=0)
    send_s: Estimated = Field(ge=0)
    spread: Estimated = Field(ge=0)
    slices: tuple[SliceEvidence, ...] = ()
    joined_s: Estimated = Field(default=0.0, ge=0)
    receives: tuple[Exchange, ...] = ()
    sends: tuple[Exchange, ...] = ()
    throttling: Throttling | None = None

    @property
    def unthrottled(self) -> bool:
        """Whether its pieces are too short, and its pauses too long, for a quota to have told.

        Such a piece takes as long as without a quota; more of the same work would take longer.
        """
        ration = self.throttling
        if ration is None or self.busy_s >= LONG_PIECES * ration.period_s:
            return False
        return ration.fraction < THROTTLED


class LinkEvidence(Record):
    """How long messages of one size took from one device to another: median over ``samples``."""

    source: str
    target: str
    num_bytes: int = Field(ge=1)
    time_s: Estimated = Field(gt=0)
    samples: int = Field(ge=1)
    spread: Estimated = Field(default=0.0, ge=0)


class RunEvidence(Record):
    """A run, by the model's fingerprint and the plan's id.

    ``symbols`` are the sizes other than the batch that the inputs had: the tokens of each item.
    """

    plan_id: str
    model: str
    symbols: dict[str, int]
    ranks: tuple[RankEvidence, ...]
    links: tuple[LinkEvidence, ...]


def parted_s(one: RankEvidence, charged_s: float) -> tuple[float, float]:
    """A rank's busy time as the cost model parts it: layers and dispatching, in seconds.

    ``charged_s`` is what the cost model charges for the piece's messages. Handing on what takes
    longer than that is dispatching. Messages are not believed to cost more than half of computing.

    >>> parts = {"busy_s": 1.0, "compute_s": 0.8, "dispatch_s": 0.0625, "send_s": 0.1875}
    >>> one = RankEvidence(rank=0, device="a", device_type="t", twins={}, items=1, pieces=9,
    ...                    spread=0.0, **parts)
    >>> parted_s(one, 0.0), parted_s(one, 0.125)
    ((0.75, 0.25), (0.75, 0.125))
    """
    dispatch_s = one.dispatch_s + max(0.0, one.send_s - charged_s)
    return max(one.busy_s - charged_s - dispatch_s, one.compute_s / 2), dispatch_s


def read_evidence(report: Mapping[str, object], *, name: str) -> RunEvidence:
    """The evidence in a RunReport given as data; ``name`` is used in messages.

    A rehearsal computes nothing: only its links are evidence.

    Raises:
        InvalidInputError: not a RunReport, or its evidence is missing or damaged.
    """
    if report.get("kind") != "RunReport":
        raise InvalidInputError(
            f"{name} is not a RunReport: its kind is {str(report.get('kind'))[:80]!r}; "
            "write one with apportion run --report"
        )
    version = report.get("format_version")
    if not isinstance(version, str) or version.split(".")[0] != "1":
        raise InvalidInputError(
            f"{name} has format_version {str(version)[:80]!r}; this apportion reads '1.0'"
        )
    data = report.get("evidence")
    if not isinstance(data, Mapping):
        raise InvalidInputError(f"{name} holds no evidence for a refit; run the plan again")
    try:
        evidence = RunEvidence.model_validate(_tuples(data))
    except ValidationError as error:
        raise InvalidInputError(describe(error, f"evidence of {name}")) from error
    return evidence.model_copy(update={"ranks": ()}) if report.get("rehearsed") else evidence


def _tuples(value: object) -> object:
    """JSON's lists as tuples, which strict records ask for."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(item) for item in value)
    return value
