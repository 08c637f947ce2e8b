"""Why nothing fits, and the smallest changes after which something would.

Every remedy is found by solving again: a remedy that is listed works, alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from planner.cost import CostModel
from planner.figures import Figures
from planner.memory import least_alive, root_bytes
from planner.microbatches import microbatch_sizes
from planner.problem import PlanningProblem
from planner.request import PlanRequest
from planner.solvers import choose_solver
from planner.solvers.base import SolveLimits
from profiler.cluster import Cluster
from profiler.errors import ApportionError, Conflict, InfeasiblePlanError, InvalidInputError
from profiler.profile import Profile
from profiler.units import format_bytes, parse_bytes

ENDLESS_BYTES = 2**60
"""As much memory as nobody has."""

PRECISION = 0.002
"""Relative precision of sizes in remedies; they are rounded to what works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clash:
    what: str
    needed: str
    available: str


def explain_failure(
    profile: Profile,
    request: PlanRequest,
    *,
    cluster: Cluster | None,
    microbatch: int,
    evidence: str,
) -> InfeasiblePlanError:
    """The error for a request that no plan satisfies. ``evidence`` says how that is known.

    ``microbatch`` is the smallest size: what does not fit there fits nowhere.
    """
    question = _Question(profile, request, cluster or profile.cluster, microbatch)
    remedies = list(_remedies(question))
    clash = _homeless_layer(question) or _too_heavy(question) or _tightest(question, remedies)
    texts = [remedy.text for remedy in remedies] or [
        "no single change is enough: leave out limits, or add devices or memory"
    ]
    return InfeasiblePlanError(
        [
            Conflict(what=clash.what, needed=clash.needed, available=clash.available, remedy=text)
            for text in texts
        ],
        evidence=evidence,
    )


