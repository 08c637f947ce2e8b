"""An ExplainReport as text for a terminal or as JSON; Markdown is in ``planner.markdown``.

Text is at most 100 columns wide and at most about a screen long by default (``Detail.SCREEN``);
the worst items are named in words, not by colour, so that a copy says as much as the screen.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from planner.actual import Actual
from planner.explain import (
    ExplainReport,
    LayerShown,
    PipelineShown,
    RankShown,
    Sending,
    StageShown,
)
from planner.fallback_text import fallback_entries
from planner.findings import Finding, Severity
from planner.planfile import OUTPUT
from planner.request import Objective
from profiler.units import bytes_unit, format_bytes, format_seconds, seconds_unit

WIDTH = 100
MAX_LAYER_LINES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """How many lines each section may take."""

    tree: int
    ranks: int
    others: int
    actuals: int


SCREEN = Detail(tree=15, ranks=8, others=5, actuals=16)
EVERYTHING = Detail(tree=10**9, ranks=10**9, others=10**9, actuals=10**9)


def render_text(report: ExplainReport, detail: Detail = SCREEN) -> str:
    """The report for a terminal."""
    sections = [
        _header(report),
        _result(report),
        _actuals(report, detail),
        _placement(report, detail),
        _rank_table(report, detail),
        _why(report, detail),
        _listed("Idle devices", [(x.code, x.message) for x in report.idle], detail.others),
        _listed("If a device is missing", fallback_entries(report), detail.others),
        _listed("Warnings", [(x.code, x.message) for x in report.warnings], detail.others),
        _next(report),
    ]
    return "\n".join(lines_of([line for section in sections if section for line in (*section, "")]))


def render_json(report: ExplainReport) -> str:
    """The report for programs."""
    return json.dumps(asdict(report), indent=1)


def render_layers(layers: Sequence[LayerShown]) -> str:
    """Where layers run, one a line."""
    wide = max(len(x.layer) for x in layers)
    return "\n".join(
        lines_of(
            f"{x.layer:<{min(wide, 50)}}  {x.place}  "
            + ", ".join(f"rank {r} {d}" for r, d in zip(x.ranks, x.devices, strict=True))
            for x in layers
        )
    )


def render_findings(findings: Sequence[Finding]) -> str:
    """What check found, errors first, and a count."""
    lines: list[str] = []
    for severity in Severity:
        for finding in findings:
            if finding.severity is severity:
                lines += _wrapped(
                    f"{finding.severity.value}: {finding.code}: {finding.where}: ", finding.message
                )
    errors = sum(x.severity is Severity.ERROR for x in findings)
    warnings = len(findings) - errors
    lines.append(
        f"{count(errors, 'error')}, {count(warnings, 'warning')}"
        if findings
        else "no findings: the plan keeps every rule"
    )
    return "\n".join(lines_of(lines))


def plain(text: str) -> str:
    """``text`` without what could play tricks on a terminal: control and invisible characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def lines_of(lines: Iterable[str]) -> Iterator[str]:
    """Lines as they may be printed: nothing invisible, nothing wider than the page."""
    for line in lines:
        shown = plain(line).rstrip()
        yield shown if len(shown) <= WIDTH else shown[: WIDTH - 3] + "..."


