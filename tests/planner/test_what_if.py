from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from planner.api import plan
from planner.changes import (
    AddDevice,
    Change,
    FasterDevice,
    FasterLink,
    FasterWire,
    MoreMemory,
    RemoveDevice,
    World,
    read_add,
    read_faster,
)
from planner.check import check_plan
from planner.cli import app
from planner.default_changes import default_questions
from planner.explain import explain
from planner.findings import Severity
from planner.planfile import Plan
from planner.render import render_text
from planner.request import Limits, Objective, Pin, PlanRequest
from planner.supposed import Answer, WhatIf, filed, range_of, what_if
from planner.what_if_text import render_what_if
from profiler.catalogue import find_device, find_link
from profiler.cluster import Link
from profiler.errors import InfeasiblePlanError, InvalidInputError
from profiler.hypothetical import Hypothetical
from profiler.profile import Profile
from tests.support.builders import GIB, chain_graph, make_cluster, make_profile
from tests.support.worlds import random_chain

REQUEST = PlanRequest(batch_size=8, microbatch_size=2, limits=Limits(time_s=5))


def small(*, memory: int = GIB, links: tuple[Link, ...] = ()) -> Profile:
    """Six layers of 1 s an item on a, 2 s on b; 4 and 2 of them balance."""
    cluster = make_cluster({"a": memory, "b": memory}, links=links, latency_s=1e-4)
    bare = chain_graph(6, weight_bytes=100_000)
    graph = bare.replaced(layers=tuple(x.replaced(flops_per_item=1e9) for x in bare.layers))
    return make_profile(graph, cluster, seconds={"a": [1.0] * 6, "b": [2.0] * 6})


def asked(profile: Profile, *changes: Change, request: PlanRequest = REQUEST) -> WhatIf:
    return what_if(profile, request, changes)


def only(found: WhatIf) -> Answer:
    (answer,) = found.answers
    return answer


def present_s(found: WhatIf) -> float:
    assert found.present is not None
    return found.present.search.objective_s


def codes(made: Plan, profile: Profile) -> set[tuple[Severity, str]]:
    return {(x.severity, x.code) for x in check_plan(made, profile)}


def test_a_device_twice_as_fast_shortens_the_period() -> None:
    # 32 s for a batch of 8 with 4 layers on a. With a at 0.5 s a layer, 5 (20 s) and 1 (16 s).
    found = asked(small(), FasterDevice(device="h/a", factor=2))
    assert present_s(found) == pytest.approx(32.0, rel=1e-3)
    answer = only(found)
    assert answer.objective_s == pytest.approx(20.0, rel=0.1)
    assert answer.gain_s == pytest.approx(present_s(found) - (answer.objective_s or 0))
    assert answer.proved


def test_answers_are_ranked_by_gain() -> None:
    changes = (
        RemoveDevice(place="h/b"),
        FasterDevice(device="h/b", factor=2),
        FasterDevice(device="h/a", factor=4),
    )
    found = asked(small(), *changes)
    assert [x.change for x in found.answers] == [
        "h/a x4 as fast",
        "h/b x2 as fast",
        "remove h/b",
    ]
    gains = [x.gain_s or 0.0 for x in found.answers]
    assert gains == sorted(gains, reverse=True)
    assert gains[-1] < 0


def test_every_answer_is_the_plan_that_planning_gives() -> None:
    found = asked(small(), FasterDevice(device="h/a", factor=3), RemoveDevice(place="h/a"))
    for x in found.answers:
        made = plan(x.world.profile, x.world.request, cluster=x.world.cluster)
        assert made.search.objective_s == pytest.approx(x.objective_s)


def test_a_data_sheet_device_carries_its_range_into_the_plan() -> None:
    found = asked(small(), read_add("t4 via 10gbe"))
    answer = only(found)
    assert answer.plan is not None
    made = answer.plan
    (rank,) = [x for x in made.spec.ranks if x.device == "t4/cuda:0"]
    assert rank.hypothetical is True
    assert made.estimate.hypothetical is not None
    assert "t4/cuda:0" in [x.where for x in made.estimate.hypothetical.parts]
    low, high = answer.range_s or (0.0, 0.0)
    assert low < made.search.objective_s < high
    least, most = answer.gain_range_s or (0.0, 0.0)
    assert least < (answer.gain_s or 0.0) < most
    # check derives the range with code of its own, and says that nobody measured it.
    assert codes(made, answer.world.profile) == {(Severity.WARNING, "hypothetical")}


