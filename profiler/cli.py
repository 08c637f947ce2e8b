"""``apportion devices``, ``profile``, ``refit`` and ``catalogue``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiler.catalogue_command import catalogue
from profiler.cli_output import print_cluster, print_profile, progress_bar
from profiler.cluster import Cluster
from profiler.console import Format, commands, note, write_json, write_result
from profiler.documents import require_writable
from profiler.errors import InvalidInputError, RankFailedError
from profiler.policy import LinkPolicy

if TYPE_CHECKING:
    from profiler.links import LinkOptions
    from profiler.measure import Effort
    from profiler.profile import Profile
    from profiler.session import ProfileOptions
    from profiler.together import TogetherOptions
    from profiler.world import World

app = commands("Models, machines and measurements.")

HostOption = Annotated[
    str | None,
    typer.Option(help="This host's name, if its own is not unique; also $APPORTION_HOST."),
]
LinksOption = Annotated[
    LinkPolicy,
    typer.Option(
        help="Measure links: auto is under torchrun, and only if the cluster file lacks some."
    ),
]
SampleOption = Annotated[
    int | None,
    typer.Option(help="Of links between equal hosts measure so many pairs; the rest get theirs."),
]
AtOnceOption = Annotated[
    int | None, typer.Option(help="Pairs of hosts that measure links at the same time at most.")
]
LinkSecondsOption = Annotated[
    float, typer.Option(help="Seconds to time messages of one direction of a link.")
]
FindWiresOption = Annotated[
    bool, typer.Option("--find-wires", help="Look for links that share a wire.")
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", help="Seconds to wait for a message or a sign of life.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


@app.command()
def devices(  # noqa: PLR0913  (one parameter a flag)
    output: Annotated[
        str, typer.Option("--output", "-o", help="Cluster file to write; - is stdout.")
    ] = "-",
    cpu_devices: Annotated[
        int, typer.Option(help="How many devices this machine's processors count as.")
    ] = 1,
    host: HostOption = None,
    links: LinksOption = LinkPolicy.AUTO,
    sample: SampleOption = None,
    at_once: AtOnceOption = None,
    link_seconds: LinkSecondsOption = 1.5,
    find_wires: FindWiresOption = False,
    timeout: TimeoutOption = 60.0,
    quiet: QuietOption = False,
    form: Annotated[
        Format, typer.Option("--format", help="On stdout: text is YAML.")
    ] = Format.TEXT,
) -> None:
    """Write what this machine, or under torchrun every host, offers as a cluster file.

    The file is to be edited by people. Several hosts, one process on each, also measure the links
    between them; rank 0 writes the file, and its first device is where inputs enter.

    Example: apportion devices --cpu-devices 2 -o cluster.yaml

    Several hosts: torchrun --nnodes 2 --nproc-per-node 1 ... -m executor devices -o cluster.yaml
    """
    from profiler.environment import Environment

    measuring = _link_choices(sample, at_once, link_seconds, find_wires=find_wires)
    environment = Environment.read()
    if environment is None:
        _refuse_alone({"--sample": sample, "--at-once": at_once, "--find-wires": find_wires})
        if output != "-":
            require_writable(output)
        from profiler.discover import discover
        from profiler.hosts import host_name

        cluster = discover(cpu_devices=cpu_devices, host=host_name(host).host)
        if links is LinkPolicy.ALWAYS:
            cluster = _measured_alone(cluster, measuring, timeout)
        print_cluster(cluster, output, form)
        return
    from profiler.hosts import discover_all, meet, with_links
    from profiler.links import measure_between

    with (
        meet(environment, host=host, timeout_s=timeout) as world,
        progress_bar(quiet=quiet or world.rank != 0) as progress,
    ):
        if world.rank == 0 and output != "-":
            require_writable(output)
        cluster = discover_all(world, cpu_devices=cpu_devices)
        warnings: tuple[str, ...] = ()
        if links is not LinkPolicy.NEVER:
            found = measure_between(world, cluster, options=replace(measuring, progress=progress))
            cluster, warnings = with_links(cluster, found.links), found.warnings
        if world.rank == 0:
            print_cluster(cluster, output, form)
            for warning in warnings:
                note(f"warning: {warning}")


def _measured_alone(cluster: Cluster, measuring: LinkOptions, timeout: float) -> Cluster:
    """This machine with the link between its devices measured, if it has several."""
    from profiler.hosts import with_links
    from profiler.loopback import measure_loopback

    (host,) = cluster.hosts
    if len(host.devices) < 2:
        raise InvalidInputError(
            f"host {host.name} has one device, so there is no link to measure: give --cpu-devices, "
            "or start one process on each of several hosts with torchrun"
        )
    made = measure_loopback(host, budget_s=measuring.budget_s, timeout_s=timeout)
    return with_links(cluster, [made])


def _refuse_alone(flags: Mapping[str, object]) -> None:
    """Refuse what only several hosts can do, rather than ignore it."""
    given = [name for name, value in flags.items() if value]
    if given:
        raise InvalidInputError(
            f"{', '.join(given)}: needs several hosts; start one process on each with torchrun"
        )


def _link_choices(
    sample: int | None, at_once: int | None, link_seconds: float, *, find_wires: bool
) -> LinkOptions:
    for flag, value in (("--sample", sample), ("--at-once", at_once)):
        if value is not None and value < 1:
            raise InvalidInputError(f"{flag} is a number of pairs, 1 or more; not {value}")
    if not 0 < link_seconds < 3600:
        raise InvalidInputError(f"--link-seconds is a time above 0 s, not {link_seconds:g}")
    from profiler.links import LinkOptions

    return LinkOptions(budget_s=link_seconds, sample=sample, at_once=at_once, find_wires=find_wires)


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
        Path | None,
        typer.Option("--cluster", "-c", help="Cluster file; default: the hosts there are."),
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option(help="Comma-separated, such as 1,4,16; default: 1, 2, 4, ...")
    ] = None,
    cpu_devices: Annotated[
        int, typer.Option(help="Without --cluster: devices a host's processors count as.")
    ] = 1,
    length: Annotated[
        int | None, typer.Option(help="Tokens of the inputs made for a model directory.")
    ] = None,
    budget: Annotated[
        float, typer.Option(help="Seconds to measure one kind of device at most.")
    ] = 120.0,
    by_type: Annotated[
        bool,
        typer.Option("--by-type", help="Under torchrun: measure the first device of each type."),
    ] = False,
    host: HostOption = None,
    links: LinksOption = LinkPolicy.AUTO,
    sample: SampleOption = None,
    at_once: AtOnceOption = None,
    link_seconds: LinkSecondsOption = 1.5,
    find_wires: FindWiresOption = False,
    timeout: TimeoutOption = 60.0,
    refit: Annotated[
        list[Path] | None,
        typer.Option(help="Run report to fold back instead of measuring; see apportion refit."),
    ] = None,
    quiet: QuietOption = False,
    form: Annotated[Format, typer.Option("--format", help="Summary on stdout.")] = Format.TEXT,
) -> None:
    """Measure a model on the devices of a cluster and write the profile.

    Under torchrun, one process on each host, every host measures its own devices and rank 0 writes
    the profile of all of them. An interrupted run keeps what it measured beside the output
    (OUTPUT.partial; OUTPUT.HOST.partial on each of several hosts) and goes on from there when
    started again.

    Example: apportion profile examples.digits:build -c cluster.yaml -o profile.json

    Several hosts: torchrun --nnodes 2 --nproc-per-node 1 ... -m executor profile MODEL -o p.json
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
    _profile_target(output)
    from profiler.environment import Environment
    from profiler.measure import Effort
    from profiler.session import ProfileOptions, profile_model

    measuring = _link_choices(sample, at_once, link_seconds, find_wires=find_wires)
    options = ProfileOptions(length=length)
    effort = Effort(budget_s=budget)
    environment = Environment.read()
    if environment is not None:
        from profiler.hosts import meet
        from profiler.together import TogetherOptions

        together = TogetherOptions(
            links=links, measuring=measuring, by_type=by_type, cpu_devices=cpu_devices
        )
        with meet(environment, host=host, timeout_s=timeout) as world:
            job = _Job(model, cluster, sizes, effort, options, together)
            made = _profile_as_rank(world, job, output, quiet=quiet)
        if environment.rank == 0:
            print_profile(made, output, form)
        return
    if links is LinkPolicy.ALWAYS:
        raise InvalidInputError(
            "one process cannot measure links: start one on each host with torchrun, or let "
            "apportion devices --links always measure those within this machine"
        )
    _refuse_alone(
        {
            "--sample": sample,
            "--at-once": at_once,
            "--find-wires": find_wires,
            "--by-type": by_type,
        }
    )
    target = require_writable(output)
    from profiler.discover import discover
    from profiler.hosts import host_name

    name = host_name(host).host
    machines = Cluster.load(cluster) if cluster else discover(cpu_devices=cpu_devices, host=name)
    partial = target.with_name(target.name + ".partial")
    with progress_bar(quiet=quiet) as progress, _keeping(partial):
        made = profile_model(
            model,
            cluster=machines,
            batch_sizes=sizes,
            effort=effort,
            options=replace(options, journal=partial, progress=progress),
        )
    made.dump(target)
    partial.unlink(missing_ok=True)
    print_profile(made, output, form)


