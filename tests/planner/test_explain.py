from __future__ import annotations

import pytest

from planner.explain import explain, find_layers
from planner.planfile import Plan
from profiler.errors import InvalidInputError
from tests.support.plans import edit
from tests.support.small_plans import LEGAL_EDIT, two_pipelines, two_stages, whole_batch_stage
from tests.support.stories import everyday_plan, run_report


def test_the_file_alone_is_enough() -> None:
    plan = everyday_plan()
    read = Plan.parse(plan.to_text(as_json=False), name="plan.yaml")
    report = explain(read, name="plan.yaml")
    assert report.result.num_microbatches == 4
    assert report.result.bottleneck_ranks == (0,)
    assert [x.worse_fraction for x in report.alternatives] == [
        pytest.approx(0.31, abs=1e-4),
        pytest.approx(0.041, abs=1e-4),
        None,
    ]
    assert [rank.stage for rank in report.ranks] == [
        "pipeline0.stage0",
        "pipeline0.stage1",
        "pipeline0.stage1",
    ]
    assert report.ranks[0].used_bytes == sum(
        size for name, size in report.ranks[0].memory.items() if name != "capacity_bytes"
    )


def test_messages_are_counted_for_a_batch() -> None:
    # Pipeline 0: 6 items in microbatches of 2, three times; pipeline 1: 2 items, once.
    first, second = explain(two_pipelines(), name="plan.yaml").pipelines
    assert [x.times for x in first.stages[0].sends] == [3]
    assert [(x.target, x.times) for x in second.stages[0].sends] == [("pipeline1.stage1", 1)]


def test_whole_batches_move_once_and_pieces_each() -> None:
    (pipeline,) = explain(whole_batch_stage(), name="plan.yaml").pipelines
    before, whole, after = pipeline.stages
    assert [x.times for stage in (before, whole, after) for x in stage.sends] == [4, 4, 4]
    assert whole.whole_batch


def test_a_plan_that_was_edited_says_so_first() -> None:
    report = explain(edit(two_stages(), LEGAL_EDIT), name="plan.yaml")
    assert report.warnings[0].code == "edited"
    assert explain(two_stages(), name="plan.yaml").warnings == ()


class TestLayers:
    """Where a layer runs."""

    def test_ranges_are_read_number_by_number(self) -> None:
        (found,) = find_layers(everyday_plan(), r"blocks\.10$")
        assert (found.place, found.ranks) == ("pipeline0.stage1", (1, 2))
        assert found.devices == ("node-a/cpu", "board-0/arm")

    def test_a_layer_below_a_named_module_is_found(self) -> None:
        (found,) = find_layers(everyday_plan(), "model.blocks.3.attn")
        assert (found.layer, found.place) == ("model.blocks.3", "pipeline0.stage0")

    def test_what_is_not_there_is_said(self) -> None:
        with pytest.raises(InvalidInputError, match=r"no layer of the plan matches 'decoder'"):
            find_layers(everyday_plan(), "decoder")

    @pytest.mark.parametrize("pattern", ["(", "*", "a{99999999999}", "(?P<x"])
    def test_what_is_no_expression_is_refused(self, pattern: str) -> None:
        with pytest.raises(InvalidInputError, match="is not a regular expression"):
            find_layers(everyday_plan(), pattern)


class TestActuals:
    """Estimate beside measurement."""

    def test_ratios_are_computed_and_wrong_ones_marked(self) -> None:
        plan = everyday_plan()
        report = explain(plan, name="plan.yaml", run_report=run_report(plan))
        assert [(x.what, x.is_off) for x in report.actuals] == [
            ("time between batches", False),
            ("throughput", False),
            ("pipeline0.stage0 busy", False),
            ("pipeline0.stage1 busy (rank 1)", True),
            ("rank 1 pipeline0.stage1 compute", True),
            ("rank 1 pipeline0.stage1 memory", False),
            ("rank 0 -> 1 hidden_19 1.75 MiB", True),
            ("rank 0 -> 2 hidden_19 256 KiB", False),
        ]
        worst = max(report.actuals, key=lambda x: x.distance)
        assert (worst.what[:11], worst.distance) == ("rank 0 -> 1", pytest.approx(5.5))
        assert report.actuals[0].ratio == pytest.approx(1.02)

    def test_the_report_of_another_plan_is_refused(self) -> None:
        plan = everyday_plan()
        other = run_report(plan) | {"plan_id": "sha256:0"}
        with pytest.raises(InvalidInputError, match="the report is of plan sha256:0"):
            explain(plan, name="plan.yaml", run_report=other)

    def test_another_document_is_refused(self) -> None:
        with pytest.raises(InvalidInputError, match="not a RunReport"):
            explain(everyday_plan(), name="plan.yaml", run_report={"kind": "Plan"})
