from __future__ import annotations

import pytest

from planner.aggregation import choose
from planner.check import check_plan
from planner.findings import EVIDENCE
from planner.planfile import Combining, Plan
from planner.request import PlanRequest
from planner.strategies import STRATEGIES, Kind, Parts, find_strategy, legal_choices
from profiler.errors import InvalidInputError
from profiler.profile import Profile
from tests.planner.test_check import codes, messages
from tests.support.builders import make_graph
from tests.support.plans import Part, edit, make_plan
from tests.support.small_plans import CHAIN, profile_of, two_pipelines, two_stages

OTHERS = [strategy.name for strategy in STRATEGIES if strategy.name != "concat"]


def test_concat_is_what_a_batch_split_needs() -> None:
    assert check_plan(two_pipelines(), CHAIN) == ()


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_strategy_over_items_is_refused_with_the_legal_one(name: str) -> None:
    for plan in (two_pipelines(), two_stages()):
        findings = check_plan(edit(plan, {"spec.aggregation.strategy": name}), CHAIN)
        assert codes(findings) == {"aggregation"}
        text = messages(findings)
        assert "the plan parts the items" in text
        assert "Legal here: concat, along the batch dim of each output" in text


def test_the_message_says_how_the_items_are_parted() -> None:
    findings = check_plan(edit(two_stages(), {"spec.aggregation.strategy": "max"}), CHAIN)
    text = messages(findings)
    assert "pipeline0.stage1 is split over 2 ranks (1 + 1)" in text
    assert "microbatches of 2 follow each other" in text


def test_one_answer_in_one_piece_has_nothing_to_sum() -> None:
    request = PlanRequest(batch_size=8)
    plan = make_plan(CHAIN, [Part(layers=range(4), devices=["h/a"])], request=request)
    findings = check_plan(edit(plan, {"spec.aggregation.strategy": "sum"}), CHAIN)
    assert "makes one answer in one piece; sum is for a contraction split" in messages(findings)


def test_an_unknown_strategy_lists_the_known_ones() -> None:
    findings = check_plan(edit(two_stages(), {"spec.aggregation.strategy": "average"}), CHAIN)
    assert "no aggregation 'average'; there are concat, sum, mean" in messages(findings)


def test_the_textbook_mistake_is_refused_with_the_reason() -> None:
    """Half the items through the first half of the network, half through the second, added."""
    whole = make_plan(
        CHAIN,
        [Part(layers=range(4), devices=["h/a"])],
        [Part(layers=range(4), devices=["h/b"])],
        items=[4, 4],
        request=PlanRequest(batch_size=8, microbatch_size=2),
    )
    mistaken = edit(
        whole,
        {
            "spec.pipelines.0.stages.0.layers": ["l0", "l1"],
            "spec.pipelines.1.stages.0.layers": ["l2", "l3"],
            "spec.aggregation.strategy": "sum",
        },
    )
    findings = check_plan(mistaken, CHAIN)
    assert codes(findings) == {"aggregation", "layers-missing"}
    (finding,) = [x for x in findings if x.code == "aggregation"]
    assert finding.message == (
        "sum of the outputs of parts of a network is not the network's output: pipeline 0 lacks "
        "2 layers (l2, l3); pipeline 1 lacks 2 layers (l0, l1). A network is a composition: "
        "f2(f1(X)) is not f1(X_a) + f2(X_b), whatever the items X_a and X_b. sum is legal only "
        "for a contraction split, where every part computes the same layer on its slice of the "
        "summed axis: f(X, W) = sum_i f_i(X_i, W_i). Legal here: one pipeline whose stages run "
        "the parts in sequence, each on all items; or pipelines that each hold every layer; both "
        "with aggregation concat, over items"
    )


def mean_loss(*, whole_batch: bool) -> Profile:
    """A chain whose answer is one value for the whole batch."""
    graph = make_graph([(0, 1)], 2, whole_batch=[1] if whole_batch else [])
    tensors = tuple(
        t.model_copy(update={"shape": (), "batch_dim": None, "per_batch": True})
        if t.name == "t1"
        else t
        for t in graph.tensors
    )
    return profile_of(graph.model_copy(update={"tensors": tensors}))


