"""What a plan costs, derived from its spec and the profile alone, by ``docs/cost-model.md``.

Written a second time on purpose: it shares no code with what the planner searches by, so that an
error there shows as a difference here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from planner.check_transfers import pipeline_of
from planner.joins import exchanges, rank_times
from planner.layout import Layout, StageView
from planner.ledger import Ledgers
from planner.messages import (
    Message,
    Move,
    Occupied,
    answer_messages,
    moves,
    occupied,
    root_occupied,
)
from planner.planfile import INPUT, OUTPUT, Plan, RankMemory
from planner.prices import Prices
from planner.request import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLoad:
    """How a rank spends one run of its stage, and its memory."""

    rank: int
    compute_s: float
    join_s: float
    receive_s: float
    send_s: float
    busy_fraction: float
    memory: RankMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """The figures of a plan. ``busy_s`` is a batch's work of each stage and of each wire."""

    period_s: float
    latency_s: float
    items_per_s: float
    busy_s: Mapping[str, float]
    ranks: tuple[RankLoad, ...]

    def objective_s(self, objective: Objective) -> float:
        """The figure that the request wants small."""
        return self.latency_s if objective.counts_latency else self.period_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _StageTimes:
    """One run of a stage: each rank's computing, the joins, until it is done, and with messages."""

    compute_s: tuple[float, ...]
    join_s: float
    duration_s: float
    busy_s: float


@dataclass(frozen=True, slots=True)
class _Passage:
    """When the first and the last microbatch of a batch are through."""

    first_s: float
    last_s: float


def derive(plan: Plan, layout: Layout, prices: Prices) -> Derived:
    """Period, latency and memory of a plan whose structure and transfers are sound.

    Raises:
        InvalidInputError: the profile has no figures for a device of the plan.
    """
    found = tuple(moves(plan.spec.transfers, layout, prices))
    loads = occupied(found, layout)
    sent = tuple(answer_messages(plan, layout, prices))
    for place, position, message in sent:
        loads[place][position].receive_s += message.receive_s / layout.stages[place].runs
    times = {x.place: _stage_times(x, loads[x.place], prices) for x in layout.stages.values()}
    busy_s = {place: layout.stages[place].runs * t.busy_s for place, t in times.items()}
    for place, position, root in root_occupied(plan.spec.transfers, layout, prices):
        busy_s[place] += root.receive_s + root.send_s
        loads[place][position].receive_s += root.receive_s / layout.stages[place].runs
        loads[place][position].send_s += root.send_s / layout.stages[place].runs
    busy_s.update(_wires(found, [message for *_, message in sent], layout, prices))
    period_s = max(busy_s.values())
    return Derived(
        period_s=period_s,
        latency_s=_latency_s(layout, found, times, prices)
        + max((message.time_s for *_, message in sent), default=0.0),
        items_per_s=layout.batch_size / period_s if period_s else 0.0,
        busy_s=busy_s,
        ranks=_rank_loads(plan, layout, prices, loads, times, period_s),
    )


def _stage_times(stage: StageView, loads: Sequence[Occupied], prices: Prices) -> _StageTimes:
    compute_s, slowest_s = rank_times(stage, prices)
    join_s = sum(x.time_s for part in stage.slices for x in exchanges(stage, part, prices))
    duration_s = slowest_s + join_s
    return _StageTimes(
        compute_s=compute_s,
        join_s=join_s,
        duration_s=duration_s,
        busy_s=duration_s + max(x.receive_s for x in loads) + max(x.send_s for x in loads),
    )


def _wires(
    found: Sequence[Move], once: Sequence[Message], layout: Layout, prices: Prices
) -> dict[str, float]:
    """Seconds a batch that each wire is busy; messages of ``once`` are sent once a batch."""
    total: dict[str, float] = defaultdict(float)
    for message in once:
        if message.wire:
            total[message.wire] += message.time_s
    for move in found:
        for message in move.messages:
            if message.wire:
                total[message.wire] += move.count * message.time_s
    for stage in layout.stages.values():
        for part in stage.slices:
            for join in exchanges(stage, part, prices):
                for wire, seconds in join.messages:
                    total[wire] += stage.runs * seconds
    return total


