"""What one stage may run on: single devices, or groups that split the batch in given shares, or
the regions of the model in given slices.

An :class:`Option` names device *classes*, so that the work of a solver depends on how many kinds
of device there are, not on how many devices. :func:`place` turns a sequence of options into
devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod

from planner.figures import Figures
from planner.problem import PlanningProblem
from planner.room import ModelRoom
from planner.slices import Slicing, slices_within
from planner.slicings import MAX_SLICINGS, MAX_WIDTH, find_slicings
from planner.solvers.base import StageAssignment

MAX_WORK = 1e9
"""Rough number of (devices used, stage, next stage, cut) combinations that a solver may face."""
MAX_UNITS = 256
"""Larger microbatches are shared in as many equal units, not item by item."""
MAX_SHARES = 3
"""Ways to share a microbatch among one group of devices."""


@dataclass(frozen=True, slots=True)
class Option:
    """A rank per member: the class of its device and its share, in rank order.

    ``whole_batch`` options run stages that wait for the whole batch. Options with a ``slicing``
    split the stage by tensor: each share is the whole microbatch, and the stage divides those of
    these regions that lie wholly in it, one at least.
    """

    members: tuple[tuple[int, int], ...]
    whole_batch: bool = False
    slicing: Slicing = ()

    @property
    def is_group(self) -> bool:
        """Whether it splits the batch, or by tensor."""
        return len(self.members) > 1

    @property
    def is_tensor(self) -> bool:
        """Whether it splits by tensor."""
        return bool(self.slicing)

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
        groups = [o for o in self.options if o.is_group]
        nothing = ""
        if problem.tensor_splits and not any(o.is_tensor for o in groups):
            nothing = f" (slices over up to {self.largest_group} devices save no time)"
        if not groups:
            return f"each on one device{nothing}"
        size = f"up to {self.largest_group} devices"
        if self.limited:
            size += f", or all {len(problem.devices)}"
        number = len({tuple(c for c, _ in o.members) for o in groups})
        ways = "by batch or by tensor"
        limits = f"at most {MAX_SHARES} ways to share a microbatch"
        slicings = f"at most {MAX_SLICINGS} to slice the model's regions"
        if all(option.is_tensor for option in groups):
            ways, limits = "by tensor", slicings.replace("to slice", "ways to slice")
        elif not any(option.is_tensor for option in groups):
            ways = "by batch"
        else:
            limits += f", {slicings}"
        limits = f"({number} groups, {limits} in each)"
        return f"each on one device or split {ways} over {size} {limits}{nothing}"


def find_options(
    problem: PlanningProblem, figures: Figures, *, max_work: float = MAX_WORK
) -> OptionSet:
    """Every single device, and as many groups as can be searched, the smallest first."""
    singles = list(_singles(problem))
    if not problem.batch_splits and not problem.tensor_splits:
        return OptionSet(options=tuple(singles), largest_group=1, limited=False)
    sizes = [len(members) for members in problem.classes]
    everything = sum(sizes)
    largest = _largest_group(problem, sizes, max_work)
    groups = [group for size in range(2, largest + 1) for group in _groups_of(size, sizes)]
    if largest < everything > 1:
        groups.append(tuple(sizes))
    table, room = _Runs(problem, figures), ModelRoom(figures)
    options = list(singles)
    for group in groups:
        classes = [c for c, n in enumerate(group) for _ in range(n)]
        if problem.batch_splits:
            options += [
                Option(tuple(zip(classes, shares, strict=True))) for shares in table.shares(classes)
            ]
        if problem.tensor_splits and len(classes) <= MAX_WIDTH:
            whole = Option(tuple((c, problem.microbatch) for c in classes))
            (devices,) = place(problem, [whole])
            options += [
                replace(whole, slicing=slicing)
                for slicing in find_slicings(problem, figures, devices, room)
            ]
    return OptionSet(options=tuple(options), largest_group=largest, limited=largest < everything)


def place(problem: PlanningProblem, options: Sequence[Option]) -> list[tuple[str, ...]]:
    """Devices for each option, every device at most once, in the cluster's order."""
    unused = [list(members) for members in problem.classes]
    return [tuple(unused[c].pop(0) for c, _ in option.members) for option in options]


def stage_on(
    problem: PlanningProblem, option: Option, devices: Sequence[str], layers: Sequence[int]
) -> StageAssignment:
    """The stage of these layers that ``option`` stands for, on devices of its classes."""
    return StageAssignment(
        layers=tuple(layers),
        devices=tuple(devices),
        shares=tuple(share for _, share in option.members),
        whole_batch=option.whole_batch,
        slices=slices_within(problem, option.slicing, layers),
    )


def shares_of(
    problem: PlanningProblem, figures: Figures, devices: Sequence[str]
) -> list[tuple[int, ...]]:
    """Ways to share a microbatch among ranks on these devices, in this order."""
    classes = [problem.class_of[device] for device in devices]
    return _Runs(problem, figures).shares(classes)


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
    ways = MAX_SHARES * problem.batch_splits + MAX_SLICINGS * problem.tensor_splits
    # Groups by size: coefficients of the product of 1 + x + ... + x^n over the classes.
    by_size = [1]
    for n in sizes:
        total = [0, *accumulate([*by_size, *[0] * n])]
        by_size = [b - a for a, b in zip([*[0] * n, *total], total[1:], strict=False)]
    count, largest = 0, 1
    for size in range(1, sum(sizes) + 1):
        count += by_size[size]
        if states * (ways * count) ** 2 * problem.num_layers > max_work:
            break
        largest = size
    return largest


def _groups_of(size: int, sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Device counts by class that add up to ``size``, more of the earlier classes first.

    >>> list(_groups_of(2, [1, 2]))
    [(1, 1), (0, 2)]
    """
    if not sizes:
        if size == 0:
            yield ()
        return
    for n in range(min(size, sizes[0]), max(0, size - sum(sizes[1:])) - 1, -1):
        for rest in _groups_of(size - n, sizes[1:]):
            yield (n, *rest)


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

    Where times never fall with items, taking the ``items`` smallest entries is optimal; where one
    does, it counts as what fewer items took, and only shares that owe nothing to that are found.

    >>> balance([[1, 2, 3, 4], [3, 6, 9, 12]], 4)
    (3, 1)
    """
    rising = [list(accumulate(row, max)) for row in times]
    entries = sorted((t, n, r) for r, row in enumerate(rising) for n, t in enumerate(row))
    taken = Counter(r for _, _, r in entries[:items])
    return tuple(taken[r] for r in range(len(times)))
