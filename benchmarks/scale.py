"""Large clusters: how long a plan takes, how sure it is, how fast it is checked, how time grows.

    python benchmarks/scale.py [--quick] [--json FILE] [--svg FILE]

A transformer of the shape of Llama-3.1-405B on made-up clusters (``benchmarks.large``). Growth is
the exponent of the processor time of finding templates: 1 is linear, 0 is flat.
"""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.large import Shape, hierarchical_cluster, roofline_profile
from benchmarks.plot import Line, Panel, draw
from benchmarks.records import Record, parser, publish, record
from planner import PlanRequest, plan
from planner.bounds import period_bound_s
from planner.check import check_plan
from planner.figures import Figures
from planner.pools import find_pools
from planner.problem import PlanningProblem
from planner.solvers.base import SolveLimits
from planner.solvers.template_master import Columns, settle
from planner.solvers.template_tables import StageFigures

DEVICES, TYPES, ITEMS = 10_000, 6, 8192

CHECK = """
import sys, time
from planner import Plan
from planner.check import check_plan
from profiler import Profile
begun = time.perf_counter()
plan, profile = Plan.load(sys.argv[1]), Profile.load(sys.argv[2])
loaded = time.perf_counter()
findings = check_plan(plan, profile)
assert not findings, findings
assert "ortools" not in sys.modules and "planner.solvers.master" not in sys.modules
print(loaded - begun, time.perf_counter() - loaded)
"""


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of the search for templates, by the clock and of the processor."""

    wall_s: float
    processor_s: float


def main() -> None:
    """Run the measurements that were asked for."""
    asked = parser(__doc__)
    asked.add_argument("--svg", type=Path, help="draw how time grows")
    args = asked.parse_args()
    records = [*largest(), *divided()]
    layers = (126, 252) if args.quick else (12, 32, 64, 126, 252, 504, 1000)
    counts = (1000, 10_000) if args.quick else (100, 316, 1000, 3162, 10_000, 31_620)
    by_layer = {n: search(n, DEVICES) for n in layers}
    by_device = {n: search(126, n) for n in counts}
    records.append(growth("time_growth_per_layer", by_layer, least=126))
    records.append(growth("time_growth_per_device", by_device, least=1000))
    publish(records, args.json)
    if args.svg:
        args.svg.write_text(
            draw(
                [
                    Panel("layers", "seconds", [_line("10,000 devices", by_layer)]),
                    Panel("devices", "seconds", [_line("128 layers", by_device)]),
                ]
            )
        )


def largest() -> list[Record]:
    """A plan for ten thousand devices, and its check in a process of its own."""
    profile = roofline_profile(Shape(), hierarchical_cluster(DEVICES, TYPES))
    request = PlanRequest(batch_size=ITEMS, microbatch_size=1)
    begun, used = time.perf_counter(), time.process_time()
    made = plan(profile, request)
    taken, used = time.perf_counter() - begun, time.process_time() - used
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    about = {
        "devices": len(profile.cluster.device),
        "types": TYPES,
        "layers": len(profile.model.layers),
        "batch": ITEMS,
        "pipelines": len(made.spec.pipelines),
        "processor_s": round(used, 1),
    }
    with tempfile.TemporaryDirectory() as directory:
        for suffix in ("yaml", "json"):
            made.dump(Path(directory, f"plan.{suffix}"))
        profile.dump(Path(directory, "profile.json"))
        loading, checking = _checked(Path(directory), "plan.yaml")
        sizes = {
            f"{suffix}_mb": round(Path(directory, f"plan.{suffix}").stat().st_size / 1e6, 1)
            for suffix in ("yaml", "json")
        }
        loading_json, _ = _checked(Path(directory), "plan.json")
    return [
        record("devices_10000_s", taken, "s", **about),
        record("devices_10000_gap", made.search.gap, "", **about),
        record("devices_10000_memory_bytes", memory, "B", **about),
        record(
            "check_10000_s",
            loading + checking,
            "s",
            load_yaml_s=round(loading, 2),
            load_json_s=round(loading_json, 2),
            rules_s=round(checking, 2),
            **sizes,
        ),
    ]


def divided() -> list[Record]:
    """A plan for as many devices that may also divide blocks inside hosts."""
    shape = Shape()
    profile = roofline_profile(shape, hierarchical_cluster(DEVICES, TYPES), sliced=True)
    request = PlanRequest(batch_size=ITEMS, microbatch_size=1)
    begun = time.perf_counter()
    made = plan(profile, request)
    taken = time.perf_counter() - begun
    stages = [stage for pipeline in made.spec.pipelines for stage in pipeline.stages]
    about = {
        "devices": len(profile.cluster.device),
        "stages": len(stages),
        "divided_stages": sum(stage.split == "tensor" for stage in stages),
        "findings": len(check_plan(made, profile)),
    }
    return [
        record("devices_10000_tensor_s", taken, "s", **about),
        record("devices_10000_tensor_gap", made.search.gap, "", **about),
    ]


def _checked(directory: Path, name: str) -> tuple[float, float]:
    """Seconds to load a plan and its profile, and to check it."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(directory / name), str(directory / "profile.json")],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    loading, checking = map(float, done.stdout.split())
    return loading, checking


def search(num_blocks: int, num_devices: int) -> Timed:
    """The search for templates: bound and real optimum, without rounding and writing."""
    shape = Shape(num_blocks=num_blocks)
    profile = roofline_profile(shape, hierarchical_cluster(num_devices, TYPES))
    request = PlanRequest(batch_size=num_devices, microbatch_size=1)
    problem = PlanningProblem.build(profile, request, microbatch=1)
    figures = Figures(problem)
    begun, used = time.perf_counter(), time.process_time()
    pools = find_pools(problem)
    tables = StageFigures(problem, figures, pools).tables(pools.best)
    limits = SolveLimits(deadline=time.monotonic() + 600.0)
    columns = Columns(tables, pools, problem.num_microbatches, limits)
    settle(columns, period_bound_s(problem, figures))
    return Timed(time.perf_counter() - begun, time.process_time() - used)


def growth(measure: str, times: dict[int, Timed], *, least: int) -> Record:
    """The exponent with which processor time grows, by least squares over logarithms."""
    points = [(math.log(n), math.log(t.processor_s)) for n, t in times.items() if n >= least]
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum(
        (x - mean_x) ** 2 for x, _ in points
    )
    seconds = {str(n): round(t.processor_s, 2) for n, t in times.items()}
    return record(measure, slope, "", processor_s=seconds, least=least)


def _line(name: str, times: dict[int, Timed]) -> Line:
    return Line(name, [(float(n), t.processor_s) for n, t in times.items()])


if __name__ == "__main__":
    main()
