"""Who gets the answer: what it costs, and what is legal."""

from __future__ import annotations

import random

import pytest

from planner.api import plan
from planner.check import check_plan
from planner.planfile import OUTPUT, Plan
from planner.request import Destination, Objective, PlanRequest
from profiler.errors import InvalidInputError
from profiler.graph import Members, ModelGraph
from profiler.profile import Profile
from tests.planner.test_check import codes, messages
from tests.properties.test_check_agrees import random_profile
from tests.support.builders import make_graph
from tests.support.plans import Part, edit, make_plan
from tests.support.small_plans import CHAIN, profile_of


def request(destination: str, **more: object) -> PlanRequest:
    wishes = {"batch_size": 8, "microbatch_size": 2, "destination": destination, **more}
    return PlanRequest.model_validate(wishes, strict=False)


def stages(destination: str) -> Plan:
    """l0, l1 on a, l2, l3 on b; t3 is the answer, 8 KiB a batch over 0.1 s and 10 kB/s."""
    parts = [Part(layers=[0, 1], devices=["h/a"]), Part(layers=[2, 3], devices=["h/b"])]
    made = make_plan(CHAIN, parts, request=request(destination))
    return made


def test_to_all_costs_one_message_a_batch_to_every_other_rank() -> None:
    root, everywhere = stages("root"), stages("all")
    answer_s = 0.1 + 8 * 1024 / 1e4
    more = everywhere.estimate.latency_s - root.estimate.latency_s
    assert more == pytest.approx(answer_s + 3 * 0.5 * answer_s / 4)  # and busier between batches
    receiving = [x.estimate.ranks[1].receive_s for x in (root, everywhere)]
    assert receiving[1] - receiving[0] == pytest.approx(0.5 * answer_s / 4)
    held = [x.estimate.ranks[1].memory.buffers_bytes for x in (root, everywhere)]
    assert held[1] - held[0] == 8 * 1024
    assert check_plan(everywhere, CHAIN) == ()


def test_scattered_sends_no_answer_anywhere() -> None:
    made = plan(CHAIN, request("scattered"))
    assert OUTPUT not in {x.target for x in made.spec.transfers}
    assert check_plan(made, CHAIN) == ()
    by_hand = [stages(destination).estimate for destination in ("scattered", "root")]
    assert by_hand[0].latency_s < by_hand[1].latency_s
    wrong = edit(made, {"spec.aggregation.destination": "root"})
    assert codes(check_plan(wrong, CHAIN)) >= {"transfer-missing", "answer"}


def ensemble(strategy: str = "mean") -> Profile:
    graph: ModelGraph = make_graph([(0, 1), (2, 3)], 4)
    members = Members(
        members=("member0", "member1"),
        refs=("A", "B"),
        answers=(("t1", "t3"),),
        strategy=strategy,
    )
    return profile_of(graph.replaced(ensemble=members))


def test_members_must_meet_so_their_answer_cannot_stay_scattered() -> None:
    with pytest.raises(InvalidInputError, match="mean of the 2 members cannot be formed"):
        plan(ensemble(), request("scattered"))


def test_a_plan_for_an_ensemble_names_its_members_and_is_checked() -> None:
    profile = ensemble()
    made = plan(profile, request("root"))
    wanted = made.spec.aggregation
    assert (wanted.strategy, wanted.members) == ("mean", ("member0", "member1"))
    assert check_plan(made, profile) == ()
    assert plan(profile, request("root", aggregation="max")).spec.aggregation.strategy == "max"
    for changes, why in (
        ({"spec.aggregation.strategy": "vote"}, "Legal here: concat, sum, mean, weighted_mean"),
        ({"spec.aggregation.members": ["member0"]}, "the plan's aggregation names member0"),
        ({"spec.aggregation.weights": [1.0, 1.0]}, "mean takes no weights"),
    ):
        assert why in messages(check_plan(edit(made, changes), profile)), why
    plain = plan(CHAIN, request("root"))
    assert "is no ensemble" in messages(
        check_plan(edit(plain, {"spec.aggregation.members": ["a", "b"]}), CHAIN)
    )


def test_unlike_members_can_only_be_listed() -> None:
    profile = ensemble("gather")
    together = profile.model.ensemble
    assert together is not None
    unlike = profile.model.replaced(ensemble=together.replaced(answers=()))
    profile = profile.replaced(model=unlike)
    assert plan(profile, request("root")).spec.aggregation.strategy == "gather"
    with pytest.raises(InvalidInputError, match="Legal here: gather"):
        plan(profile, request("root", aggregation="mean"))


@pytest.mark.parametrize("objective", [Objective.THROUGHPUT, Objective.LATENCY])
def test_what_is_proved_holds_with_the_answer_sent_to_all(objective: Objective) -> None:
    chance = random.Random(3)
    compared = 0
    while compared < 8:
        profile = random_profile(chance)
        if len(profile.model.layers) > 5 or len(profile.cluster.device) > 3:
            continue
        asked = request(Destination.ALL, batch_size=4, objective=objective)
        try:
            best = plan(profile, asked.replaced(solver="exhaustive")).search.objective_s
        except InvalidInputError:
            continue
        except Exception as error:
            if type(error).__name__ == "InfeasiblePlanError":
                continue
            raise
        found = plan(profile, asked).search
        assert found.bound_s <= best * (1 + 1e-9)
        compared += 1
