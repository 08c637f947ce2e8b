"""``apportion what-if``: what single changes of the machines would gain.

Imports what it needs when it runs, so that other commands stay quick.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.wish_flags import merged_request
from profiler.console import Format, note, write_json, write_result
from profiler.errors import InvalidInputError

if TYPE_CHECKING:
    from planner.changes import Change
    from planner.supposed import WhatIf


class Aim(StrEnum):
    """What a change is to make small, as for ``plan``."""

    THROUGHPUT = "throughput"
    LATENCY = "latency"


def what_if(  # noqa: PLR0913  (one parameter a flag)
    profile: Annotated[Path, typer.Argument(help="Profile (JSON).", metavar="PROFILE")],
    add: Annotated[
        list[str] | None,
        typer.Option(help='A catalogue device more: "rtx-4090 via 10gbe"; "any via 10gbe": each.'),
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="HOST/DEVICE or HOST: without it.")
    ] = None,
    faster: Annotated[
        list[str] | None,
        typer.Option(help='"HOST/DEVICE x2", "link A -> B x10", "wire W x10", "memory DEVICE x2".'),
    ] = None,
    objective: Annotated[
        Aim | None, typer.Option(help="Default: the request's, else throughput.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Items of a batch; default: the largest that was measured.")
    ] = None,
    request: Annotated[
        Path | None, typer.Option(help="Request file (YAML); flags win over it.")
    ] = None,
    cluster: Annotated[
        Path | None, typer.Option("--cluster", "-c", help="Cluster file; default: the profile's.")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds to search for each change that is named.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Directory for the profile and plan of each change.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    form: Annotated[Format, typer.Option("--format", help="Result on stdout.")] = Format.TEXT,
) -> None:
    """Rank single changes of the machines by what they gain: each is planned and proved anew.

    Example: apportion what-if profile.json --add "rtx-4090 via 10gbe" --faster "link a -> b x10"

    Into a host that is there: --add "a10 via pcie-4-x16 @node-a"; a processor needs its memory:
    --add "epyc-7763 with 64GiB via 25gbe". Names: apportion catalogue.

    Without a change: each device gone, twice as fast, with twice the memory; each distinct link ten
    times as fast, all within the time limit. * marks what rests on figures that nobody measured.
    """
    from planner.supposed import summaries
    from planner.supposed import what_if as ask
    from planner.what_if_text import render_what_if
    from profiler.cluster import Cluster
    from profiler.profile import Profile

    if write is not None and write.exists() and not write.is_dir():
        raise InvalidInputError(f"--write {write} is a file; give a directory")
    measured = Profile.load(profile)
    wishes: dict[str, object] = {
        "objective": objective and objective.value,
        "batch_size": batch_size,
        "limits": None if time_limit is None else {"time_s": time_limit},
    }
    asked = merged_request(request, wishes, measured, None)
    found = ask(
        measured,
        asked,
        _changes(add or [], remove or [], faster or []),
        cluster=None if cluster is None else Cluster.load(cluster),
        progress=None if quiet else note,
    )
    if write is not None:
        _write(found, write)
    if form is Format.JSON:
        present = found.present
        write_json(
            {
                "profile": str(profile),
                "objective": found.objective.value,
                "objective_s": None if present is None else present.search.objective_s,
                "why_not": found.why_not,
                "changes": list(summaries(found)),
                "not_tried": [{"change": text, "why": why} for text, why in found.skipped],
            }
        )
    else:
        write_result(render_what_if(found, name=str(profile)))


def _changes(add: list[str], remove: list[str], faster: list[str]) -> list[Change] | None:
    from planner.changes import RemoveDevice, any_device, read_add, read_faster

    found: list[Change] = []
    for text in add:
        found += any_device(text) if re.match(r"\s*any\b", text) else [read_add(text)]
    found += [RemoveDevice(place=x) for x in remove]
    found += [read_faster(x) for x in faster]
    return found or None


def _write(found: WhatIf, directory: Path) -> None:
    """A profile and a plan for each change that has one, so that explain and check work on them."""
    from planner.supposed import filed

    directory.mkdir(parents=True, exist_ok=True)
    for position, answer in enumerate(found.answers, start=1):
        if answer.plan is None:
            continue
        words = re.sub(r"[^a-z0-9]+", "-", answer.change.lower()).strip("-")
        stem = f"{position:02}-{words[:60]}"
        for name, document in filed(answer, stem=stem).items():
            document.dump(directory / name)
