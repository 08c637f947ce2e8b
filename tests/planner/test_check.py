"""One hand edit a rule, and the finding it gives."""

from __future__ import annotations

import pytest

from planner.check import check_plan, require_current
from planner.findings import RULES, Finding, Severity
from planner.planfile import Plan
from planner.request import Forbid, Objective, Pin, PlanRequest, Split
from profiler.errors import InvalidInputError, StalePlanError
from tests.support.builders import GIB, chain_graph, make_cluster, make_graph
from tests.support.plans import DELETE, Part, edit, make_plan, resigned
from tests.support.small_plans import (
    ACROSS_ITEMS,
    CHAIN,
    CLUSTER,
    LEGAL_EDIT,
    REQUEST,
    Edits,
    profile_of,
    three_stages,
    two_pipelines,
    two_stages,
    whole_batch_stage,
)


def codes(findings: tuple[Finding, ...]) -> set[str]:
    return {finding.code for finding in findings if finding.severity is Severity.ERROR}


def messages(findings: tuple[Finding, ...]) -> str:
    return "\n".join(f"{x.severity} {x.code} {x.where}: {x.message}" for x in findings)


@pytest.mark.parametrize("plan", [two_stages(), two_pipelines()])
def test_a_plan_that_keeps_every_rule_has_no_finding(plan: Plan) -> None:
    assert check_plan(plan, CHAIN) == ()


@pytest.mark.parametrize("routing", ["relay", "direct"])
def test_tensors_may_be_passed_on_or_sent_straight(routing: str) -> None:
    plan = three_stages(routing)
    assert check_plan(plan, profile_of(make_graph([(0, 1), (1, 2), (0, 2)], 3))) == ()


STAGE = "spec.pipelines.0.stages"
T1 = {
    "source": "pipeline0.stage0",
    "target": "pipeline0.stage1",
    "tensor": "t1",
    "shape": ["batch", 256],
    "dtype": "float32",
    "num_bytes": 2048,
}

STRUCTURE: list[tuple[str, Edits, str]] = [
    ("inputs", {"inputs.model.num_layers": 5}, "the model has 4"),
    ("inputs", {"inputs.model.dtype": "bfloat16"}, "the model has float32"),
    ("batch-size", {"spec.schedule.microbatch_size": 9}, "from 1 to the batch size, 8"),
    ("batch-size", {"spec.schedule.microbatch_size": 0}, "from 1 to"),
    ("batch-size", {"spec.schedule.microbatch_size": 4}, "the request asks 2"),
    ("batch-size", {"inputs.request.batch_size": 2**50}, "beyond"),
    ("items", {"spec.pipelines.0.items": 7}, "have 7 items; the batch has 8"),
    ("items", {"spec.pipelines.0.items": 0}, "it has 0 items"),
    ("index", {"spec.pipelines": []}, "the list is empty"),
    ("index", {f"{STAGE}.1.index": 2}, "entry 1 has number 2; write 1"),
    ("index", {"spec.ranks.2.rank": 7}, "entry 2 has number 7; write 2"),
    ("index", {"spec.pipelines.0.stages": []}, "the list is empty"),
    ("layers-unknown", {f"{STAGE}.0.layers": ["l0", "l11"]}, "no layer is called 'l11'"),
    ("layers-unknown", {f"{STAGE}.0.layers": []}, "it names no layer"),
    ("layers-missing", {f"{STAGE}.0.layers": ["l0"]}, "it lacks 1 layer (l1)"),
    ("layers-missing", {f"{STAGE}.0.layers": []}, "it lacks 2 layers (l0, l1)"),
    ("layers-doubled", {f"{STAGE}.0.layers": ["l0", "l1", "l2"]}, "1 layer (l2) more than once"),
    ("layers-doubled", {f"{STAGE}.0.layers": ["l0", "l1", "l1"]}, "(stage 0)"),
    (
        "convex",
        {f"{STAGE}.0.layers": ["l0", "l2"], f"{STAGE}.1.layers": ["l1", "l3"]},
        "it holds l0 and l2, but l2 waits for l1, which is in stage 1",
    ),
    ("split", {f"{STAGE}.1.split": "none"}, "split none means one rank; it has 2"),
    ("split", {f"{STAGE}.0.split": "batch"}, "two ranks or more"),
    ("shares", {f"{STAGE}.1.shares": [1, 2]}, "1 + 2 = 3; there are 2 items of a microbatch"),
    ("shares", {f"{STAGE}.1.shares": [2]}, "2 ranks have 1 shares"),
    ("shares", {f"{STAGE}.1.shares": [0, 2]}, "at least one item"),
    ("shares", {f"{STAGE}.1.shares": [-1, 3]}, "at least one item"),
    ("shares", {f"{STAGE}.1.shares": []}, "2 ranks have 0 shares"),
    ("whole-batch", {f"{STAGE}.0.whole_batch": True}, "no layer of it looks across items"),
    ("rank", {f"{STAGE}.0.ranks": [3]}, "rank 3 is not in spec.ranks"),
    ("rank", {f"{STAGE}.1.ranks": [0, 1]}, "rank 0 is already used by pipeline0.stage0"),
    ("rank", {f"{STAGE}.1.ranks": [1, 1]}, "rank 1 is already used"),
    (
        "rank",
        {"spec.ranks.+": {"rank": 3, "device": "h/d", "device_type": "d"}},
        "no stage uses it",
    ),
    ("rank", {"spec.aggregation.root_rank": 1}, "answers gather on rank 0"),
    ("device", {"spec.ranks.1.device": "h/z"}, "there is no device 'h/z'"),
    ("device", {"spec.ranks.1.device_type": "A100"}, "h/b is a b, not a A100"),
    ("device", {"spec.ranks.2.device": "h/b"}, "already the device of rank 1"),
    ("device", {"spec.ranks.0.device": "h/d"}, "inputs and answers are on h/a"),
]