def test_an_answer_without_batch_dim_cannot_be_joined_from_parts() -> None:
    profile = mean_loss(whole_batch=False)
    plan = make_plan(
        profile,
        [Part(layers=[0, 1], devices=["h/a"])],
        request=PlanRequest(batch_size=8, microbatch_size=2),
    )
    findings = check_plan(plan, profile)
    assert codes(findings) == {"aggregation"}
    text = messages(findings)
    assert "concat of output t1: the plan parts the items: microbatches of 2" in text
    assert "it is one value for a whole batch" in text
    assert "Legal here: none; compute it in a whole_batch stage of a single pipeline" in text


def test_an_answer_without_batch_dim_is_fine_from_a_whole_batch() -> None:
    profile = mean_loss(whole_batch=True)
    plan = make_plan(
        profile,
        [
            Part(layers=[0], devices=["h/a"]),
            Part(layers=[1], devices=["h/b"], whole_batch=True),
        ],
        request=PlanRequest(batch_size=8, microbatch_size=2),
    )
    assert check_plan(plan, profile) == ()


# --- an output that is a reduction over items -----------------------------------------------------


def loss(reduction: str | None) -> Profile:
    """A chain whose answer is the mean (or so) over items of something."""
    graph = make_graph([(0, 1)], 2)
    tensors = tuple(
        t.model_copy(
            update={"shape": (), "batch_dim": None, "per_batch": True, "reduction": reduction}
        )
        if t.name == "t1"
        else t
        for t in graph.tensors
    )
    return profile_of(graph.replaced(tensors=tensors))


def split_loss(reduction: str | None, *shares: int, batch: int = 8) -> tuple[Plan, Profile]:
    profile = loss(reduction)
    parts = [Part(layers=[0, 1], devices=["h/a", "h/b"], shares=shares)]
    request = PlanRequest(batch_size=batch, microbatch_size=sum(shares))
    return make_plan(profile, parts, request=request), profile


def over_items(strategy: str, **more: object) -> dict[str, object]:
    return {"spec.aggregation.outputs": [{"tensor": "t1", "strategy": strategy, **more}]}


@pytest.mark.parametrize(
    ("reduction", "strategy"), [("mean", "weighted_mean"), ("sum", "sum"), ("max", "max")]
)
def test_a_reduction_over_items_takes_the_strategy_of_that_reduction(
    reduction: str, strategy: str
) -> None:
    plan, profile = split_loss(reduction, 3, 1)
    assert [x.strategy for x in plan.spec.aggregation.outputs or ()] == [strategy]
    assert check_plan(plan, profile) == ()
    for other in {"weighted_mean", "sum", "max", "vote", "concat"} - {strategy}:
        findings = check_plan(edit(plan, over_items(other)), profile)
        assert codes(findings) == {"aggregation"}, other
        assert f"Legal here: {strategy}" in messages(findings)


def test_a_plain_mean_of_means_is_refused_over_unequal_shares() -> None:
    plan, profile = split_loss("mean", 2, 2)
    assert codes(check_plan(edit(plan, over_items("mean")), profile)) <= EVIDENCE
    plan, profile = split_loss("mean", 3, 1)
    text = messages(check_plan(edit(plan, over_items("mean")), profile))
    assert "means over unequal shares (3 + 1 items)" in text
    assert "use weighted_mean" in text


def test_the_short_last_microbatch_is_an_unequal_share() -> None:
    plan, profile = split_loss("mean", 2, 2, batch=10)  # pieces of 2, 2, 2, 2, 1, 1
    assert "unequal shares" in messages(check_plan(edit(plan, over_items("mean")), profile))


def test_weights_over_items_are_the_items() -> None:
    plan, profile = split_loss("mean", 3, 1)
    findings = check_plan(edit(plan, over_items("weighted_mean", weights=[0.5, 0.5])), profile)
    assert "the weights are the items of each part" in messages(findings)


