"""What each limit of the request costs: the best plan found without it, beside the chosen one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from planner.alternatives import MAX_DEVICES, Chosen, Resolve
from planner.problem import PlanningProblem
from planner.searchrecord import LimitName, LimitRecord
from planner.targets import DEVICES, Targets


def limit_records(
    chosen: Chosen, problems: Sequence[PlanningProblem], resolve: Resolve
) -> tuple[LimitRecord, ...]:
    """Every limit with what is allowed, what the plan has, and the objective without it.

    ``problems`` are those of the microbatch sizes that were measured. Where the devices are the
    objective, a limit on times is what they are for: nothing is solved without it.
    """
    return tuple(_records(chosen, problems, resolve))


def _records(
    chosen: Chosen, problems: Sequence[PlanningProblem], resolve: Resolve
) -> Iterator[LimitRecord]:
    problem, price = chosen.problem, chosen.price
    request, targets = problem.request, problem.targets
    asked: list[tuple[LimitName, float | None, float, Targets]] = [
        (
            "max_latency_s",
            request.max_latency_s,
            price.latency_s,
            replace(targets, max_latency_s=math.inf),
        ),
        (
            "min_items_per_s",
            request.min_items_per_s,
            problem.batch / price.period_s if price.period_s else 0.0,
            replace(targets, max_period_s=math.inf),
        ),
        (
            "max_devices",
            request.max_devices,
            float(len(price.ranks)),
            targets.within(DEVICES, math.inf),
        ),
    ]
    for limit, allowed, actual, without in asked:
        if allowed is None:
            continue
        free_s = None
        if not request.objective.of_devices and len(problem.devices) <= MAX_DEVICES:
            free_s = _without(chosen, problems, resolve, without)
        yield LimitRecord(limit=limit, allowed=allowed, actual=actual, without_s=free_s)


def _without(
    chosen: Chosen,
    problems: Sequence[PlanningProblem],
    resolve: Resolve,
    targets: Targets,
) -> float:
    """The least objective seen without a limit; at most that of the plan, which is one of them."""
    least = chosen.objective_s
    sizes = {problem.microbatch: problem for problem in (chosen.problem, *problems)}
    for problem in sizes.values():
        found = resolve(replace(problem, targets=targets)).objective_s
        if found is not None:
            least = min(least, found)
    return least
