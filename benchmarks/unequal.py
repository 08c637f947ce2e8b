"""Plans on unequal machines: apportion's, the usual rules', other tools'; predicted and measured.

    python benchmarks/unequal.py [--quick] [--json FILE] [--svg FILE] [--table FILE]
                                 [--clusters N] [--models N] [--cells FOLDER]

Emulated clusters (``examples/clusters/``: one fast and two slow processors; a slow line in the
middle; a weak device on a fast link; four all different) x models (``benchmarks/models.py``) x
objectives. Needs root. Each model is profiled by all hosts at once, then every plan's ranks stay
up and run in turn; medians over repeats count, ``same_plan_twice_worst`` is what noise alone
makes of two medians of one plan.

For each objective: the plan that apportion makes; layers split evenly, by memory, by speed; the
best device alone; ``torch.distributed.pipelining`` where it can run the model; layers filled in
order by bytes, one device busy at a time (what ``device_map`` does).

With ``--cells`` every cell is kept there when it is measured, with its profile and the cluster's
measured links; those kept before are not measured again, and the figures are over all of them: an
hour's comparison can be continued.

``compute_bound_efficiency_min``: of apportion's plans for throughput where a stage is the
bottleneck, what its devices take alone on their stages over what a batch takes. The limit is
measured with each of the turns: all ranks compute, and nothing is sent.
``compute_bound_with_messages_min``: the same with the messages in the limit for which a rationed
processor has to stop computing; ``compute_bound_of_profile_min``: the limit as profiled.
``computing_off_profile_worst``, ``one_device_error_worst``: how far computing alone, and the best
single device, whose messages hardly count, is off the profile: what the machine itself changed.
``machine_off_worst``: the worse of these; a cell that is off by more than :data:`MOVED` is measured
again, profile and all, once, and the second counts (``again``: how many).
``link_bound_efficiency_min``: where a wire is, bytes moved over it, of what its measured bandwidth
allows.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cells import (
    SEQUENTIAL,
    Ground,
    Outcome,
    compete,
    contenders,
    only_timed,
    profile_inside,
    settle,
)
from benchmarks.models import MODELS
from benchmarks.outcomes import Cell, Result, figures, keep, load, picture, table
from benchmarks.records import parser, publish
from benchmarks.torch_pipeline import torch_pipeline
from executor.emulate import emulated
from planner import Plan
from planner.request import Objective
from profiler.capture import capture
from profiler.cluster import Cluster
from profiler.documents import digest
from profiler.profile import Profile
from profiler.sources import load_model

ROOT = Path(__file__).resolve().parents[1]
CLUSTERS = ("fast_and_slow", "slow_middle", "weak_device", "all_different")
BATCH = 16
TURNS = 7
"""Of the plans that are near the best by prediction; others take part in fewer (``cells.NEAR``)."""
MOVED = 0.10
"""Cells are measured again, once, if their machine's computing is further off its profile."""
UNEQUAL_PROCESSORS = ("fast_and_slow", "weak_device", "all_different")


def measure(
    clusters: Sequence[str], models: Sequence[str], *, folder: Path | None, quick: bool
) -> Iterator[Cell]:
    """All cells that are not in ``folder``, one after another."""
    there = {(cell.cluster, cell.model) for cell in (load(folder) if folder else [])}
    for cluster_name in clusters:
        asked = Cluster.load(ROOT / "examples" / "clusters" / f"{cluster_name}.yaml")
        machines = only_timed(asked)
        measured = folder and folder / f"{cluster_name}.yaml"
        if measured and measured.exists():
            machines = Cluster.load(measured)
        for model in models:
            if (cluster_name, model) in there:
                continue
            cell, profile = _measured(machines, cluster_name, model, quick=quick)
            if abs(cell.machine_off) > MOVED:
                print(
                    f"{cluster_name} x {model}: computing alone is {100 * cell.machine_off:+.0f} % "
                    f"off its profile (at most {100 * MOVED:.0f} %): measured again",
                    file=sys.stderr,
                )
                cell, profile = _measured(machines, cluster_name, model, quick=quick)
                cell = cell.model_copy(update={"again": True})
            machines = profile.cluster
            if folder and measured:
                keep(cell, profile, folder)
                machines.dump(measured)
            yield cell


