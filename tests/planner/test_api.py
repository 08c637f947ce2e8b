from __future__ import annotations

import subprocess
import sys

import pytest

from planner import Plan, PlanRequest, plan
from planner.check import check_plan
from planner.request import Forbid, Objective, Split
from profiler.cluster import Link
from profiler.errors import ApportionError, InfeasiblePlanError, InvalidInputError
from profiler.graph import ModelGraph
from profiler.profile import Profile
from tests.support.builders import chain_graph, make_cluster, make_graph, make_profile

GIB = 2**30


def world(
    seconds: dict[str, list[float]], *, types: dict[str, str] | None = None, **options: float
) -> Profile:
    graph = chain_graph(len(next(iter(seconds.values()))), floats_per_item=25)
    cluster = make_cluster(dict.fromkeys(seconds, GIB), types=types, **options)
    return make_profile(graph, cluster, seconds=seconds, fixed_fraction=0.2)


UNEQUAL = world({"a": [0.01] * 6, "b": [0.02] * 6, "c": [0.02] * 6}, types={"b": "s", "c": "s"})


def codes(found: Plan, profile: Profile) -> list[str]:
    return [f.code for f in check_plan(found, profile)]


@pytest.mark.parametrize("objective", [Objective.THROUGHPUT, Objective.LATENCY])
@pytest.mark.parametrize("splits", [("layers",), ("batch",), ("layers", "batch")])
def test_a_plan_keeps_every_rule_and_is_proved(objective: Objective, splits: tuple[str]) -> None:
    found = plan(UNEQUAL, objective=objective, batch_size=8, splits=splits)
    assert codes(found, UNEQUAL) == []
    assert found.search.status == "optimal"
    assert found.search.gap <= 1e-9
    assert found.plan_id == found.expected_id()


def test_the_same_question_gets_the_same_bytes() -> None:
    texts = {plan(UNEQUAL, batch_size=8).to_text(as_json=True) for _ in range(3)}
    assert len(texts) == 1


def test_a_request_and_its_fields_mean_the_same() -> None:
    request = PlanRequest(batch_size=8, objective=Objective.LATENCY)
    assert plan(UNEQUAL, request) == plan(UNEQUAL, batch_size=8, objective="latency")
    with pytest.raises(InvalidInputError, match="not both"):
        plan(UNEQUAL, request, batch_size=8)
    with pytest.raises(InvalidInputError, match="batch_sise: unknown key"):
        plan(UNEQUAL, batch_sise=8)


def test_a_written_plan_reads_back() -> None:
    found = plan(UNEQUAL, batch_size=8)
    again = Plan.parse(found.to_text(as_json=False), name="plan.yaml")
    assert again.spec == found.spec
    assert again.expected_id() == found.plan_id
    assert codes(again, UNEQUAL) == []


def test_the_microbatch_is_chosen_or_as_asked() -> None:
    found = plan(UNEQUAL, batch_size=16)
    assert found.spec.schedule.microbatch_size in (1, 2, 3, 4, 6, 8, 16)
    # Measured: 1, 2, 4, 8, 16. Six items make three microbatches, three make six.
    assert "microbatches of 1, 2, 3, 4, 6, 8 or 16" in found.search.space
    asked = plan(UNEQUAL, batch_size=16, microbatch_size=4)
    assert asked.spec.schedule.microbatch_size == 4
    assert asked.search.objective_s >= found.search.objective_s * (1 - 1e-9)


def test_every_rule_and_restricted_split_is_listed_with_its_price() -> None:
    found = plan(UNEQUAL, batch_size=8)
    names = {a.plan.split(" (")[0] for a in found.search.alternatives}
    assert names >= {
        "best single device", "even layer counts", "layer counts by memory",
        "layer counts by speed",
    }  # fmt: skip
    for alternative in found.search.alternatives:
        assert alternative.why_not
        if alternative.objective_s is not None:
            assert alternative.objective_s >= found.search.objective_s * (1 - 1e-9)


