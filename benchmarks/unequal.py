"""Plans on unequal machines: apportion's, the usual rules', other tools'; predicted and measured.

    python benchmarks/unequal.py [--quick] [--json FILE] [--svg FILE] [--clusters N] [--models N]

Emulated clusters (``examples/clusters/``: one fast and two slow processors; a slow line in the
middle; a weak device on a fast link; four all different) x models (``benchmarks/models.py``) x
objectives. Needs root. Each model is profiled by all hosts at once, then every plan's ranks stay
up and run in turn; medians over repeats count, ``same_plan_twice_worst`` is what noise alone
makes of two medians of one plan.

For each objective: the plan that apportion makes; layers split evenly, by memory, by speed; the
fastest device alone; ``torch.distributed.pipelining`` where it can run the model; layers filled in
order by bytes, one device busy at a time (what ``device_map`` does).

``compute_bound_efficiency_min``: rate over the physical limit of the plan's own stages, which is
what their devices compute alone, where a stage is the bottleneck. ``link_bound_efficiency_min``:
bytes moved over the bottleneck wire, of what its measured bandwidth allows, where a wire is.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bars import bars_svg
from benchmarks.cells import (
    SEQUENTIAL,
    Contender,
    Outcome,
    compete,
    contenders,
    pairs,
    profile_inside,
    settle,
    without_memory_limits,
)
from benchmarks.models import MODELS
from benchmarks.records import Record, parser, publish, record
from benchmarks.torch_pipeline import torch_pipeline
from executor.emulate import EmulatedHosts, emulated
from planner.check import rederive
from planner.request import Objective
from profiler.cluster import Cluster
from profiler.profile import Profile

ROOT = Path(__file__).resolve().parents[1]
CLUSTERS = ("fast_and_slow", "slow_middle", "weak_device", "all_different")
BATCH = 16
TORCH = "torch pipelining"
UNEQUAL_PROCESSORS = ("fast_and_slow", "weak_device", "all_different")
APART = 0.10
"""Plans whose measured times differ by more are expected in the right order."""


@dataclass(kw_only=True)
class Cell:
    """One model on one cluster."""

    cluster: str
    model: str
    profile: Profile
    outcomes: list[Outcome]
    torch_s: dict[Objective, float] = field(default_factory=dict)
    torch_why_not: str = ""

    def of(self, name: str, objective: Objective) -> Outcome | None:
        """What a contender reached, if it entered."""
        for outcome in self.outcomes:
            if (outcome.contender.name, outcome.contender.objective) == (name, objective):
                return outcome
        return None


def measure(clusters: Sequence[str], models: Sequence[str], *, quick: bool) -> list[Cell]:
    """All cells, one after another."""
    cells = []
    for cluster_name in clusters:
        asked = Cluster.load(ROOT / "examples" / "clusters" / f"{cluster_name}.yaml")
        machines = without_memory_limits(asked)
        for model in models:
            with (
                tempfile.TemporaryDirectory(prefix="apportion-unequal-") as folder,
                emulated(machines) as hosts,
            ):
                profile = profile_inside(
                    hosts,
                    machines,
                    f"benchmarks.models:{model}",
                    folder=Path(folder),
                    batch_sizes=(4, 16) if quick else (1, 2, 4, 8, 16),
                    budget_s=4.0 if quick else 40.0,
                )
                machines = profile.cluster  # with measured links, for the next models
                cells.append(_cell(hosts, profile, cluster_name, model, quick=quick))
                _show(cells[-1])
    return cells


def _cell(hosts: EmulatedHosts, profile: Profile, cluster: str, model: str, *, quick: bool) -> Cell:
    entered = contenders(profile, batch_size=BATCH)
    repeats = 2 if quick else 4
    ref = f"benchmarks.models:{model}"
    run_s = 0.4 if quick else 2.0
    outcomes = compete(hosts, profile, ref, entered, repeats=repeats, run_s=run_s)
    settle()
    cell = Cell(cluster=cluster, model=model, profile=profile, outcomes=outcomes)
    names = [host.name for host in profile.cluster.hosts]
    with torch_pipeline(hosts, names, ref, batch_size=BATCH, microbatches=4) as theirs:
        cell.torch_why_not = theirs.why_not
        if not theirs.why_not:
            for objective, what in (
                (Objective.THROUGHPUT, "batches"),
                (Objective.LATENCY, "single"),
            ):
                theirs.seconds(what, 1)
                times = [theirs.seconds(what, 2 if quick else 5) for _ in range(repeats)]
                cell.torch_s[objective] = statistics.median(times)
    return cell


def _show(cell: Cell) -> None:
    """The cell as lines of the table."""
    for objective in Objective:
        best = cell.of("apportion", objective)
        assert best is not None
        print(f"\n{cell.cluster} x {cell.model}, {objective}: {BATCH} items")
        print(_line("", "predicted", "measured", "ratio", "items/s", "of best"))
        for outcome in cell.outcomes:
            one, measured_s = outcome.contender, outcome.measured_s
            if one.objective is objective:
                ratio = f"{measured_s / one.predicted_s:.3f}"
                print(_line(one.name, _ms(one.predicted_s), _ms(measured_s), ratio,
                            *_rates(measured_s, best.measured_s)))  # fmt: skip
        if objective in cell.torch_s:
            seconds = cell.torch_s[objective]
            print(_line(TORCH, "-", _ms(seconds), "-", *_rates(seconds, best.measured_s)))
        else:
            print(f"  {TORCH:<18} cannot: {cell.torch_why_not[:70]}")
        plan = best.contender.plan
        print(f"  proven bound {_ms(plan.search.bound_s)}; {plan.estimate.bottleneck}")


def _line(name: str, *figures: str) -> str:
    return f"  {name:<18}" + "".join(f"{figure:>12}" for figure in figures)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def _rates(seconds: float, best_s: float) -> tuple[str, str]:
    return f"{BATCH / seconds:.2f}", f"{best_s / seconds:.3f}"


def figures(cells: Sequence[Cell]) -> list[Record]:
    """The measures over all cells."""
    outcomes = [outcome for cell in cells for outcome in cell.outcomes]
    errors = [abs(o.measured_s / o.contender.predicted_s - 1) for o in outcomes]
    right = wrong = 0
    for cell in cells:
        for one, other in pairs(cell.outcomes):
            ratio = one.measured_s / other.measured_s
            if max(ratio, 1 / ratio) > 1 + APART:
                predicted = one.contender.predicted_s / other.contender.predicted_s
                agree = (ratio > 1) == (predicted > 1)
                right, wrong = right + agree, wrong + (not agree)
    about = {
        "clusters": len({cell.cluster for cell in cells}),
        "models": len({cell.model for cell in cells}),
        "repeats": len(outcomes[0].seconds),
        "torch": torch.__version__,
    }
    made = [
        record("estimate_error_median", statistics.median(errors), "fraction", **about),
        record("estimate_error_worst", max(errors), "fraction", plans=len(errors)),
        record(
            "order_right_fraction", right / max(1, right + wrong), "fraction", pairs=right + wrong
        ),
    ]
    compute, wires = _efficiencies(cells)
    for name, values in (
        ("compute_bound_efficiency_min", compute),
        ("link_bound_efficiency_min", wires),
    ):
        if values:
            made.append(record(name, min(values), "fraction", plans=len(values)))
    made += _gains(cells)
    made.append(record("same_plan_twice_worst", max(_twice(o) for o in outcomes), "fraction"))
    return made


def _twice(outcome: Outcome) -> float:
    """Distance of the medians of the odd and the even repeats of one plan."""
    odd, even = outcome.seconds[1::2], outcome.seconds[::2]
    return abs(statistics.median(odd) / statistics.median(even) - 1)


def _efficiencies(cells: Sequence[Cell]) -> tuple[list[float], list[float]]:
    """Of all plans for throughput: part of what the bottleneck's devices, or wire, can do alone."""
    compute, wires = [], []
    for cell in cells:
        for outcome in cell.outcomes:
            one = outcome.contender
            if one.objective is Objective.THROUGHPUT and not one.one_at_a_time:
                derived = rederive(one.plan, cell.profile)
                bottleneck = max(derived.busy_s, key=lambda name: derived.busy_s[name])
                if bottleneck.startswith("wire"):
                    wires.append(derived.busy_s[bottleneck] / outcome.measured_s)
                else:
                    compute.append(_alone_s(one, bottleneck) / outcome.measured_s)
    return compute, wires