def _latency_s(
    layout: Layout, found: Sequence[Move], times: Mapping[str, _StageTimes], prices: Prices
) -> float:
    into: dict[str, dict[str, list[Move]]] = {place: {} for place in layout.stages}
    answers: dict[str, list[Move]] = {}
    for move in found:
        source, target = move.transfer.source, move.transfer.target
        ways = answers if target == OUTPUT else into[target]
        ways.setdefault(source, []).append(move)
    beside = _beside_other_inputs(layout, found)
    passed: dict[str, _Passage] = {INPUT: _Passage(0.0, 0.0)}
    remains: dict[tuple[str, str], float] = {}
    order = _in_order(layout, into)
    for stage in order:
        own = times[stage.place]
        # Ready once it has computed, and with what remains after each arrival.
        firsts, lasts = [own.duration_s], [own.duration_s]
        for source, coming in into[stage.place].items():
            arrived = _through_link(passed[source], coming)
            if source == INPUT and stage.place in beside:
                arrived = _no_earlier(arrived, beside[stage.place], coming)
            remains_s = own.duration_s - _begun_s(stage, source, coming, prices)
            remains[source, stage.place] = remains_s
            firsts.append(arrived.first_s + remains_s)
            lasts.append(arrived.last_s + remains_s)
        passed[stage.place] = _ready(max(firsts), max(lasts), stage, own)
    ends = [_through_link(passed[a], ways).last_s for a, ways in answers.items()]
    if not answers:
        ends = [x.last_s for x in passed.values()]
    # From a stage's being done to the end of the batch, on its longest way.
    onward = {place: _duration_s(ways) for place, ways in answers.items()}
    for stage in reversed(order):
        for source, coming in into[stage.place].items():
            way_s = _duration_s(coming) + remains[source, stage.place]
            way_s += onward.get(stage.place, 0.0)
            onward[source] = max(onward.get(source, 0.0), way_s)
    return max([*ends, *_crowds(layout, found, passed, remains, onward)])


def _beside_other_inputs(layout: Layout, found: Sequence[Move]) -> dict[str, _Passage]:
    """When a stage has its first and its last inputs, if they share a wire with those of other
    pipelines. Each connection gets an equal part of the wire."""
    once: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    ranks: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    counts: dict[str, int] = {}
    owner: dict[str, int] = {}
    for move in found:
        place = move.transfer.target
        if move.transfer.source != INPUT or place == OUTPUT:
            continue
        counts[place], owner[place] = move.count, pipeline_of(move.transfer, layout)
        for message in move.messages:
            if message.wire:
                once[message.wire][place] += message.time_s
                ranks[message.wire][place].add(message.target)
    latest: dict[str, _Passage] = {}
    for wire, users in once.items():
        if len({owner[place] for place in users}) == 1:
            continue
        for place, seconds in users.items():
            first_s, last_s = seconds, counts[place] * seconds
            mine_s = seconds / len(ranks[wire][place])
            for other, theirs in users.items():
                if other != place:
                    meanwhile_s = mine_s * len(ranks[wire][other])
                    under_way = min(counts[other], layout.depth)
                    first_s += min(meanwhile_s, under_way * theirs)
                    last_s += min(counts[place] * meanwhile_s, counts[other] * theirs)
            known = latest.get(place, _Passage(0.0, 0.0))
            latest[place] = _Passage(max(known.first_s, first_s), max(known.last_s, last_s))
    return latest


def _no_earlier(arrived: _Passage, least: _Passage, ways: Sequence[Move]) -> _Passage:
    first_s = max(arrived.first_s, least.first_s)
    again_s = (ways[0].count - 1) * _duration_s(ways)
    return _Passage(first_s, max(arrived.last_s, first_s + again_s, least.last_s))


def _crowds(
    layout: Layout,
    found: Sequence[Move],
    passed: Mapping[str, _Passage],
    remains: Mapping[tuple[str, str], float],
    onward: Mapping[str, float],
) -> Iterator[float]:
    """For each wire that several pipelines use: the first message's start, all of them, and the
    shortest way on."""
    users: dict[str, set[int]] = defaultdict(set)
    starts: dict[str, list[float]] = defaultdict(list)
    after: dict[str, list[float]] = defaultdict(list)
    total: dict[str, float] = defaultdict(float)
    for move in found:
        source, target = move.transfer.source, move.transfer.target
        way_s = 0.0
        if target != OUTPUT:
            way_s = remains[source, target] + onward.get(target, 0.0)
        for message in move.messages:
            if message.wire:
                users[message.wire].add(pipeline_of(move.transfer, layout))
                starts[message.wire].append(passed[source].first_s)
                after[message.wire].append(way_s)
                total[message.wire] += move.count * message.time_s
    for wire, pipelines in users.items():
        if len(pipelines) > 1:
            yield min(starts[wire]) + total[wire] + min(after[wire])


