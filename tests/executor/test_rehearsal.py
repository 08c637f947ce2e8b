"""A rehearsal waits as the profile says, sends what the plan says, and never needs the model."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import executor
from executor.schedule import Schedule
from executor.waiting import WaitingStage, Waits
from planner.inputs import Sources
from planner.planfile import Plan
from profiler.errors import InvalidInputError, StalePlanError
from profiler.profile import Profile
from profiler.program import StageProgram
from tests.support import running
from tests.support.builders import GIB, chain_graph, make_cluster, make_profile

MILLISECOND = 1e-3


def world(*, occupancy: float = 0.0) -> tuple[Profile, Plan]:
    # Three layers of 20 ms an item on devices of 1 : 1 : 2; microbatches of 2: stages of 40 ms,
    # and the third, split 1 + 1 over two devices, 20 and 40 ms.
    graph = chain_graph(3)
    cluster = make_cluster({f"cpu:{i}": 2 * GIB for i in range(4)}, occupancy=occupancy)
    seconds = {f"cpu:{i}": [(40 if i == 3 else 20) * MILLISECOND] * 3 for i in range(4)}
    profile = make_profile(graph, cluster, seconds=seconds)
    plan = running.make_plan(
        profile,
        [
            running.stage(profile, [0], 0),
            running.stage(profile, [1], 1),
            running.stage(profile, [2], 2, 3, shares=(1, 1)),
        ],
        request=running.request(batch_size=4, microbatch_size=2),
    )
    return profile, plan


@pytest.mark.distributed
def test_the_period_is_the_profiles_and_no_model_is_needed() -> None:
    profile, plan = world()
    report = executor.rehearse(
        plan, batches=12, options=executor.RunOptions(profile=profile, timeout_s=30)
    )
    assert report.rehearsed
    assert report.steps == 12
    assert plan.estimate.period_s == pytest.approx(80 * MILLISECOND)
    assert report.period_s.ratio is not None
    # Never faster than its waits; slower by what a busy machine takes.
    assert 0.97 < report.period_s.ratio < 1.5
    computed = {rank.rank: rank.compute_s.measured for rank in report.ranks}
    for rank, expected in ((0, 40), (1, 40), (2, 20), (3, 40)):
        assert computed[rank] == pytest.approx(expected * MILLISECOND, rel=0.3)
    assert all(rank.memory_bytes.predicted is None for rank in report.ranks)


def test_a_rank_also_waits_for_what_messages_take_from_it() -> None:
    profile, plan = world(occupancy=1.0)
    slow = profile.model_copy(
        update={
            "cluster": profile.cluster.model_copy(
                update={
                    "default_link": profile.cluster.default_link.model_copy(
                        update={"latency_s": 0.005}
                    )
                }
            )
        }
    )
    plan = running.make_plan(
        slow,
        [running.stage(slow, [0, 1], 1), running.stage(slow, [2], 2)],
        request=running.request(batch_size=4, microbatch_size=2),
    )
    from executor.rehearsal import waits

    sources = Sources(profile=slow, cluster=slow.cluster)
    found = waits(plan, sources, Schedule(plan, slow.model))
    # Rank 0 only feeds. Two layers of 40 ms, and 5 ms each to receive and to send.
    assert found[0] is None
    assert found[1] is not None
    assert found[1].whole == pytest.approx([0.045, 0.090], rel=1e-3)


def test_a_waiting_stage_makes_up_for_waking_late() -> None:
    graph = chain_graph(1)
    stage = WaitingStage(graph, _program([], ["t0"]), Waits(whole=[0.002], before={}))
    begun = time.perf_counter()
    for _ in range(50):
        (out,) = stage(1)
    took = time.perf_counter() - begun
    assert out.shape[0] == 1
    assert took >= 0.095  # 50 waits of 2 ms, less what the last one may owe


def test_a_waiting_stage_awaits_inputs_where_it_reads_them() -> None:
    asked: dict[str, float] = {}

    @dataclass
    class Coming:
        name: str

        def wait(self) -> None:
            asked[self.name] = time.perf_counter() - begun

    waits = Waits(whole=[0.05, 0.1], before={"b": [0.04, 0.08]})
    stage = WaitingStage(chain_graph(1), _program(["b", "a"], ["t0"]), waits)
    begun = time.perf_counter()
    stage(Coming("b"), Coming("a"), 2)
    assert asked["a"] < 0.04 <= 0.08 <= asked["b"]
    assert time.perf_counter() - begun >= 0.1


def _program(inputs: list[str], outputs: list[str]) -> StageProgram:
    return StageProgram(
        inputs=tuple(inputs), sizes=(), weights=(), nodes=(), outputs=tuple(outputs), graphs={}
    )


def test_what_a_rehearsal_needs_is_said(tmp_path: Path) -> None:
    profile, plan = world()
    with pytest.raises(InvalidInputError, match="neither here nor beside"):
        executor.rehearse(plan)
    options = executor.RunOptions(profile=profile)
    with pytest.raises(InvalidInputError, match="batches must be 1 or more: 0"):
        executor.rehearse(plan, batches=0, options=options)
    other = profile.model_copy(update={"batch_sizes": (1,)})
    with pytest.raises(StalePlanError, match="profile"):
        executor.rehearse(plan, options=executor.RunOptions(profile=other))
    broken = json.loads(plan.model_dump_json())
    broken["spec"]["transfers"] = []
    with pytest.raises(InvalidInputError, match="transfer"):
        executor.rehearse(Plan.from_data(broken, name="broken"), options=options)