def unproved(limit_s: float) -> ApportionError:
    """The error when time ran out with neither plan nor proof."""
    return ApportionError(
        f"no plan was found within {limit_s:g} s, and it is not proved that there is none; raise "
        "limits.time_s, or leave out pins, forbids or devices"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remedy:
    text: str
    device: str | None = None
    needed_bytes: int = 0


class _Question:
    """Whether variants of a request have any plan."""

    def __init__(
        self, profile: Profile, request: PlanRequest, cluster: Cluster, microbatch: int
    ) -> None:
        self.profile, self.request, self.cluster = profile, request, cluster
        self.microbatch = microbatch
        self.deadline = time.monotonic() + max(1.0, request.limits.time_s)
        self.base = PlanningProblem.build(profile, request, cluster=cluster, microbatch=microbatch)

    def has_plan(
        self,
        request: PlanRequest,
        *,
        cluster: Cluster | None = None,
        microbatch: int | None = None,
    ) -> bool:
        """Whether some plan fits ``request``: one pipeline is enough to know."""
        size = microbatch or self.microbatch
        if size > request.batch_size or time.monotonic() > self.deadline:
            return False
        try:
            problem = PlanningProblem.build(
                self.profile, request, cluster=cluster or self.cluster, microbatch=size
            )
            solver = choose_solver(problem, name=request.solver)
        except InvalidInputError:
            return False
        left = self.deadline - time.monotonic()
        result = solver.solve(
            problem,
            cost=CostModel(problem),
            limits=SolveLimits(
                deadline=time.monotonic() + max(0.1, left / 4),
                workers=request.limits.workers,
                seed=request.limits.seed,
                goal_s=math.inf,
            ),
        )
        return result.assignment is not None


def _remedies(question: _Question) -> Iterator[_Remedy]:
    """Single changes that make a plan fit, each kind at its smallest."""
    yield from _fewer_items(question)
    yield from _unpinned(question)
    yield from _more_memory(question)
    yield from _less_reserve(question)


def _fewer_items(question: _Question) -> Iterator[_Remedy]:
    request = question.request
    if question.profile.model.static_batch is not None:
        return
    asked = request.microbatch_size
    if asked is not None and asked > 1:

        def smaller(size: int) -> bool:
            wish = request.model_copy(update={"microbatch_size": size})
            return question.has_plan(wish, microbatch=size)

        most = _largest(1, asked - 1, smaller)
        if most is not None:
            yield _Remedy(text=f"lower microbatch_size from {asked} to {most} or less")

    def fewer(batch: int) -> bool:
        micro = None if asked is None else min(asked, batch)
        wish = request.model_copy(update={"batch_size": batch, "microbatch_size": micro})
        smallest = microbatch_sizes(question.profile, wish).smallest
        return question.has_plan(wish, microbatch=smallest)

    most = _largest(1, request.batch_size - 1, fewer)
    if most is not None:
        yield _Remedy(text=f"lower batch_size from {request.batch_size} to {most} or less")


def _unpinned(question: _Question) -> Iterator[_Remedy]:
    request = question.request
    for at, pin in enumerate(request.pins):
        rest = request.pins[:at] + request.pins[at + 1 :]
        if question.has_plan(request.model_copy(update={"pins": rest})):
            yield _Remedy(text=f"remove the pin of {pin.layers} to {pin.device}")
    for at, forbid in enumerate(request.forbids):
        others = request.forbids[:at] + request.forbids[at + 1 :]
        if question.has_plan(request.model_copy(update={"forbids": others})):
            what = "everything" if forbid.layers is None else forbid.layers
            yield _Remedy(text=f"allow {what} on {forbid.device} (remove the forbid)")
    for at, selector in enumerate(request.keep_together):
        apart = request.keep_together[:at] + request.keep_together[at + 1 :]
        if question.has_plan(request.model_copy(update={"keep_together": apart})):
            yield _Remedy(text=f"let {selector} be split (remove it from keep_together)")
    most = request.max_stages
    if most is not None:
        devices = len(question.base.devices)

        def staged(count: int) -> bool:
            return question.has_plan(request.model_copy(update={"max_stages": count}))

        least = _smallest(most + 1, devices, staged)
        if least is not None:
            yield _Remedy(text=f"raise max_stages from {most} to {least}")


def _more_memory(question: _Question) -> Iterator[_Remedy]:
    """More on the one device where least more is enough."""
    base = question.base
    best: tuple[int, str] | None = None
    root = base.cluster.root
    for members in dict.fromkeys(((root,), *base.classes)):
        device = members[0]
        has = base.capacity_bytes(device)

        def fits(capacity: int, device: str = device) -> bool:
            return _with_memory(question, device, capacity)

        ceiling = ENDLESS_BYTES if best is None else has + best[0]
        least = _least_bytes(has, ceiling, fits)
        if least is not None and (best is None or least - has < best[0]):
            best = least - has, device
    if best is None:
        return
    device = best[1]
    has = base.capacity_bytes(device)
    text, extra = _rounded_up(best[0])
    capped = question.request.max_bytes.get(device)
    if capped is not None and has + extra <= base.cluster.device[device].usable_bytes:
        remedy = f"raise max_bytes of {device} by {text} (it is {format_bytes(capped)})"
    else:
        remedy = f"give {device} another {text} (a plan may use {format_bytes(has)} of it)"
    yield _Remedy(text=remedy, device=device, needed_bytes=has + extra)


def _with_memory(question: _Question, device: str, capacity: int) -> bool:
    """Whether a plan fits when ``device`` has ``capacity`` bytes."""
    cluster = question.cluster
    hosts = tuple(
        host.model_copy(
            update={
                "devices": tuple(
                    d.model_copy(update={"memory_bytes": ENDLESS_BYTES, "free_bytes": None})
                    if f"{host.name}/{d.name}" == device
                    else d
                    for d in host.devices
                )
            }
        )
        for host in cluster.hosts
    )
    roomy = Cluster(
        hosts=hosts,
        groups=cluster.groups,
        links=cluster.links,
        default_link=cluster.default_link,
    )
    limits = {**question.request.max_bytes, device: capacity}
    wish = question.request.model_copy(update={"max_bytes": limits})
    return question.has_plan(wish, cluster=roomy)


def _less_reserve(question: _Question) -> Iterator[_Remedy]:
    base, request = question.base, question.request
    now = max(base.reserve_bytes(device) for device in base.cluster.device)

    def fits(saved: int) -> bool:
        wish = request.model_copy(update={"reserve_bytes": now - saved})
        return question.has_plan(wish)

    saved = _least_bytes(0, now, fits) if now else None
    if saved is not None:
        text, kept = _rounded_down(now - saved)
        if question.has_plan(request.model_copy(update={"reserve_bytes": kept})):
            source = "" if request.reserve_bytes is not None else " as profiled"
            yield _Remedy(
                text=f"lower reserve_bytes from {format_bytes(now)}{source} to {text} or less"
            )


# --- what clashes ------------------------------------------------------------------------


def _homeless_layer(question: _Question) -> _Clash | None:
    """The layer that lacks most memory on every device it may run on, if there is one."""
    problem = question.base
    figures, graph = Figures(problem), problem.graph
    worst: tuple[int, _Clash] | None = None
    for i, layer in enumerate(graph.layers):
        needs, rooms = [], []
        for device in problem.devices:
            if device in problem.allowed[i]:
                items = 1 if problem.batch_splits else problem.microbatch
                need = graph.weight_bytes([i]) + least_alive(figures, i, device, items)
                need += root_bytes(figures, device)
                needs.append(need)
                rooms.append(problem.capacity_bytes(device) - problem.reserve_bytes(device))
        if all(need > room for need, room in zip(needs, rooms, strict=True)):
            need, room = min(needs), max(rooms)
            where = "the device allowed for it has" if len(needs) == 1 else (
                "no device allowed for it has more than"
            )  # fmt: skip
            clash = _Clash(
                what=layer.name,
                needed=format_bytes(need),
                available=f"{where} {format_bytes(max(0, room))} besides the reserve",
            )
            if worst is None or need - room > worst[0]:
                worst = need - room, clash
    return worst[1] if worst else None


def _too_heavy(question: _Question) -> _Clash | None:
    problem = question.base
    weights = problem.graph.total_weight_bytes
    rooms = [
        max(0, problem.capacity_bytes(device) - problem.reserve_bytes(device))
        for device in problem.devices
    ]
    if weights <= sum(rooms):
        return None
    return _Clash(
        what="the model",
        needed=f"{format_bytes(weights)} for its weights alone",
        available=f"{_all_devices(len(rooms))} {format_bytes(sum(rooms))} besides the reserve",
    )


def _tightest(question: _Question, remedies: list[_Remedy]) -> _Clash:
    """The device where least more memory is enough, else the limits as a whole."""
    problem = question.base
    for remedy in remedies:
        if remedy.device is not None:
            has = problem.capacity_bytes(remedy.device)
            return _Clash(
                what=f"the least demanding split of {problem.num_layers} layers",
                needed=f"{format_bytes(remedy.needed_bytes)} on {remedy.device}",
                available=f"a plan may use {format_bytes(has)} of it",
            )
    rooms = [problem.capacity_bytes(device) for device in problem.devices]
    weights = problem.graph.total_weight_bytes
    return _Clash(
        what="the model, split as the request allows,",
        needed=f"{format_bytes(weights)} of weights with activations, buffers and reserves",
        available=f"{_all_devices(len(rooms))} {format_bytes(sum(rooms))}",
    )


def _all_devices(count: int) -> str:
    return "the one device has" if count == 1 else f"all {count} devices together have"


# --- searching for the smallest change ---------------------------------------------------


def _largest(low: int, high: int, works: Callable[[int], bool]) -> int | None:
    """The largest number from ``low`` to ``high`` that works, if less always works too."""
    if low > high or not works(low):
        return None
    good, bad = low, high + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        if works(middle):
            good = middle
        else:
            bad = middle
    return good


def _smallest(low: int, high: int, works: Callable[[int], bool]) -> int | None:
    found = _largest(-high, -low, lambda n: works(-n))
    return None if found is None else -found


def _least_bytes(low: int, high: int, works: Callable[[int], bool]) -> int | None:
    """A size above ``low`` that works, at most ``PRECISION`` above the least that does."""
    step = 2**20
    if not works(high):
        return None
    # Grow from below: memory that exists is nearer to what is needed than to ``high``.
    while low + step < high and not works(low + step):
        low, step = low + step, 2 * step
    bad, good = low, min(high, low + step)
    while good - bad > max(1, PRECISION * (good - low + step)):
        middle = (good + bad) // 2
        if works(middle):
            good = middle
        else:
            bad = middle
    return good


def _rounded_up(num_bytes: int) -> tuple[str, int]:
    """A size as people write it, not below ``num_bytes``."""
    return _as_written(num_bytes, math.ceil)


def _rounded_down(num_bytes: int) -> tuple[str, int]:
    """A size as people write it, not above ``num_bytes``."""
    return _as_written(num_bytes, math.floor)


def _as_written(num_bytes: int, rounding: Callable[[float], int]) -> tuple[str, int]:
    scale, unit = 1, "B"
    for name in ("KiB", "MiB", "GiB", "TiB"):
        if num_bytes >= scale * 1024:
            scale, unit = scale * 1024, name
    digits = 0 if unit == "B" else 2 if num_bytes < 10 * scale else 1
    value = rounding(num_bytes / scale * 10**digits) / 10**digits
    text = f"{value:.{digits}f} {unit}"
    return text, parse_bytes(text)