def _begun_s(stage: StageView, source: str, ways: Sequence[Move], prices: Prices) -> float:
    """Seconds that a stage can compute before it needs any of the tensors from ``source``.

    None before a model input, and none where its ranks divide layers.
    """
    if source == INPUT or stage.slices:
        return 0.0
    coming = {move.transfer.tensor for move in ways}
    ahead: list[int] = []
    for i in sorted(stage.layers):
        if coming & set(prices.graph.layers[i].reads):
            break
        ahead.append(i)
    else:
        return 0.0  # passed on, not read
    whole = [
        prices.compute_s(device, stage.layers, share)
        for device, share in zip(stage.devices, stage.shares, strict=True)
    ]
    remaining = [
        seconds - prices.layers_s(device, ahead, share)
        for seconds, device, share in zip(whole, stage.devices, stage.shares, strict=True)
    ]
    return max(whole) - max(remaining)


def _ready(first_s: float, last_s: float, stage: StageView, times: _StageTimes) -> _Passage:
    if stage.whole_batch:
        return _Passage(last_s, last_s)
    return _Passage(first_s, max(last_s, first_s + (stage.runs - 1) * times.busy_s))


def _duration_s(ways: Sequence[Move]) -> float:
    """All tensors from one stage to another, once: at the receiver that waits longest, or on the
    wire that several receivers share."""
    arriving: dict[int | str, float] = defaultdict(float)
    for move in ways:
        for message in move.messages:
            arriving[message.target] += message.time_s
            if message.wire:
                arriving[message.wire] += message.time_s
    return max(arriving.values(), default=0.0)


def _through_link(before: _Passage, ways: Sequence[Move]) -> _Passage:
    """As a server that handles one sending at a time."""
    duration_s = _duration_s(ways)
    first_s = before.first_s + duration_s
    again_s = (ways[0].count - 1) * duration_s
    return _Passage(first_s, max(before.last_s + duration_s, first_s + again_s))


def _in_order(layout: Layout, into: Mapping[str, Mapping[str, object]]) -> list[StageView]:
    """Stages, each after those that send to it."""
    waiting = {place: sum(a != INPUT for a in ways) for place, ways in into.items()}
    after: dict[str, list[str]] = defaultdict(list)
    for place, ways in into.items():
        for source in ways:
            after[source].append(place)
    ready = [place for place, count in waiting.items() if not count]
    order = []
    while ready:
        place = ready.pop()
        order.append(layout.stages[place])
        for target in after[place]:
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    return order


def _rank_loads(
    plan: Plan,
    layout: Layout,
    prices: Prices,
    loads: Mapping[str, Sequence[Occupied]],
    times: Mapping[str, _StageTimes],
    period_s: float,
) -> tuple[RankLoad, ...]:
    ledgers = Ledgers(layout, plan.spec.transfers, plan.inputs.request, prices)
    found: dict[int, RankLoad] = {}
    for stage in layout.stages.values():
        for position, rank in enumerate(stage.ranks):
            load = loads[stage.place][position]
            compute_s = times[stage.place].compute_s[position]
            join_s = times[stage.place].join_s
            busy_s = stage.runs * (compute_s + join_s + load.receive_s + load.send_s)
            found[rank] = RankLoad(
                rank=rank,
                compute_s=compute_s,
                join_s=join_s,
                receive_s=load.receive_s,
                send_s=load.send_s,
                busy_fraction=busy_s / period_s if period_s else 0.0,
                memory=ledgers.of_stage_rank(stage, position),
            )
    if 0 not in found:
        found[0] = RankLoad(
            rank=0,
            compute_s=0.0,
            join_s=0.0,
            receive_s=0.0,
            send_s=0.0,
            busy_fraction=0.0,
            memory=ledgers.of_root(),
        )
    return tuple(found[rank] for rank in sorted(found))
