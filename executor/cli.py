"""The ``apportion`` command: the verbs of all three packages, and ``run`` and ``verify``."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from executor.emulate.cli import app as hosts_app
from profiler.allocator import heap_environment
from profiler.console import Format, commands, note, write_json, write_result
from profiler.documents import require_writable
from profiler.errors import InvalidInputError

if TYPE_CHECKING:
    from executor.report import RunReport
    from planner.planfile import Plan

EXIT_DIFFERENT = 6
"""Exit code of ``verify`` when outputs differ."""

app = commands("Split one PyTorch model over unequal machines: measure, decide, review, run.")

PlanArgument = Annotated[Path, typer.Argument(help="Plan file.", metavar="PLAN")]
ModelOption = Annotated[
    str | None, typer.Option(help="The model, if it is not where the plan says.")
]
InputsOption = Annotated[
    Path | None, typer.Option("--inputs", "-i", help="Tensors by input name: .npz or .safetensors.")
]
ReportOption = Annotated[Path | None, typer.Option(help="Where to write the run report (JSON).")]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", help="Seconds a rank waits for one message.")
]
FormatOption = Annotated[Format, typer.Option("--format", help="Result on stdout.")]


@app.command()
def run(  # noqa: PLR0913  (one parameter a flag)
    plan: PlanArgument,
    inputs: InputsOption = None,
    outputs: Annotated[
        Path | None, typer.Option("--outputs", "-o", help="Answers by name: .npz or .safetensors.")
    ] = None,
    report: ReportOption = None,
    model: ModelOption = None,
    timeout: TimeoutOption = 120.0,
    form: FormatOption = Format.TEXT,
) -> None:
    """Run a plan on inputs; alone on this machine, or as one of torchrun's processes.

    Example: apportion run plan.yaml --inputs x.npz --outputs y.npz --report run.json

    Several hosts: torchrun --nnodes 2 --nproc-per-node 2 ... -m executor run plan.yaml -i x.npz

    Several hosts on this machine: apportion hosts run cluster.yaml -- apportion run plan.yaml ...
    """
    from profiler.environment import Environment

    environment = Environment.read()
    if environment is not None:
        from executor.as_rank import RankRun, run_as_rank

        def check() -> Path:
            _require_outputs(outputs, report)
            return _needed(inputs)

        own = RankRun(plan=plan, check=check, outputs=outputs, model=model, timeout_s=timeout)
        _finish(run_as_rank(own, environment), report, form)
        return
    _require_outputs(outputs, report)
    from executor.delivery import rank_file
    from executor.outputs import answer_tensors
    from executor.running import RunOptions, load_plan, open_session
    from executor.session import Scattered
    from executor.tensorfiles import read_tensors, write_index, write_tensors

    given = read_tensors(_needed(inputs))
    loaded, path = load_plan(plan)
    options = RunOptions(timeout_s=timeout)
    with open_session(loaded, path, model, inputs=given, options=options) as session:
        result = session.run(given)
        if outputs is not None and isinstance(result.outputs, Scattered):
            parts = result.outputs.parts
            for part in parts:
                write_tensors(rank_file(outputs, part.rank), part.tensors)
            held = [(part.rank, part.device, part.items) for part in parts]
            write_index(outputs, num_items=result.outputs.num_items, parts=held)
        elif outputs is not None:
            write_tensors(outputs, answer_tensors(result.outputs))
    _finish(result.report, report, form)
    _note_edited(loaded)


@app.command()
def rehearse(
    plan: PlanArgument,
    batches: Annotated[int, typer.Option(help="Batches of zeros to send through.")] = 20,
    report: ReportOption = None,
    timeout: TimeoutOption = 120.0,
    form: FormatOption = Format.TEXT,
) -> None:
    """Try a plan without its model: real ranks and messages, waiting instead of computing.

    Ranks wait for the profile's times; its file must be where the plan says. Alone on this
    machine, or as one of torchrun's processes on the real hosts.

    Example: apportion rehearse plan.yaml --batches 50 --report rehearsal.json
    """
    from profiler.environment import Environment

    if report is not None:
        require_writable(report)
    environment = Environment.read()
    if environment is not None:
        from executor.as_rank import rehearse_as_rank

        made = rehearse_as_rank(plan, batches=batches, timeout_s=timeout, environment=environment)
        _finish(made, report, form)
        return
    from executor.rehearsal import rehearse as rehearse_plan
    from executor.running import RunOptions, load_plan

    loaded, _ = load_plan(plan)
    _finish(
        rehearse_plan(plan, batches=batches, options=RunOptions(timeout_s=timeout)), report, form
    )
    _note_edited(loaded)


@app.command()
def verify(
    plan: PlanArgument,
    inputs: InputsOption = None,
    report: ReportOption = None,
    model: ModelOption = None,
    timeout: TimeoutOption = 120.0,
    form: FormatOption = Format.TEXT,
) -> None:
    """Compare a plan's answer with the undivided model's, stage by stage.

    Exit code 6 when they differ; the first stage that does is named. Without --inputs one batch
    is made up.
    """
    _require_outputs(None, report)
    from executor.running import RunOptions
    from executor.tensorfiles import read_tensors
    from executor.verification import lines
    from executor.verification import verify as verify_plan

    given = None if inputs is None else read_tensors(inputs)
    made = verify_plan(plan, given, model=model, options=RunOptions(timeout_s=timeout))
    check = made.outputs
    assert check is not None
    if report is not None:
        made.dump(report)
    if form is Format.JSON:
        write_json(check.model_dump(mode="json"))
    else:
        write_result("\n".join([f"{plan}: {made.num_items} items", *lines(check)]))
    if not check.equal:
        raise typer.Exit(EXIT_DIFFERENT)


class Kind(StrEnum):
    """A document with a published schema."""

    CLUSTER = "cluster"
    ENSEMBLE = "ensemble"
    PROFILE = "profile"
    PLAN_REQUEST = "plan-request"
    PLAN = "plan"
    PARETO_FRONT = "pareto-front"
    RUN_REPORT = "run-report"


@app.command()
def schema(
    kind: Annotated[Kind, typer.Argument(help="Kind of document.", metavar="KIND")],
) -> None:
    """Print the JSON Schema of a document: cluster, ensemble, profile, plan and so on."""
    from executor.schemas import schema_text

    write_result(schema_text(kind.value))


def _needed(inputs: Path | None) -> Path:
    if inputs is None:
        raise InvalidInputError("give the inputs: --inputs FILE (.npz or .safetensors)")
    return inputs


def _require_outputs(outputs: Path | None, report: Path | None) -> None:
    """Find out before the work whether its results can be written."""
    from executor.tensorfiles import require_tensor_file

    if outputs is not None:
        require_tensor_file(outputs)
    if report is not None:
        require_writable(report)


def _finish(made: RunReport | None, report: Path | None, form: Format) -> None:
    """Show and keep the report; another rank than 0 has none."""
    from executor.report_text import report_lines

    if made is None:
        return
    if report is not None:
        made.dump(report)
    if form is Format.JSON:
        write_json(made.model_dump(mode="json", exclude_none=True))
    else:
        write_result("\n".join(report_lines(made)))


def _note_edited(plan: Plan) -> None:
    if plan.plan_id != plan.expected_id():
        note("the plan was edited by hand after it was made: apportion check says what changed")


def _mount(name: str) -> None:
    """Add another package's commands to ours; ours know more where both have one."""
    own = {command.callback.__name__ for command in app.registered_commands if command.callback}
    app.registered_commands.extend(
        command
        for command in import_module(name).app.registered_commands
        if command.callback.__name__ not in own
    )


_mount("profiler.cli")
_mount("planner.cli")
app.add_typer(hosts_app, name="hosts")


def main() -> None:
    """The console script, and ``python -m executor``."""
    _restart_as_rank()
    app()


def _restart_as_rank() -> None:
    """Start this process anew if it is to be a rank, with the heap that ranks have.

    Only the start of a process can set that; so far nothing has been loaded.
    """
    if sys.argv[1:2] != ["run"] or not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return
    wanted = heap_environment(os.environ)
    if wanted != dict(os.environ):
        os.execve(sys.executable, [sys.executable, "-m", "executor", *sys.argv[1:]], wanted)