def test_an_idle_device_has_a_reason_with_figures() -> None:
    profile = world({"a": [0.01] * 3, "b": [5.0] * 3, "c": [0.01] * 3})
    found = plan(profile, batch_size=4, forbids=(Forbid(device="h/c"),))
    reasons = {entry.device: entry.reason for entry in found.search.idle}
    assert set(reasons) == {"h/b", "h/c"}
    assert "instead of" in reasons["h/b"]
    assert "forbids" in reasons["h/c"]


def test_a_model_that_branches_is_planned_too() -> None:
    graph = make_graph([(0, 1), (0, 2), (1, 3), (2, 3)], 4, floats_per_item=25)
    profile = make_profile(
        graph, make_cluster({"a": GIB, "b": GIB}), seconds={d: [0.01] * 4 for d in "ab"}
    )
    found = plan(profile, batch_size=2)
    assert found.search.solver == "cp_sat, pipelines"
    assert found.search.status == "optimal"
    assert codes(found, profile) == []


def test_a_static_model_is_planned_for_its_batch_only() -> None:
    model = UNEQUAL.model.model_copy(update={"static_batch": 4})
    profile = UNEQUAL.model_copy(update={"model": model})
    found = plan(profile, batch_size=4)
    assert found.spec.schedule.microbatch_size == 4
    assert all(len(s.ranks) == 1 for s in found.spec.pipelines[0].stages)
    with pytest.raises(InvalidInputError, match="captured for exactly 4"):
        plan(profile, batch_size=8)


def test_a_cluster_given_apart_changes_links_memory_and_devices() -> None:
    smaller = make_cluster({"a": GIB, "c": GIB}, types={"c": "s"}, latency_s=0.5)
    found = plan(UNEQUAL, batch_size=8, cluster=smaller, cluster_ref="other.yaml")
    assert {r.device for r in found.spec.ranks} <= {"h/a", "h/c"}
    assert found.inputs.cluster.ref == "other.yaml"
    assert found.inputs.cluster.fingerprint == smaller.content_digest()
    assert [f.code for f in check_plan(found, UNEQUAL, cluster=smaller)] == []


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_a_time_that_is_no_number_is_refused(seconds: float) -> None:
    fresh = world({"a": [0.01] * 2, "b": [0.02] * 2})
    first, *rest = fresh.timings
    twin, rows = next(iter(first.layers.items()))
    # Built past validation, as a caller with his own code could.
    broken = rows[0].model_construct(**{**rows[0].model_dump(), "median_s": seconds})
    layers = {**first.layers, twin: (broken, *rows[1:])}
    profile = fresh.model_copy(
        update={"timings": (first.model_copy(update={"layers": layers}), *rest)}
    )
    with pytest.raises(InvalidInputError, match="not a number of seconds"):
        plan(profile, batch_size=4)


def test_an_unknown_solver_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        InvalidInputError, match="there are chain, cp_sat, greedy, pipelines, templates, exhaustive"
    ):
        plan(UNEQUAL, batch_size=4, solver="gurobi")
    with pytest.raises(InvalidInputError, match="exhaustive: more than"):
        plan(world({"a": [1.0] * 9}), batch_size=1, solver="exhaustive")


@pytest.mark.parametrize("solver", ["chain", "cp_sat", "exhaustive"])
def test_exact_solvers_agree(solver: str) -> None:
    wishes = {"batch_size": 4, "microbatch_size": 2, "splits": (Split.LAYERS,)}
    found = plan(UNEQUAL, solver=solver, **wishes)
    assert found.search.solver == solver
    assert found.search.status == "optimal"
    assert found.search.objective_s == pytest.approx(
        plan(UNEQUAL, **wishes).search.objective_s, rel=1e-9
    )