TRANSFERS: list[tuple[str, Edits, str]] = [
    ("transfer-end", {"spec.transfers.1.target": "pipeline0.stage7"}, "'pipeline0.stage7'"),
    ("transfer-end", {"spec.transfers.1.target": "input"}, "there is no 'input'"),
    ("transfer-end", {"spec.transfers.0.target": "output"}, "one end at least must be a stage"),
    ("transfer-tensor", {"spec.transfers.1.tensor": "t9"}, "no tensor 't9'"),
    ("transfer-tensor", {"spec.transfers.1.shape": ["batch", 255]}, "the model says"),
    ("transfer-tensor", {"spec.transfers.1.dtype": "float16"}, "the model says float32"),
    ("transfer-bytes", {"spec.transfers.1.num_bytes": 2047}, "2 items take 2048"),
    ("transfer-missing", {"spec.transfers.0": DELETE}, "it needs x and does not get it"),
    ("transfer-missing", {"spec.transfers.1": DELETE}, "add a transfer from pipeline0.stage0"),
    ("transfer-missing", {"spec.transfers.2": DELETE}, "output needs t3"),
    ("transfer-missing", {"spec.transfers": []}, "it needs x"),
    ("transfer-useless", {"spec.transfers.+": T1}, "it arrives from pipeline0.stage0 already"),
    ("transfer-useless", {"spec.transfers.+": T1 | {"tensor": "t0"}}, "neither reads it"),
    (
        "transfer-useless",
        {"spec.transfers.+": T1 | {"target": "pipeline0.stage0"}},
        "to itself",
    ),
    (
        "transfer-source",
        {"spec.transfers.+": T1 | {"tensor": "t2"}},
        "pipeline0.stage0 does not have it; it is computed in pipeline0.stage1",
    ),
    (
        "transfer-source",
        {"spec.transfers.+": T1 | {"source": "input", "tensor": "t1"}},
        "input does not have it",
    ),
    (
        "transfer-source",
        {"spec.transfers.+": T1 | {"tensor": "x", "shape": ["batch", 8], "num_bytes": 64}},
        "it is a model input: send it from input",
    ),
    (
        "cycle",
        {
            "spec.transfers.+": T1
            | {"source": "pipeline0.stage1", "target": "pipeline0.stage0", "tensor": "t2"}
        },
        "wait for each other's tensors",
    ),
]


@pytest.mark.parametrize(("code", "edits", "message"), STRUCTURE + TRANSFERS)
def test_each_rule_is_checked(code: str, edits: Edits, message: str) -> None:
    findings = check_plan(edit(two_stages(), edits), CHAIN)
    assert code in codes(findings)
    assert message in messages(findings)
    assert "warning edited" in messages(findings)