def test_a_reduction_that_nobody_measured_is_refused() -> None:
    plan, _ = split_loss("mean", 3, 1)
    unknown = loss(None)
    text = messages(check_plan(make_stale(plan, unknown), unknown))
    assert "was not found when the model was profiled" in text


def test_whoever_edits_outputs_must_name_outputs_once() -> None:
    plan, profile = split_loss("mean", 3, 1)
    strange = edit(plan, {"spec.aggregation.outputs.0.tensor": "t0"})
    assert "aggregation.outputs names 't0'; outputs are t1" in messages(
        check_plan(strange, profile)
    )


def make_stale(plan: Plan, profile: Profile) -> Plan:
    """The plan with the fingerprint of another profile."""
    return edit(plan, {"inputs.profile.fingerprint": profile.content_digest()})


# --- parts that strategies judge -----------------------------------------------------------------


def parts(kind: Kind, *, dtype: str = "float32", dim: int | None = None) -> Parts:
    members = ("member0", "member1", "member2") if kind is Kind.MEMBERS else ()
    return Parts(
        output="y", kind=kind, dtype=dtype, shape=("batch", 4), batch_dim=0, dim=dim,
        members=members,
    )  # fmt: skip


def refused(parts: Parts, strategy: str, **parameters: object) -> str:
    wanted = Combining.model_validate({"strategy": strategy, **parameters})
    return find_strategy(strategy).refuses(parts, wanted) or ""


def test_a_contraction_needs_sum_and_columns_concat_on_their_dim() -> None:
    assert legal_choices(parts(Kind.CONTRACTION)) == ["sum"]
    assert legal_choices(parts(Kind.COLUMNS, dim=1)) == ["concat"]
    assert "slices along dim 1, not 0" in refused(parts(Kind.COLUMNS, dim=1), "concat", dim=0)


def test_members_may_be_put_together_in_every_way_that_their_dtype_allows() -> None:
    everything = [strategy.name for strategy in STRATEGIES]
    floats = legal_choices(parts(Kind.MEMBERS))
    assert floats == [name for name in everything if name != "vote"]
    classes = legal_choices(parts(Kind.MEMBERS, dtype="int64"))
    assert classes == ["concat", "sum", "max", "vote", "gather", "stack"]


@pytest.mark.parametrize(
    ("strategy", "dtype", "parameters", "why"),
    [
        ("vote", "float32", {}, "return classes, scores.argmax(-1)"),
        ("mean", "int64", {}, "a mean of such numbers is none"),
        ("sum", "bool", {}, "bool answers cannot be added"),
        ("max", "complex64", {}, "numbers have no largest"),
        ("mean", "float32", {"dim": 1}, "mean takes no dim"),
        ("weighted_mean", "float32", {}, "the 3 members need a weight each"),
        ("weighted_mean", "float32", {"weights": (1.0, 2.0)}, "2 weights for 3 members"),
        ("weighted_mean", "float32", {"weights": (1.0, -2.0, 1.0)}, "none may be below zero"),
        ("weighted_mean", "float32", {"weights": (0.0, 0.0, 0.0)}, "nor all of them zero"),
        ("concat", "float32", {}, "give dim"),
        ("concat", "float32", {"dim": 0}, "dim 0 is the batch dim"),
        ("concat", "float32", {"dim": 2}, "has shape [batch, 4] and no dim 2"),
        ("stack", "float32", {"dim": 3}, "no dim 3: dims count from 0 to 2"),
    ],
)  # fmt: skip
def test_members_and_parameters_that_do_not_fit(
    strategy: str, dtype: str, parameters: dict[str, object], why: str
) -> None:
    assert why in refused(parts(Kind.MEMBERS, dtype=dtype), strategy, **parameters)


def test_the_planner_refuses_an_illegal_wish_before_it_searches() -> None:
    with pytest.raises(InvalidInputError, match="mixes the answers of different items") as caught:
        choose(CHAIN.model, PlanRequest(batch_size=8, aggregation="sum"))
    assert "Legal here: concat" in str(caught.value)
    with pytest.raises(InvalidInputError, match=r"no aggregation 'maen'.*did you mean mean"):
        choose(CHAIN.model, PlanRequest(batch_size=8, aggregation="maen"))
