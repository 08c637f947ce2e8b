"""The loops of ranks, in threads: right answers, no waiting for ever, and a full pipeline."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from executor.schedule import Schedule
from planner.planfile import Plan
from planner.request import PlanRequest
from profiler.graph import ModelGraph
from tests.executor.test_schedule import World, with_depth, worlds
from tests.support import loops
from tests.support.builders import GIB, make_cluster, make_graph, make_profile
from tests.support.plans import Part, make_plan


def inputs(items: int) -> torch.Tensor:
    return torch.arange(8.0 * items).reshape(items, 8) % 97


@settings(max_examples=150)
@given(worlds())
def test_any_plan_answers_like_the_undivided_graph(world: World) -> None:
    x = inputs(world.items)
    answers, records, _ = loops.run(world.plan, world.graph, x)
    steps = list(Schedule(world.plan, world.graph).steps(world.items))
    expected: dict[str, list[torch.Tensor]] = {name: [] for name in world.graph.outputs}
    for start, stop in steps:
        for name, value in loops.undivided(world.graph, x[start:stop]).items():
            expected[name].append(value)
    assert set(answers) == set(expected)
    for name, parts in expected.items():
        assert torch.equal(answers[name], torch.cat(parts))
    assert all(len(record.step_ends_s) == len(steps) for record in records.values())


@settings(max_examples=40)
@given(worlds())
def test_repeats_answer_the_same(world: World) -> None:
    x = inputs(world.items)
    once, _, _ = loops.run(world.plan, world.graph, x)
    thrice, records, _ = loops.run(world.plan, world.graph, x, repeats=3)
    assert all(torch.equal(once[name], thrice[name]) for name in once)
    assert len({len(record.step_ends_s) for record in records.values()}) == 1


# --- a full pipeline -----------------------------------------------------------------------------

PAUSE_S = 0.01


def line(
    num_stages: int,
    *,
    batch: int,
    micro: int,
    root_stage: int = 0,
    edges: tuple[tuple[int, int], ...] = (),
    routing: str = "relay",
    whole_batch: bool = False,
) -> tuple[Plan, ModelGraph]:
    """One layer a stage, one stage a device; the root runs ``root_stage`` (-1: none). With
    ``whole_batch`` the last stage takes whole batches."""
    chain = {(i, i + 1) for i in range(num_stages - 1)}
    last = num_stages - 1
    graph = make_graph(
        sorted(chain | set(edges)),
        num_stages,
        floats_per_item=1,
        whole_batch=[last] if whole_batch else [],
    )
    names = [f"d{i}" for i in range(num_stages + 1)]
    profile = make_profile(
        graph,
        make_cluster(dict.fromkeys(names, GIB)),
        seconds={name: [PAUSE_S] * num_stages for name in names},
    )
    others = iter(names[1:])
    devices = ["d0" if i == root_stage else next(others) for i in range(num_stages)]
    parts = [
        Part(layers=[i], devices=[f"h/{device}"], whole_batch=whole_batch and i == last)
        for i, device in enumerate(devices)
    ]
    request = PlanRequest(batch_size=batch, microbatch_size=micro)
    return make_plan(profile, parts, request=request, routing=routing), graph


@pytest.mark.parametrize(
    ("num_stages", "options"),
    [
        (2, {"batch": 1, "micro": 1}),
        (7, {"batch": 1, "micro": 1}),
        (7, {"batch": 1, "micro": 1, "root_stage": 6}),
        (7, {"batch": 1, "micro": 1, "root_stage": 3}),
        (7, {"batch": 1, "micro": 1, "root_stage": -1}),
        (7, {"batch": 2, "micro": 1}),
        (7, {"batch": 16, "micro": 2}),
        (7, {"batch": 2, "micro": 1, "edges": ((0, 6),), "routing": "relay"}),
        (7, {"batch": 2, "micro": 1, "edges": ((0, 4),), "routing": "direct"}),
    ],
    ids=str,
)
def test_the_pipeline_is_full(num_stages: int, options: dict[str, object]) -> None:
    """Every stage pauses as long; all of them at once, so a piece is finished every pause."""
    plan, graph = line(num_stages, **options)  # type: ignore[arg-type]
    batch, micro = plan.inputs.request.batch_size, plan.spec.schedule.microbatch_size
    repeats = max(4, 60 // (batch // micro))
    pieces = repeats * batch // micro
    _, records, _ = loops.run(
        plan, graph, inputs(batch), repeats=repeats, pause=lambda _rank: PAUSE_S
    )
    ideal = (pieces + num_stages - 1) * PAUSE_S
    wall = max(record.wall_s for record in records.values())
    assert wall < 1.35 * ideal, f"{wall:.3f} s where {ideal:.3f} s would do"


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_depth_bounds_what_is_under_way(depth: int) -> None:
    # The last stage is slow; the first may be ahead of it by what both sides hold, no further.
    plan, graph = line(2, batch=1, micro=1)
    plan = with_depth(plan, depth)
    started: dict[int, int] = {0: 0, 1: 0}
    ahead = []

    def pause(rank: int) -> float:
        started[rank] += 1
        ahead.append(started[0] - started[1])
        return 0.005 if rank else 0.0

    loops.run(plan, graph, inputs(1), repeats=40, pause=pause)
    assert max(ahead) <= 2 * depth + 2


@pytest.mark.parametrize("whole_batch", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_rank_that_computes_has_asked_for_the_next_pieces(depth: int, whole_batch: bool) -> None:
    # A transport moves nothing that has not been asked for: with less, a wire would stand still.
    # With more, a rank would take memory that its ledger does not count.
    plan, graph = line(2, batch=2, micro=2, whole_batch=whole_batch)
    plan = with_depth(plan, depth)
    board = loops.Board()
    asked = []

    def pause(rank: int) -> float:
        if rank:
            asked.append(board.asked[rank] - 1)  # the piece itself apart
        return 0.001

    loops.run(plan, graph, inputs(2), repeats=20, pause=pause, board=board)
    begun = [count - done for done, count in enumerate(asked)]
    ahead = 1 if whole_batch else depth
    assert begun == [min(ahead, 19 - done) for done in range(20)]


@pytest.mark.parametrize("whole_batch", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_no_more_is_on_its_way_before_a_piece_is_there(depth: int, whole_batch: bool) -> None:
    # As latencies are reckoned: more would share the wire with what a rank waits for.
    plan, graph = line(2, batch=2, micro=2, whole_batch=whole_batch)
    plan = with_depth(plan, depth)
    on_their_way: list[int] = []

    class Watched(loops.Board):
        def awaited(self, one: loops.Waiting) -> None:
            if one.message.target == 1 and not one.sending:
                on_their_way.append(self.asked[1] - len(on_their_way))

    loops.run(plan, graph, inputs(2), repeats=20, board=Watched())
    assert on_their_way == [min(1 if whole_batch else depth, 20 - done) for done in range(20)]
