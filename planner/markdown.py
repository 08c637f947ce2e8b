"""An ExplainReport as Markdown with a Mermaid graph: what to post under a pull request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.fallback_text import fallback_entries
from planner.limit_text import limit_lines
from planner.planfile import INPUT, OUTPUT
from planner.price_text import split_entries, wish_entries
from planner.render import objective_name, range_text
from planner.screen import count, layers_text, percent, plain, rate
from planner.shown import ExplainReport, RankShare, Sending
from profiler.units import format_bytes, format_seconds

MOST_IN_GRAPH = 60
"""Stages that a graph shows; more cannot be read (and GitHub refuses very long ones)."""


def render_markdown(report: ExplainReport) -> str:
    """The report as GitHub Markdown; nothing is left out but a graph of very many stages."""
    blocks = [
        _summary(report),
        _graph(report),
        _stages(report),
        _ranks(report),
        _alternatives(report),
        _notices(report),
        _actuals(report),
    ]
    return "\n".join("\n".join(block) + "\n" for block in blocks if block)


def _summary(report: ExplainReport) -> list[str]:
    inputs, result, proof = report.inputs, report.result, report.proof
    proved = (
        f"proved optimal among {_text(proof.space)}"
        if proof.status == "optimal"
        else f"within {percent(proof.gap)} of the proven bound, among {_text(proof.space)}"
    )
    return [
        f"### Plan `{_code(report.name)}`",
        "",
        f"`{_code(report.plan_id)}`, objective {result.objective.value}",
        "",
        f"- **{rate(result.items_per_s)} items/s**: {count(result.batch_size, 'item')} every "
        f"{format_seconds(result.period_s)}; one batch alone takes "
        f"{format_seconds(result.latency_s)}",
        *([f"- hypothetical: {_text(spoken)}"] if (spoken := range_text(report)) else []),
        f"- bottleneck: `{_code(result.bottleneck)}`",
        f"- {proved} (`{_code(proof.solver)}`)",
        f"- answer: {report.aggregation} ({report.destination})"
        + "".join(f"; {_text(line)}" for line in report.legal_because),
        *(f"- limit: {_text(line)}" for line in limit_lines(report)),
        *([f"- baseline: {_text(proof.baseline)}"] if proof.baseline else []),
        f"- model `{_code(inputs.model)}`, {count(inputs.num_layers, 'layer')}, "
        f"{format_bytes(inputs.weight_bytes)}; cluster `{_code(inputs.cluster)}`; profile "
        f"`{_code(inputs.profile)}`, +/-{percent(inputs.error_fraction)}",
    ]


def _graph(report: ExplainReport) -> list[str]:
    stages = [stage for pipeline in report.pipelines for stage in pipeline.stages]
    if len(stages) > MOST_IN_GRAPH:
        return [f"({len(stages)} stages are too many for a graph.)"]
    node = {stage.place: f"s{i}" for i, stage in enumerate(stages)}
    node |= {INPUT: "in", OUTPUT: "out"}
    lines = ["```mermaid", "flowchart LR", "  in([input])", "  out([output])"]
    for pipeline in report.pipelines:
        lines.append(f'  subgraph p{pipeline.index}["pipeline {pipeline.index}"]')
        for stage in pipeline.stages:
            where = "<br/>".join(
                _label(
                    f"rank {x.rank} {x.device}" + (f" ({_part(x)})" if len(stage.ranks) > 1 else "")
                )
                for x in stage.ranks[:6]
            )
            layers = _label(layers_text(stage.layers, 40))
            lines.append(f'    {node[stage.place]}["stage {stage.index}<br/>{layers}<br/>{where}"]')
        lines.append("  end")
    lines += [
        f'  {node[x.source]} -->|"{_label(_sent(x))}"| {node[x.target]}'
        for stage in stages
        for x in (*stage.receives, *stage.sends)
        if x.source in node and x.target in node
    ]
    return [*lines, "```"]


def _sent(sending: Sending) -> str:
    what = (
        sending.tensors[0][:40]
        if len(sending.tensors) == 1
        else count(len(sending.tensors), "tensor")
    )
    return f"{what} {format_bytes(sending.num_bytes)} x {sending.times}"


def _stages(report: ExplainReport) -> list[str]:
    rows = []
    for pipeline in report.pipelines:
        for stage in pipeline.stages:
            on = ", ".join(f"{x.rank}: `{_code(x.device)}` ({_part(x)})" for x in stage.ranks)
            rows.append(
                [
                    f"`{stage.place}`",
                    ", ".join(f"`{_code(x)}`" for x in stage.layers),
                    stage.split + (", whole batch" if stage.whole_batch else ""),
                    on,
                ]
            )
    heads = ["stage", "layers", "split", "ranks (items of each run, or slices)"]
    return [*_table(heads, rows), *_splits(report)]


def _part(x: RankShare) -> str:
    """What a rank has of its stage."""
    return ", ".join(x.slices[:4]) if x.slices else str(x.items)


def _splits(report: ExplainReport) -> list[str]:
    """What each stage on several devices would cost if it were split otherwise."""
    rows = [
        [
            f"`{stage.place}`",
            f"**{x.split}**" if x.split == stage.split else x.split,
            "-" if x.objective_s is None else format_seconds(x.objective_s),
            _text(x.how),
        ]
        for pipeline in report.pipelines
        for stage in pipeline.stages
        for x in stage.costs
    ]
    if not rows:
        return []
    return ["", *_table(["stage", "split", objective_name(report), "how"], rows)]


def _ranks(report: ExplainReport) -> list[str]:
    rows = [
        [
            str(x.rank),
            f"`{_code(x.device)}` {_text(x.device_type)}",
            f"`{x.stage}`" if x.stage else "-",
            format_seconds(x.compute_s),
            format_seconds(x.receive_s + x.send_s + x.join_s),
            percent(x.busy_fraction),
            format_bytes(x.used_bytes),
            format_bytes(x.memory["capacity_bytes"]),
            percent(x.used_fraction),
        ]
        for x in report.ranks
    ]
    heads = ["rank", "device", "stage", "compute", "messages", "busy", "memory", "free", "full"]
    return list(_table(heads, rows, numbers_from=3))


def _alternatives(report: ExplainReport) -> list[str]:
    rows = [["**this plan**", format_seconds(report.proof.objective_s), "-", "chosen"]]
    rows += [
        [
            _text(x.plan),
            "-" if x.objective_s is None else format_seconds(x.objective_s),
            "-" if x.worse_fraction is None else f"{x.worse_fraction * 100:+,.1f} %",
            _text(x.why_not),
        ]
        for x in report.alternatives
    ]
    heads = ["plan", objective_name(report), "vs best", "why not"]
    return list(_table(heads, rows))


def _notices(report: ExplainReport) -> list[str]:
    lines = [f"- idle `{_code(x.code)}`: {_text(x.message)}" for x in report.idle]
    lines += [f"- wish `{_code(x)}`: {_text(what)}" for x, what in wish_entries(report)]
    lines += [f"- split `{_code(x)}`: {_text(what)}" for x, what in split_entries(report)]
    lines += [f"- without `{_code(x)}`: {_text(what)}" for x, what in fallback_entries(report)]
    return lines + [f"- **{_text(x.code)}**: {_text(x.message)}" for x in report.warnings]


def _actuals(report: ExplainReport) -> list[str]:
    rows = []
    worst = max((x.distance for x in report.actuals), default=0.0)
    for x in report.actuals:
        show = {"s": format_seconds, "bytes": format_bytes, "items/s": rate}[x.unit]
        figures = ["-" if v is None else show(v) for v in (x.predicted, x.measured)]
        ratio = "-" if x.ratio is None else f"{x.ratio:.2f}"
        mark = "" if not x.is_off else "the worst" if x.distance == worst else "wrong"
        said = x.note or mark
        rows.append([_text(x.what), *figures, f"**{ratio}**" if x.is_off else ratio, said])
    heads = ["", "predicted", "measured", "ratio", ""]
    return list(_table(heads, rows, numbers_from=1)) if rows else []


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int = 10**9
) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "|".join("---:" if i >= numbers_from else "---" for i in range(len(heads))) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _text(text: str) -> str:
    """Text of the plan in running text: no markup of its own."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in plain(text))


def _code(text: str) -> str:
    """Text of the plan between backticks, also in a table."""
    return plain(text).replace("`", "'").replace("|", "\\|")


def _label(text: str) -> str:
    """Text of the plan inside a quoted Mermaid label."""
    safe = plain(text).replace("#", "#35;").replace('"', "#quot;")
    return safe.replace("<", "#lt;").replace(">", "#gt;").replace("`", "'")