def test_a_tensor_that_is_passed_on_must_reach_the_last_reader() -> None:
    # l0's output goes 0 -> 1 -> 2; without the second hop it reaches stage 1 for nothing.
    plan = three_stages()
    hop = next(
        i
        for i, x in enumerate(plan.spec.transfers)
        if (x.tensor, x.source) == ("t0", "pipeline0.stage1")
    )
    profile = profile_of(make_graph([(0, 1), (1, 2), (0, 2)], 3))
    assert codes(check_plan(edit(plan, {f"spec.transfers.{hop}": DELETE}), profile)) == {
        "transfer-missing"
    }


def test_answers_come_from_where_they_are_computed() -> None:
    # t0 is read by l1 and is an answer too; stage 1 has it but does not compute it.
    graph = make_graph([(0, 1)], 2).model_copy(update={"outputs": ("t0", "t1")})
    profile = profile_of(graph)
    parts = [Part(layers=[0], devices=["h/a"]), Part(layers=[1], devices=["h/b"])]
    plan = make_plan(profile, parts, request=REQUEST)
    assert check_plan(plan, profile) == ()
    at = next(
        i for i, x in enumerate(plan.spec.transfers) if (x.tensor, x.target) == ("t0", "output")
    )
    moved = edit(plan, {f"spec.transfers.{at}.source": "pipeline0.stage1"})
    assert "answers go to output from where they are" in messages(check_plan(moved, profile))


def test_pipelines_feed_nothing_to_each_other() -> None:
    plan = two_pipelines()
    at = next(i for i, x in enumerate(plan.spec.transfers) if x.source == "pipeline1.stage0")
    moved = edit(plan, {f"spec.transfers.{at}.source": "pipeline0.stage0"})
    assert codes(check_plan(moved, CHAIN)) == {"transfer-end", "transfer-missing"}


def test_stages_that_wait_for_each_other_are_a_cycle() -> None:
    # l0 -> l1 and l2 -> l3 apart: {l0, l3} and {l1, l2} are convex, but each needs the other.
    profile = profile_of(make_graph([(0, 1), (2, 3)], 4))
    plan = make_plan(
        profile,
        [Part(layers=[0, 2], devices=["h/a"]), Part(layers=[1, 3], devices=["h/b"])],
        request=REQUEST,
    )
    swapped = edit(plan, {f"{STAGE}.0.layers": ["l0", "l3"], f"{STAGE}.1.layers": ["l1", "l2"]})
    findings = check_plan(swapped, profile)
    assert codes(findings) == {"cycle"}
    assert "stages 0 -> 1 -> 0 wait for each other" in messages(findings)


class TestWholeBatch:
    """l1 looks across items: its stage takes the whole batch on one rank."""

    def test_a_stage_of_its_own_is_fine(self) -> None:
        assert check_plan(whole_batch_stage(), ACROSS_ITEMS) == ()

    def test_it_may_not_run_by_microbatches(self) -> None:
        edits: Edits = {f"{STAGE}.1.whole_batch": False, f"{STAGE}.1.shares": [2]}
        findings = check_plan(edit(whole_batch_stage(), edits), ACROSS_ITEMS)
        assert codes(findings) == {"whole-batch"}
        assert "l1 looks across the items" in messages(findings)

    def test_its_share_is_the_batch(self) -> None:
        findings = check_plan(edit(whole_batch_stage(), {f"{STAGE}.1.shares": [2]}), ACROSS_ITEMS)
        assert "the shares are 2; there are 8 items of the pipeline" in messages(findings)

    def test_it_has_one_rank(self) -> None:
        edits: Edits = {
            f"{STAGE}.1.split": "batch",
            f"{STAGE}.1.shares": [4, 4],
            f"{STAGE}.1.ranks": [1, 3],
            "spec.ranks.+": {"rank": 3, "device": "h/d", "device_type": "d"},
        }
        assert codes(check_plan(edit(whole_batch_stage(), edits), ACROSS_ITEMS)) == {"split"}

    def test_it_excludes_pipelines_side_by_side(self) -> None:
        parts = [
            [Part(layers=range(3), devices=[device], whole_batch=True)] for device in ("h/a", "h/b")
        ]
        plan = make_plan(ACROSS_ITEMS, *parts, items=[4, 4], request=REQUEST)
        assert codes(check_plan(plan, ACROSS_ITEMS)) == {"whole-batch"}


