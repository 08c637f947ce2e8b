"""``apportion plan --pareto``: the front on the screen, as a picture, as data, and as plans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.console import STDOUT, Format, note, write_file, write_result
from profiler.errors import InvalidInputError

if TYPE_CHECKING:
    from planner.frontfile import ParetoFront
    from planner.request import PlanRequest
    from profiler.cluster import Cluster
    from profiler.profile import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to write of a front: ``output`` is its data, or with a ``point`` the plan of that."""

    output: str
    svg: Path | None
    plans: Path | None
    point: int | None
    form: Format

    def require_nothing(self) -> None:
        """Refuse options that mean nothing without a front.

        Raises:
            InvalidInputError: one was given.
        """
        given = {"--pareto-svg": self.svg, "--pareto-plans": self.plans, "--point": self.point}
        for flag, value in given.items():
            if value is not None:
                raise InvalidInputError(f"{flag} goes with --pareto")


def show_front(
    profile: Profile,
    request: PlanRequest,
    cluster: Cluster | None,
    files: tuple[str, str | None],
    wanted: Wanted,
) -> None:
    """Search the front, show it and write what is wanted.

    ``files`` are what written plans call the profile and the cluster, if that has a file.

    Raises:
        InvalidInputError: there is no such point, a file cannot be written, the inputs contradict
            each other.
        InfeasiblePlanError: no plan keeps the limits of the request.
    """
    from planner.front import front as find_front
    from profiler.documents import require_writable

    for path in (wanted.svg, None if wanted.output == STDOUT else wanted.output):
        if path is not None:
            require_writable(str(path))
    if wanted.plans is not None:
        wanted.plans.mkdir(parents=True, exist_ok=True)
    from planner.written import Refs

    refs = Refs(profile=files[0], cluster=files[1])
    made = find_front(profile, request, refs=refs, cluster=cluster, report=note)
    front = made.front
    if wanted.point is not None and not 1 <= wanted.point <= len(front.points):
        raise InvalidInputError(
            f"--point {wanted.point}: the front has points 1 to {len(front.points)}"
        )
    if wanted.svg is not None:
        from planner.pareto_svg import draw

        write_file(str(wanted.svg), draw(front))
    if wanted.plans is not None:
        for point in front.points:
            path = wanted.plans / f"point-{point.number:02}.yaml"
            made.plan(point.number).dump(path)
        note(f"{len(front.points)} plans in {wanted.plans}")
    if wanted.point is not None:
        text = made.plan(wanted.point).to_text(as_json=_as_json(wanted))
        write_file(wanted.output, text)
        if wanted.output == STDOUT:  # stdout is the plan's
            return
    elif wanted.output != STDOUT:
        write_file(wanted.output, front.to_text(as_json=_as_json(wanted)))
    if wanted.form is Format.JSON:
        write_result(front.to_text(as_json=True).rstrip("\n"))
    else:
        _show(front)


def _as_json(wanted: Wanted) -> bool:
    if wanted.output == STDOUT:
        return wanted.form is Format.JSON
    return wanted.output.endswith(".json")


def _show(front: ParetoFront) -> None:
    """The table: with colours for people, plain where it is piped."""
    import sys

    from planner.pareto_text import HEADS, plain_table, summary, table_rows

    if not sys.stdout.isatty():
        write_result(plain_table(front))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    rows = list(table_rows(front))
    used = [i for i in range(len(HEADS)) if any(row[i] for row in rows)]
    for i in used:
        table.add_column(HEADS[i], justify="left" if i == len(HEADS) - 1 else "right")
    for row, point in zip(rows, front.points, strict=True):
        table.add_row(*(row[i] for i in used), style=None if point.proved else "yellow")
    console = Console(width=80, highlight=False)
    console.print(table)
    console.print()
    for line in summary(front):
        console.print(line, markup=False)
