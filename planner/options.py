"""What one stage may run on: single devices, or groups that split the batch in given shares.

An :class:`Option` names device *classes*, so that the work of a solver depends on how many kinds
of device there are, not on how many devices. :func:`place` turns a sequence of options into
devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from planner.figures import Figures
from planner.problem import PlanningProblem

MAX_WORK = 1e9
"""Rough number of (devices used, stage, next stage, cut) combinations that a solver may face."""
MAX_UNITS = 256
"""Larger microbatches are shared in as many equal units, not item by item."""
MAX_SHARES = 3
"""Ways to share a microbatch among one group of devices."""


@dataclass(frozen=True, slots=True)
class Option:
    """A rank per member: the class of its device and its share, in rank order.

    ``whole_batch`` options run stages that wait for the whole batch.
    """

    members: tuple[tuple[int, int], ...]
    whole_batch: bool = False

    @property
    def is_group(self) -> bool:
        """Whether it splits the batch."""
        return len(self.members) > 1

    def counts(self, num_classes: int) -> tuple[int, ...]:
        """Devices it takes of each class."""
        taken = Counter(c for c, _ in self.members)
        return tuple(taken[c] for c in range(num_classes))


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionSet:
    """The options of a problem, single devices first, and what was left out."""

    options: tuple[Option, ...]
    largest_group: int
    limited: bool

    def describe(self, problem: PlanningProblem) -> str:
        """The part of the search space that the options stand for."""
        if not any(option.is_group for option in self.options):
            return "each on one device"
        groups = len({tuple(c for c, _ in o.members) for o in self.options if o.is_group})
        size = f"up to {self.largest_group} devices"
        if self.limited:
            size += f", or all {len(problem.devices)}"
        return (
            f"each on one device or split by batch over {size} "
            f"({groups} groups, at most {MAX_SHARES} ways to share a microbatch in each)"
        )


def find_options(
    problem: PlanningProblem, figures: Figures, *, max_work: float = MAX_WORK
) -> OptionSet:
    """Every single device, and as many groups as can be searched, the smallest first."""
    singles = list(_singles(problem))
    if not problem.batch_splits:
        return OptionSet(options=tuple(singles), largest_group=1, limited=False)
    sizes = [len(members) for members in problem.classes]
    everything = sum(sizes)
    largest = _largest_group(problem, sizes, max_work)
    groups = sorted(
        (
            group
            for group in product(*(range(n + 1) for n in sizes))
            if 2 <= sum(group) <= largest or (sum(group) == everything > 1)
        ),
        key=lambda group: (sum(group), [-n for n in group]),
    )
    table = _Runs(problem, figures)
    options = list(singles)
    for group in groups:
        classes = [c for c, n in enumerate(group) for _ in range(n)]
        options += [
            Option(tuple(zip(classes, shares, strict=True))) for shares in table.shares(classes)
        ]
    return OptionSet(options=tuple(options), largest_group=largest, limited=largest < everything)


def place(problem: PlanningProblem, options: Sequence[Option]) -> list[tuple[str, ...]]:
    """Devices for each option, every device at most once, in the cluster's order."""
    unused = [list(members) for members in problem.classes]
    return [tuple(unused[c].pop(0) for c, _ in option.members) for option in options]


def _singles(problem: PlanningProblem) -> Iterator[Option]:
    needed = {i in problem.whole_batch for i in range(problem.num_layers)}
    for c in range(len(problem.classes)):
        if False in needed:
            yield Option(((c, problem.microbatch),))
        if True in needed:
            yield Option(((c, problem.batch),), whole_batch=True)


def _largest_group(problem: PlanningProblem, sizes: Sequence[int], max_work: float) -> int:
    """The largest group size whose options can all be searched together."""
    states = prod(n + 1 for n in sizes)
    by_size = Counter(sum(group) for group in product(*(range(n + 1) for n in sizes)))
    count, largest = 0, 1
    for size in range(1, sum(sizes) + 1):
        count += by_size[size]
        if states * (MAX_SHARES * count) ** 2 * problem.num_layers > max_work:
            break
        largest = size
    return largest


class _Runs:
    """Times of typical runs of layers at every share, to balance groups by."""

    def __init__(self, problem: PlanningProblem, figures: Figures) -> None:
        cuttable = [
            i
            for i in range(problem.num_layers)
            if i not in problem.whole_batch and i not in problem.one_device
        ]
        kinds: dict[str, list[int]] = {}
        for i in cuttable:
            kinds.setdefault(problem.graph.layers[i].twin, []).append(i)
        first = [members[0] for members in problem.classes]
        self.items = problem.microbatch
        self.unit = -(-self.items // MAX_UNITS)
        items = [min(n, self.items) for n in range(self.unit, self.items + self.unit, self.unit)]
        each = {
            twin: [[figures.time_s(run[0], device, n) for n in items] for device in first]
            for twin, run in kinds.items()
        }
        whole = [
            [sum(len(kinds[twin]) * each[twin][c][n] for twin in kinds) for n in range(len(items))]
            for c in range(len(first))
        ]
        # The kinds that weigh most first, so that the limit on shares drops the least.
        weight = {twin: len(kinds[twin]) * sum(t[-1] for t in each[twin]) for twin in kinds}
        order = sorted(kinds, key=lambda twin: (-weight[twin], twin))
        self.tables = [whole, *(each[twin] for twin in order)] if kinds else []

    def shares(self, classes: Sequence[int]) -> list[tuple[int, ...]]:
        """Different ways to share a microbatch, each the best for some run; none is empty."""
        if len(classes) > self.items:
            return []
        found: list[tuple[int, ...]] = []
        for table in self.tables[: 4 * MAX_SHARES]:
            shares = self._in_items(balance([table[c] for c in classes], len(table[0])))
            if min(shares) > 0 and shares not in found:
                found.append(shares)
                if len(found) == MAX_SHARES:
                    break
        return found

    def _in_items(self, units: tuple[int, ...]) -> tuple[int, ...]:
        """Items for shares in units; the last unit is not full, which the largest share bears."""
        shares = [n * self.unit for n in units]
        shares[units.index(max(units))] -= sum(shares) - self.items
        return tuple(shares)


def balance(times: Sequence[Sequence[float]], items: int) -> tuple[int, ...]:
    """Shares of ``items`` that make the slowest least; ``times[r][n - 1]`` is rank r's for n.

    Times never fall with items, so taking the ``items`` smallest entries is optimal.

    >>> balance([[1, 2, 3, 4], [3, 6, 9, 12]], 4)
    (3, 1)
    """
    entries = sorted((t, n, r) for r, row in enumerate(times) for n, t in enumerate(row))
    taken = Counter(r for _, _, r in entries[:items])
    return tuple(taken[r] for r in range(len(times)))