def test_the_range_is_the_same_decision_at_both_ends() -> None:
    # One device, twice as fast as measured, no messages: its range is its own.
    profile = small()
    a, b = profile.timings
    mark = Hypothetical(basis="a guess", low=0.5, high=3.0)
    guessed = profile.replaced(timings=(a.replaced(hypothetical=mark), b))
    pinned = REQUEST.replaced(pins=(Pin(layers="l0..5", device="h/a"),))
    made = plan(guessed, pinned)
    assert range_of(made) == pytest.approx(
        (0.5 * made.search.objective_s, 3 * made.search.objective_s), rel=1e-4
    )


def test_explain_says_that_a_plan_is_hypothetical() -> None:
    answer = only(asked(small(), read_add("t4 via 10gbe")))
    assert answer.plan is not None
    text = render_text(explain(answer.plan, name="p.yaml"))
    assert "hypothetical: period between" in text
    assert "nobody measured t4/cuda:0" in text
    assert "apportion rehearse p.yaml" in text
    assert "apportion run " not in text


def test_measured_plans_are_as_they_were() -> None:
    made = plan(small(), REQUEST)
    assert made.estimate.hypothetical is None
    assert "hypothetical" not in made.to_text(as_json=False)


def test_a_mark_that_is_taken_out_is_found() -> None:
    answer = only(asked(small(), FasterDevice(device="h/a", factor=2)))
    assert answer.plan is not None
    ranks = tuple(x.replaced(hypothetical=None) for x in answer.plan.spec.ranks)
    hidden = answer.plan.model_copy(update={"spec": answer.plan.spec.replaced(ranks=ranks)})
    assert (Severity.ERROR, "hypothetical") in codes(hidden, answer.world.profile)
    range_ = answer.plan.estimate.hypothetical
    assert range_ is not None
    wrong = answer.plan.model_copy(
        update={
            "estimate": answer.plan.estimate.replaced(
                hypothetical=range_.replaced(period_high_s=range_.period_high_s * 1.01)
            )
        }
    )
    assert (Severity.ERROR, "estimate") in codes(wrong, answer.world.profile)


def test_more_memory_can_make_a_plan_possible() -> None:
    # 600 kB of weights; 250 kB on each of two devices are not enough, 500 and 250 are.
    tight = small(memory=250_000)
    with pytest.raises(InfeasiblePlanError):
        plan(tight, REQUEST)
    found = asked(tight, MoreMemory(device="h/a", factor=2), FasterDevice(device="h/a", factor=2))
    assert found.present is None
    assert found.why_not.startswith("no plan fits")
    larger, faster = found.answers
    assert larger.change == "memory of h/a x2"
    assert larger.plan is not None
    assert larger.gain_s is None
    assert faster.plan is None
    assert faster.proved
    text = render_what_if(found, name="p.json")
    assert re.search(r"memory of h/a x2 \* .* fits", text)


def test_removing_the_root_says_where_inputs_enter_then() -> None:
    pinned = REQUEST.replaced(pins=(Pin(layers="l0", device="h/a"),))
    answer = only(asked(small(), RemoveDevice(place="h/a"), request=pinned))
    assert answer.plan is not None
    assert answer.note == "inputs enter at h/b then"
    assert answer.world.request.pins == ()


def test_removing_an_idle_device_changes_nothing() -> None:
    cluster = make_cluster({"a": GIB, "b": GIB}, latency_s=100.0)
    profile = make_profile(chain_graph(2), cluster, seconds={"a": [1.0] * 2, "b": [2.0] * 2})
    found = asked(profile, RemoveDevice(place="h/b"))
    assert [x.device for x in (found.present or plan(profile, REQUEST)).search.idle] == ["h/b"]
    assert only(found).same
    assert only(found).gain_s == pytest.approx(0.0)


