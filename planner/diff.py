"""What differs between two plans: what was asked, what moved, what it costs.

Works on the plan files alone; layers are compared by the modules that both name. What costs are
compared on is said with them (``basis``): plans made from different profiles have estimates of
different worlds, unless the first was priced again on the inputs of the second
(``planner.reprice``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from planner.planfile import Pipeline, Plan, Stage, place
from planner.selection import fold, spelled

_NOWHERE = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A setting with its value before and after, as text."""

    what: str
    before: str
    after: str

    @property
    def text(self) -> str:
        """The change in words."""
        if self.before == _NOWHERE:
            return f"{self.what} added: {self.after}"
        if self.after == _NOWHERE:
            return f"{self.what} dropped: {self.before}"
        return f"{self.what} {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Layers of a pipeline (as selectors) that run elsewhere, or with other shares of the items."""

    pipeline: int
    layers: tuple[str, ...]
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure before and after; ``None`` where a plan has none (a device it leaves out)."""

    what: str
    unit: str
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDiff:
    """Two plans beside each other.

    ``same``: the question and the decision are equal, whatever they were made from. ``inputs`` are
    documents that differ, ``asked`` wishes, ``settings`` and ``moves`` and ``transfers`` the
    decision. ``basis`` says what ``figures`` rest on, ``because`` what changed in the profile.
    """

    same: bool
    inputs: tuple[Change, ...]
    asked: tuple[Change, ...]
    settings: tuple[Change, ...]
    moves: tuple[Move, ...]
    transfers: tuple[Change, ...]
    figures: tuple[Figure, ...]
    basis: str
    because: tuple[str, ...]


def diff(before: Plan, after: Plan, *, basis: str = "", because: Sequence[str] = ()) -> PlanDiff:
    """What differs from ``before`` to ``after``; without ``basis`` each plan's estimate stands."""
    return PlanDiff(
        same=before.spec == after.spec and before.inputs.request == after.inputs.request,
        inputs=tuple(_inputs(before, after)),
        asked=tuple(_asked(before, after)),
        settings=tuple(_settings(before, after)),
        moves=tuple(_moves(before, after)),
        transfers=tuple(_transfers(before, after)),
        figures=tuple(_figures(before, after)),
        basis=basis or _basis(before, after),
        because=tuple(because),
    )


def headline(found: PlanDiff) -> str:
    """The difference in the decision, in a line."""
    parts = [x.text for x in found.settings]
    parts += [
        f"{', '.join(x.layers[:3])}{', ...' if len(x.layers) > 3 else ''}: {x.before} -> {x.after}"
        for x in found.moves
    ]
    if not parts:
        return "only transfers or ranks differ" if not found.same else "nothing differs"
    more = len(parts) - 3
    return "; ".join(parts[:3]) + (f"; and {more} more" if more > 0 else "")


def _basis(before: Plan, after: Plan) -> str:
    ours, theirs = before.inputs, after.inputs
    if (ours.profile.fingerprint, ours.cluster.fingerprint) == (
        theirs.profile.fingerprint,
        theirs.cluster.fingerprint,
    ):
        return "as both were planned"
    return "as each was planned, on different profiles or clusters: they do not compare"


def _inputs(before: Plan, after: Plan) -> Iterator[Change]:
    ours, theirs = before.inputs, after.inputs
    pairs = (
        ("model", ours.model.graph, theirs.model.graph),
        ("cluster", ours.cluster.fingerprint, theirs.cluster.fingerprint),
        ("profile", ours.profile.fingerprint, theirs.profile.fingerprint),
    )
    yield from (Change(what=w, before=a, after=b) for w, a, b in pairs if a != b)


def _asked(before: Plan, after: Plan) -> Iterator[Change]:
    ours = before.inputs.request.model_dump(mode="json")
    theirs = after.inputs.request.model_dump(mode="json")
    for name, value in ours.items():
        if value != theirs[name]:
            yield Change(what=name, before=_said(value), after=_said(theirs[name]))


def _said(value: object) -> str:
    return _NOWHERE if value is None or value in ([], {}) else str(value)


def _settings(before: Plan, after: Plan) -> Iterator[Change]:
    ours, theirs = before.spec, after.spec
    pairs: list[tuple[str, object, object]] = [
        ("microbatch", ours.schedule.microbatch_size, theirs.schedule.microbatch_size),
        ("depth", ours.schedule.depth, theirs.schedule.depth),
        ("aggregation", ours.aggregation.strategy, theirs.aggregation.strategy),
        ("backend", ours.backend, theirs.backend),
        ("items", _items(ours.pipelines), _items(theirs.pipelines)),
        ("stages", _stages(ours.pipelines), _stages(theirs.pipelines)),
    ]
    used, now = _devices_used(before), _devices_used(after)
    pairs.append(
        (
            "devices",
            ", ".join(x for x in used if x not in now) or _NOWHERE,
            ", ".join(x for x in now if x not in used) or _NOWHERE,
        )
    )
    yield from (Change(what=w, before=str(a), after=str(b)) for w, a, b in pairs if a != b)


