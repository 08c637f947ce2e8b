"""The placement as a tree for a terminal: pipelines, their stages, the ranks of each."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from planner.planfile import OUTPUT
from planner.screen import WIDTH, count, cut, plain, sides
from planner.shown import ExplainReport, PipelineShown, Sending, StageShown
from profiler.units import format_bytes, format_seconds

MAX_LAYER_LINES = 4
"""Of a stage whose layers do not fit one line."""


def placement_lines(report: ExplainReport, most: int) -> list[str]:
    """Pipelines, stages and ranks as a tree of at most about ``most`` lines, and the answer."""
    stages = [stage for pipeline in report.pipelines for stage in pipeline.stages]
    ranks = sum(len(stage.ranks) for stage in stages)
    lines = [
        f"Placement: {count(len(report.pipelines), 'pipeline')}, {count(len(stages), 'stage')}, "
        f"{count(ranks, 'rank')}"
    ]
    left = len(stages)
    for pipeline in report.pipelines:
        for block in _blocks(pipeline, report.root_rank):
            if len(lines) + len(block) > most and left < len(stages):
                return [*lines, f"  ... {count(left, 'more stage')} (--verbose)", *_answer(report)]
            lines += block
            left -= 1
    return lines + _answer(report)


def _answer(report: ExplainReport) -> list[str]:
    stages = [stage for pipeline in report.pipelines for stage in pipeline.stages]
    answers = [x for stage in stages for x in stage.sends if x.target == OUTPUT]
    tensors = list(dict.fromkeys(name for x in answers for name in x.tensors))
    moved = sum(x.num_bytes * x.times for x in answers)
    if report.destination == "scattered":
        head = "  answer: scattered, each rank keeps that of its items"
    else:
        head = (
            f"  answer: {report.aggregation} of {cut(', '.join(tensors), 40)} on rank "
            f"{report.root_rank}, {format_bytes(moved)} a batch"
        )
        head += "; then sent to every rank" if report.destination == "all" else ""
    why = (textwrap.wrap(line, WIDTH - 10) for line in report.legal_because)
    return [head, *(f"{' ' * 10}{line}" for lines in why for line in lines)]


def _blocks(pipeline: PipelineShown, root_rank: int) -> Iterator[list[str]]:
    """The lines of each stage; the first with the pipeline's own."""
    head = [sides(f"  pipeline {pipeline.index}", count(pipeline.items, "item"))]
    for stage in pipeline.stages:
        last = stage is pipeline.stages[-1]
        yield head + list(
            _stage_lines(stage, "`" if last else "|", " " if last else "|", root_rank)
        )
        head = []


def _stage_lines(stage: StageShown, corner: str, side: str, root_rank: int) -> Iterator[str]:
    label = f"  {corner}- stage {stage.index}  "
    notes = " (whole batch)" if stage.whole_batch else ""
    if len(stage.ranks) == 1:
        (x,) = stage.ranks
        on = f"rank {x.rank}  {x.device} {x.device_type}{notes}"
    elif stage.num_regions:
        on = (
            f"{count(len(stage.ranks), 'rank')}, tensor: {count(stage.num_regions, 'region')} "
            "sliced"
        )
    else:
        shares = " + ".join(str(x.items) for x in stage.ranks[:6])
        dots = " + ..." if len(stage.ranks) > 6 else ""
        on = f"{count(len(stage.ranks), 'rank')}, items {shares}{dots}{notes}"
    room = max(12, WIDTH - len(label) - 2 - max(len(on), 34))
    names = ", ".join(stage.layers)
    yield f"{label}{names if len(names) <= room else '':<{room}}  {on}"
    if len(names) > room:
        # Too long for the line: below it, and cut only when it is very long.
        start = f"  {side}     "
        lines = textwrap.wrap(names, WIDTH - len(start), break_on_hyphens=False)
        shown = lines if len(lines) <= MAX_LAYER_LINES else [*lines[: MAX_LAYER_LINES - 1], "..."]
        yield from (start + line for line in shown)
    if len(stage.ranks) > 1:
        for x in stage.ranks:
            part = f"slices {', '.join(x.slices[:6])}" if x.slices else count(x.items, "item")
            yield f"  {side}     rank {x.rank}  {x.device} {x.device_type}  {part}"
        yield from _split_lines(stage, f"  {side}     ")
    if root_rank not in [x.rank for x in stage.ranks]:
        for sending in stage.receives:
            yield f"  {side}     gets {_sending(sending)} from input"
    for sending in stage.sends:
        if sending.target != OUTPUT:
            to = sending.target.rpartition(".")[2].replace("stage", "stage ")
            yield f"  {side}     `- sends {_sending(sending)} to {to}"


def _split_lines(stage: StageShown, indent: str) -> Iterator[str]:
    """Why the stage is split as it is: what the plan takes with each way."""
    for x in stage.costs:
        value = "-" if x.objective_s is None else format_seconds(x.objective_s)
        mark = "  <- chosen" if x.split == stage.split else ""
        yield f"{indent}split {x.split:<6} {value:>9}  {cut(plain(x.how), 60)}{mark}"


def _sending(sending: Sending) -> str:
    what = (
        f"{cut(sending.tensors[0], 30)} {cut(sending.shapes[0], 30)}"
        if len(sending.tensors) == 1
        else count(len(sending.tensors), "tensor")
    )
    return f"{what}  {format_bytes(sending.num_bytes)} x {sending.times}"