@pytest.mark.parametrize("seed", range(12))
def test_what_can_only_help_never_hurts(seed: int) -> None:
    rng = random.Random(seed)
    profile, request, _ = random_chain(rng, max_layers=4, max_devices=3)
    request = request.replaced(limits=Limits(time_s=2))
    device = rng.choice(list(profile.cluster.device))
    changes: list[Change] = [
        FasterDevice(device=device, factor=rng.choice((1.5, 10.0))),
        MoreMemory(device=device, factor=2.0),
        FasterLink(source="default", target="default", factor=10.0),
        AddDevice(device=find_device("t4"), link=find_link("10gbe")),
    ]
    found = what_if(profile, request, changes)
    for x in found.answers:
        if found.present is None:
            continue
        assert x.plan is not None, x.change
        assert (x.objective_s or 0.0) <= present_s(found) * (1 + 1e-9), x.change
        errors = [f for f in check_plan(x.plan, x.world.profile) if f.severity is Severity.ERROR]
        assert not errors, (x.change, errors)
        if x.range_s is not None:
            assert x.range_s[0] <= (x.objective_s or 0.0) * (1 + 1e-4)
            assert x.range_s[1] >= (x.objective_s or 0.0) * (1 - 1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_removing_a_device_never_helps_unless_it_is_the_root(seed: int) -> None:
    rng = random.Random(100 + seed)
    profile, request, _ = random_chain(rng, max_layers=4, max_devices=3)
    request = request.replaced(limits=Limits(time_s=2), pins=())
    others = [x for x in profile.cluster.device if x != profile.cluster.root]
    found = what_if(profile, request, [RemoveDevice(place=x) for x in others])
    for x in found.answers:
        if found.present is not None and x.objective_s is not None:
            assert x.objective_s >= found.present.search.bound_s * (1 - 1e-9), x.change


def test_the_default_changes_are_each_device_and_each_distinct_link() -> None:
    links = tuple(
        Link(source=f"h/{a}", target=f"h/{b}", latency_s=0.0, bytes_per_s=1e9, shares=shares)
        for a, b, shares in (("a", "b", None), ("b", "a", None), ("a", "c", "air"))
    )
    cluster = make_cluster(
        {"a": GIB, "b": GIB, "c": GIB, "d": GIB}, types={"c": "x", "d": "x"}, links=links[:2]
    )
    graph = chain_graph(2)
    seconds = {"a": [1.0] * 2, "b": [2.0] * 2, "c": [3.0] * 2, "d": [3.0] * 2}
    profile = make_profile(graph, cluster, seconds=seconds)
    questions = default_questions(World(profile=profile, request=REQUEST))
    texts = {x.change.text: x.alike for x in questions}
    assert texts == {
        "remove h/a": 0,
        "h/a x2 as fast": 0,
        "memory of h/a x2": 0,
        "remove h/b": 0,
        "h/b x2 as fast": 0,
        "memory of h/b x2": 0,
        "remove h/c": 1,
        "h/c x2 as fast": 1,
        "memory of h/c x2": 1,
        "link h/a <-> h/b x10 as fast": 0,
        "default link x10 as fast": 0,
    }
    shared = make_profile(graph, cluster.replaced(links=(links[2],)), seconds=seconds)
    assert "wire air x10 as fast" in [
        x.change.text for x in default_questions(World(profile=shared, request=REQUEST))
    ]


def test_without_changes_all_that_could_matter_is_tried() -> None:
    found = what_if(small(), REQUEST)
    assert len(found.answers) == 7
    assert found.answers[0].change == "h/a x2 as fast"


def test_the_table_fits_a_terminal() -> None:
    heard: list[str] = []
    changes = [
        read_add("rtx-4090 via 10gbe"),
        read_faster("default x10"),
        RemoveDevice(place="h/b"),
    ]
    changes[1] = FasterLink(source="default", target="default", factor=10)
    found = what_if(small(), REQUEST, changes, progress=heard.append)
    text = render_what_if(found, name="some/where/profile.json")
    assert max(map(len, text.splitlines())) <= 80
    assert "add rtx-4090 via 10gbe *" in text
    assert "* hypothetical: nobody measured" in text
    assert heard[0] == "the present plan"
    assert heard[1] == "1 of 3: add rtx-4090 via 10gbe"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rtx-4090 via 10gbe", "add rtx-4090 via 10gbe"),
        ("RTX-4090 via pcie-4-x16@h", "add rtx-4090 via pcie-4-x16 @h"),
        ("epyc-7763 with 64GiB via 25gbe", "add epyc-7763 with 64.0 GiB via 25gbe"),
        ("t4", "add t4"),
    ],
)
def test_additions_are_read(text: str, expected: str) -> None:
    assert read_add(text).text == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h/a x2", FasterDevice(device="h/a", factor=2)),
        ("link a -> b x10", FasterLink(source="a", target="b", factor=10)),
        ("link a<->b x1.5", FasterLink(source="a", target="b", factor=1.5, both=True)),
        ("link default x10", FasterLink(source="default", target="default", factor=10)),
        ("wire air x 3", FasterWire(wire="air", factor=3)),
        ("memory h/a x2", MoreMemory(device="h/a", factor=2)),
    ],
)
def test_speed_ups_are_read(text: str, expected: Change) -> None:
    assert read_faster(text) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--add", "rtx4090 via 10gbe"), "no device 'rtx4090'; close names: rtx-4090"),
        (("--add", "rtx-4090 via 10g"), "no link '10g'; close names: 10gbe"),
        (("--add", "rtx-4090 through 10gbe"), "write DEVICE via LINK"),
        (("--add", "rtx-4090 via 10gbe @nowhere"), "there is no host 'nowhere'"),
        (("--add", "epyc-9654 via 10gbe"), "say how much, as in"),
        (("--remove", "h/z"), "cannot remove 'h/z'"),
        (("--remove", "h"), "no other device is left to compute on"),
        (("--faster", "h/a"), "say what and how much"),
        (("--faster", "h/a x0"), "a factor is a number above 0"),
        (("--faster", "h/a x-1"), "a factor is a number above 0"),
        (("--faster", "h/a xinf"), "a factor is a number above 0"),
        (("--faster", "h/q x2"), "there is no device 'h/q'"),
        (("--faster", "link h/a -> h/q x2"), "a link has no end 'h/q'"),
        (("--faster", "link h/a x2"), "a link has two ends"),
        (("--faster", "wire air x2"), "no links share a wire 'air'"),
        (("--remove", "h/a", "--remove", "h/a"), "is asked twice"),
        (("--batch-size", "0"), "batch_size"),
    ],
)
def test_bad_input_is_refused(flags: tuple[str, ...], message: str, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    small().dump(file)
    result = CliRunner().invoke(app, ["what-if", str(file), *flags])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())


