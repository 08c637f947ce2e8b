from __future__ import annotations

from collections.abc import Mapping

import pytest

from planner import plan, split_prices, wish_prices
from planner.check import check_plan
from planner.explain import explain
from planner.markdown import render_markdown
from planner.planfile import Plan
from planner.render import render_text
from planner.request import Forbid, Pin, Split
from profiler.profile import Profile
from tests.support.builders import GIB, chain_graph, make_cluster, make_profile
from tests.support.small_plans import CHAIN

LAST_ON_D = Pin(layers="l3", device="h/d")


def pinned() -> Plan:
    """The slowest of four devices must run a layer; batch splits are allowed."""
    splits = (Split.LAYERS, Split.BATCH)
    return plan(CHAIN, batch_size=8, pins=(LAST_ON_D,), splits=splits, max_stages=4)


def test_a_pin_costs_the_difference_to_the_best_plan_without_it() -> None:
    made, free = pinned(), plan(CHAIN, batch_size=8, splits=(Split.LAYERS, Split.BATCH))
    (price,) = (x for x in made.search.wishes if x.kind == "pin")
    assert price.verdict == "costs"
    assert price.objective_s == pytest.approx(free.search.objective_s)
    assert price.gain_s == pytest.approx(made.search.objective_s - free.search.objective_s)
    assert price.bound_s == price.objective_s
    assert price.plan
    assert "h/a" in price.plan


def test_what_changes_nothing_costs_nothing() -> None:
    made = pinned()
    verdicts = {x.wish: (x.verdict, x.note) for x in made.search.wishes}
    assert verdicts["max_stages 4"] == ("free", "")
    assert verdicts["no tensor in splits"][0] == "free"
    assert verdicts["no tensor in splits"][1] == "the model has no region that can be sliced"
    assert verdicts["no pipelines in splits"] == ("free", "l3 may run on h/d only")


def test_a_plan_without_wishes_has_no_prices_of_wishes() -> None:
    assert plan(CHAIN, batch_size=8).search.wishes == ()


def test_a_forbidden_device_has_a_price() -> None:
    made = plan(CHAIN, batch_size=8, forbids=(Forbid(device="h/a"),))
    (price,) = made.search.wishes
    assert (price.verdict, price.wish) == ("costs", "forbid of everything on h/a")


def test_splits_that_are_not_used_are_priced_or_said_to_be_impossible() -> None:
    # 1 s and 3 s a layer and item, links of 20 s: any split costs more than it saves.
    cluster = make_cluster({"a": GIB, "b": GIB}, latency_s=20.0)
    seconds = {"a": [1.0] * 2, "b": [3.0] * 2}
    profile = make_profile(chain_graph(2), cluster, seconds=seconds)
    made = plan(profile, batch_size=4)
    found = {x.split: x for x in made.search.splits}
    assert found[Split.TENSOR].verdict == "impossible"
    for split in (Split.LAYERS, Split.BATCH, Split.PIPELINES):
        price = found[split]
        assert price.verdict == "costs"
        assert price.objective_s is not None
        assert price.loss_s == pytest.approx(price.objective_s - made.search.objective_s)
    assert check_plan(made, profile) == ()


def test_wishes_and_splits_that_there_is_no_time_for_are_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wish_prices, "TIME_FRACTION", 0.0)
    monkeypatch.setattr(split_prices, "TIME_FRACTION", 0.0)
    made = pinned()
    note = "no time was left; raise limits.time_s"
    verdicts = {x.kind: (x.verdict, x.note) for x in made.search.wishes}
    assert verdicts["pin"] == ("skipped", note)
    assert [(x.verdict, x.note) for x in made.search.splits] == [("skipped", note)]
    assert "pin of l3 to h/d  not priced: no time was left" in render_text(
        explain(made, name="plan.yaml")
    )
    assert not _price_findings(made, CHAIN)


def test_explain_shows_prices_and_lists_what_is_free_in_one_line() -> None:
    report = explain(pinned(), name="plan.yaml")
    text = render_text(report)
    assert (
        "What the wishes cost\n  pin of l3 to h/d  costs 16.5 s: 16.5 s (-50.0%) without it" in text
    )
    assert "  cost nothing  max_stages 4; no tensor in splits" in text
    assert (
        "Splits that it does not use\n  batch  as good, in one pipeline with microbatches of"
        in text
    )
    assert "- wish `pin of l3 to h/d`: costs 16.5 s" in render_markdown(report)


def edited(made: Plan, position: int, changes: Mapping[str, object]) -> Plan:
    listed = list(made.search.wishes)
    listed[position] = listed[position].model_copy(update=changes)
    search = made.search.model_copy(update={"wishes": tuple(listed)})
    return made.model_copy(update={"search": search})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gain_s": 1.0}, "gain_s is 1.0; it is 16.4"),
        ({"objective_s": 99.0, "gain_s": 0.0}, "this plan, which keeps it, has 32.9"),
        ({"bound_s": 99.0}, "bound 99.0 is above"),
        ({"verdict": "free"}, "said to cost nothing, but only 16.4"),
        ({"subject": "l2"}, "no price for pin l3"),
    ],
)
def test_check_finds_prices_that_cannot_be(changes: Mapping[str, object], said: str) -> None:
    found = [x for x in check_plan(edited(pinned(), 0, changes), CHAIN) if x.code == "price"]
    assert any(said in x.message for x in found), found


def test_check_finds_splits_that_the_plan_uses_or_nobody_speaks_of() -> None:
    made = pinned()
    used = made.search.splits[0].model_copy(update={"split": Split.LAYERS})
    search = made.search.model_copy(update={"splits": (used,)})
    found = check_plan(made.model_copy(update={"search": search}), CHAIN)
    messages = [x.message for x in found if x.code == "price"]
    assert messages == ["the plan splits by layers", "nothing is said of batch"]
    assert not _price_findings(made, CHAIN)


def _price_findings(made: Plan, profile: Profile) -> list[str]:
    return [x.message for x in check_plan(made, profile) if x.code == "price"]
