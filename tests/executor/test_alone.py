"""Stages without their messages: nobody waits, and a run after that answers as before."""

from __future__ import annotations

import pytest

from executor.alone import batch_s
from executor.rehearsal import write_rehearsal, zeros
from executor.session import StartedRanks
from planner.inputs import Sources
from profiler.errors import InvalidInputError
from profiler.sources import Example
from tests.executor.test_equality import profile_of
from tests.support import running
from tests.support.builders import GIB, chain_graph, make_cluster, make_profile
from tests.support.captures import captured, undivided
from tests.support.cutting import resized


@pytest.mark.distributed
def test_each_rank_takes_its_own_time_where_a_run_takes_the_slowest_ones() -> None:
    # Layers of 10 ms an item, batches of 4: 40, 120 and 40 ms for three stages.
    graph = chain_graph(5)
    cluster = make_cluster({f"cpu:{i}": 2 * GIB for i in range(4)})
    seconds = {f"cpu:{i}": [0.01] * 5 for i in range(4)}
    profile = make_profile(graph, cluster, seconds=seconds)
    parts = [running.stage(profile, layers, i) for i, layers in enumerate(([0], [1, 2, 3], [4]))]
    plan = running.make_plan(
        profile, parts, request=running.request(batch_size=4, microbatch_size=2)
    )
    ranks = StartedRanks(plan, timeout_s=30)
    try:
        write_rehearsal(ranks.directory, plan, Sources(profile=profile, cluster=cluster))
        ranks.start()
        given = zeros(plan, graph)
        alone = ranks.run_alone(given, repeats=6)
        ran, _ = ranks.run(given, repeats=6)
    finally:
        ranks.close()
    assert alone == pytest.approx([0.04, 0.12, 0.04], rel=0.25)
    last = ran[2]["step_ends_s"]
    assert (last[-1] - last[1]) / 4 > 0.11


@pytest.mark.distributed
@pytest.mark.parametrize("split", [running.pipeline, running.batch_split, running.tensor_mixed])
def test_answers_after_it_are_right(split: running.Splitting) -> None:
    profile, made = profile_of("bert"), captured("bert")
    plan = split(profile)
    args, kwargs = resized(made, 8)
    given = Example(args=args, kwargs=kwargs)
    with running.session(plan, made, profile) as session:
        before = session.run(given).outputs
        alone = session.run_alone(given, repeats=2)
        after = session.run(given).outputs
    computing = {rank for p in plan.spec.pipelines for stage in p.stages for rank in stage.ranks}
    assert set(alone) == computing
    assert all(seconds > 0 for seconds in alone.values())
    assert made.source.module is not None
    expected = undivided(made.source.module, args, kwargs)
    assert running.difference(expected, after)[0] <= 1
    assert running.difference(before, after) == (0.0, True)
    with pytest.raises(InvalidInputError, match="session is closed"):
        session.run_alone(given)


def test_a_batch_takes_what_lies_between_ends() -> None:
    assert batch_s([], 1.0) is None
    assert batch_s([7.5], 0.5) == 0.5
    assert batch_s([1.0, 1.5, 3.0], 9.0) == pytest.approx(1.0)
