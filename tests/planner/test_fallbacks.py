"""The best plan without each device: what it costs, how it is said, what a check makes of it."""

from __future__ import annotations

import pytest

from planner.api import plan
from planner.check import check_plan
from planner.explain import explain
from planner.fallbacks import without_device
from planner.markdown import render_markdown
from planner.planfile import Plan
from planner.render import render_text
from planner.request import Pin, PlanRequest, Split
from planner.searchrecord import Fallback
from profiler.cluster import Link
from profiler.profile import Profile
from tests.support.builders import GIB, chain_graph, make_cluster, make_profile
from tests.support.plans import edit

REQUEST = PlanRequest(batch_size=8, microbatch_size=2, splits=(Split.LAYERS,))


def world(*, memory: int = GIB, weight_bytes: int = 100, **speed: float) -> Profile:
    """Six layers; seconds a layer and item on each device; messages are nearly free.

    Devices of equal speed are of one type.
    """
    cluster = make_cluster(
        dict.fromkeys(speed, memory),
        bytes_per_s=1e9,
        types={name: f"type{one}" for name, one in speed.items()},
    )
    graph = chain_graph(6, weight_bytes=weight_bytes)
    return make_profile(graph, cluster, seconds={name: [one] * 6 for name, one in speed.items()})


def planned(profile: Profile, **wishes: object) -> Plan:
    return plan(profile, REQUEST.replaced(**wishes), fallbacks=True)


def by_device(made: Plan) -> dict[str, Fallback]:
    return {device: x for x in made.search.fallbacks for device in x.devices}


def test_each_loss_is_that_of_the_best_plan_without() -> None:
    # Best: 4 layers on a (4 s an item), 2 on b (2 x 2 s). Without b: 6 s. Without a: 12 s.
    made = planned(world(a=1.0, b=2.0))
    found = by_device(made)
    assert found["h/b"].slowdown == pytest.approx(0.5, rel=1e-3)
    assert found["h/a"].slowdown == pytest.approx(2.0, rel=1e-3)
    assert found["h/b"].plan == "h/a: l0, l1, l2, l3, l4, l5"
    assert found["h/a"].note == "inputs enter at h/b then"
    assert not list(check_plan(made, world(a=1.0, b=2.0)))


def test_it_equals_planning_on_what_is_left() -> None:
    profile = world(a=1.0, b=2.0, c=3.0)
    for device, said in by_device(planned(profile)).items():
        fewer = without_device(profile.cluster, device)
        alone = plan(profile, REQUEST, cluster=fewer)
        assert said.objective_s == pytest.approx(alone.search.objective_s, rel=1e-4)


def test_equal_devices_are_answered_together() -> None:
    made = planned(world(a=1.0, b=2.0, c=2.0, d=2.0))
    groups = sorted(x.devices for x in made.search.fallbacks)
    assert [len(x) for x in groups] == [1, 3]
    assert set(groups[1]) == {"h/b", "h/c", "h/d"}


def test_a_device_that_cannot_be_missed_is_told_with_numbers() -> None:
    # A layer weighs 1 MiB: six do not fit on one device of 5 MiB.
    alone = by_device(planned(world(a=1.0)))["h/a"]
    assert (alone.objective_s, alone.note) == (None, "no other device is left")
    mib = 2**20
    tight = planned(world(memory=5 * mib, weight_bytes=mib, a=1.0, b=2.0), reserve_bytes=0)
    lost = by_device(tight)["h/b"]
    assert lost.objective_s is None
    assert lost.note == (
        "nothing fits (proved): the model weighs 6.00 MiB, the largest of 1 devices left has "
        "5.00 MiB"
    )


def test_pins_to_the_missing_device_are_lifted() -> None:
    made = planned(world(a=1.0, b=2.0), pins=(Pin(layers="l0", device="h/b"),))
    assert by_device(made)["h/b"].objective_s is not None


def test_links_of_the_device_go_with_it() -> None:
    cluster = world(a=1.0, b=2.0).cluster
    link = Link(source="h/a", target="h/b", latency_s=0.0, bytes_per_s=1e6)
    fewer = without_device(cluster.replaced(links=(link,)), "h/a")
    assert fewer is not None
    assert (list(fewer.device), fewer.links) == (["h/b"], ())
    assert without_device(fewer, "h/b") is None


def test_explain_shows_the_worst_loss_first() -> None:
    report = explain(planned(world(a=1.0, b=2.0)), name="plan.yaml")
    text = render_text(report)
    section = text[text.index("If a device is missing") :].splitlines()
    assert section[1].startswith("  h/a  ")
    assert "+200.0 %" in section[1]
    assert "- without `h/a`: " in render_markdown(report)
    assert "If a device is missing" not in render_text(
        explain(plan(world(a=1.0, b=2.0), REQUEST), name="plan.yaml")
    )


def test_false_claims_are_found() -> None:
    profile = world(a=1.0, b=2.0)
    made = planned(profile)
    lie = edit(made, {"search.fallbacks.0.slowdown": 0.01})
    assert [x.code for x in check_plan(lie, profile)] == ["fallback"]
    stranger = edit(made, {"search.fallbacks.0.devices": ["h/z"]})
    assert [x.code for x in check_plan(stranger, profile)] == ["fallback"]


def test_they_do_not_change_the_plan() -> None:
    profile = world(a=1.0, b=2.0)
    assert planned(profile).plan_id == plan(profile, REQUEST).plan_id
    again = Plan.parse(planned(profile).to_text(as_json=False), name="plan.yaml")
    assert again.search.fallbacks == planned(profile).search.fallbacks


def test_the_device_whose_times_stand_for_its_twins_may_be_missing() -> None:
    profile = world(a=1.0, b=1.0)
    measured = profile.timings[0].model_copy(update={"devices": ("h/a", "h/b")})
    shared = profile.model_copy(update={"timings": (measured,)})
    found = by_device(planned(shared))
    assert found["h/a"].slowdown == pytest.approx(1.0, rel=1e-3)
    assert found["h/a"].plan == "h/b: l0, l1, l2, l3, l4, l5"