def _items(pipelines: Sequence[Pipeline]) -> str:
    return " + ".join(str(pipeline.items) for pipeline in pipelines)


def _stages(pipelines: Sequence[Pipeline]) -> str:
    return " + ".join(str(len(pipeline.stages)) for pipeline in pipelines)


def _devices_used(plan: Plan) -> list[str]:
    named = _device_of(plan)
    return [
        named.get(rank, "?")
        for pipeline in plan.spec.pipelines
        for stage in pipeline.stages
        for rank in stage.ranks
    ]


def _device_of(plan: Plan) -> Mapping[int, str]:
    return {binding.rank: binding.device for binding in plan.spec.ranks}


# --- layers --------------------------------------------------------------------------------------


def _moves(before: Plan, after: Plan) -> Iterator[Move]:
    """Layers by where they went; pipelines are compared by their number."""
    for p in range(max(len(before.spec.pipelines), len(after.spec.pipelines))):
        ours, theirs = _homes(before, p), _homes(after, p)
        ways: dict[tuple[str, str], list[str]] = {}
        pieces = _pieces(ours, theirs)
        for piece in pieces:
            way = _where_of(piece, ours), _where_of(piece, theirs)
            ways.setdefault(way, []).append(piece.removeprefix("="))
        names = [piece.removeprefix("=") for piece in pieces]
        for (source, target), found in ways.items():
            if source != target:
                yield Move(pipeline=p, layers=fold(found, names), before=source, after=target)


def _homes(plan: Plan, pipeline: int) -> dict[str, str]:
    """Where each selector's layers run, in the order of the file."""
    if pipeline >= len(plan.spec.pipelines):
        return {}
    named = _device_of(plan)
    return {
        name: _where(stage, named)
        for stage in plan.spec.pipelines[pipeline].stages
        for name in spelled(stage.layers)
    }


def _where(stage: Stage, named: Mapping[int, str]) -> str:
    if len(stage.ranks) == 1:
        return named.get(stage.ranks[0], "?")
    shares = zip(stage.ranks, stage.shares, strict=False)
    return " + ".join(f"{named.get(rank, '?')} ({share})" for rank, share in shares)


def _pieces(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """The finest names, in the order of the second plan: a module whose parts are named too is
    told by its parts."""
    names = dict.fromkeys((*theirs, *ours))
    opened = {above for name in names for above in _above(name) if above != name}
    place_of = {name: i for i, name in enumerate(theirs)}
    return sorted(
        (name for name in names if name not in opened),
        key=lambda name: next((place_of[x] for x in _above(name) if x in place_of), len(names)),
    )


def _above(name: str) -> list[str]:
    """The name and every module above it; the layer ``=a.b`` lies below the module ``a.b``."""
    plain = name.removeprefix("=")
    parts = plain.split(".")
    found = [".".join(parts[:k]) for k in range(len(parts), 0, -1)]
    return [name, *found] if name != plain else found


def _where_of(piece: str, homes: Mapping[str, str]) -> str:
    return next((homes[name] for name in _above(piece) if name in homes), _NOWHERE)


# --- transfers and figures -----------------------------------------------------------------------


def _transfers(before: Plan, after: Plan) -> Iterator[Change]:
    """Tensors that go other ways or weigh something else, by the devices at their ends."""
    ours, theirs = _ways(before), _ways(after)
    for tensor in dict.fromkeys((*ours, *theirs)):
        a, b = ours.get(tensor, ()), theirs.get(tensor, ())
        if sorted(a) != sorted(b):
            yield Change(
                what=tensor,
                before="; ".join(x for x in a if x not in b) or _NOWHERE,
                after="; ".join(x for x in b if x not in a) or _NOWHERE,
            )


def _ways(plan: Plan) -> Mapping[str, Sequence[str]]:
    named = _device_of(plan)
    ends = {
        place(p.index, s.index): _where(s, named) for p in plan.spec.pipelines for s in p.stages
    }
    found: dict[str, list[str]] = {}
    for x in plan.spec.transfers:
        way = f"{ends.get(x.source, x.source)} -> {ends.get(x.target, x.target)}"
        found.setdefault(x.tensor, []).append(f"{way}, {x.num_bytes} bytes")
    return found


def _figures(before: Plan, after: Plan) -> Iterator[Figure]:
    ours, theirs = before.estimate, after.estimate
    for what, unit, old, new in (
        ("time between batches", "s", ours.period_s, theirs.period_s),
        ("time of one batch", "s", ours.latency_s, theirs.latency_s),
        ("throughput", "items/s", ours.items_per_s, theirs.items_per_s),
    ):
        yield Figure(what=what, unit=unit, before=old, after=new)
    memory, now = _memory(before), _memory(after)
    for device in dict.fromkeys((*memory, *now)):
        if memory.get(device) != now.get(device):
            what = f"memory of {device}"
            yield Figure(what=what, unit="bytes", before=memory.get(device), after=now.get(device))


def _memory(plan: Plan) -> Mapping[str, float]:
    named = _device_of(plan)
    return {
        named.get(x.rank, f"rank {x.rank}"): float(x.memory.total_bytes)
        for x in plan.estimate.ranks
    }
