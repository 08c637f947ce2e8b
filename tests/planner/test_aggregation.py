from __future__ import annotations

import pytest

from planner.aggregation import RUNNABLE, STRATEGIES
from planner.check import check_plan
from planner.request import PlanRequest
from profiler.profile import Profile
from tests.planner.test_check import codes, messages
from tests.support.builders import make_graph
from tests.support.plans import Part, edit, make_plan
from tests.support.small_plans import CHAIN, profile_of, two_pipelines, two_stages

OTHERS = [strategy.name for strategy in STRATEGIES if strategy.name not in RUNNABLE]


def test_concat_is_what_a_batch_split_needs_and_all_that_runs() -> None:
    assert RUNNABLE == ("concat",)
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
    assert "output t1 is one value for a whole batch" in messages(findings)


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
