"""What the commands of this package print: a cluster, a profile, how far they are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from profiler.cluster import Cluster
from profiler.console import Format, note, write_file, write_json, write_result
from profiler.units import format_bytes, format_bytes_per_s, format_seconds

if TYPE_CHECKING:
    from profiler.profile import Profile

SHOWN_LINKS = 12
"""Of more measured links only these are shown; the file has all."""


def print_cluster(cluster: Cluster, output: str, form: Format) -> None:
    """Write the file (``-``: stdout), and on stderr what it holds in short."""
    if output == "-" and form is Format.JSON:
        write_json(cluster.model_dump(mode="json", exclude_none=True))
        return
    write_file(output, cluster.to_text(as_json=output.endswith(".json")))
    for name, device in cluster.device.items():
        note(
            f"{name}  {device.type}  {device.threads} thread{'s' if device.threads > 1 else ''}  "
            f"{format_bytes(device.usable_bytes)} free of {format_bytes(device.memory_bytes)}"
        )
    measured = [link for link in cluster.links if link.error_fraction is not None]
    for link in measured[:SHOWN_LINKS]:
        error = 100 * (link.error_fraction or 0.0)
        note(
            f"{link.source} -> {link.target}  {format_seconds(link.latency_s)} + "
            f"{format_bytes_per_s(link.bytes_per_s)} (+/-{error:.0f} %)  "
            f"takes {100 * link.send_occupancy:.0f} % from sending, "
            f"{100 * link.receive_occupancy:.0f} % from receiving"
            + (f"  wire {link.shares}" if link.shares else "")
        )
    if len(measured) > SHOWN_LINKS:
        note(f"and {len(measured) - SHOWN_LINKS} more links")


def print_profile(made: Profile, output: str, form: Format) -> None:
    """The profile in short, on stdout."""
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
def progress_bar(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
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
