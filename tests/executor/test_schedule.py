"""Schedules as data: every item once, the two ends of every message agree."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.schedule import Message, Schedule, split_items
from planner.planfile import INPUT, OUTPUT, Plan
from planner.request import PlanRequest
from profiler.errors import InvalidInputError
from profiler.graph import ModelGraph
from tests.support.builders import GIB, chain_graph, make_cluster, make_graph, make_profile
from tests.support.plans import Part, make_plan

# --- plans at random -----------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A plan, its graph, and items to run."""

    plan: Plan
    graph: ModelGraph
    items: int


@st.composite
def worlds(draw: st.DrawFn, *, max_layers: int = 6, max_items: int = 30) -> World:
    """Chains with skips, pipelines of unlike shape, uneven shares, whole-batch stages."""
    num_layers = draw(st.integers(1, max_layers))
    edges = {(i, i + 1) for i in range(num_layers - 1)}
    for _ in range(draw(st.integers(0, 2))):
        a, b = sorted((draw(st.integers(0, num_layers - 1)), draw(st.integers(0, num_layers - 1))))
        if a < b:
            edges.add((a, b))
    num_pipelines = draw(st.integers(1, 3))
    whole = (
        draw(st.sets(st.integers(0, num_layers - 1), max_size=1)) if num_pipelines == 1 else set()
    )
    graph = make_graph(sorted(edges), num_layers, floats_per_item=1, whole_batch=sorted(whole))
    micro = draw(st.integers(1, 6))
    counts = [draw(st.integers(1, 7)) for _ in range(num_pipelines)]
    batch = sum(counts)
    micro = min(micro, batch)
    free = itertools.count(draw(st.integers(0, 1)))  # the root may be without a stage
    pipelines = []
    for count in counts:
        cuts = sorted(draw(st.sets(st.integers(1, num_layers), max_size=3)) - {num_layers})
        parts = []
        for a, b in zip([0, *cuts], [*cuts, num_layers], strict=True):
            is_whole = bool(whole & set(range(a, b)))
            width = 1 if is_whole else draw(st.integers(1, min(3, micro)))
            shares = _shares(draw, micro, width)
            parts.append(
                Part(
                    layers=range(a, b),
                    devices=[f"h/d{next(free)}" for _ in range(width)],
                    shares=(count,) if is_whole else shares,
                    whole_batch=is_whole,
                )
            )
        pipelines.append(parts)
    devices = [f"d{i}" for i in range(next(free))]
    profile = make_profile(
        graph,
        make_cluster(dict.fromkeys(devices, GIB)),
        seconds={name: [0.001] * num_layers for name in devices},
    )
    plan = make_plan(
        profile,
        *pipelines,
        request=PlanRequest(batch_size=batch, microbatch_size=micro),
        items=counts,
        microbatch_size=micro,
        routing=draw(st.sampled_from(["relay", "direct"])),
    )
    plan = with_depth(plan, draw(st.integers(1, 3)))
    most = batch if whole else max_items
    return World(plan=plan, graph=graph, items=draw(st.integers(1, most)))


def _shares(draw: st.DrawFn, total: int, width: int) -> tuple[int, ...]:
    cuts = sorted(draw(st.permutations(range(1, total)))[: width - 1])
    return tuple(b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True))


def with_depth(plan: Plan, depth: int) -> Plan:
    """The plan with another number of pieces received ahead."""
    schedule = plan.spec.schedule.model_copy(update={"depth": depth})
    return plan.model_copy(update={"spec": plan.spec.model_copy(update={"schedule": schedule})})


@given(worlds())
def test_every_stage_computes_every_item_of_its_pipeline_once(world: World) -> None:
    schedule = Schedule(world.plan, world.graph)
    for items in schedule.steps(world.items):
        computed: dict[str, list[int]] = defaultdict(list)
        for binding in world.plan.spec.ranks:
            for piece in schedule.step(binding.rank, items).pieces:
                computed[piece.stage] += range(*piece.items)
        in_pipeline: dict[int, set[int]] = {}
        for pipeline in world.plan.spec.pipelines:
            held = [computed[f"pipeline{pipeline.index}.stage{s.index}"] for s in pipeline.stages]
            assert all(len(set(own)) == len(own) for own in held)
            assert all(sorted(own) == sorted(held[0]) for own in held)
            in_pipeline[pipeline.index] = set(held[0])
        assert sum(map(len, in_pipeline.values())) == items[1] - items[0]
        assert set().union(*in_pipeline.values()) == set(range(*items))


@given(worlds())
def test_steps_cover_the_items_of_a_run_in_order(world: World) -> None:
    steps = list(Schedule(world.plan, world.graph).steps(world.items))
    assert [n for step in steps for n in range(*step)] == list(range(world.items))
    sizes = [stop - start for start, stop in steps]
    assert all(size == world.plan.inputs.request.batch_size for size in sizes[:-1])