def count(number: int, what: str) -> str:
    """A number of things, in words.

    >>> count(1, "stage"), count(2, "stage")
    ('1 stage', '2 stages')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def rate(items_per_s: float) -> str:
    """Items a second for people.

    >>> rate(24.96), rate(0.32246), rate(12345.6)
    ('25.0', '0.322', '12,346')
    """
    if 100 <= items_per_s < 1e15:
        return f"{items_per_s:,.0f}"
    return (
        f"{items_per_s:.{1 if items_per_s >= 9.995 else 2}f}"
        if 1 <= items_per_s < 100
        else (f"{items_per_s:.3g}")
    )


def percent(fraction: float) -> str:
    """A fraction in percent, one decimal below ten."""
    return f"{fraction * 100:.{1 if abs(fraction) < 0.0995 else 0}f} %"


def objective_name(report: ExplainReport) -> str:
    """The figure that the request wants small."""
    return "period" if report.result.objective is Objective.THROUGHPUT else "latency"


def layers_text(layers: Sequence[str], width: int) -> str:
    """Selectors in at most ``width`` columns: the first and the last, what is between as dots."""
    text = ", ".join(layers)
    if len(text) <= width or not layers:
        return _cut(text, width)
    last = _cut(layers[-1], width // 2)
    first = _cut(layers[0], max(4, width - len(last) - 7)) + ", "
    for layer in layers[1:-1]:
        if len(first) + len(layer) + len(last) + 7 > width:
            break
        first += layer + ", "
    return _cut(f"{first}..., {last}", width)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _sides(left: str, right: str) -> str:
    return f"{left:<{WIDTH - len(right) - 1}} {right}"


def _wrapped(first: str, text: str) -> list[str]:
    """``text`` after ``first``, in lines indented by two more than the first."""
    indent = " " * (len(first) - len(first.lstrip()) + 4)
    return textwrap.wrap(
        plain(first + text), WIDTH, subsequent_indent=indent, break_on_hyphens=False
    ) or [first]


def _header(report: ExplainReport) -> list[str]:
    inputs = report.inputs
    used = sum(rank.stage is not None for rank in report.ranks)
    wide = min(max(len(x) for x in (inputs.model, inputs.cluster, inputs.profile)), 48)
    return [
        _sides(
            f"Plan  {_cut(report.name, 40)}  {report.plan_id[:46]}",
            f"objective: {report.result.objective.value}",
        ),
        f"  model    {_cut(inputs.model, wide):<{wide}}  {inputs.dtype}  "
        f"{count(inputs.num_layers, 'layer')}  {format_bytes(inputs.weight_bytes)} of weights",
        f"  cluster  {_cut(inputs.cluster, wide):<{wide}}  {count(used, 'device')} in use, "
        f"{len(report.idle)} idle",
        f"  profile  {_cut(inputs.profile, wide):<{wide}}  times are known to about "
        f"+/-{percent(inputs.error_fraction)}",
    ]


def _result(report: ExplainReport) -> list[str]:
    result, proof = report.result, report.proof
    parted = (
        f"{count(result.num_microbatches, 'microbatch')} of {result.microbatch_size}".replace(
            "microbatchs", "microbatches"
        )
        if result.num_microbatches > 1
        else "in one piece"
    )
    ranks = ", ".join(str(rank) for rank in result.bottleneck_ranks[:6])
    more = ", ..." if len(result.bottleneck_ranks) > 6 else ""
    at = f" (rank {ranks}{more})" if ranks else ""
    found = (
        f"optimal: nothing better exists among {proof.space}"
        if proof.status == "optimal"
        else f"at most {percent(proof.gap)} above the proven bound of "
        f"{format_seconds(proof.bound_s)}, among {proof.space}"
    )
    return [
        "Result",
        f"  throughput  {rate(result.items_per_s)} items/s: {count(result.batch_size, 'item')} "
        f"every {format_seconds(result.period_s)}, {parted}",
        f"  latency     {format_seconds(result.latency_s)} for one batch alone",
        f"  bottleneck  {result.bottleneck}{at}",
        *_wrapped(
            "  proof       ", f"{found} ({proof.solver}, {count(proof.candidates, 'candidate')})"
        ),
        *(_wrapped("  baseline    ", proof.baseline) if proof.baseline else ()),
    ]


def _actuals(report: ExplainReport, detail: Detail) -> list[str]:
    if not report.actuals:
        return []
    lines = [f"{'Measured':<44}{'predicted':>12}{'measured':>12}{'ratio':>8}"]
    shown = most_telling(report.actuals, detail.actuals)
    worst = max(x.distance for x in report.actuals)
    for x in shown:
        figures = [
            "-"
            if value is None
            else format_seconds(value)
            if x.unit == "s"
            else format_bytes(value)
            if x.unit == "bytes"
            else rate(value)
            for value in (x.predicted, x.measured)
        ]
        ratio = "-" if x.ratio is None else f"{x.ratio:.2f}"
        mark = "" if not x.is_off else "   <- the worst" if x.distance == worst else "   <- wrong"
        line = f"  {_cut(x.what, 41):<42}{figures[0]:>12}{figures[1]:>12}{ratio:>8}{mark}"
        lines.append(_cut(f"{line}  {x.note}" if x.note else line, WIDTH))
    more = len(report.actuals) - len(shown)
    return lines + ([f"  ... {more} more, less far off (--verbose)"] if more else [])


def most_telling(actuals: Sequence[Actual], most: int) -> list[Actual]:
    """At most so many figures, in their order: those of the whole run, then those furthest off."""
    order = sorted(range(len(actuals)), key=lambda i: (i >= 2, -actuals[i].distance, i))
    return [actuals[i] for i in sorted(order[:most])]


def _placement(report: ExplainReport, detail: Detail) -> list[str]:
    stages = [stage for pipeline in report.pipelines for stage in pipeline.stages]
    ranks = sum(len(stage.ranks) for stage in stages)
    lines = [
        f"Placement: {count(len(report.pipelines), 'pipeline')}, {count(len(stages), 'stage')}, "
        f"{count(ranks, 'rank')}"
    ]
    left = len(stages)
    for pipeline in report.pipelines:
        for block in _blocks(pipeline, report.root_rank):
            if len(lines) + len(block) > detail.tree and left < len(stages):
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
            f"  answer: {report.aggregation} of {_cut(', '.join(tensors), 40)} on rank "
            f"{report.root_rank}, {format_bytes(moved)} a batch"
        )
        head += "; then sent to every rank" if report.destination == "all" else ""
    why = (textwrap.wrap(line, WIDTH - 10) for line in report.legal_because)
    return [head, *(f"{' ' * 10}{line}" for lines in why for line in lines)]


def _blocks(pipeline: PipelineShown, root_rank: int) -> Iterator[list[str]]:
    """The lines of each stage; the first with the pipeline's own."""
    head = [_sides(f"  pipeline {pipeline.index}", count(pipeline.items, "item"))]
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
        yield f"{indent}split {x.split:<6} {value:>9}  {_cut(plain(x.how), 60)}{mark}"


