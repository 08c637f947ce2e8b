"""A plan beside the one in use: whether the best changed, and what is kept with what proof."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.api import plan
from planner.baseline import Baseline, beside
from planner.check import check_plan, rederive
from planner.explain import explain
from planner.findings import Severity
from planner.planfile import Plan
from planner.render import render_text
from planner.request import Objective, Pin, PlanRequest, Split
from planner.searchrecord import BaselineRecord
from profiler.errors import InvalidInputError, StalePlanError
from profiler.profile import Profile
from tests.support.builders import GIB, chain_graph, make_cluster, make_profile
from tests.support.plans import Part, edit, make_plan, resigned

NAMES = ("a", "b", "c")
REQUEST = PlanRequest(batch_size=8, microbatch_size=2, splits=(Split.LAYERS,))


def world(**speed: float) -> Profile:
    """Six layers; seconds a layer and item on each device; messages are nearly free."""
    cluster = make_cluster(dict.fromkeys(speed, GIB), bytes_per_s=1e9)
    seconds = {name: [one] * 6 for name, one in speed.items()}
    return make_profile(chain_graph(6), cluster, seconds=seconds)


def cut(profile: Profile, *counts: int, request: PlanRequest = REQUEST) -> Plan:
    """The first layers on a, the next on b, ..., by how many each gets."""
    parts, first = [], 0
    for name, count in zip(NAMES, counts, strict=False):
        if count:
            parts.append(Part(layers=range(first, first + count), devices=[f"h/{name}"]))
        first += count
    return make_plan(profile, parts, request=request)


def record(made: Plan) -> BaselineRecord:
    assert made.search.baseline is not None
    return made.search.baseline


def errors(made: Plan, profile: Profile) -> list[str]:
    found = check_plan(made, profile)
    return [f"{x.code} {x.message}" for x in found if x.severity is Severity.ERROR]


BEFORE = world(a=1.0, b=2.0)
"""The best cut: 4 layers on a, 2 on b; 8 s a microbatch both, 4 of them: 32 s."""

FIRST_ON_A = REQUEST.model_copy(update={"pins": (Pin(layers="l0", device="h/a"),)})
"""So that the mirror image of a cut is none."""


def test_the_same_plan_is_still_the_best() -> None:
    used = plan(BEFORE, FIRST_ON_A)
    made = plan(world(a=1.01, b=2.0), baseline=used)
    assert made.spec == used.spec
    said = record(made)
    assert (said.verdict, said.summary) == ("same", "the same plan is still the best")
    assert said.objective_s == said.found_s == made.search.objective_s
    assert said.plan_id == used.plan_id
    assert made.search.status == "optimal"
    assert errors(made, world(a=1.01, b=2.0)) == []


def test_the_best_plan_changed() -> None:
    # b became as slow as 5 s a layer: 5 + 1 layers take 10 s a microbatch instead of 20.
    after = world(a=1.0, b=5.0)
    used = cut(BEFORE, 4, 2, request=FIRST_ON_A)
    made = plan(after, baseline=used)
    said = record(made)
    assert said.verdict == "changed"
    assert said.objective_s == pytest.approx(80.0)
    assert said.found_s == made.search.objective_s == pytest.approx(40.0, rel=1e-3)
    assert said.gain == pytest.approx(0.5, rel=1e-3)
    assert said.summary.startswith("the best plan changed, 50.00% better (period 80.0 s -> 40.0 s)")
    assert "l4: h/b -> h/a" in said.summary
    assert errors(made, after) == []


class TestNearTies:
    """``min_gain``."""

    AFTER = world(a=1.0, b=2.1)
    # 4 + 2 layers: b is busy 8.4 s; 5 + 1: a is busy 10 s; all on a 12 s. Used: 5 + 1.
    USED = cut(BEFORE, 5, 1)

    def test_a_gain_below_the_least_keeps_the_plan_in_use(self) -> None:
        best = plan(self.AFTER, REQUEST)
        made = plan(self.AFTER, baseline=self.USED, min_gain=0.2)
        assert made.spec == self.USED.spec != best.spec
        said = record(made)
        assert (said.verdict, said.min_gain) == ("kept", 0.2)
        assert said.found_s == best.search.objective_s
        assert said.gain == pytest.approx(0.16, abs=2e-3)
        assert "less than the 20.00% asked for a change" in said.summary

    def test_its_certificate_is_about_the_question(self) -> None:
        best = plan(self.AFTER, REQUEST)
        made = plan(self.AFTER, baseline=self.USED, min_gain=0.2)
        assert made.search.bound_s == best.search.bound_s
        derived = rederive(made, self.AFTER)
        assert made.search.objective_s == pytest.approx(derived.period_s, rel=1e-12)
        assert made.search.status == "feasible"
        assert made.search.gap == pytest.approx(
            made.search.objective_s / best.search.bound_s - 1, rel=1e-9
        )
        assert errors(made, self.AFTER) == []
        assert made.plan_id == made.expected_id()
        assert made.inputs == best.inputs

    def test_it_tells_what_was_not_taken(self) -> None:
        made = plan(self.AFTER, baseline=self.USED, min_gain=0.2)
        (found, *_) = made.search.alternatives
        assert found.plan == "best found"
        assert "better than the plan in use: " in found.why_not
        assert [w.code for w in made.warnings][:1] == ["baseline-kept"]
        assert all(x.why_not != "this is the plan" for x in made.search.alternatives)
        text = render_text(explain(made, name="plan.yaml"))
        assert "  baseline    the plan in use is kept; the best found is" in text

    def test_a_gain_of_the_least_is_taken(self) -> None:
        gain = record(plan(self.AFTER, baseline=self.USED, min_gain=0.2)).gain
        assert gain is not None
        assert record(plan(self.AFTER, baseline=self.USED, min_gain=gain)).verdict == "changed"
        kept = plan(self.AFTER, baseline=self.USED, min_gain=gain * 1.01)
        assert record(kept).verdict == "kept"

    def test_ties_are_kept_without_asking(self) -> None:
        # Three devices alike, two layers each: which comes first makes no difference.
        equal = world(a=1.0, b=1.0, c=1.0)
        used = make_plan(
            equal,
            [
                Part(layers=[0, 1], devices=["h/c"]),
                Part(layers=[2, 3], devices=["h/a"]),
                Part(layers=[4, 5], devices=["h/b"]),
            ],
            request=REQUEST,
        )
        made = plan(equal, baseline=used)
        assert plan(equal, REQUEST).spec != used.spec
        assert made.spec == used.spec
        assert record(made).verdict == "kept"
        assert record(made).summary.startswith("the plan in use is still the best; another is")
        assert (made.search.status, made.search.gap) == ("optimal", 0.0)
        assert errors(made, equal) == []

    def test_devices_that_only_the_best_uses_are_idle_for_a_reason(self) -> None:
        profile = world(a=1.0, b=1.0, c=20.0)
        used = cut(profile, 4, 2)
        made = plan(profile, baseline=cut(profile, 6), min_gain=0.9)
        assert record(made).verdict == "kept"
        idle = {x.device: x.reason for x in made.search.idle}
        assert set(idle) == {"h/b", "h/c"}
        assert (
            "the plan in use leaves it out; the best found with it is 50.00% better"
            in (idle["h/b"])
        )
        assert errors(made, profile) == []
        assert record(plan(profile, baseline=used, min_gain=0.9)).verdict == "kept"


def side_by_side(profile: Profile, request: PlanRequest) -> Plan:
    # Two whole copies, 4 items each, on devices that are alike: 6 layers x 4 items take 24 s.
    return make_plan(
        profile,
        [Part(layers=range(6), devices=["h/a"])],
        [Part(layers=range(6), devices=["h/b"])],
        items=[4, 4],
        request=request,
    )


def test_a_plan_of_another_kind_may_be_better_than_the_bound() -> None:
    # One pipeline of one stage on one device takes 48 s.
    profile = world(a=1.0, b=1.0)
    wish = {"splits": (Split.LAYERS, Split.PIPELINES), "max_stages": 1, "microbatch_size": 1}
    request = REQUEST.model_copy(update=wish)
    used = side_by_side(profile, request)
    assert used.search.objective_s == pytest.approx(24.0, rel=1e-3)
    narrow = plan(profile, request.model_copy(update={"splits": (Split.LAYERS,)}))
    assert narrow.search.bound_s == pytest.approx(48.0, rel=1e-3)
    inputs = narrow.inputs.model_copy(update={"request": request})
    best = resigned(narrow.model_copy(update={"inputs": inputs}))
    made = beside(best, Baseline(plan=used), profile)
    assert errors(made, profile) == []
    # Outside of what was searched: kept, and not called optimal.
    assert (record(made).verdict, made.search.status) == ("kept", "feasible")
    assert made.search.bound_s == made.search.objective_s
    assert made.search.space.endswith("; the plan in use is of another kind")
    assert made.spec == used.spec
    # A planner that may search copies side by side finds one that is as good.
    found = plan(profile, request, baseline=used)
    assert found.search.objective_s == pytest.approx(used.search.objective_s)
    assert found.search.status == "optimal"


def test_a_plan_of_a_kind_that_is_not_wanted_any_more_does_not_fit() -> None:
    profile = world(a=1.0, b=1.0)
    request = REQUEST.model_copy(update={"splits": (Split.LAYERS, Split.BATCH)})
    made = plan(profile, request, baseline=side_by_side(profile, request))
    assert record(made).verdict == "unfit"
    assert errors(made, profile) == []


class TestUnfit:
    """Plans in use that cannot be used any more."""

    def test_a_device_that_is_gone(self) -> None:
        used = cut(world(a=1.0, b=2.0), 4, 2)
        after = world(a=1.0, c=2.0)
        made = plan(after, baseline=used)
        said = record(made)
        assert (said.verdict, said.objective_s, said.gain) == ("unfit", None, None)
        assert "the plan in use does not fit: " in said.summary
        assert "h/b" in said.summary
        assert errors(made, after) == []

    def test_memory_that_shrank(self) -> None:
        request = FIRST_ON_A.model_copy(update={"reserve_bytes": 0})
        used = cut(BEFORE, 4, 2, request=request)
        # A byte less than what the plan in use takes on a; a layer less there fits.
        least = used.estimate.ranks[0].memory.total_bytes - 1
        made = plan(BEFORE, baseline=used, max_bytes={"h/a": least})
        said = record(made)
        assert said.verdict == "unfit"
        assert "the plan in use does not fit: rank 0: it needs" in said.summary
        assert errors(made, BEFORE) == []

    def test_another_batch(self) -> None:
        made = plan(BEFORE, baseline=cut(BEFORE, 4, 2), batch_size=16)
        assert record(made).verdict == "unfit"
        assert made.inputs.request.batch_size == 16

    def test_another_model(self) -> None:
        other = edit(cut(BEFORE, 4, 2), {"inputs.model.graph": "sha256:other"})
        with pytest.raises(StalePlanError, match="fingerprint sha256:other, the profile is of"):
            plan(BEFORE, baseline=other)


class TestRequest:
    """What is asked when a plan in use is given."""

    USED = cut(BEFORE, 4, 2, request=REQUEST.model_copy(update={"objective": Objective.LATENCY}))

    def test_what_the_plan_in_use_was_asked_for(self) -> None:
        assert plan(BEFORE, baseline=self.USED).inputs.request == self.USED.inputs.request

    def test_wishes_win_over_it_one_by_one(self) -> None:
        made = plan(BEFORE, baseline=self.USED, max_stages=1)
        expected = self.USED.inputs.request.model_copy(update={"max_stages": 1})
        assert made.inputs.request == expected

    def test_a_request_replaces_it(self) -> None:
        assert plan(BEFORE, REQUEST, baseline=self.USED).inputs.request == REQUEST

    @pytest.mark.parametrize("least", [-0.01, 1.0, 2.0, float("nan")])
    def test_a_gain_is_a_part(self, least: float) -> None:
        with pytest.raises(InvalidInputError, match="0 to below 1"):
            plan(BEFORE, baseline=self.USED, min_gain=least)

    def test_a_gain_over_nothing(self) -> None:
        with pytest.raises(InvalidInputError, match="needs a baseline"):
            plan(BEFORE, REQUEST, min_gain=0.1)

    def test_a_wish_that_is_none(self) -> None:
        with pytest.raises(InvalidInputError, match="batch_sise: unknown key"):
            plan(BEFORE, baseline=self.USED, batch_sise=3)


@settings(max_examples=60)
@given(st.integers(0, 10_000))
def test_every_such_plan_keeps_every_rule(seed: int) -> None:
    chance = random.Random(seed)
    before = world(**{n: chance.choice([1.0, 2.0, 3.5]) for n in NAMES})
    after = world(**{n: chance.uniform(0.5, 4.0) for n in NAMES})
    counts = chance.choice([(6, 0, 0), (4, 2, 0), (2, 2, 2), (1, 4, 1), (0, 3, 3)])
    objective = chance.choice([Objective.THROUGHPUT, Objective.LATENCY])
    used = cut(before, *counts, request=REQUEST.model_copy(update={"objective": objective}))
    least = chance.choice([0.0, 0.02, 0.3])
    made = plan(after, baseline=used, min_gain=least)
    said = record(made)
    assert [x.message for x in check_plan(made, after)] == []
    assert said.objective_s == pytest.approx(
        rederive(resigned(used), after).objective_s(objective), rel=1e-12
    )
    worth = said.gain is not None and said.gain > 1e-9 and said.gain >= least
    assert worth == (said.verdict == "changed")
    assert (made.spec == used.spec) == (said.verdict in ("same", "kept"))
    if least == 0:
        assert made.search.objective_s <= said.found_s * (1 + 1e-9)


class TestCheck:
    """A record that was tampered with."""

    AFTER = world(a=1.0, b=2.1)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"verdict": "changed"}, "verdict changed"),
            ({"verdict": "unfit"}, "verdict unfit"),
            ({"objective_s": 1.0}, "verdict kept with 1"),
            ({"gain": 0.001}, "gain is 0.001; it is 0.16"),
            ({"min_gain": 0.0}, "at a gain of 0.16"),
            ({"found_s": 1.0}, "below the bound"),
        ],
    )
    def test_is_found(self, changes: dict[str, object], message: str) -> None:
        made = plan(self.AFTER, baseline=TestNearTies.USED, min_gain=0.2)
        told = edit(made, {f"search.baseline.{key}": value for key, value in changes.items()})
        found = [x for x in check_plan(told, self.AFTER) if x.code == "baseline"]
        assert any(message in x.message for x in found), [x.message for x in found]
        assert all(x.severity is Severity.ERROR for x in found)

    def test_an_honest_one_is_not(self) -> None:
        made = plan(self.AFTER, baseline=TestNearTies.USED, min_gain=0.2)
        again = Plan.parse(made.to_text(as_json=False), name="plan.yaml")
        assert check_plan(again, self.AFTER) == ()
