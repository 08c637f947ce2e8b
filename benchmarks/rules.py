"""Plans beside the rules that people use, on random unequal clusters.

    python benchmarks/rules.py [--quick] [--json FILE]

Rules: even layer counts, counts by memory, counts by speed, the best single device. The ratio is a
rule's time between batches over the plan's; below one would be a plan worse than a rule. Rules
whose plan does not fit into memory are counted apart.
"""

from __future__ import annotations

import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.chains import chain_profile
from benchmarks.records import Record, parser, publish, record
from planner import PlanRequest, plan
from planner.request import Limits
from profiler.cluster import Cluster, DefaultLink, Device, Host, Link
from profiler.errors import InfeasiblePlanError
from profiler.profile import Profile

CLUSTERS, QUICK = 200, 30
TIME_S = 3.0


def main() -> None:
    """Compare on every cluster, and print what came of it."""
    args = parser(__doc__).parse_args()
    publish(compare(QUICK if args.quick else CLUSTERS), args.json)


def compare(count: int) -> list[Record]:
    """Ratios of rules to plans on ``count`` clusters that hold the model."""
    ratios: dict[str, list[float]] = {}
    best: list[float] = []
    unfit: dict[str, int] = {}
    seed = proved = 0
    while len(best) < count:
        profile = unequal(random.Random(seed))
        seed += 1
        try:
            made = plan(
                profile,
                PlanRequest(batch_size=16, microbatch_size=1, limits=Limits(time_s=TIME_S)),
            )
        except InfeasiblePlanError:
            continue
        proved += made.search.status == "optimal"
        here = []
        for rival in made.search.alternatives:
            name = rival.plan.split(" (")[0]
            if not name.startswith(("even", "layer counts", "best single")):
                continue
            if rival.objective_s is None:
                unfit[name] = unfit.get(name, 0) + 1
            else:
                here.append(rival.objective_s / made.search.objective_s)
                ratios.setdefault(name, []).append(here[-1])
        # Where no rule fits, there is nothing to compare with.
        best.append(min(here) if here else float("nan"))
    known = [ratio for ratio in best if ratio == ratio]
    about = {"clusters": count, "proved": proved, "no_rule_fits": count - len(known)}
    records = [
        record("over_rules_min", min(known), "", **about),
        record("over_rules_median", statistics.median(known), "", **about),
    ]
    for name, found in sorted(ratios.items()):
        records.append(
            record(
                f"over_{name.replace(' ', '_')}_median",
                statistics.median(found),
                "",
                least=round(min(found), 4),
                most=round(max(found), 2),
                does_not_fit=unfit.get(name, 0),
            )
        )
    return records


def unequal(rng: random.Random) -> Profile:
    """A chain of 8 to 40 layers on 2 to 7 devices of 1 to 4 types behind unequal links."""
    num_layers = rng.randint(8, 40)
    kinds = [f"type{k}" for k in range(rng.randint(1, 4))]
    types = [rng.choice(kinds) for _ in range(rng.randint(2, 7))]
    memory = {kind: rng.choice((2, 4, 8, 16)) * 2**30 for kind in kinds}
    speed = {kind: rng.uniform(1.0, 12.0) for kind in kinds}
    base = [rng.lognormvariate(0.0, 0.6) * 1e-3 for _ in range(num_layers)]
    seconds = {kind: [t * speed[kind] * rng.uniform(0.8, 1.25) for t in base] for kind in kinds}
    names = [f"n{i}" for i in range(len(types))]
    links = tuple(
        Link(
            source=a,
            target=b,
            latency_s=rng.uniform(5e-5, 1e-3),
            bytes_per_s=10 ** rng.uniform(7.3, 9.5),
            send_occupancy=rng.choice((0.0, 0.3, 1.0)),
            receive_occupancy=rng.choice((0.0, 0.3, 1.0)),
        )
        for a in names
        for b in names
        if a != b and rng.random() < 0.5
    )
    cluster = Cluster(
        hosts=tuple(
            Host(name=n, devices=(Device(name="cpu", type=kind, memory_bytes=memory[kind]),))
            for n, kind in zip(names, types, strict=True)
        ),
        links=links,
        default_link=DefaultLink(
            latency_s=1e-4, bytes_per_s=1.25e8, send_occupancy=0.3, receive_occupancy=0.3
        ),
    )
    total = rng.choice((1, 4, 12)) * 2**30
    return chain_profile(
        cluster,
        seconds,
        widths=[rng.choice((1024, 16384, 65536)) for _ in range(num_layers + 1)],
        weights=[total // num_layers] * num_layers,
    )


if __name__ == "__main__":
    main()