def _sending(sending: Sending) -> str:
    what = (
        f"{_cut(sending.tensors[0], 30)} {_cut(sending.shapes[0], 30)}"
        if len(sending.tensors) == 1
        else count(len(sending.tensors), "tensor")
    )
    return f"{what}  {format_bytes(sending.num_bytes)} x {sending.times}"


def _rank_table(report: ExplainReport, detail: Detail) -> list[str]:
    shown = _interesting(report.ranks, detail.ranks)
    if not shown:
        return []
    scale_s, unit_s = seconds_unit(min((x.compute_s for x in shown if x.compute_s), default=0.0))
    scale, unit = bytes_unit(max(x.used_bytes for x in shown))
    held = [x.memory["weights_bytes"] + x.memory["state_bytes"] for x in shown]
    columns: list[tuple[str, list[str]]] = [
        ("stage", [_short(x.stage) for x in shown]),
        ("compute", _column([x.compute_s / scale_s for x in shown])),
        *(
            [("joins", _column([x.join_s / scale_s for x in shown]))]
            if any(x.join_s for x in shown)
            else []
        ),
        ("messages", _column([(x.receive_s + x.send_s) / scale_s for x in shown])),
        ("busy", [f"{x.busy_fraction * 100:.0f} %" for x in shown]),
        ("weights", _column([x / scale for x in held])),
        ("activ.", _column([x.memory["activations_bytes"] / scale for x in shown])),
        ("buffers", _column([x.memory["buffers_bytes"] / scale for x in shown])),
        ("used", _column([x.used_bytes / scale for x in shown])),
    ]
    device = min(max(max(len(x.device) for x in shown), 4), 20)
    lines = [f"{'Per rank':<{device + 8}}"] + [
        f"  {x.rank:>4}  {_cut(x.device, device):<{device}}" for x in shown
    ]
    for title, cells in columns:
        wide = max(len(title), *(len(cell) for cell in cells)) + 2
        lines = [
            line + f"{cell:>{wide}}" for line, cell in zip(lines, [title, *cells], strict=True)
        ]
    free = [f"of {format_bytes(x.memory['capacity_bytes'])}" for x in shown]
    lines = [line + f"  {x}" for line, x in zip(lines, ["of free", *free], strict=True)]
    rest = len(report.ranks) - len(shown)
    if rest:
        lines.append(f"  ... {count(rest, 'rank')} less busy and less full (--verbose)")
    tight = max(report.ranks, key=lambda x: x.used_fraction)
    items = count(report.result.microbatch_size, "item")
    lines.append(
        f"  {unit_s} for {items}; {unit}, used with reserve; "
        f"fullest: rank {tight.rank} {_cut(tight.device, 20)}, {percent(tight.used_fraction)}"
    )
    return lines


