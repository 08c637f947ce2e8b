"""Which devices are used: the states of the chain solver, as multisets of device classes.

A state is a number in mixed radix, one digit a class. A further digit counts stages where their
number is limited below what the devices allow, another counts stages on a *marked* option where
there must be one. Without these digits the number is a *group*: the devices alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from planner.options import Option
from planner.problem import PlanningProblem
from planner.request import Split


@dataclass(frozen=True)
class States:
    """All states by number of devices used, and what may come next in each.

    ``levels[t]`` are the states with ``t`` devices; ``code[n]`` is what option ``n`` adds;
    ``lasts[s]`` the options that the last stage of ``s`` may have; ``nexts[s]`` those that the
    next one may have; ``final[s]`` says whether a plan may end there.
    ``s // num_counts`` is the group of devices that ``s`` uses; ``usable[n]`` says whether a plan
    may use option ``n`` at all.
    """

    levels: tuple[tuple[int, ...], ...]
    code: tuple[int, ...]
    lasts: Mapping[int, NDArray[np.int64]]
    nexts: Mapping[int, NDArray[np.int64]]
    final: Mapping[int, bool]
    size: int
    num_counts: int
    usable: NDArray[np.bool_]


def enumerate_states(
    problem: PlanningProblem, options: Sequence[Option], *, marked: int = 0
) -> States:
    """The states that ``options`` can reach; a plan has one stage on one of the last ``marked``."""
    sizes = [len(members) for members in problem.classes]
    counts = [option.counts(len(sizes)) for option in options]
    if problem.max_stages < sum(sizes):
        sizes.append(problem.max_stages)
        counts = [(*taken, 1) for taken in counts]
    num_classes = len(problem.classes)
    if problem.must_use in (Split.BATCH, Split.TENSOR):
        sizes.append(1)
        ordinary = len(options) - marked
        counts = [(*taken, int(n >= ordinary)) for n, taken in enumerate(counts)]
    weight = [prod(n + 1 for n in sizes[c + 1 :]) for c in range(len(sizes))]
    least = [
        sum(problem.class_of.get(name) == c for name in problem.required)
        for c in range(num_classes)
    ]
    taken = np.array(counts, dtype=np.int64).reshape(len(options), len(sizes))
    # All states in the order of their numbers, as a row of digits each.
    every = np.indices([n + 1 for n in sizes]).reshape(len(sizes), -1).T
    lasts = _chosen(np.all(taken[None] <= every[:, None], axis=2))
    nexts = _chosen(np.all(taken[None] + every[:, None] <= np.array(sizes), axis=2))
    ends = np.all(every[:, :num_classes] >= np.array(least), axis=1)
    usable = np.ones(len(options), dtype=np.bool_)
    if problem.targets.budgets:  # whatever devices are added, they do not come to less
        kept = problem.targets.affordable(problem.classes, every[:, :num_classes])
        ends &= kept
        code = taken @ np.array(weight)
        usable = kept[code]
        nexts = {
            state: found[kept[state + code[found]]] if kept[state] else found[:0]
            for state, found in nexts.items()
        }
    if problem.must_use in (Split.BATCH, Split.TENSOR):
        ends &= every[:, -1] == 1
    final = dict(enumerate(ends.tolist()))
    devices = every[:, :num_classes].sum(axis=1)
    levels = [
        [int(state) for state in np.flatnonzero(devices == number)]
        for number in range(sum(sizes[:num_classes]) + 1)
    ]
    return States(
        levels=tuple(tuple(level) for level in levels),
        code=tuple(int(sum(n * w for n, w in zip(c, weight, strict=True))) for c in counts),
        lasts=lasts,
        nexts=nexts,
        final=final,
        size=prod(n + 1 for n in sizes),
        usable=usable,
        num_counts=prod(n + 1 for n in sizes[num_classes:]),
    )


def _chosen(marks: NDArray[np.bool_]) -> dict[int, NDArray[np.int64]]:
    """The marked columns of each row."""
    rows, columns = np.nonzero(marks)
    begins = np.searchsorted(rows, np.arange(len(marks) + 1))
    return {row: columns[begins[row] : begins[row + 1]] for row in range(len(marks))}