def test_changing_state_stays_on_one_rank_of_one_stage() -> None:
    graph = chain_graph(4)
    weights = tuple(w.model_copy(update={"state": w.name in ("w2", "w3")}) for w in graph.weights)
    profile = profile_of(graph.model_copy(update={"weights": weights}))
    findings = check_plan(two_stages(profile), profile)
    assert codes(findings) == {"state"}
    assert "its ranks would each have their own w2" in messages(findings)


def test_state_that_two_stages_share_is_refused() -> None:
    graph = make_graph([(0, 1)], 2, tied=[(0, 1)])
    weights = tuple(w.model_copy(update={"state": True}) for w in graph.weights)
    profile = profile_of(graph.model_copy(update={"weights": weights}))
    parts = [Part(layers=[i], devices=[f"h/{name}"]) for i, name in enumerate("ab")]
    findings = check_plan(make_plan(profile, parts, request=REQUEST), profile)
    assert "w0 changes and is also in pipeline0.stage0" in messages(findings)


def test_a_model_captured_for_a_fixed_batch_gets_exactly_that_many() -> None:
    profile = profile_of(chain_graph(4).model_copy(update={"static_batch": 2}))
    findings = check_plan(two_stages(profile), profile)
    assert codes(findings) == {"static-batch"}
    assert "captured for exactly 2 items; the shares are 1, 1" in messages(findings)


class TestRequest:
    """What the request asks is kept."""

    def codes_for(self, **wishes: object) -> set[str]:
        request = REQUEST.model_copy(update=wishes)
        return codes(check_plan(two_stages(request=request), CHAIN))

    def test_pins(self) -> None:
        assert self.codes_for(pins=(Pin(layers="l0", device="h/a"),)) == set()
        assert self.codes_for(pins=(Pin(layers="l0", device="h/b"),)) == {"pin"}
        assert self.codes_for(pins=(Pin(layers="l2", device="h/b"),)) == {"pin"}  # on c too

    def test_forbids(self) -> None:
        assert self.codes_for(forbids=(Forbid(device="h/d"),)) == set()
        assert self.codes_for(forbids=(Forbid(device="h/c"),)) == {"forbid"}
        assert self.codes_for(forbids=(Forbid(device="h/c", layers="l0..1"),)) == set()
        assert self.codes_for(forbids=(Forbid(device="h/c", layers="l1..2"),)) == {"forbid"}

    def test_layers_together(self) -> None:
        assert self.codes_for(keep_together=("l0..1",)) == set()
        assert self.codes_for(keep_together=("l1..2",)) == {"keep-together"}

    def test_splits(self) -> None:
        assert self.codes_for(splits=(Split.LAYERS,)) == {"split"}
        assert self.codes_for(splits=(Split.BATCH,)) == {"split"}

    def test_the_number_of_stages(self) -> None:
        assert self.codes_for(max_stages=2) == set()
        assert self.codes_for(max_stages=1) == {"max-stages"}

    def test_names_that_do_not_exist(self) -> None:
        assert self.codes_for(pins=(Pin(layers="l99", device="h/a"),)) == {"request-layers"}
        assert self.codes_for(max_bytes={"h/z": 1}) == {"request-layers"}

    def test_a_smaller_limit_on_memory(self) -> None:
        assert self.codes_for(max_bytes={"h/b": 100_000}) == set()
        assert self.codes_for(max_bytes={"h/b": 9000}) == {"memory"}

    def test_a_reserve(self) -> None:
        assert self.codes_for(reserve_bytes=GIB) == {"memory"}


def test_memory_names_what_takes_it() -> None:
    # Rank 1: weights 2000, activations 1024 + 2000 = 3024, buffers 2 x (1024 + 1024) = 4096.
    plan = two_stages(request=REQUEST.model_copy(update={"max_bytes": {"h/b": 9000}}))
    (finding,) = check_plan(plan, CHAIN)
    assert finding.where == "rank 1"
    assert finding.message == (
        "it needs 8.91 KiB (weights 1.95 KiB, activations 2.95 KiB, buffers 4.00 KiB), but "
        "h/b has 8.79 KiB: 120 B too much"
    )


