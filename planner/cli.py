"""``apportion plan``, ``explain``, ``check``, ``diff``, ``what-if``, ``place`` and ``schema``.

Commands import what they need when they run, so that reading a plan stays quick.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.pareto_command import Wanted, show_front
from planner.place_command import place
from planner.what_if_command import what_if
from planner.wish_flags import (
    Division,
    Goal,
    Receiver,
    forbid_of,
    fraction_of,
    merged_request,
    pair_of,
    prices_of,
    sizes_of,
)
from profiler.console import STDOUT, Format, commands, note, write_file, write_json, write_result
from profiler.errors import InvalidInputError

if TYPE_CHECKING:
    from planner.planfile import Plan

EXIT_FINDINGS = 5
"""Exit code of ``check`` when the plan breaks a rule."""

EXIT_DIFFERENT = 1
"""Exit code of ``diff`` when the plans differ."""

app = commands("Decide how to split a model, and read, explain and check the decision.")


class Page(StrEnum):
    """How ``explain`` shows a plan."""

    TEXT = "text"
    MARKDOWN = "markdown"
    JSON = "json"


class Kind(StrEnum):
    """A document with a published schema."""

    CLUSTER = "cluster"
    ENSEMBLE = "ensemble"
    PROFILE = "profile"
    PLAN_REQUEST = "plan-request"
    PLAN = "plan"
    PARETO_FRONT = "pareto-front"


PlanArgument = Annotated[str, typer.Argument(help="Plan file; - is stdin.", metavar="PLAN")]
FormatOption = Annotated[Format, typer.Option("--format", help="Result on stdout.")]


@app.command()
def plan(  # noqa: PLR0913  (one parameter a flag)
    profile: Annotated[Path, typer.Argument(help="Profile (JSON).", metavar="PROFILE")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Plan file to write; - is stdout.")
    ] = STDOUT,
    objective: Annotated[
        Goal | None, typer.Option(help="Default: the request's, else throughput.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Items of a batch; default: the largest that was measured.")
    ] = None,
    microbatch_size: Annotated[
        int | None, typer.Option(help="Items that travel together; default: the best.")
    ] = None,
    split: Annotated[
        list[Division] | None, typer.Option(help="Allowed ways to split; default: all.")
    ] = None,
    pin: Annotated[
        list[str] | None, typer.Option(help="LAYERS=DEVICE: run them there and nowhere else.")
    ] = None,
    forbid: Annotated[
        list[str] | None, typer.Option(help="DEVICE or LAYERS=DEVICE: nothing of it there.")
    ] = None,
    keep_together: Annotated[
        list[str] | None, typer.Option(help="LAYERS that share a stage.")
    ] = None,
    reserve: Annotated[
        str | None, typer.Option(help="SIZE to keep free on each device for the runtime.")
    ] = None,
    max_memory: Annotated[
        list[str] | None, typer.Option(help="DEVICE=SIZE: use no more of it.")
    ] = None,
    max_stages: Annotated[int | None, typer.Option(help="Stages at most.")] = None,
    max_latency: Annotated[
        str | None, typer.Option(help="TIME that one batch may take at most, as 200ms.")
    ] = None,
    min_rate: Annotated[
        float | None, typer.Option(help="Items a second to finish at least.")
    ] = None,
    max_devices: Annotated[int | None, typer.Option(help="Devices in use at most.")] = None,
    price: Annotated[
        list[str] | None, typer.Option(help="TYPE=PRICE or DEVICE=PRICE an hour.")
    ] = None,
    aggregation: Annotated[
        str | None, typer.Option(help="How an ensemble's members are put together; else its own.")
    ] = None,
    destination: Annotated[
        Receiver | None, typer.Option(help="Who gets the answer; default: root.")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="Solver by name; default: the best.")] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(
            help="Seconds to search at most; why not otherwise takes up to as long again."
        ),
    ] = None,
    request: Annotated[
        Path | None, typer.Option(help="Request file (YAML); flags win over it.")
    ] = None,
    cluster: Annotated[
        Path | None, typer.Option("--cluster", "-c", help="Cluster file; default: the profile's.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Plan in use: its wishes hold, and is it still the best?"),
    ] = None,
    min_gain: Annotated[
        str, typer.Option(help="Keep the baseline if a change saves less than this, as 2%.")
    ] = "0%",
    with_fallbacks: Annotated[
        bool, typer.Option("--with-fallbacks", help="Also the best plan without each device.")
    ] = False,
    pareto: Annotated[
        bool,
        typer.Option(
            "--pareto", help="All best trades of latency, throughput and devices; -o: data."
        ),
    ] = False,
    pareto_svg: Annotated[Path | None, typer.Option(help="With --pareto: draw them (SVG).")] = None,
    pareto_plans: Annotated[
        Path | None, typer.Option(help="With --pareto: write a plan of each into this directory.")
    ] = None,
    point: Annotated[
        int | None, typer.Option(help="With --pareto: -o is the plan of the point so numbered.")
    ] = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Find the best split, prove how good it is, and write it down.

    Example: apportion plan profile.json -o plan.yaml --batch-size 32 --reserve 1GiB

    After a refit: apportion plan new.json --baseline plan.yaml --min-gain 2% -o plan2.yaml

    Layers are named by module: encoder.layer.0..5, lm_head. Exit code 3: no plan fits.
    """
    from profiler.cluster import Cluster
    from profiler.documents import require_writable
    from profiler.profile import Profile

    if output != STDOUT:
        require_writable(output)
    measured = Profile.load(profile)
    wishes: dict[str, object] = {
        "objective": objective and objective.value,
        "batch_size": batch_size,
        "microbatch_size": microbatch_size,
        "splits": split and [x.value for x in split],
        "pins": pin and [pair_of(x, "--pin", "layers", "device") for x in pin],
        "forbids": forbid and [forbid_of(x) for x in forbid],
        "keep_together": keep_together,
        "reserve_bytes": reserve,
        "max_bytes": max_memory and sizes_of(max_memory),
        "max_stages": max_stages,
        "max_latency_s": max_latency,
        "min_items_per_s": min_rate,
        "max_devices": max_devices,
        "prices_per_hour": price and prices_of(price),
        "aggregation": aggregation,
        "destination": destination and destination.value,
        "solver": solver,
        "limits": None if time_limit is None else {"time_s": time_limit},
    }
    least = fraction_of(min_gain, "--min-gain")
    used = None if baseline is None else _load(str(baseline))
    asked = merged_request(request, wishes, measured, used)
    machines = None if cluster is None else Cluster.load(cluster)

    wanted = Wanted(output=output, svg=pareto_svg, plans=pareto_plans, point=point, form=form)
    if pareto:
        if baseline is not None or with_fallbacks:
            raise InvalidInputError("--pareto goes with neither --baseline nor --with-fallbacks")
        show_front(
            measured,
            asked,
            machines,
            (str(profile), None if cluster is None else str(cluster)),
            wanted,
        )
        return
    wanted.require_nothing()

    from planner.api import plan as make_plan

    made = make_plan(
        measured,
        asked,
        profile_ref=str(profile),
        cluster=machines,
        cluster_ref=None if cluster is None else str(cluster),
        baseline=used,
        min_gain=least,
        fallbacks=with_fallbacks,
    )
    write_file(output, made.to_text(as_json=_as_json(output, form)))
    _show_plan(made, output, form)


