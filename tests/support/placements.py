"""Random tiny placement problems, and short ways to solve them."""

from __future__ import annotations

import random
import time
from dataclasses import replace

from planner.placement import Charging, Flow, Operator, Place, PlacementProblem
from planner.solvers.base import SolveLimits
from profiler.errors import InvalidInputError


def limits(seconds: float = 20.0) -> SolveLimits:
    """Enough time for a tiny problem, one worker, so that answers repeat."""
    return SolveLimits(deadline=time.monotonic() + seconds)


def random_problem(
    source: random.Random, *, hosts: int = 1, unequal: bool = False
) -> PlacementProblem:
    """At most six operators on at most three devices; now and then tight, tied or zero."""
    num = source.randint(1, 6)
    kinds = ["fast", "slow"] if unequal else ["fast"]
    places = [
        Place(
            name=f"a{i}",
            kind=source.choice(kinds),
            memory_bytes=source.choice([None, 6, 10, 20]) if unequal else 10,
            transfer_factor=source.choice([0.5, 1.0]) if unequal else 1.0,
        )
        for i in range(source.randint(1, 2))
    ]
    places += [Place(name=f"h{i}", kind="host", transfer_factor=0.0) for i in range(hosts)]
    operators = []
    for i in range(num):
        fast = source.choice([0.0, 1e-9, 1.0, 2.0, 3.7, source.uniform(0, 100)])
        times = {"fast": fast, "slow": fast * 2, "host": fast * source.choice([3, 10])}
        if source.random() < 0.1:
            del times[source.choice(sorted(times))]
        operators.append(
            Operator(
                name=f"n{i}",
                times_s=times,
                size_bytes=source.choice([0, 0, 1, 3, 5]),
                together=source.choice([None, None, None, "x", "y"]),
            )
        )
    flows = []
    for i in range(num - 1):
        readers = [j for j in range(i + 1, num) if source.random() < 0.4]
        if readers:
            flows.append(
                Flow(
                    producer=f"n{i}",
                    consumers=tuple(f"n{j}" for j in readers),
                    transfer_s=source.choice([0.0, 1e-9, 0.5, 1.0, source.uniform(0, 10)]),
                )
            )
    return PlacementProblem(
        operators=tuple(operators),
        flows=tuple(flows),
        places=tuple(places),
        charging=source.choice(list(Charging)) if unequal else Charging.DEVICE,
    )


def random_problems(count: int, **options: bool) -> list[PlacementProblem]:
    """Valid random problems, by ascending seed, equal and unequal devices in turn."""
    found: list[PlacementProblem] = []
    seed = 0
    while len(found) < count:
        source = random.Random(seed)
        seed += 1
        try:
            unequal = seed % 2 == 0
            hosts = source.choice([0, 1, 1, 2]) if not options.get("one_host") else 1
            found.append(random_problem(source, hosts=hosts, unequal=unequal))
        except InvalidInputError:
            continue
    return found


def slower(problem: PlacementProblem, factor: float) -> PlacementProblem:
    """All times and transfers ``factor`` times as long."""
    return replace(
        problem,
        operators=tuple(
            replace(o, times_s={k: t * factor for k, t in o.times_s.items()})
            for o in problem.operators
        ),
        flows=tuple(replace(f, transfer_s=f.transfer_s * factor) for f in problem.flows),
    )
