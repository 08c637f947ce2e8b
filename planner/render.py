"""An ExplainReport as text for a terminal or as JSON; Markdown is in ``planner.markdown``.

Text is at most 100 columns wide and at most about a screen long by default (``Detail.SCREEN``);
the worst items are named in words, not by colour, so that a copy says as much as the screen.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from planner.actual import Actual
from planner.fallback_text import fallback_entries
from planner.findings import Finding, Severity
from planner.limit_text import limit_lines
from planner.price_text import split_entries, wish_entries
from planner.render_tree import placement_lines
from planner.screen import WIDTH, count, cut, lines_of, percent, plain, rate, sides, wrapped
from planner.shown import ExplainReport, LayerShown, RankShown
from profiler.units import bytes_unit, format_bytes, format_seconds, seconds_unit


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
        placement_lines(report, detail.tree),
        _rank_table(report, detail),
        _why(report, detail),
        _listed("Idle devices", [(x.code, x.message) for x in report.idle], detail.others),
        _listed("What the wishes cost", wish_entries(report), detail.others),
        _listed("Splits that it does not use", split_entries(report), detail.others),
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
                lines += wrapped(
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


def objective_name(report: ExplainReport) -> str:
    """The figure that the request wants small."""
    return "latency" if report.result.objective.counts_latency else "period"


def range_text(report: ExplainReport) -> str:
    """Between what the plan may turn out, if it rests on figures that nobody measured; else ""."""
    found = report.hypothetical
    if found is None:
        return ""
    by_latency = report.result.objective.counts_latency
    low, high = found.latency_s if by_latency else found.period_s
    parts = ", ".join(where for where, _ in found.parts[:4])
    more = f" and {len(found.parts) - 4} more" if len(found.parts) > 4 else ""
    return (
        f"{objective_name(report)} between {format_seconds(low)} and {format_seconds(high)}: "
        f"nobody measured {parts}{more}"
    )


def _header(report: ExplainReport) -> list[str]:
    inputs = report.inputs
    used = sum(rank.stage is not None for rank in report.ranks)
    wide = min(max(len(x) for x in (inputs.model, inputs.cluster, inputs.profile)), 48)
    return [
        sides(
            f"Plan  {cut(report.name, 40)}  {report.plan_id[:46]}",
            f"objective: {report.result.objective.value}",
        ),
        f"  model    {cut(inputs.model, wide):<{wide}}  {inputs.dtype}  "
        f"{count(inputs.num_layers, 'layer')}  {format_bytes(inputs.weight_bytes)} of weights",
        f"  cluster  {cut(inputs.cluster, wide):<{wide}}  {count(used, 'device')} in use, "
        f"{len(report.idle)} idle",
        f"  profile  {cut(inputs.profile, wide):<{wide}}  times are known to about "
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
        *(
            wrapped("  range       ", f"hypothetical: {spoken}")
            if (spoken := range_text(report))
            else ()
        ),
        f"  bottleneck  {result.bottleneck}{at}",
        *(
            line
            for i, text in enumerate(limit_lines(report))
            for line in wrapped("  " + ("" if i else "limits").ljust(12), text)
        ),
        *wrapped(
            "  proof       ", f"{found} ({proof.solver}, {count(proof.candidates, 'candidate')})"
        ),
        *(wrapped("  baseline    ", proof.baseline) if proof.baseline else ()),
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
        line = f"  {cut(x.what, 41):<42}{figures[0]:>12}{figures[1]:>12}{ratio:>8}{mark}"
        lines.append(cut(f"{line}  {x.note}" if x.note else line, WIDTH))
    more = len(report.actuals) - len(shown)
    return lines + ([f"  ... {more} more, less far off (--verbose)"] if more else [])


def most_telling(actuals: Sequence[Actual], most: int) -> list[Actual]:
    """At most so many figures, in their order: those of the whole run, then those furthest off."""
    order = sorted(range(len(actuals)), key=lambda i: (i >= 2, -actuals[i].distance, i))
    return [actuals[i] for i in sorted(order[:most])]


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
        f"  {x.rank:>4}  {cut(x.device, device):<{device}}" for x in shown
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
        f"fullest: rank {tight.rank} {cut(tight.device, 20)}, {percent(tight.used_fraction)}"
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
        start = f"  {cut(plain(x.plan), wide):<{wide}}{value:>11}{cut(worse, 10):>10}  "
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
        lines += wrapped(f"  {name}  ", message)
    more = len(entries) - most
    return lines + ([f"  ... {more} more (--verbose)"] if more > 0 else [])


def _next(report: ExplainReport) -> list[str]:
    wide = max(len(command) for command, _ in report.next_steps)
    return ["Next", *(f"  {command:<{wide}}  {what}" for command, what in report.next_steps)]
