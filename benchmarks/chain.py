"""The chain solver: equal to brute force on small instances, and how long large ones take.

    python benchmarks/chain.py [--quick] [--json FILE] [--instance FILE]

``--instance`` takes a chain of published layer times on two kinds of board (JSON with ``types``,
``elements_out``, ``elements_in``, ``memory_megabytes``, ``batch``) and prints its optima.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.chains import chain_profile, published_chain
from benchmarks.records import Record, parser, publish
from planner.cost import CostModel
from planner.problem import PlanningProblem
from planner.request import Objective, PlanRequest, Split
from planner.solvers.base import TOLERANCE, SolveLimits, SolverResult, SolveStatus
from planner.solvers.chain import ChainSolver
from planner.solvers.exhaustive import ExhaustiveSolver
from profiler.cluster import Cluster, DefaultLink, Device, Host, Link
from profiler.errors import InvalidInputError
from profiler.profile import Profile
from tests.support.worlds import random_chain

Records = list[Record]


def main() -> None:
    """Run the measurements that were asked for."""
    flags = parser(__doc__)
    flags.add_argument("--instance", type=Path, help="a published chain to solve as well")
    args = flags.parse_args()
    records = [mismatches(300 if args.quick else 1500)]
    records += [
        timed("chain_48x8_s", chain(48, [4, 4], same_links=True), 3 if args.quick else 9),
        timed("chain_96x12_s", chain(96, [1] * 12, same_links=False), 1 if args.quick else 3),
        timed("chain_96x14_s", chain(96, [1] * 14, same_links=False), 1),
    ]
    records += with_tensor(1 if args.quick else 3)
    if args.instance:
        records += [published(args.instance, count) for count in (1, 2, 4, 8)]
    publish(records, args.json)


def mismatches(count: int) -> Record:
    """Random small chains whose proved optimum differs from brute force."""
    wrong = proved = compared = seed = 0
    while compared < count:
        profile, request, microbatch = random_chain(random.Random(seed))
        seed += 1
        try:
            problem = PlanningProblem.build(profile, request, microbatch=microbatch)
        except InvalidInputError:
            continue
        compared += 1
        cost = CostModel(problem)
        one = ChainSolver().solve(problem, cost=cost, limits=SolveLimits())
        other = ExhaustiveSolver().solve(problem, cost=cost, limits=SolveLimits())
        proved += one.status in (SolveStatus.OPTIMAL, SolveStatus.INFEASIBLE)
        wrong += not _agree(one, other)
    return {
        "measure": "chain_vs_exhaustive_mismatches",
        "value": wrong,
        "unit": "count",
        "conditions": {"instances": compared, "proved": proved, "objectives": "both"},
    }


def _agree(one: SolverResult, other: SolverResult) -> bool:
    if one.objective_s is None or other.objective_s is None:
        return one.objective_s is other.objective_s
    if one.status is SolveStatus.OPTIMAL:
        return abs(one.objective_s - other.objective_s) <= TOLERANCE * other.objective_s
    return (one.bound_s or 0.0) <= other.objective_s * (1 + TOLERANCE)


def with_tensor(repeats: int) -> Records:
    """The same where every layer can be divided, beside stages on one device, on tight memory."""
    records: Records = []
    for name, layers, counts, objective in (
        ("24x6", 24, [1] * 6, Objective.THROUGHPUT),
        ("24x6_latency", 24, [1] * 6, Objective.LATENCY),
        ("48x8", 48, [4, 4], Objective.THROUGHPUT),
        ("48x8_unlike", 48, [1] * 8, Objective.THROUGHPUT),
        ("96x12", 96, [1] * 12, Objective.THROUGHPUT),
    ):
        profile = chain(layers, counts, same_links=len(counts) == 2, units=16)
        whole = timed(f"whole_{name}_s", profile, repeats, objective=objective)
        splits = (Split.LAYERS, Split.TENSOR)
        sliced = timed(f"tensor_{name}_s", profile, repeats, objective=objective, splits=splits)
        over = sliced["value"] / whole["value"]
        sliced["conditions"]["over_whole"] = round(over, 2)
        records += [whole, sliced]
    return records


def timed(
    measure: str,
    profile: Profile,
    repeats: int,
    *,
    objective: Objective = Objective.THROUGHPUT,
    splits: tuple[Split, ...] = (Split.LAYERS,),
) -> Record:
    """Median seconds from a profile to a proved optimum."""
    request = PlanRequest(objective=objective, batch_size=8, microbatch_size=1, splits=splits)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        problem = PlanningProblem.build(profile, request, microbatch=1)
        result = ChainSolver().solve(
            problem,
            cost=CostModel(problem),
            limits=SolveLimits(deadline=time.monotonic() + 300),
        )
        seconds.append(time.perf_counter() - start)
    gap = (result.objective_s or 0.0) / (result.bound_s or math.inf) - 1
    return {
        "measure": measure,
        "value": statistics.median(seconds),
        "unit": "s",
        "conditions": {
            "layers": len(profile.model.layers),
            "devices": len(profile.cluster.device),
            "status": str(result.status),
            "gap": round(gap, 5),
            "objective": str(objective),
            "repeats": repeats,
            "worst_s": round(max(seconds), 4),
        },
    }


def chain(
    num_layers: int, counts: list[int], *, same_links: bool, seed: int = 1, units: int = 0
) -> Profile:
    """Random layer times on devices of several types, with transfers that occupy them a little.

    Layers of ``units`` are heavy: a third of the model fits a device.
    """
    rng = random.Random(seed)
    types = [f"type{k}" for k, count in enumerate(counts) for _ in range(count)]
    names = [f"n{i}" for i in range(len(types))]
    base = [rng.uniform(0.5, 5.0) * 1e-3 for _ in range(num_layers)]
    speed = {kind: rng.uniform(0.4, 2.5) for kind in dict.fromkeys(types)}
    links = () if same_links else tuple(
        Link(
            source=a,
            target=b,
            latency_s=1e-4,
            bytes_per_s=rng.uniform(2e7, 2e8),
            send_occupancy=rng.uniform(0, 1), receive_occupancy=rng.uniform(0, 1),
        )
        for a in names
        for b in names
        if a != b
    )  # fmt: skip
    cluster = Cluster(
        hosts=tuple(
            Host(name=n, devices=(Device(name="cpu", type=kind, memory_bytes=2**33),))
            for n, kind in zip(names, types, strict=True)
        ),
        links=links,
        default_link=DefaultLink(
            latency_s=1e-4, bytes_per_s=1.25e8, send_occupancy=0.3, receive_occupancy=0.3
        ),
    )
    seconds = {
        kind: [t * speed[kind] * rng.uniform(0.8, 1.25) for t in base]
        for kind in dict.fromkeys(types)
    }
    return chain_profile(
        cluster,
        seconds,
        widths=[rng.choice((4096, 16384, 65536)) for _ in range(num_layers + 1)],
        weights=[3 * 2**33 // num_layers if units else 2**20] * num_layers,
        units=units,
    )


def published(path: Path, count: int) -> Record:
    """Optimum of a published chain with ``count`` boards of each kind."""
    profile, request = published_chain(path, count)
    start = time.perf_counter()
    problem = PlanningProblem.build(profile, request, microbatch=request.batch_size)
    result = ChainSolver().solve(problem, cost=CostModel(problem), limits=SolveLimits())
    return {
        "measure": f"published_{count}+{count}_s",
        "value": result.objective_s,
        "unit": "s",
        "conditions": {
            "status": str(result.status),
            "bound_s": result.bound_s,
            "solve_s": round(time.perf_counter() - start, 3),
        },
    }


if __name__ == "__main__":
    main()