@given(worlds())
def test_both_ends_of_every_message_agree_in_content_and_order(world: World) -> None:
    schedule = Schedule(world.plan, world.graph)
    for items in schedule.steps(world.items):
        sent: dict[tuple[int, int, int], list[Message]] = defaultdict(list)
        received: dict[tuple[int, int, int], list[Message]] = defaultdict(list)
        for binding in world.plan.spec.ranks:
            work = schedule.step(binding.rank, items)
            for message in (*work.feeds, *(m for p in work.pieces for m in p.sends)):
                sent[message.source, message.target, message.tag].append(message)
                assert message.source == binding.rank
            for message in (*work.collects, *(m for p in work.pieces for m in p.receives)):
                received[message.source, message.target, message.tag].append(message)
                assert message.target == binding.rank
        assert sent == received


@given(worlds())
def test_every_piece_receives_exactly_its_items_of_every_input(world: World) -> None:
    schedule = Schedule(world.plan, world.graph)
    wanted: dict[str, set[str]] = defaultdict(set)
    for transfer in world.plan.spec.transfers:
        wanted[transfer.target].add(transfer.tensor)
    for items in schedule.steps(world.items):
        for binding in world.plan.spec.ranks:
            for piece in schedule.step(binding.rank, items).pieces:
                parts: dict[str, list[int]] = defaultdict(list)
                for message in piece.receives:
                    assert message.items is not None
                    parts[message.tensor] += range(*message.items)
                assert set(parts) == wanted[piece.stage]
                assert all(found == list(range(*piece.items)) for found in parts.values())


@given(worlds())
def test_answers_cover_every_item_once(world: World) -> None:
    schedule = Schedule(world.plan, world.graph)
    for items in schedule.steps(world.items):
        answered: dict[str, list[int]] = defaultdict(list)
        for message in schedule.step(schedule.root, items).collects:
            assert message.items is not None
            answered[message.tensor] += range(*message.items)
        assert set(answered) == set(world.graph.outputs)
        assert all(sorted(found) == list(range(*items)) for found in answered.values())


@given(worlds())
def test_messages_stay_within_the_plan(world: World) -> None:
    """A message carries what a transfer says, between ranks of the stages that it names."""
    schedule = Schedule(world.plan, world.graph)
    ranks = {place: set(stage.ranks) for place, stage in schedule.stages.items()}
    ranks |= {INPUT: {schedule.root}, OUTPUT: {schedule.root}}
    for items in schedule.steps(world.items):
        for binding in world.plan.spec.ranks:
            work = schedule.step(binding.rank, items)
            for message in (*work.feeds, *(m for p in work.pieces for m in p.sends)):
                transfer = world.plan.spec.transfers[message.tag]
                assert message.tensor == transfer.tensor
                assert message.source in ranks[transfer.source]
                assert message.target in ranks[transfer.target]


# --- shares --------------------------------------------------------------------------------------


@given(
    total=st.integers(0, 10**6),
    shares=st.lists(st.integers(0, 10**6), min_size=1, max_size=12).filter(any),
)
def test_split_items_is_exact_fair_and_whole(total: int, shares: list[int]) -> None:
    given_items = split_items(total, shares)
    whole = sum(shares)
    assert sum(given_items) == total
    for items, share in zip(given_items, shares, strict=True):
        assert items >= 0
        assert abs(items * whole - total * share) < whole  # less than one item from exact
        assert share or not items


@given(shares=st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any))
def test_a_full_microbatch_is_split_as_the_plan_says(shares: list[int]) -> None:
    assert split_items(sum(shares), shares) == tuple(shares)
    assert split_items(3 * sum(shares), shares) == tuple(3 * share for share in shares)


def test_large_counts_are_split_without_rounding() -> None:
    total = 2**60 + 3
    assert split_items(total, (1, 1)) == (2**59 + 2, 2**59 + 1)


def test_shares_without_items_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="do not add up"):
        split_items(3, (0, 0))


# --- what is refused -----------------------------------------------------------------------------


def plan_of(graph: ModelGraph, *parts: Part, batch: int = 8) -> Plan:
    cluster = make_cluster({"d0": GIB, "d1": GIB})
    seconds = {name: [0.001] * len(graph.layers) for name in ("d0", "d1")}
    return make_plan(
        make_profile(graph, cluster, seconds=seconds),
        parts,
        request=PlanRequest(batch_size=batch, microbatch_size=batch),
    )


def test_no_items_are_refused() -> None:
    graph = chain_graph(1)
    schedule = Schedule(plan_of(graph, Part(layers=[0], devices=["h/d0"])), graph)
    with pytest.raises(InvalidInputError, match="the batch is empty"):
        list(schedule.steps(0))


def test_more_than_a_batch_is_refused_when_items_are_compared() -> None:
    graph = chain_graph(1, whole_batch=[0])  # type: ignore[arg-type]
    part = Part(layers=[0], devices=["h/d0"], whole_batch=True)
    schedule = Schedule(plan_of(graph, part), graph)
    assert list(schedule.steps(8)) == [(0, 8)]
    with pytest.raises(InvalidInputError, match=r"9 items were given, the plan's batch is 8"):
        list(schedule.steps(9))


def test_a_rank_without_a_stage_has_no_role() -> None:
    graph = chain_graph(1)
    schedule = Schedule(plan_of(graph, Part(layers=[0], devices=["h/d1"])), graph)
    assert schedule.role(0) is None
    role = schedule.role(1)
    assert role is not None
    assert role.layers == ("l0",)
