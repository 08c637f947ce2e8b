"""Whether what `search` says of wishes and of unused splits fits the plan, its request and itself.

The plans without a wish, or with another split, are not at hand: what they cost is believed, as far
as it can be. Independent of everything that makes plans.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.findings import Finding, Severity
from planner.planfile import Plan
from planner.request import PlanRequest, Split
from planner.searchrecord import SplitPrice, WishPrice

ROUNDED = 5.1e-5
"""Relative difference allowed between figures of five digits."""


def price_findings(plan: Plan, severity: Severity) -> Iterator[Finding]:
    """Everything in which a price contradicts the plan, the request or itself."""
    search = plan.search
    objective_s = search.objective_s
    for at, wish in enumerate(search.wishes):
        for message in _wish(wish, objective_s):
            yield _finding(severity, f"search.wishes[{at}]", f"{wish.wish[:60]}: {message}")
    if search.wishes:
        said = sorted((x.kind, x.subject) for x in search.wishes)
        asked = sorted(_asked(plan.inputs.request))
        for kind, subject in asked:
            if (kind, subject) not in said:
                what = f"{kind} {subject}".strip()
                yield _finding(severity, "search.wishes", f"no price for {what}")
        for kind, subject in said:
            if (kind, subject) not in asked:
                what = f"{kind[:40]} {subject[:60]}".strip()
                yield _finding(severity, "search.wishes", f"the request does not ask for {what}")
    allowed = {split.value for split in plan.inputs.request.splits}
    used = _used(plan)
    for at, price in enumerate(search.splits):
        where = f"search.splits[{at}]"
        if price.split in used:
            yield _finding(severity, where, f"the plan splits by {price.split}")
        elif price.split not in allowed:
            yield _finding(severity, where, f"the request allows no {price.split} split")
        else:
            for message in _split(price, objective_s, search.bound_s):
                yield _finding(severity, where, f"{price.split}: {message}")
    if search.splits:
        silent = sorted(allowed - used - {price.split for price in search.splits})
        if silent:
            yield _finding(severity, "search.splits", f"nothing is said of {', '.join(silent)}")


def _wish(said: WishPrice, objective_s: float) -> Iterator[str]:
    theirs, least = said.objective_s, said.bound_s
    if theirs is not None and _above(theirs, objective_s):
        yield f"without it {theirs}, but this plan, which keeps it, has {objective_s}"
    if theirs is not None and least is not None and _above(least, theirs):
        yield f"bound {least} is above {theirs}"
    if least is not None and _above(least, objective_s):
        yield f"bound {least} is above this plan's {objective_s}, which needs no less"
    gain_s = 0.0 if theirs is None else objective_s - theirs
    wrong = said.gain_s is not None and abs(said.gain_s - gain_s) > 2 * ROUNDED * objective_s
    if wrong or (said.verdict == "costs" and said.gain_s is None):
        yield f"gain_s is {said.gain_s}; it is {gain_s:.6g}"
    if said.verdict == "costs" and not (said.gain_s or 0.0) > 0:
        yield f"it is said to cost something, {said.gain_s}"
    if said.verdict == "free" and least is not None and _above(objective_s, least):
        yield f"it is said to cost nothing, but only {least} is proved of plans without it"


def _split(said: SplitPrice, objective_s: float, bound_s: float) -> Iterator[str]:
    theirs, least = said.objective_s, said.bound_s
    if theirs is not None and _above(bound_s, theirs):
        yield f"a plan with it has {theirs}, below the bound {bound_s} of all plans"
    if theirs is not None and least is not None and _above(least, theirs):
        yield f"bound {least} is above {theirs}"
    if said.verdict in ("costs", "free"):
        loss_s = None if theirs is None else max(0.0, theirs - objective_s)
        if (
            loss_s is None
            or said.loss_s is None
            or (abs(said.loss_s - loss_s) > 2 * ROUNDED * max(objective_s, theirs or 0.0))
        ):
            yield f"loss_s is {said.loss_s}; it is {loss_s}"
        elif (said.verdict == "costs") != (said.loss_s > 0):
            yield f"verdict {said.verdict} with a loss of {said.loss_s}"
    elif theirs is not None or said.loss_s is not None:
        yield f"verdict {said.verdict} with an objective of {theirs}"


def _asked(request: PlanRequest) -> Iterator[tuple[str, str]]:
    """Kind and subject of every wish."""
    yield from (("pin", pin.layers) for pin in request.pins)
    yield from (("forbid", forbid.device) for forbid in request.forbids)
    yield from (("keep_together", selector) for selector in request.keep_together)
    yield from (("max_bytes", device) for device in request.max_bytes)
    yield from (("splits", x.value) for x in Split if x not in request.splits)
    for kind in ("max_stages", "microbatch_size", "reserve_bytes"):
        if getattr(request, kind):
            yield kind, ""


def _used(plan: Plan) -> set[str]:
    """Ways in which the plan splits the work."""
    pipelines = plan.spec.pipelines
    found: set[str] = {stage.split for pipeline in pipelines for stage in pipeline.stages}
    found.discard("none")
    if len(pipelines) > 1:
        found.add("pipelines")
    if any(len(pipeline.stages) > 1 for pipeline in pipelines):
        found.add("layers")
    return found


def _above(a: float, b: float) -> bool:
    """Whether ``a`` is above ``b`` by more than rounding."""
    return a > b + ROUNDED * max(abs(a), abs(b))


def _finding(severity: Severity, where: str, message: str) -> Finding:
    return Finding(code="price", severity=severity, where=where, message=message)
