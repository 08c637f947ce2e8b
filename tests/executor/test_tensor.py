"""Plans whose stages are split by tensor, as real processes."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

import psutil
import pytest

import planner
from executor.rehearsal import rehearse
from executor.running import RunOptions
from executor.verification import verify
from planner.planfile import Plan
from planner.request import Split
from profiler.errors import InvalidInputError, RankFailedError
from profiler.profile import PRELUDE, Profile
from profiler.sources import Example
from tests.executor.test_equality import check, profile_of
from tests.executor.test_faults import ranks_of, run_long
from tests.support import running
from tests.support.captures import captured, undivided
from tests.support.cutting import resized
from tests.support.plans import edit, resigned

pytestmark = pytest.mark.distributed


def never(_: int) -> bool:
    """Sums in another order: bits may differ."""
    return False


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("mlp", running.tensor_three),
        ("bert", running.tensor_uneven),
        ("llama", running.tensor),
        ("resnet50", running.tensor_mixed),
        ("clip", running.tensor_mixed),
        ("mixtral", running.tensor_uneven),
    ],
)
def test_divided_stages_compute_what_the_model_does(name: str, split: object) -> None:
    plan = split(profile_of(name))  # type: ignore[operator]
    assert any(stage.split == "tensor" for stage in plan.spec.pipelines[0].stages)
    check(name, plan, identical=never)


def inside_a_pipeline(profile: Profile) -> Plan:
    """The root computes alone, then two divide, then one computes alone."""
    first, second, third = running.thirds(profile)
    parts = [
        running.stage(profile, first, 0),
        running.sliced(profile, second, 1, 2),
        running.stage(profile, third, 3),
    ]
    request = running.request(batch_size=8, microbatch_size=3)
    return running.make_plan(profile, parts, request=request)


def test_a_report_tells_joins_and_holds_less_on_each_rank() -> None:
    plan, made, profile = (
        inside_a_pipeline(profile_of("gpt2")),
        captured("gpt2"),
        profile_of("gpt2"),
    )
    args, kwargs = resized(made, 8)
    with running.session(plan, made, profile) as session:
        report = session.run(Example(args=args, kwargs=kwargs), repeats=3).report
    divided = [r for r in report.ranks if r.stage == "pipeline0.stage1"]
    assert len(divided) == 2
    assert all(r.joined_s.measured and r.joined_s.measured > 0 for r in divided)
    assert all(not r.joined_s.measured for r in report.ranks if r not in divided)
    layers = plan.spec.pipelines[0].stages[1]
    whole = profile.model.weight_bytes(
        profile.model.layer_index[x]
        for x in session.schedule.role(1).layers  # type: ignore[union-attr]
    )
    assert all(r.weights_bytes < 0.6 * whole for r in divided)
    joins = [link for link in report.links if link.tensor.startswith("join of ")]
    assert {(link.source, link.target) for link in joins} == {(1, 2), (2, 1)}
    assert report.evidence is not None
    first, *dividing, last = report.evidence.ranks
    assert not first.slices
    assert not last.slices
    region = {one.name: one for one in profile.model.regions}
    for position, one in enumerate(dividing):
        told = {(x.region, x.units): x.count for x in one.slices}
        assert told == Counter((region[x.region].twin, x.units[position]) for x in layers.slices)
        assert one.joined_s > 0
        whole = {name for x in layers.slices for name in region[x.region].layers}
        assert sum(n for twin, n in one.twins.items() if twin != PRELUDE) == len(
            set(session.schedule.role(1).layers) - whole  # type: ignore[union-attr]
        )


def test_verify_and_rehearse_take_such_plans() -> None:
    profile = profile_of("bert")
    plan = inside_a_pipeline(profile)
    options = RunOptions(profile=profile, timeout_s=30)
    report = verify(plan, model=captured("bert"), options=options)
    assert report.outputs is not None
    assert report.outputs.equal
    assert report.outputs.first_diverging_stage is None
    assert rehearse(plan, batches=3, options=options).rehearsed


def test_a_dead_partner_is_named_and_nobody_waits_for_ever() -> None:
    profile, made = profile_of("resnet50"), captured("resnet50")
    with running.session(running.tensor(profile), made, profile, timeout_s=4) as session:
        pid = ranks_of(psutil.Process())[1]
        thread, failures = run_long(session)
        time.sleep(1.0)
        begun = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        try:
            thread.join(20)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert not thread.is_alive()
        assert time.monotonic() - begun < 12
    (error,) = failures
    assert isinstance(error, RankFailedError)
    assert "rank 1" in str(error)
    assert "join of " in str(error)
    assert "for items " in str(error)


@pytest.mark.parametrize(
    ("units", "says"), [([2, 1], "it has 4 heads"), ([4, 0], "one at least"), ([4], "one each")]
)
def test_wrong_slices_start_no_process(units: list[int], says: str) -> None:
    profile = profile_of("bert")
    plan = running.tensor(profile)
    slices = plan.spec.pipelines[0].stages[0].slices
    heads = next(i for i, s in enumerate(slices) if s.region.endswith("attention"))
    path = f"spec.pipelines.0.stages.0.slices.{heads}.units"
    wrong = resigned(edit(plan, {path: units}))
    children = set(psutil.Process().children())
    with pytest.raises(InvalidInputError, match=says):
        running.session(wrong, captured("bert"), profile)
    assert set(psutil.Process().children()) == children


def test_what_the_planner_divides_runs() -> None:
    profile, made = profile_of("bert"), captured("bert")
    plan = planner.plan(
        profile, batch_size=4, microbatch_size=4, splits=(Split.TENSOR,), objective="latency"
    )
    (stage,) = plan.spec.pipelines[0].stages
    assert stage.split == "tensor"
    heads = [s.units for s in stage.slices if s.region.endswith("attention")]
    assert heads == [heads[0]] * 3
    args, kwargs = resized(made, 4)
    with running.session(plan, made, profile) as session:
        found = session.run(Example(args=args, kwargs=kwargs))
    assert made.source.module is not None
    expected = undivided(made.source.module, args, kwargs)
    assert running.difference(expected, found.outputs)[0] <= 1
