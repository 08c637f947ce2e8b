"""Plans for eight unequal boards rehearsed on this machine: do they reach what they promise?

    python benchmarks/rehearsal.py --instance FILE [--quick] [--json FILE]

FILE is a published chain of layer times on two kinds of board (see ``benchmarks/chains.py``).
Eight ranks wait these times, made ``SPEED`` times shorter on links ``SPEED`` times as fast, and
send the real bytes. Plans are rehearsed in turn, several times each.

``rehearsal_over_bottleneck_min``: measured rate over the rate of the plan's own bottleneck, the
worst of all plans (medians over repeats). ``gain_realised_error_worst``: how far the measured gain
of the best plan over each other one is from the predicted gain. The physical limit of both is 1
and 0: nothing computes here.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import executor
import planner
from benchmarks.chains import published_chain
from benchmarks.records import Record, parser, publish, record
from planner import Plan, PlanRequest
from planner.request import Pin
from planner.rules import in_proportion
from profiler.profile import Profile

BOARDS = 4
"""Of each kind."""
SPEED = 4.0
FULL_BATCHES, QUICK_BATCHES = 40, 15


def plans(profile: Profile, request: PlanRequest) -> dict[str, Plan]:
    """The best plan and what people do without a solver."""
    boards = list(profile.cluster.device)[1:]
    num_layers = len(profile.model.layers)
    speeds = []
    for board in boards:
        rows = profile.timings_of[board].layers
        speeds.append(1.0 / sum(measured[0].median_s for measured in rows.values()))
    found = {"best": planner.plan(profile, request)}
    for name, weights in (("even", [1.0] * len(boards)), ("by speed", speeds)):
        pins, first = [], 0
        for board, count in zip(boards, in_proportion(num_layers, weights), strict=True):
            pins.append(Pin(layers=f"l{first}..{first + count - 1}", device=board))
            first += count
        wish = request.model_copy(update={"pins": tuple(pins)})
        found[name] = planner.plan(profile, wish)
    return found


def measure(path: Path, *, repeats: int, batches: int) -> list[Record]:
    """Rehearse every plan ``repeats`` times, in turn."""
    profile, request = published_chain(path, BOARDS, speed=SPEED)
    options = executor.RunOptions(profile=profile)
    made = plans(profile, request)
    periods: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(repeats):
        for name, plan in made.items():
            report = executor.rehearse(plan, batches=batches, options=options)
            assert report.period_s.measured is not None
            periods[name].append(report.period_s.measured)
    conditions = {
        "chain": path.stem,
        "ranks": 2 * BOARDS,
        "batches": batches,
        "repeats": repeats,
        "times_shorter": SPEED,
    }
    records, reached, errors = [], [], []
    best = made["best"].estimate.period_s
    measured_best = statistics.median(periods["best"])
    for name, plan in made.items():
        predicted, measured = plan.estimate.period_s, statistics.median(periods[name])
        reached.append(predicted / measured)
        spread = f"{min(periods[name]):.4f} to {max(periods[name]):.4f}"
        records.append(
            record(
                f"rehearsal_over_bottleneck_{name.replace(' ', '_')}",
                predicted / measured,
                "ratio",
                predicted_s=round(predicted, 5),
                measured_s=round(measured, 5),
                spread_s=spread,
            )
        )
        if name != "best":
            gain, realised = predicted / best, measured / measured_best
            errors.append(abs(realised / gain - 1))
            records.append(
                record(
                    f"gain_over_{name.replace(' ', '_')}",
                    realised,
                    "ratio",
                    predicted=round(gain, 4),
                )
            )
    return [
        *records,
        record("rehearsal_over_bottleneck_min", min(reached), "ratio", **conditions),
        record("gain_realised_error_worst", max(errors), "fraction", **conditions),
    ]


def main() -> None:
    """Measure and publish."""
    flags = parser(__doc__)
    flags.add_argument("--instance", type=Path, required=True, help="a published chain")
    args = flags.parse_args()
    if not args.instance.is_file():
        flags.error(f"there is no {args.instance}")
    records = measure(
        args.instance,
        repeats=2 if args.quick else 5,
        batches=QUICK_BATCHES if args.quick else FULL_BATCHES,
    )
    publish(records, args.json)


if __name__ == "__main__":
    main()