def test_greedy_says_that_it_proves_nothing() -> None:
    found = plan(UNEQUAL, batch_size=4, solver="greedy")
    assert found.search.bound_s <= found.search.objective_s
    assert codes(found, UNEQUAL) == []
    assert found.search.status == "feasible"
    assert [w.code for w in found.warnings][:1] == ["not-proved"]


def test_no_time_and_no_plan_is_not_called_infeasible() -> None:
    graph = make_graph([(a, b) for b in range(1, 30) for a in range(max(0, b - 3), b)], 30)
    profile = make_profile(
        graph,
        make_cluster(dict.fromkeys("abcd", 19_000)),
        seconds={d: [0.01] * 30 for d in "abcd"},
    )
    with pytest.raises(ApportionError) as caught:
        plan(profile, batch_size=1, limits={"time_s": 0.01}, reserve_bytes=0)
    # A quick machine may prove in that time what is the case: nothing fits.
    proved = isinstance(caught.value, InfeasiblePlanError)
    said = "infeasibility is proved" if proved else "it is not proved that there is none"
    assert said in str(caught.value)


def test_warnings_tell_what_the_figures_rest_on() -> None:
    found = plan(UNEQUAL, batch_size=64, microbatch_size=64)
    assert "extrapolated" in [w.code for w in found.warnings]
    conditions = UNEQUAL.conditions.model_copy(update={"unstable": ("l0 on h/a",)})
    shaky = UNEQUAL.model_copy(update={"conditions": conditions})
    assert "unstable-profile" in [w.code for w in plan(shaky, batch_size=4).warnings]
    uneven = plan(UNEQUAL, batch_size=7, microbatch_size=2)
    assert "uneven-microbatch" in [w.code for w in uneven.warnings]


def test_a_close_runner_up_is_mentioned() -> None:
    # Both devices take 1 s a layer but for 0.5 %: the error of the profile is 1 %.
    profile = world({"a": [1.0], "b": [1.005]}, latency_s=0.0, bytes_per_s=1e15)
    found = plan(profile, batch_size=2, splits=("layers",))
    (close,) = (w.message for w in found.warnings if w.code == "close-call")
    assert "the runner-up (with h/b) is 0.5% slower, within the profile's error of 1.0%" in close
    equal = world({"a": [1.0] * 100, "b": [1.0] * 100}, bytes_per_s=1e15)
    uneven = plan(equal, batch_size=2, splits=("layers",), max_stages=2)
    assert uneven.search.status == "optimal"


def test_links_that_share_a_wire_are_counted_together() -> None:
    cluster = UNEQUAL.cluster
    pairs = [(a, b) for a in cluster.device for b in cluster.device if a != b]
    air = tuple(
        Link(source=a, target=b, latency_s=1e-4, bytes_per_s=1e4, shares="air") for a, b in pairs
    )
    shared = cluster.model_copy(update={"links": air})
    found = plan(UNEQUAL, batch_size=8, cluster=shared)
    assert [f.code for f in check_plan(found, UNEQUAL, cluster=shared)] == []


def test_planning_loads_neither_torch_nor_pandas() -> None:
    lines = (
        "import sys, planner.api, planner.infeasible, planner.solvers.chain",
        "print(sorted(m for m in ('torch', 'pandas', 'ortools') if m in sys.modules))",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_multiple_outputs_and_tied_weights_pass_the_check() -> None:
    graph = make_graph([(0, 1), (1, 2), (2, 3)], 4, floats_per_item=25, tied=[(0, 3)])
    data = {**graph.model_dump(), "outputs": ("t1", "t3")}
    graph = ModelGraph.model_validate(data, strict=False)
    profile = make_profile(
        graph,
        make_cluster({"a": GIB, "b": GIB}, occupancy=0.5, latency_s=1e-4, bytes_per_s=1e6),
        seconds={d: [0.01, 0.02, 0.01, 0.02] for d in "ab"},
    )
    for objective in (Objective.THROUGHPUT, Objective.LATENCY):
        assert codes(plan(profile, batch_size=4, objective=objective), profile) == []