@dataclass(frozen=True)
class _Job:
    """What is to be profiled, and how."""

    model: str
    cluster: Path | None
    batch_sizes: list[int] | None
    effort: Effort
    options: ProfileOptions
    together: TogetherOptions


def _profile_as_rank(world: World, job: _Job, output: str, *, quiet: bool) -> Profile:
    """One of several processes: all measure, rank 0 writes, then all drop what they kept."""
    from profiler.together import profile_together

    target = require_writable(output)
    partial = target.with_name(f"{target.name}.{world.host}.partial")
    leads = world.rank == 0
    with progress_bar(quiet=quiet or not leads) as progress, _keeping(partial):
        merged = profile_together(
            world,
            job.model,
            cluster=Cluster.load(job.cluster) if leads and job.cluster is not None else None,
            batch_sizes=job.batch_sizes,
            effort=job.effort,
            options=replace(job.options, journal=partial, progress=progress),
            together=job.together,
        )
        if leads:
            merged.profile.dump(target)
        world.broadcast("writing the profile", True)
    partial.unlink(missing_ok=True)
    if leads:
        for warning in merged.warnings:
            note(f"warning: {warning}")
    return merged.profile


@contextmanager
def _keeping(partial: Path) -> Iterator[None]:
    """Says where the measurements are if what is inside is interrupted."""
    try:
        yield
    except (KeyboardInterrupt, RankFailedError):
        if partial.exists():
            note(f"what was measured is kept in {partial}; the same command goes on from there")
        raise


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


app.command()(catalogue)


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


def main() -> None:
    """Run as ``python -m profiler``."""
    app()


__all__ = ["app", "main"]