def test_more_items_than_were_measured_are_a_warning() -> None:
    plan = make_plan(
        CHAIN,
        [Part(layers=range(4), devices=["h/a"])],
        request=PlanRequest(batch_size=32, microbatch_size=32),
    )
    (finding,) = check_plan(plan, CHAIN)
    assert (finding.code, finding.severity) == ("extrapolated", Severity.WARNING)
    assert "32 items at once; at most 16 were measured" in finding.message


class TestEvidence:
    """Figures that do not follow from the spec, in a plan that nobody edited."""

    @pytest.mark.parametrize(
        ("code", "edits", "message"),
        [
            ("estimate", {"estimate.period_s": 24.9}, "period_s 24.9 -> 24.8096 (-0.4%)"),
            ("estimate", {"estimate.latency_s": 1.0}, "latency_s 1 -> "),
            ("estimate", {"estimate.items_per_s": 0.4}, "items_per_s 0.4 -> "),
            ("estimate", {"estimate.error_fraction": 0.5}, "error_fraction 0.5 -> 0.01"),
            ("estimate", {"estimate.ranks.1.compute_s": 4.001}, "compute_s 4.001 -> 4 (-0.0%)"),
            ("estimate", {"estimate.ranks.1.memory.buffers_bytes": 1}, "buffers_bytes 1 -> 4096"),
            ("estimate", {"estimate.ranks.1": DELETE}, "it lists 2 ranks; the plan has 3"),
            ("estimate", {"estimate.ranks.1.rank": 5}, "it lists 3 ranks"),
            ("estimate", {"estimate.bottleneck": "pipeline0.stage0"}, "-> pipeline0.stage1"),
            ("objective", {"search.objective_s": 24.8096001}, "objective_s 24.8096001 -> 24.8096"),
            ("objective", {"search.objective": "latency"}, "the request asks for throughput"),
            ("bound", {"search.bound_s": 25.0}, "is above the objective"),
            ("bound", {"search.bound_s": 20.0}, "gap is 0.0; objective and bound are"),
            ("bound", {"search.gap": 0.1}, "gap is 0.1; objective and bound are 0 apart"),
            ("status", {"search.bound_s": 12.4048, "search.gap": 1.0}, "optimal with a gap of"),
            (
                "baseline",
                {
                    "search.baseline": {
                        "plan_id": "sha256:0",
                        "verdict": "changed",
                        "objective_s": 30.0,
                        "found_s": 24.0,
                        "gain": 0.2,
                        "summary": "another",
                    },
                },
                "verdict changed with 24.0; this plan has 24.8096",
            ),
            (
                "fallback",
                {"search.fallbacks": [{"devices": ["h/d"], "note": "no other device is left"}]},
                "h/d has no stage to lose",
            ),
            (
                "fallback",
                # 31.012 s instead of 24.8096 s is a quarter more.
                {
                    "search.fallbacks": [
                        {"devices": ["h/b"], "objective_s": 31.012, "slowdown": 0.2}
                    ]
                },
                "slowdown is 0.2; it is 0.25",
            ),
            ("idle", {"search.idle": []}, "h/d have no stage and no reason is given"),
            ("idle", {"search.idle.0.device": "h/a"}, "h/a has a stage"),
            ("idle", {"search.idle.0.device": "h/z"}, "h/z is not in the cluster"),
        ],
    )
    def test_is_an_error(self, code: str, edits: Edits, message: str) -> None:
        findings = check_plan(edit(two_stages(), edits), CHAIN)
        assert code in codes(findings)
        assert message in messages(findings)

    def test_the_latency_objective_is_the_latency(self) -> None:
        request = REQUEST.model_copy(update={"objective": Objective.LATENCY})
        plan = two_stages(request=request)
        assert plan.search.objective_s == plan.estimate.latency_s
        assert check_plan(plan, CHAIN) == ()

    def test_five_digits_in_the_file_are_enough(self) -> None:
        plan = two_stages()
        read = Plan.parse(plan.to_text(as_json=False), name="plan.yaml")
        assert read.estimate.latency_s != plan.estimate.latency_s
        assert check_plan(read, CHAIN) == ()