def _measured(
    machines: Cluster, cluster_name: str, model: str, *, quick: bool
) -> tuple[Cell, Profile]:
    """One cell, and what its plans are made from: the links are for the next."""
    with (
        tempfile.TemporaryDirectory(prefix="apportion-unequal-") as temporary,
        emulated(machines) as hosts,
    ):
        captured = capture(load_model(f"benchmarks.models:{model}"))
        profile = profile_inside(
            hosts,
            machines,
            f"benchmarks.models:{model}",
            folder=Path(temporary),
            batch_sizes=(4, 16) if quick else (1, 2, 4, 8, 16),
            budget_s=4.0 if quick else 40.0,
        )
        ground = Ground(hosts=hosts, profile=profile, captured=captured)
        return _cell(ground, cluster_name, model, quick=quick), profile


def _cell(ground: Ground, cluster: str, model: str, *, quick: bool) -> Cell:
    hosts, profile = ground.hosts, ground.profile
    entered = contenders(profile, batch_size=BATCH)
    repeats = 2 if quick else TURNS
    ref = f"benchmarks.models:{model}"
    outcomes = compete(ground, entered, repeats=repeats, run_s=0.8 if quick else 1.2)
    settle()
    names = [host.name for host in profile.cluster.hosts]
    torch_s: dict[str, float] = {}
    with torch_pipeline(hosts, names, ref, batch_size=BATCH, microbatches=4) as theirs:
        why_not = theirs.why_not
        if not why_not:
            for objective, what in (
                (Objective.THROUGHPUT, "batches"),
                (Objective.LATENCY, "single"),
            ):
                theirs.seconds(what, 1)
                times = [theirs.seconds(what, 2 if quick else 3) for _ in range((repeats + 1) // 2)]
                torch_s[objective] = statistics.median(times)
    ours = {one.objective: one.plan for one in entered if one.name == "apportion"}
    return Cell(
        cluster=cluster,
        model=model,
        torch_version=torch.__version__,
        items=BATCH,
        results=tuple(_result(outcome) for outcome in outcomes),
        bottlenecks={str(o): made.estimate.bottleneck for o, made in ours.items()},
        bounds_s={str(o): made.search.bound_s for o, made in ours.items()},
        torch_s=torch_s,
        torch_why_not=why_not,
    )


def _result(outcome: Outcome) -> Result:
    one = outcome.contender
    estimate = one.plan.estimate
    stage = estimate.bottleneck.startswith("pipeline")
    return Result(
        name="device map" if one.name == SEQUENTIAL else one.name,
        objective=one.objective,
        spec=digest(one.plan.spec.canonical() + str(one.one_at_a_time)),
        predicted_s=one.predicted_s,
        seconds=tuple(outcome.seconds),
        bound_by="stage" if stage else "wire",
        limit_s=_computing_s(one.plan) if stage else estimate.period_s,
        busy_s=estimate.period_s,
        limit_seconds=tuple(outcome.alone_s),
    )


def _computing_s(plan: Plan) -> float:
    """Seconds a batch that the slowest rank computes, without messages, by the profile."""
    computing = {e.rank: e.compute_s for e in plan.estimate.ranks}
    taken_s = [0.0]
    for pipeline in plan.spec.pipelines:
        for stage in pipeline.stages:
            micro = plan.spec.schedule.microbatch_size
            runs = 1 if stage.whole_batch else -(-pipeline.items // micro)
            taken_s += [runs * computing[rank] for rank in stage.ranks]
    return max(taken_s)


def main() -> None:
    """Measure and publish."""
    flags = parser(__doc__)
    flags.add_argument("--svg", type=Path, help="also draw the rates here")
    flags.add_argument("--table", type=Path, help="also write the rates here, in Markdown")
    flags.add_argument("--clusters", default=",".join(CLUSTERS), help="comma-separated names")
    flags.add_argument("--models", default=",".join(MODELS), help="comma-separated names")
    flags.add_argument("--cells", type=Path, help="keep cells here, and go on from those that are")
    args = flags.parse_args()
    clusters, models = args.clusters.split(","), args.models.split(",")
    if args.quick:
        clusters, models = clusters[:1], models[-1:]
    cells = load(args.cells) if args.cells else []
    for cell in measure(clusters, models, folder=args.cells, quick=args.quick):
        cells.append(cell)
        cell.show()
    print()
    publish(figures(cells, unequal=UNEQUAL_PROCESSORS), args.json)
    if args.svg:
        args.svg.write_text(picture(cells))
    if args.table:
        both = (table(cells, objective) for objective in (Objective.THROUGHPUT, Objective.LATENCY))
        args.table.write_text("\n".join(both))


if __name__ == "__main__":
    main()
