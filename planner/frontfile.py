"""The ParetoFront document: plans of which none is as good as another in everything and better in
something, with what is proved of each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from planner.planfile import PlanInputs
from profiler.documents import Document, Estimated, Record


class FrontPoint(Record):
    """One plan, and its certificate.

    ``devices`` have a rank. No plan on at most so many devices and within ``latency_s`` has a
    shorter period than ``period_bound_s``; none within ``period_s`` a lower latency than
    ``latency_bound_s``; ``fewest``: none on fewer devices is within both times. ``gap`` is the
    larger relative distance of the two times from their bounds. ``proved``: the gap is zero to
    1e-9 and the devices are the fewest, so nothing dominates the plan. ``price_per_hour`` is there
    if every device in use has a price.
    """

    number: int = Field(ge=1)
    devices: int
    latency_s: float
    period_s: float
    items_per_s: Estimated
    latency_bound_s: float
    period_bound_s: float
    fewest: bool
    gap: Estimated
    proved: bool
    price_per_hour: float | None = None
    microbatch_size: int
    plan: str


class ParetoFront(Document):
    """The front of latency, throughput and number of devices for one request.

    ``complete``: every plan that nothing dominates, in latency to ``step``, is as good as one of
    ``points``. Else there may be more: ``open_regions`` parts of the front (between two neighbours,
    beyond an end, for a number of devices) were not searched to the end.
    """

    kind: Literal["ParetoFront"] = "ParetoFront"
    format_version: str = "1.0"
    created_by: str
    inputs: PlanInputs
    space: str
    step: float
    complete: bool
    open_regions: int
    searches: int
    points: tuple[FrontPoint, ...]
