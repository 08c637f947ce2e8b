"""``apportion place``: an instance file answered from the command line.

Imports what it needs when it runs, so that other commands stay quick.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiler.console import STDOUT, Format, write_file, write_result
from profiler.documents import require_writable
from profiler.errors import InvalidInputError

if TYPE_CHECKING:
    from planner.placement import PlacementProblem, PlacementResult
    from planner.solvers.base import SolveLimits

EXIT_INFEASIBLE = 3
"""Exit code where no placement exists (proved), or none was found in time."""


class Question(StrEnum):
    """What to make small: the largest load of a device, or the time of one sample."""

    CONTIGUOUS = "contiguous"
    ANY = "any"
    LATENCY = "latency"


class Paying(StrEnum):
    """Who pays for transfers: the device, or a wire of its own beside it."""

    DEVICE = "device"
    WIRE = "wire"


def place(  # noqa: PLR0913  (one parameter a flag)
    instance: Annotated[
        Path, typer.Argument(help="Operators, tensors, devices (JSON).", metavar="INSTANCE")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Placement (JSON) to write; - is stdout.")
    ] = "",
    question: Annotated[
        Question, typer.Option(help="Least largest load, pipeline or not; or least latency.")
    ] = Question.ANY,
    max_jobs: Annotated[int, typer.Option(help="latency: jobs of an accelerator.")] = 1,
    charging: Annotated[
        Paying, typer.Option(help="loads: transfers stop the device, or have a wire beside it.")
    ] = Paying.DEVICE,
    transfer_scale: Annotated[
        float, typer.Option(help="Transfer costs times this (files with mixed units).")
    ] = 1.0,
    time_limit: Annotated[float, typer.Option(help="Seconds to search at most.")] = 60.0,
    workers: Annotated[int, typer.Option(help="Threads of the integer solver.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    form: Annotated[Format, typer.Option("--format", help="Result on stdout.")] = Format.TEXT,
) -> None:
    """Place the operators of a graph with branches on accelerators and host processors.

    Example: apportion place graph.json --question contiguous -o placement.json

    Prints objective, proved bound and gap, in the unit of the file's times. Exit code 3: nothing
    fits, or nothing was found in time.
    """
    from planner.placement import Charging, read_instance
    from planner.solvers.base import SolveLimits

    if time_limit <= 0 or workers < 1:
        raise InvalidInputError(
            f"--time-limit {time_limit} --workers {workers}: give a time above 0 and at least 1"
        )
    if output and output != STDOUT:
        require_writable(output)
    problem = read_instance(
        instance, transfer_scale=transfer_scale, charging=Charging(charging.value)
    )
    start = time.monotonic()
    limits = SolveLimits(deadline=start + time_limit, workers=workers, seed=seed)
    found = _solve(question, max_jobs)(problem, limits)
    answer = _answer(problem, found, question, time.monotonic() - start)
    text = json.dumps(answer, indent=1, allow_nan=False) + "\n"
    if output:
        write_file(output, text)
    if form is Format.JSON and output != STDOUT:
        write_result(text)
    elif output != STDOUT:
        write_result(_text(problem, found, question))
    if found.placement is None:
        raise typer.Exit(EXIT_INFEASIBLE)


def _solve(
    question: Question, max_jobs: int
) -> Callable[[PlacementProblem, SolveLimits], PlacementResult]:
    from planner.placement import place_any, place_contiguous, place_latency

    if question is Question.LATENCY:
        return lambda problem, limits: place_latency(problem, limits, max_jobs=max_jobs)
    return place_contiguous if question is Question.CONTIGUOUS else place_any


def _answer(
    problem: PlacementProblem, found: PlacementResult, question: Question, wall_s: float
) -> dict[str, object]:
    """Everything that is known, as data; ``jobs`` for latency only."""
    answer: dict[str, object] = {
        "question": question.value,
        "status": found.status.value,
        "objective": found.objective_s,
        "bound": found.bound_s,
        "gap": found.gap,
        "space": found.space,
        "method": found.method,
        "wall_s": round(wall_s, 3),
    }
    if found.placement is not None:
        names = [operator.name for operator in problem.operators]
        devices = [problem.places[p].name for p in found.placement.devices]
        answer["devices"] = dict(zip(names, devices, strict=True))
        if found.placement.jobs:
            answer["jobs"] = dict(zip(names, found.placement.jobs, strict=True))
    return answer


def _text(problem: PlacementProblem, found: PlacementResult, question: Question) -> str:
    """The same for people: a line of evidence, then what each device holds."""
    if found.placement is None:
        bound = "" if found.bound_s is None else f"; none is below {found.bound_s:.6g}"
        return f"{question.value}: no placement ({found.status.value}{bound})"
    gap = "" if found.gap is None else f", gap {found.gap:.2%}"
    bound = "" if found.bound_s is None else f", bound {found.bound_s:.6f}"
    lines = [
        f"{question.value}: {found.objective_s:.6f} ({found.status.value}{bound}{gap})",
        f"among: {found.space}; by {found.method}",
    ]
    for p, device in enumerate(problem.places):
        held = [i for i, other in enumerate(found.placement.devices) if other == p]
        if held:
            size = sum(problem.operators[i].size_bytes for i in held)
            work = sum(problem.time_s(i, p) for i in held)
            lines.append(
                f"  {device.name}: {len(held)} operators, computing {work:.6g}, {size} bytes"
            )
    return "\n".join(lines)