def _short(stage: str | None) -> str:
    return "-" if stage is None else stage.replace("pipeline", "p").replace("stage", "s")


def _interesting(ranks: Sequence[RankShown], most: int) -> list[RankShown]:
    """At most so many ranks, in their order: the busiest and the fullest."""
    if len(ranks) <= most:
        return list(ranks)
    busy = sorted(ranks, key=lambda x: -x.busy_fraction)[: most - most // 2]
    full = sorted(ranks, key=lambda x: -x.used_fraction)
    chosen = {x.rank for x in busy}
    for x in full:
        if len(chosen) < most:
            chosen.add(x.rank)
    return [x for x in ranks if x.rank in chosen][:most]


def _column(values: Sequence[float]) -> list[str]:
    """Numbers of one column, with as many decimals as the largest of them needs."""
    largest = max(abs(value) for value in values)
    if largest >= 1e7:
        return [f"{value:.3g}" for value in values]
    decimals = 0 if largest >= 10_000 else 1 if largest >= 10 else 2
    return [f"{value:.{decimals}f}" for value in values]


def _why(report: ExplainReport, detail: Detail) -> list[str]:
    proof = report.proof
    shown = report.alternatives[: detail.others]
    wide = min(max(len(plain(x.plan)) for x in shown), 40) if shown else 10
    wide = max(wide, len("Why this plan"))
    lines = [f"{'Why this plan':<{wide + 2}}{objective_name(report):>11}{'vs best':>10}  why not"]
    lines.append(f"  {'this plan':<{wide}}{format_seconds(proof.objective_s):>11}{'-':>10}  chosen")
    for x in shown:
        value = "-" if x.objective_s is None else format_seconds(x.objective_s)
        worse = "-" if x.worse_fraction is None else f"{x.worse_fraction * 100:+,.1f} %"
        start = f"  {_cut(plain(x.plan), wide):<{wide}}{value:>11}{_cut(worse, 10):>10}  "
        room = WIDTH - len(start)
        reasons = textwrap.wrap(plain(x.why_not), room, break_on_hyphens=False) or [""]
        lines.append(start + reasons[0])
        lines += [" " * len(start) + reason for reason in reasons[1:]]
    more = len(report.alternatives) - detail.others
    if more > 0:
        lines.append(f"  ... {more} more (--verbose)")
    return lines


def _listed(title: str, entries: Sequence[tuple[str, str]], most: int) -> list[str]:
    """Names with what there is to say of each; nothing without any."""
    if not entries:
        return []
    lines = [title]
    for name, message in entries[:most]:
        lines += _wrapped(f"  {name}  ", message)
    more = len(entries) - most
    return lines + ([f"  ... {more} more (--verbose)"] if more > 0 else [])


def _next(report: ExplainReport) -> list[str]:
    wide = max(len(command) for command, _ in report.next_steps)
    return ["Next", *(f"  {command:<{wide}}  {what}" for command, what in report.next_steps)]
