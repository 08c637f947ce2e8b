from __future__ import annotations

from planner.cost import CostModel
from planner.problem import PlanningProblem
from planner.request import Pin, PlanRequest, Split
from planner.rules import RuleOutcome, apply_rules, line
from tests.support.builders import chain_graph, make_cluster, make_profile


def outcomes(
    memory: dict[str, int], seconds: dict[str, float], **wishes: object
) -> dict[str, RuleOutcome]:
    graph = chain_graph(6, weight_bytes=1000)
    profile = make_profile(
        graph, make_cluster(memory), seconds={d: [s] * 6 for d, s in seconds.items()}
    )
    request = PlanRequest.model_validate({"batch_size": 2, "reserve_bytes": 0, **wishes})
    problem = PlanningProblem.build(profile, request, microbatch=1)
    found = apply_rules(problem, CostModel(problem))
    return {outcome.name.split(" (")[0]: outcome for outcome in found}


def counts(outcome: RuleOutcome) -> list[int]:
    assert outcome.assignment is not None
    return [len(stage.layers) for stage in outcome.assignment.stages]


def test_each_rule_cuts_by_what_it_looks_at() -> None:
    # 6 layers; memory 2:1, speed 1:2.
    found = outcomes({"a": 2 * 10**6, "b": 10**6}, {"a": 2.0, "b": 1.0})
    assert counts(found["even layer counts"]) == [3, 3]
    assert counts(found["layer counts by memory"]) == [4, 2]
    assert counts(found["layer counts by speed"]) == [2, 4]
    assert found["best single device"].assignment.devices == ("h/b",)  # type: ignore[union-attr]


def test_a_rule_that_does_not_fit_says_what_lacks() -> None:
    found = outcomes({"a": 40_000, "b": 20_000}, {"a": 1.0, "b": 1.0}, max_bytes={"h/a": 6000})
    assert found["best single device"].assignment is not None
    tight = outcomes({"a": 9000, "b": 9000}, {"a": 1.0, "b": 1.0})
    assert "needs" in tight["best single device"].why_not
    assert "has 8.79 KiB" in tight["best single device"].why_not


def test_a_rule_that_breaks_the_request_says_so() -> None:
    found = outcomes(
        {"a": 10**6, "b": 10**6}, {"a": 1.0, "b": 1.0}, pins=(Pin(layers="l0", device="h/b"),)
    )
    assert found["even layer counts"].why_not == "l0 may not run on h/a"
    alone = outcomes({"a": 10**6, "b": 10**6}, {"a": 1.0, "b": 1.0}, splits=(Split.BATCH,))
    assert "no split between layers" in alone["even layer counts"].why_not


def test_a_line_marks_the_stage_that_waits_for_the_batch() -> None:
    graph = chain_graph(3, whole_batch=(1,))  # type: ignore[arg-type]
    profile = make_profile(
        graph, make_cluster({"a": 10**6, "b": 10**6}), seconds={d: [1.0] * 3 for d in "ab"}
    )
    problem = PlanningProblem.build(profile, PlanRequest(batch_size=4), microbatch=2)
    stages = line(problem, ["h/a", "h/b"], [1, 2])
    assert [(s.whole_batch, s.shares) for s in stages] == [(False, (2,)), (True, (4,))]