class TestEdited:
    """A legal edit is no error: what changed is stated, old and new."""

    def test_everything_is_derived_again(self) -> None:
        findings = check_plan(edit(two_stages(), LEGAL_EDIT), CHAIN)
        assert codes(findings) == set()
        text = messages(findings)
        assert "warning edited plan_id" in text
        # a computes 3 layers x 2 s, sends 2 x 0.2024 s half hidden: 6.2024 s; 4 microbatches.
        assert "compute_s 4 -> 6 (+50.0%)" in text
        assert "weights_bytes 2000 -> 3000" in text
        assert "the proof is about the plan before" in text

    def test_the_same_with_a_forged_id_is_an_error(self) -> None:
        findings = check_plan(resigned(edit(two_stages(), LEGAL_EDIT)), CHAIN)
        assert "estimate" in codes(findings)

    def test_an_edit_that_beats_the_bound_is_outside_the_proof(self) -> None:
        # The last stage on b alone; a search that claimed 99 s as its bound is refuted by it.
        edits: Edits = {
            f"{STAGE}.1.split": "none",
            f"{STAGE}.1.ranks": [1],
            f"{STAGE}.1.shares": [2],
            "spec.ranks.2": DELETE,
            "search.objective_s": 99.0,
            "search.bound_s": 99.0,
        }
        assert "below the bound" in messages(check_plan(edit(two_stages(), edits), CHAIN))


class TestStale:
    """The documents are not those that the plan was made from."""

    def test_another_model(self) -> None:
        other = profile_of(chain_graph(4).model_copy(update={"fingerprint": "sha256:other"}))
        with pytest.raises(StalePlanError, match="model: planned with sha256:toy"):
            check_plan(two_stages(), other)

    def test_another_cluster(self) -> None:
        grown = make_cluster({"a": GIB, "b": GIB, "c": GIB, "d": 2 * GIB})
        with pytest.raises(StalePlanError, match="cluster: planned with"):
            check_plan(two_stages(), CHAIN, cluster=grown)

    def test_another_measurement(self) -> None:
        again = CHAIN.model_copy(update={"batch_sizes": (1, 2)})
        with pytest.raises(StalePlanError, match="profile: planned with"):
            check_plan(two_stages(), again)

    def test_the_documents_it_was_made_from_are_fine(self) -> None:
        require_current(two_stages(), CHAIN, cluster=CLUSTER)

    def test_a_cluster_of_its_own(self) -> None:
        wider = make_cluster(
            {"a": GIB, "b": GIB, "c": GIB, "d": GIB}, latency_s=0.2, bytes_per_s=1e4
        )
        parts = [Part(layers=[0, 1], devices=["h/a"]), Part(layers=[2, 3], devices=["h/b"])]
        plan = make_plan(CHAIN, parts, request=REQUEST, cluster=wider)
        assert check_plan(plan, CHAIN, cluster=wider) == ()


def test_a_device_that_was_never_timed_is_refused() -> None:
    parts = [Part(layers=[0, 1], devices=["h/a"]), Part(layers=[2, 3], devices=["h/e"])]
    wider = make_cluster({"a": GIB, "b": GIB, "c": GIB, "d": GIB, "e": GIB})
    with pytest.raises(InvalidInputError, match="no timings of h/e"):
        make_plan(CHAIN, parts, request=REQUEST, cluster=wider)


def test_every_rule_has_a_test_here() -> None:
    tested = {code for code, _, _ in STRUCTURE + TRANSFERS}
    tested |= {"pin", "forbid", "keep-together", "max-stages", "request-layers", "memory"}
    tested |= {"estimate", "objective", "bound", "status", "certificate", "idle", "edited"}
    tested |= {
        "extrapolated",
        "static-batch",
        "state",
        "aggregation",
        "answer",
        "baseline",
        "fallback",
        "price",
    }
    tested |= {"slices"}  # test_check_slices
    tested |= {"max-latency", "min-rate", "max-devices", "limits", "devices"}  # test_objectives
    tested |= {"hypothetical"}  # test_what_if
    assert tested == set(RULES)