def _alone_s(one: Contender, place: str) -> float:
    """Seconds a batch that a stage's devices compute, without messages."""
    plan = one.plan
    pipeline, _, stage = place.removeprefix("pipeline").partition(".stage")
    where = plan.spec.pipelines[int(pipeline)]
    ranks = where.stages[int(stage)].ranks
    slowest = max(e.compute_s for e in plan.estimate.ranks if e.rank in ranks)
    whole = where.stages[int(stage)].whole_batch
    runs = 1 if whole else -(-where.items // plan.spec.schedule.microbatch_size)
    return runs * slowest


def _gains(cells: Sequence[Cell]) -> list[Record]:
    """apportion beside the others: how many times as fast, the worst cell of each comparison."""
    over: dict[str, list[float]] = {}
    for cell in cells:
        for objective in Objective:
            best = cell.of("apportion", objective)
            assert best is not None
            others = {
                o.contender.name: o.measured_s
                for o in cell.outcomes
                if o.contender.objective is objective
            }
            for name, seconds in others.items():
                if name != "apportion":
                    over.setdefault(name, []).append(seconds / best.measured_s)
                    over.setdefault("every rule", []).append(seconds / best.measured_s)
                    if name == "even" and cell.cluster in UNEQUAL_PROCESSORS:
                        key = f"even_unequal_processors_{objective}"
                        over.setdefault(key, []).append(seconds / best.measured_s)
            if objective in cell.torch_s:
                over.setdefault(TORCH, []).append(cell.torch_s[objective] / best.measured_s)
    names = {"one device": "best_single", SEQUENTIAL: "device_map"}
    return [
        record(
            f"over_{names.get(name, name).replace(' ', '_')}_min",
            min(values),
            "ratio",
            median=round(statistics.median(values), 3),
            cells=len(values),
        )
        for name, values in over.items()
    ]


def picture(cells: Sequence[Cell]) -> str:
    """Rates of all contenders, each cell relative to apportion's plan."""
    groups = []
    for cell in cells:
        best = cell.of("apportion", Objective.THROUGHPUT)
        assert best is not None
        bars = {
            o.contender.name: best.measured_s / o.measured_s
            for o in cell.outcomes
            if o.contender.objective is Objective.THROUGHPUT
        }
        if Objective.THROUGHPUT in cell.torch_s:
            bars[TORCH] = best.measured_s / cell.torch_s[Objective.THROUGHPUT]
        groups.append((f"{cell.cluster.replace('_', ' ')}: {cell.model}", bars))
    return bars_svg("Measured throughput, apportion's plan = 1", groups)


def main() -> None:
    """Measure and publish."""
    flags = parser(__doc__)
    flags.add_argument("--svg", type=Path, help="also draw the rates here")
    flags.add_argument("--clusters", default=",".join(CLUSTERS), help="comma-separated names")
    flags.add_argument("--models", default=",".join(MODELS), help="comma-separated names")
    args = flags.parse_args()
    clusters, models = args.clusters.split(","), args.models.split(",")
    if args.quick:
        clusters, models = clusters[:1], models[-1:]
    cells = measure(clusters, models, quick=args.quick)
    print()
    publish(figures(cells), args.json)
    if args.svg:
        args.svg.write_text(picture(cells))


if __name__ == "__main__":
    main()