def test_an_objective_that_counts_devices_is_refused() -> None:
    request = REQUEST.model_copy(update={"objective": Objective.DEVICES, "min_items_per_s": 0.1})
    with pytest.raises(InvalidInputError, match=r"objective is devices: ask with --objective"):
        asked(small(), RemoveDevice(place="b"), request=request)


def test_a_device_that_cannot_do_the_models_dtype_is_refused_unless_any_is_asked() -> None:
    profile = small()
    half = profile.replaced(model=profile.model.replaced(dtype="bfloat16"))
    with pytest.raises(InvalidInputError, match="t4 has no data-sheet peak for bfloat16"):
        asked(half, read_add("t4 via 10gbe"))
    many = [
        AddDevice(device=find_device(name), link=find_link("10gbe"), one_of_many=True)
        for name in ("t4", "a10", "epyc-9654")
    ]
    found = asked(half, *many)
    assert [x.change for x in found.answers] == ["add a10 via 10gbe"]
    assert [text for text, _ in found.skipped] == ["add t4 via 10gbe", "add epyc-9654 via 10gbe"]


def test_documents_of_an_answer_can_be_checked_and_explained(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    small().dump(file)
    out = tmp_path / "out"
    flags = ["--add", "t4 via 10gbe", "--remove", "h/b", "--write", str(out), "--format", "json"]
    result = CliRunner().invoke(app, ["what-if", str(file), *flags, "--objective", "latency"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["objective"] == Objective.LATENCY.value
    assert [x["change"] for x in data["changes"]] == ["add t4 via 10gbe", "remove h/b"]
    assert data["changes"][0]["hypothetical"] is True
    plans = sorted(out.glob("*.plan.yaml"))
    assert [x.name for x in plans] == ["01-add-t4-via-10gbe.plan.yaml", "02-remove-h-b.plan.yaml"]
    for written in plans:
        checked = CliRunner().invoke(app, ["check", str(written)])
        assert checked.exit_code == 0, checked.output


def test_written_plans_have_the_id_of_their_inputs() -> None:
    answer = only(asked(small(), RemoveDevice(place="h/b")))
    files = filed(answer, stem="x")
    assert set(files) == {"x.profile.json", "x.cluster.yaml", "x.plan.yaml"}
    made = files["x.plan.yaml"]
    assert isinstance(made, Plan)
    assert made.plan_id == made.expected_id()