@app.command()
def explain(
    plan: PlanArgument,
    form: Annotated[Page, typer.Option("--format", help="Result on stdout.")] = Page.TEXT,
    layer: Annotated[
        str | None, typer.Option(help="Only where these layers run (regular expression).")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Every line.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Run report (JSON): what was measured beside it.")
    ] = None,
) -> None:
    """Show what a plan does, why, and how sure that is; needs nothing but the file.

    Example: apportion explain plan.yaml --format markdown
    """
    from planner.explain import explain as explain_plan
    from planner.explain import find_layers
    from planner.render import EVERYTHING, SCREEN, render_json, render_layers, render_text
    from profiler.documents import load_data

    loaded = _load(plan)
    if layer is not None:
        found = find_layers(loaded, layer)
        if form is Page.JSON:
            from dataclasses import asdict

            write_json([asdict(x) for x in found])
        else:
            write_result(render_layers(found))
        return
    run = None if report is None else load_data(report)
    made = explain_plan(loaded, name=plan, run_report=run)
    if form is Page.JSON:
        write_result(render_json(made))
    elif form is Page.MARKDOWN:
        from planner.markdown import render_markdown

        write_result(render_markdown(made))
    else:
        write_result(render_text(made, EVERYTHING if verbose else SCREEN))


@app.command()
def check(
    plan: PlanArgument,
    profile: Annotated[
        Path | None, typer.Option(help="Profile; default: the one the plan names.")
    ] = None,
    cluster: Annotated[
        Path | None, typer.Option("--cluster", "-c", help="Cluster; default: the plan's.")
    ] = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Apply every rule to a plan and derive all its figures again.

    Example: apportion check plan.yaml

    Exit codes: 0 clean or warnings only, 4 made from other inputs, 5 a rule is broken.
    """
    from planner.check import check_plan
    from planner.findings import Severity
    from planner.inputs import load_cluster, load_profile
    from planner.render import render_findings
    from profiler.cluster import Cluster
    from profiler.profile import Profile

    loaded = _load(plan)
    path = Path(plan)
    measured = load_profile(loaded, path) if profile is None else Profile.load(profile)
    machines = load_cluster(loaded, path, measured) if cluster is None else Cluster.load(cluster)
    findings = check_plan(loaded, measured, cluster=machines)
    errors = [x for x in findings if x.severity is Severity.ERROR]
    if form is Format.JSON:
        from dataclasses import asdict

        write_json(
            {
                "plan": plan,
                "plan_id": loaded.plan_id,
                "errors": len(errors),
                "warnings": len(findings) - len(errors),
                "findings": [asdict(x) for x in findings],
            }
        )
    else:
        write_result(render_findings(findings))
    if errors:
        raise typer.Exit(EXIT_FINDINGS)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(help="Plan file.", metavar="A")],
    after: Annotated[str, typer.Argument(help="Plan file; - is stdin.", metavar="B")],
    profile: Annotated[
        Path | None, typer.Option(help="Profile to price both on; default: the one B names.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Every line.")] = False,
    form: FormatOption = Format.TEXT,
) -> None:
    """Show what differs between two plans: what was asked, what moved, what it costs.

    Example: apportion diff main/plan.yaml plan.yaml

    Exit codes: 0 the same question and decision, 1 they differ.
    """
    from planner.compare import compare
    from planner.diff_text import render_diff
    from profiler.profile import Profile

    ours, theirs = _load(before), _load(after)
    measured = None if profile is None else Profile.load(profile)
    found = compare((ours, Path(before)), (theirs, Path(after)), profile=measured)
    if form is Format.JSON:
        from dataclasses import asdict

        write_json(asdict(found))
    else:
        write_result(render_diff(found, verbose=verbose))
    if not found.same:
        raise typer.Exit(EXIT_DIFFERENT)


app.command()(place)
app.command("what-if")(what_if)


@app.command()
def schema(
    kind: Annotated[Kind, typer.Argument(help="Kind of document.", metavar="KIND")],
) -> None:
    """Print the JSON Schema of a kind of document, as in docs/schema/."""
    from planner.schemas import schema_text

    write_result(schema_text(kind.value))


def _load(path: str) -> Plan:
    from planner.planfile import Plan

    if path == STDOUT:
        return Plan.parse(sys.stdin.read(), name="stdin")
    return Plan.load(path)


def _as_json(output: str, form: Format) -> bool:
    return form is Format.JSON if output == STDOUT else output.endswith(".json")


def _show_plan(made: Plan, output: str, form: Format) -> None:
    """What was decided, for people on stderr; for programs on stdout, unless the plan is there."""
    from planner.explain import explain as explain_plan
    from planner.render import render_json, render_text

    report = explain_plan(made, name="plan.yaml" if output == STDOUT else output)
    if form is Format.TEXT:
        note(render_text(report))
    elif output != STDOUT:
        write_result(render_json(report))
