from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from planner.check import check_plan
from planner.explain import explain, find_layers
from planner.markdown import render_markdown
from planner.planfile import Plan
from planner.render import EVERYTHING, render_findings, render_json, render_layers, render_text
from planner.screen import WIDTH, layers_text
from planner.shown import ExplainReport
from tests.support.plans import edit
from tests.support.small_plans import (
    CHAIN,
    LEGAL_EDIT,
    two_pipelines,
    two_stages,
    whole_batch_stage,
)
from tests.support.stories import everyday_plan, run_report, wide_plan

Golden = Callable[[str, str], None]
PAGE_LINES = 55


def report_of(plan: Plan) -> ExplainReport:
    read = Plan.parse(plan.to_text(as_json=False), name="plan.yaml")
    return explain(read, name="plan.yaml")


def test_text(golden: Golden) -> None:
    golden("explain_everyday.txt", render_text(report_of(everyday_plan())))
    golden("explain_pipelines.txt", render_text(report_of(two_pipelines())))
    golden("explain_whole_batch.txt", render_text(report_of(whole_batch_stage())))


def test_text_beside_a_run(golden: Golden) -> None:
    plan = Plan.parse(everyday_plan().to_text(as_json=False), name="plan.yaml")
    report = explain(plan, name="plan.yaml", run_report=run_report(plan))
    golden("explain_run.txt", render_text(report))


def test_markdown(golden: Golden) -> None:
    golden("explain_everyday.md", render_markdown(report_of(everyday_plan())))
    plan = everyday_plan()
    run = explain(plan, name="plan.yaml", run_report=run_report(plan))
    assert "| rank 1 pipeline0.stage1 compute |" in render_markdown(run)


def test_findings(golden: Golden) -> None:
    edited = edit(two_stages(), LEGAL_EDIT | {"spec.ranks.1.device_type": "x"})
    golden("check_broken.txt", render_findings(check_plan(edited, CHAIN)) + "\n")
    legal = edit(two_stages(), LEGAL_EDIT)
    golden("check_edited.txt", render_findings(check_plan(legal, CHAIN)) + "\n")
    assert render_findings(()) == "no findings: the plan keeps every rule"


def test_layers() -> None:
    assert render_layers(find_layers(everyday_plan(), r"blocks\.[89]")).splitlines() == [
        "model.blocks.8       pipeline0.stage0  rank 0 node-a/cuda:0",
        "model.blocks.9.attn  pipeline0.stage0  rank 0 node-a/cuda:0",
        "model.blocks.9.mlp   pipeline0.stage1  rank 1 node-a/cpu, rank 2 board-0/arm",
    ]


@pytest.mark.parametrize("plan", [everyday_plan(), two_pipelines(), wide_plan(98)])
def test_text_fits_a_screen(plan: Plan) -> None:
    text = render_text(report_of(plan))
    assert len(text.splitlines()) <= PAGE_LINES
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert text.isascii()


def test_every_line_on_request() -> None:
    text = render_text(report_of(wide_plan(98)), EVERYTHING)
    assert "--verbose" not in text
    assert len(text.splitlines()) > 300
    assert max(len(line) for line in text.splitlines()) <= WIDTH


def test_a_hundred_ranks_name_the_busiest_and_the_fullest() -> None:
    text = render_text(report_of(wide_plan(98)))
    assert "... 92 ranks less busy and less full (--verbose)" in text
    assert "fullest: rank 0 node-a/cuda:0, 14 %" in text
    assert "... 95 more stages (--verbose)" in text


def test_json_holds_every_figure() -> None:
    report = report_of(everyday_plan())
    data = json.loads(render_json(report))
    assert data["result"]["period_s"] == report.result.period_s
    assert data["ranks"][2]["memory"]["reserve_bytes"] == 512 * 2**20
    assert data["pipelines"][0]["stages"][1]["ranks"][0]["items"] == 7
    assert [x["plan"] for x in data["alternatives"]][2] == "replicate everywhere"


def test_names_cannot_play_tricks_on_a_terminal_or_a_page() -> None:
    plan = two_stages()
    binding = plan.spec.ranks[0].model_copy(
        update={"device": "h/\x1b[31m\u202ea|b`", "device_type": "<b>*x*</b>"}
    )
    spec = plan.spec.model_copy(update={"ranks": (binding, *plan.spec.ranks[1:])})
    report = explain(plan.model_copy(update={"spec": spec}), name="plan.yaml")
    text = render_text(report)
    assert "\x1b" not in text
    assert "\u202e" not in text
    page = render_markdown(report)
    assert "\x1b" not in page
    assert "<b>" not in page.replace("\\<b\\>", "")


def test_very_many_stages_have_no_graph() -> None:
    assert "100 stages are too many for a graph" in render_markdown(report_of(wide_plan(98)))


def test_long_lists_of_layers_show_both_ends() -> None:
    names = [f"encoder.block.{i}.x" for i in range(0, 40, 2)]
    assert layers_text(names, 62) == (
        "encoder.block.0.x, encoder.block.2.x, ..., encoder.block.38.x"
    )
    assert len(layers_text(names, 30)) <= 30
    assert layers_text(["a", "b"], 60) == "a, b"
    assert layers_text([], 60) == ""


def test_what_is_absent_is_a_dash() -> None:
    report = replace(report_of(everyday_plan()), idle=(), warnings=(), ranks=())
    text = render_text(report)
    assert "Idle devices" not in text
    assert "Per rank" not in text
    assert "replicate everywhere          -         -  board-0/arm" in text
