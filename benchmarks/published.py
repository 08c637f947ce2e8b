"""Placement of published and of made-up graphs: objective, bound, gap and time, with their proof.

    python benchmarks/published.py [--quick] [--json FILE] [--data FOLDER]

FOLDER holds ``throughput/*.json`` and ``latency/*.json`` in the published form (see
``planner.placement.read_instance``); without it only made-up graphs are solved. Throughput files
whose name ends in ``_layer`` are also solved with transfer costs times 1000, because in them
transfers are in seconds and times in milliseconds. Every answer is derived again by the checker.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from placements import GENERATED
from records import Record, parser, publish, record

from planner.placement import (
    PlacementProblem,
    PlacementResult,
    check_latency,
    check_loads,
    greedy_latency,
    place_any,
    place_contiguous,
    place_latency,
    read_instance,
)
from planner.solvers.base import SolveLimits, SolveStatus

WORKERS = 2
LEAST_REFERENCE_S = 5.0
CONTIGUOUS_S, ANY_S, LATENCY_S = 300.0, 120.0, 120.0
GENERATED_ANY_S = 60.0
QUICK_ANY_S, QUICK_LATENCY_S = 4.0, 6.0
QUICK_GENERATED = ("translation", "encoder_training")

REFERENCES_S: dict[str, float] = {}
"""Wall time of the reference program where it is longer than LEAST_REFERENCE_S, by instance."""

GREEDY = {"bert24_layer": 100.2185, "bert_l-3_operator": 416.204}
"""Latencies by the greedy program that comes with the published files."""


@dataclass(frozen=True)
class Cell:
    """One answer to one question about one instance."""

    instance: str
    question: str
    published: bool
    result: PlacementResult
    seconds: float
    greedy: float | None = None

    def record(self) -> Record:
        """Objective with everything that is known about it."""
        bound, gap = self.result.bound_s, self.result.gap
        return record(
            f"{self.question}_objective",
            math.inf if self.result.objective_s is None else self.result.objective_s,
            "time",
            instance=self.instance,
            status=str(self.result.status),
            bound="-" if bound is None else f"{bound:.6f}",
            gap="-" if gap is None else f"{gap:.2%}",
            seconds=f"{self.seconds:.2f}",
            method=self.result.method,
        )


def limits(seconds: float) -> SolveLimits:
    """All that a cell may use."""
    return SolveLimits(deadline=time.monotonic() + seconds, workers=WORKERS)


def timed(solve: Callable[[], PlacementResult]) -> tuple[PlacementResult, float]:
    """A result and its wall time."""
    start = time.monotonic()
    result = solve()
    return result, time.monotonic() - start


def loads(name: str, problem: PlacementProblem, *, published: bool, any_s: float) -> Iterator[Cell]:
    """Contiguous and any placement by largest load."""
    line, seconds = timed(lambda: place_contiguous(problem, limits(CONTIGUOUS_S)))
    verify(problem, line, contiguous=True)
    yield Cell(name, "contiguous", published, line, seconds)
    start = line.placement
    free, seconds = timed(lambda: place_any(problem, limits(any_s), start=start))
    verify(problem, free, contiguous=False)
    yield Cell(name, "noncontiguous", published, free, seconds)


def verify(problem: PlacementProblem, result: PlacementResult, *, contiguous: bool) -> None:
    """Stop the benchmark if the checker sees another objective, or a rule broken."""
    if result.placement is None:
        return
    seen = check_loads(problem, result.placement.devices, contiguous=contiguous)
    assert not seen.violations, seen
    assert math.isclose(seen.objective_s, result.objective_s or 0.0, rel_tol=1e-9)


def latency(name: str, problem: PlacementProblem, *, published: bool, seconds: float) -> Cell:
    """One sample, one job per accelerator."""
    result, took = timed(lambda: place_latency(problem, limits(seconds)))
    if result.placement is not None:
        jobs = result.placement.jobs
        seen = check_latency(problem, result.placement.devices, jobs, max_jobs=1)
        assert not seen.violations, seen
        assert math.isclose(seen.objective_s, result.objective_s or 0.0, rel_tol=1e-9)
    greedy = GREEDY.get(name) if published else None
    own = greedy_latency(problem).objective_s
    return Cell(name, "latency", published, result, took, greedy or own)


def cells(data: Path | None, *, quick: bool) -> Iterator[Cell]:
    """All cells; the published ones first."""
    any_s = QUICK_ANY_S if quick else ANY_S
    latency_s = QUICK_LATENCY_S if quick else LATENCY_S
    if data is not None:
        for path in sorted((data / "throughput").glob("*.json")):
            scales = (1, 1000) if path.stem.endswith("_layer") else (1,)
            for scale in scales:
                name = path.stem if scale == 1 else f"{path.stem} x{scale}"
                problem = read_instance(path, transfer_scale=scale)
                yield from loads(name, problem, published=True, any_s=any_s)
        for path in sorted((data / "latency").glob("*.json")):
            problem = read_instance(path)
            yield latency(path.stem, problem, published=True, seconds=latency_s)
    for name, make in GENERATED.items():
        if not quick or name in QUICK_GENERATED:
            free_s = min(any_s, GENERATED_ANY_S)
            yield from loads(name, make(), published=False, any_s=free_s)


def summary(done: list[Cell]) -> list[Record]:
    """The measures, over published instances if there are any, else over all."""
    chosen = [c for c in done if c.published] or done
    line = [c for c in chosen if c.question == "contiguous"]
    free = [c for c in chosen if c.question == "noncontiguous"]
    single = [c for c in chosen if c.question == "latency"]
    about = {"instances": "published" if chosen[0].published else "made up"}
    unproved = sum(c.result.status is not SolveStatus.OPTIMAL for c in line)
    found = [record("published_contiguous_unproved", unproved, "count", **about)]
    over = [c.seconds / max(LEAST_REFERENCE_S, REFERENCES_S.get(c.instance, 0.0)) for c in line]
    found.append(record("published_time_over_reference_worst", max(over), "ratio", **about))
    worst = max(_gap(c) for c in free)
    found.append(record("published_noncontiguous_gap_worst", worst, "ratio", **about))
    if single:
        ratios = [(c.result.objective_s or math.inf) / (c.greedy or math.inf) for c in single]
        found.append(record("published_latency_over_greedy_worst", max(ratios), "ratio", **about))
        worst = max(_gap(c) for c in single)
        found.append(record("published_latency_gap_worst", worst, "ratio", **about))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found.append(record("published_peak_memory", peak, "bytes", cells=len(done)))
    return found


def _gap(cell: Cell) -> float:
    return math.inf if cell.result.gap is None else cell.result.gap


def main() -> None:
    """Run, print, write."""
    flags = parser(__doc__)
    flags.add_argument("--data", type=Path, help="folder of published instances")
    chosen = flags.parse_args()
    if chosen.data is not None and not (chosen.data / "throughput").is_dir():
        sys.exit(f"{chosen.data} has no folder throughput: pass the one above it")
    done = []
    for cell in cells(chosen.data, quick=chosen.quick):
        done.append(cell)
        publish([cell.record()], None)
        sys.stdout.flush()
    print()
    publish([*(cell.record() for cell in done), *summary(done)], chosen.json)


if __name__ == "__main__":
    main()
