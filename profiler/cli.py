"""``apportion devices`` and ``apportion profile``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiler.console import Format, commands, note, write_file, write_json, write_result
from profiler.documents import require_writable
from profiler.errors import InvalidInputError
from profiler.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from profiler.profile import Profile

app = commands("Models, machines and measurements.")


@app.command()
def devices(
    output: Annotated[
        str, typer.Option("--output", "-o", help="Cluster file to write; - is stdout.")
    ] = "-",
    cpu_devices: Annotated[
        int, typer.Option(help="How many devices this machine's processors count as.")
    ] = 1,
    form: Annotated[
        Format, typer.Option("--format", help="On stdout: text is YAML.")
    ] = Format.TEXT,
) -> None:
    """Write what this machine offers as a cluster file, to be edited by people.

    Example: apportion devices --cpu-devices 2 -o cluster.yaml
    """
    if output != "-":
        require_writable(output)
    from profiler.discover import discover

    cluster = discover(cpu_devices=cpu_devices)
    if output == "-" and form is Format.JSON:
        write_json(cluster.model_dump(mode="json", exclude_none=True))
        return
    write_file(output, cluster.to_text(as_json=output.endswith(".json")))
    for name, device in cluster.device.items():
        note(
            f"{name}  {device.type}  {device.threads} thread{'s' if device.threads > 1 else ''}  "
            f"{format_bytes(device.usable_bytes)} free of {format_bytes(device.memory_bytes)}"
        )


@app.command()
def profile(  # noqa: PLR0913  (one parameter a flag)
    model: Annotated[
        str,
        typer.Argument(
            help="package.module:factory, a model directory, or a .pt2 file; with --refit the "
            "profile (JSON).",
            metavar="MODEL",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Profile to write (JSON).")],
    cluster: Annotated[
        Path | None, typer.Option("--cluster", "-c", help="Cluster file; default: this machine.")
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option(help="Comma-separated, such as 1,4,16; default: 1, 2, 4, ...")
    ] = None,
    cpu_devices: Annotated[
        int, typer.Option(help="Without --cluster: devices this machine's processors count as.")
    ] = 1,
    length: Annotated[
        int | None, typer.Option(help="Tokens of the inputs made for a model directory.")
    ] = None,
    budget: Annotated[
        float, typer.Option(help="Seconds to measure one kind of device at most.")
    ] = 120.0,
    refit: Annotated[
        list[Path] | None,
        typer.Option(help="Run report to fold back instead of measuring; see apportion refit."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    form: Annotated[Format, typer.Option("--format", help="Summary on stdout.")] = Format.TEXT,
) -> None:
    """Measure a model on the devices of a cluster and write the profile.

    An interrupted run keeps what it measured beside the output (OUTPUT.partial) and goes on from
    there when started again.

    Example: apportion profile examples.digits:build -c cluster.yaml -o profile.json
    """
    if refit:
        if cluster or batch_sizes or length:
            raise InvalidInputError(
                "--refit corrects a profile without measuring: it takes no --cluster, "
                "--batch-sizes or --length"
            )
        _fold_back(Path(model), refit, output, form)
        return
    sizes = _batch_sizes(batch_sizes)
    target = _profile_target(output)
    from profiler.cluster import Cluster
    from profiler.discover import discover
    from profiler.measure import Effort
    from profiler.session import ProfileOptions, profile_model

    machines = Cluster.load(cluster) if cluster else discover(cpu_devices=cpu_devices)
    partial = target.with_name(target.name + ".partial")
    with _progress(quiet=quiet) as progress:
        try:
            made = profile_model(
                model,
                cluster=machines,
                batch_sizes=sizes,
                effort=Effort(budget_s=budget),
                options=ProfileOptions(journal=partial, progress=progress, length=length),
            )
        except KeyboardInterrupt:
            if partial.exists():
                note(f"what was measured is kept in {partial}; the same command goes on from there")
            raise
    made.dump(target)
    partial.unlink(missing_ok=True)
    _summary(made, output, form)


@app.command()
def refit(
    profile: Annotated[Path, typer.Argument(help="Profile (JSON).", metavar="PROFILE")],
    reports: Annotated[
        list[Path], typer.Argument(help="Run reports of its plans.", metavar="REPORT...")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Profile to write (JSON).")],
    form: Annotated[Format, typer.Option("--format", help="Summary on stdout.")] = Format.TEXT,
) -> None:
    """Correct a profile by what runs of its plans measured.

    Times of layers on the devices that ran them, dispatching and links are scaled to what was
    measured. A report is folded back once; a run that agrees changes nothing.

    Example: apportion refit profile.json run.json -o new.json

    Then: apportion plan new.json --baseline plan.yaml -o plan2.yaml
    """
    _fold_back(profile, reports, output, form)


def _fold_back(source: Path, reports: list[Path], output: str, form: Format) -> None:
    from profiler.profile import Profile
    from profiler.refitting import fold_back

    target = _profile_target(output)
    before = Profile.load(source)
    done = fold_back(before, reports)
    done.profile.dump(target)
    if form is Format.JSON:
        write_json(
            {
                "profile": output,
                "fingerprint": done.profile.content_digest(),
                "changes": list(done.changes),
                "ignored": list(done.ignored),
            }
        )
        return
    count = f"{len(reports)} run report{'s' if len(reports) > 1 else ''}"
    lines = [f"{output}  {before.model.name}  {count} folded back"]
    lines += [f"  {line}" for line in done.changes] or ["  nothing changed"]
    lines += [f"  not used: {line}" for line in done.ignored]
    write_result("\n".join(lines))


def _profile_target(output: str) -> Path:
    if not output.endswith(".json"):
        raise InvalidInputError(f"a profile is a JSON file; {output} does not end in .json")
    return require_writable(output)


def _batch_sizes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidInputError(
            f"--batch-sizes takes numbers separated by commas, such as 1,4,16; not {text!r}"
        ) from error


def _summary(made: Profile, output: str, form: Format) -> None:
    graph = made.model
    distinct = len({layer.twin for layer in graph.layers})
    if form is Format.JSON:
        write_json(
            {
                "profile": output,
                "fingerprint": made.content_digest(),
                "layers": len(graph.layers),
                "distinct_layers": distinct,
                "batch_sizes": list(made.batch_sizes),
                "error_fraction": round(made.error_fraction, 4),
                "unstable": list(made.conditions.unstable),
            }
        )
        return
    lines = [
        f"{output}  {graph.name}  {len(graph.layers)} layers, {distinct} distinct  "
        f"{format_bytes(graph.total_weight_bytes)} of weights  {graph.captured_by}"
    ]
    items = made.batch_sizes[-1]
    for timings in made.timings:
        total = sum(timings.layers[layer.twin][-1].median_s for layer in graph.layers)
        lines.append(
            f"  {', '.join(timings.devices)}: {format_seconds(total)} for {items} items  "
            f"error +/-{100 * made.error_fraction:.1f} %"
        )
    lines += [f"  not captured by {note}" for note in graph.notes]
    unstable = made.conditions.unstable
    if unstable:
        more = f" and {len(unstable) - 2} more" if len(unstable) > 2 else ""
        lines.append(
            f"  unstable: {', '.join(unstable[:2])}{more}: measure again on a quieter machine"
        )
    write_result("\n".join(lines))


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A bar on a terminal, a line now and then elsewhere, nothing when quiet."""
    if quiet:
        yield lambda _what, _done: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("capturing the model", total=1.0)
            yield lambda what, done: bar.update(task, description=what, completed=done)
    else:
        said: dict[str, int] = {}

        def line(what: str, done: float) -> None:
            quarter = int(4 * done)
            if said.get(what) != quarter:
                said[what] = quarter
                note(f"{what} {25 * quarter} %")

        yield line


def main() -> None:
    """Run as ``python -m profiler``."""
    app()


__all__ = ["app", "main"]
