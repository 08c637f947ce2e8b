"""Choosing the blocks of one device by dynamic programming: the dearest set, or the best split.

Blocks come in an order that keeps few nets open. A state says of each open net whether none, all
or some of its blocks so far are chosen; the load of the chosen ones is counted in ticks up to a
ceiling. Two questions are answered that way:

* :class:`Pricer`: maximise the sum of prices over sets that fit below a ceiling. Loads are rounded
  down, so that every set that fits is looked at: what is found is an upper bound.
* :class:`Splitter`: share out the blocks of two devices between them again so that the larger
  load is least. Loads of one device are rounded up, those of the other are exact: what is found
  is no worse than it says.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from planner.placement.blocks import Blocks, Floats
from planner.placement.problem import Charging

Ints = NDArray[np.int64]
NONE, ALL, SOME = 0, 1, 2

APART = 25
"""Loads of further sets are this many ticks apart in the order of their prices."""

MAX_STATES = 4000
MAX_CELLS = 6 * 10**7
"""States times ticks over all blocks: two bytes each are kept to find the set again."""


class Rounding(Enum):
    """Which way seconds become ticks."""

    DOWN = "down"
    UP = "up"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """What blocks and nets cost one of two devices."""

    times_s: Floats
    factor: float


@dataclass(frozen=True, slots=True)
class _Move:
    """From a state before a block to one behind it; what chosen and other blocks cost by it."""

    source: int
    target: int
    taken: bool
    own_s: float
    other_s: float


@dataclass(frozen=True, slots=True)
class _Moves:
    """Moves that take equally many ticks, no two of them to the same state."""

    taken: bool
    ticks: int
    sources: Ints
    targets: Ints
    other_s: Floats


class _Program:
    """States, moves and ticks for a set of blocks; finds the best path for given prices."""

    def __init__(
        self,
        blocks: Blocks,
        order: Sequence[int],
        sides: tuple[_Side, _Side],
        ceiling_s: float,
    ) -> None:
        self.order = list(order)
        self.num_states = [1]
        self.ceiling_s = ceiling_s
        self._blocks, (self._own, self._other) = blocks, sides
        self._paths = self._states()
        self.feasible = self._paths is not None
        self.ticks = 0
        self._steps: list[list[_Moves]] = []

    def _states(self) -> list[list[_Move]] | None:
        """For each block its moves; None if states get too many."""
        nets, inside = [], set(self.order)
        if self._own.factor > 0 or self._other.factor > 0:
            nets = [net for net in self._blocks.nets if not inside.isdisjoint(net[0])]
        leaves = [not inside.issuperset(pins) for pins, _ in nets]
        position = {b: k for k, b in enumerate(self.order)}
        touching: dict[int, list[int]] = defaultdict(list)
        closes = []
        for e, (pins, _) in enumerate(nets):
            closes.append(max(position[b] for b in pins if b in inside))
            for b in pins:
                touching[b].append(e)
        open_nets: list[int] = []
        states: dict[tuple[int, ...], int] = {(): 0}
        paths = []
        for k, b in enumerate(self.order):
            own = touching[b]
            opened = [e for e in own if e not in open_nets]
            following = [e for e in (*open_nets, *opened) if closes[e] > k]
            sides = [s for s in (False, True) if self._runs(b, taken=s)]
            found: dict[tuple[int, ...], int] = {}
            moves = []
            for state, source in states.items():
                before = dict(zip(open_nets, state, strict=True))
                for taken in sides:
                    here = ALL if taken else NONE
                    after, paid = dict(before), [0.0, 0.0]
                    for e in own:
                        cost, old = nets[e][1], before.get(e)
                        if leaves[e] and old not in (here, SOME):
                            # Whoever touches a net that others hold too pays for it.
                            paid[taken] += cost
                        elif old is not None and old not in (here, SOME):
                            paid = [paid[0] + cost, paid[1] + cost]
                        after[e] = here if old in (None, here) else SOME
                    key = tuple(after[e] for e in following)
                    target = found.setdefault(key, len(found))
                    moves.append(self._move(b, (source, target), taken=taken, paid=paid))
            if len(found) > MAX_STATES:
                return None
            states, open_nets = found, following
            self.num_states.append(len(found))
            paths.append(moves)
        return paths

    def _runs(self, b: int, *, taken: bool) -> bool:
        side = self._own if taken else self._other
        return bool(side.times_s[b] <= self.ceiling_s)

    def _move(self, b: int, ends: tuple[int, int], *, taken: bool, paid: list[float]) -> _Move:
        own = self._own.factor * paid[1] + (float(self._own.times_s[b]) if taken else 0.0)
        other = self._other.factor * paid[0] + (0.0 if taken else float(self._other.times_s[b]))
        return _Move(*ends, taken, own, other)

    def scale(self, ticks: int, rounding: Rounding) -> None:
        """Count loads in ``ticks`` ticks to the ceiling."""
        self.ticks = ticks
        unit = self.ceiling_s / ticks
        for moves in self._paths or ():
            groups: dict[tuple[bool, int, int], list[_Move]] = defaultdict(list)
            seen: dict[tuple[bool, int, int], int] = defaultdict(int)
            for move in moves:
                if rounding is Rounding.DOWN:
                    taken = math.floor(move.own_s / unit * (1 - 1e-12))
                else:
                    taken = math.ceil(move.own_s / unit * (1 + 1e-12))
                if taken <= ticks:
                    key = (move.taken, taken, move.target)
                    groups[move.taken, taken, seen[key]].append(move)
                    seen[key] += 1
            self._steps.append([_together(key, group) for key, group in sorted(groups.items())])

    @property
    def most_ticks(self) -> int:
        """As many as memory allows."""
        return max(50, MAX_CELLS // sum(self.num_states))

    def run(self, prices: Floats, other_price: float) -> tuple[Floats, list[NDArray[np.int16]]]:
        """By final tick: prices of the chosen minus ``other_price`` a second of the others.

        Also, for :meth:`trace`, where each state came from.
        """
        width = self.ticks + 1
        value = np.full((1, width), -np.inf)
        value[0, 0] = 0.0
        came: list[NDArray[np.int16]] = []
        for b, groups, num in zip(self.order, self._steps, self.num_states[1:], strict=True):
            reached = np.full((num, width), -np.inf)
            source = np.full((num, width), -1, np.int16)
            for move in groups:
                gain = (float(prices[b]) if move.taken else 0.0) - other_price * move.other_s
                offered = value[move.sources, : width - move.ticks] + gain[:, None]
                present = reached[move.targets, move.ticks :]
                better = offered > present
                reached[move.targets, move.ticks :] = np.where(better, offered, present)
                label = (2 * move.sources + move.taken).astype(np.int16)[:, None]
                old = source[move.targets, move.ticks :]
                source[move.targets, move.ticks :] = np.where(better, label, old)
            came.append(source)
            value = reached
        return value[0], came

    def trace(self, came: list[NDArray[np.int16]], tick: int) -> tuple[int, ...]:
        """The chosen blocks of the path that ends at ``tick``."""
        state, chosen = 0, []
        for k in reversed(range(len(self.order))):
            label = int(came[k][state, tick])
            source, taken = label >> 1, bool(label & 1)
            ticks = next(
                move.ticks
                for move in self._steps[k]
                if move.taken == taken
                and np.any((move.sources == source) & (move.targets == state))
            )
            if taken:
                chosen.append(self.order[k])
            state, tick = source, tick - ticks
        return tuple(sorted(chosen))


def _together(key: tuple[bool, int, int], moves: Iterable[_Move]) -> _Moves:
    sources, targets, others = zip(*((m.source, m.target, m.other_s) for m in moves), strict=True)
    return _Moves(
        key[0],
        key[1],
        np.array(sources, np.int64),
        np.array(targets, np.int64),
        np.array(others, np.float64),
    )


class Pricer:
    """Prices sets of blocks for one class of devices.

    Memory and, where transfers have a wire of their own, transfers are left out: sets that break
    these limits count as fitting, which keeps bounds valid.
    """

    def __init__(
        self,
        blocks: Blocks,
        cls: int,
        *,
        ceiling_s: float,
        ticks: tuple[int, int],
        rounding: Rounding = Rounding.DOWN,
    ) -> None:
        serial = blocks.problem.charging is Charging.DEVICE
        own = _Side(
            times_s=blocks.times_s[cls], factor=float(blocks.factors[cls]) if serial else 0.0
        )
        rest = _Side(times_s=np.zeros(blocks.num_blocks), factor=0.0)
        order = line_up(blocks, range(blocks.num_blocks))
        self._program = _Program(blocks, order, (own, rest), ceiling_s)
        self.feasible = self._program.feasible
        most = self._program.most_ticks
        between = min(ticks[0], most), min(ticks[1], most)
        self._program.scale(_grid(blocks, cls, ceiling_s, between), rounding)

    def best(self, prices: Floats, *, more: int = 0) -> tuple[float, list[tuple[int, ...]]]:
        """An upper bound on the price of any set that fits, the set that reaches it, then others.

        The ``more`` others are dear sets with other loads.
        """
        value, came = self._program.run(prices, 0.0)
        ends = np.argsort(-value, kind="stable")
        reached = ends[: int(np.isfinite(value).sum())]
        chosen = [reached[0], *reached[1 : 1 + more * APART : APART]]
        sets = dict.fromkeys(self._program.trace(came, int(end)) for end in chosen)
        return float(value[reached[0]]), list(sets)


class Splitter:
    """Shares out blocks between two devices again, where transfers add to the load."""

    def __init__(
        self, blocks: Blocks, chosen: Iterable[int], classes: tuple[int, int], *, ceiling_s: float
    ) -> None:
        sides = tuple(
            _Side(times_s=blocks.times_s[c], factor=float(blocks.factors[c])) for c in classes
        )
        order = line_up(blocks, chosen)
        self._program = _Program(blocks, order, (sides[0], sides[1]), ceiling_s)
        self.feasible = self._program.feasible

    def splits(self, ticks: int) -> Iterator[tuple[float, tuple[int, ...]]]:
        """The larger load at most, and the blocks of the first device; the best splits first."""
        program = self._program
        program.scale(min(ticks, program.most_ticks), Rounding.UP)
        value, came = program.run(np.zeros(max(program.order, default=0) + 1), 1.0)
        own = np.arange(program.ticks + 1) * program.ceiling_s / program.ticks
        larger = np.maximum(own, -value)
        for end in np.argsort(larger, kind="stable"):
            if math.isinf(larger[end]):
                return
            yield float(larger[end]), program.trace(came, int(end))


def _grid(blocks: Blocks, cls: int, ceiling_s: float, between: tuple[int, int]) -> int:
    """The number of ticks to a ceiling at which rounding down loses least, in proportion."""
    values = np.concatenate(
        [blocks.times_s[cls], [blocks.factors[cls] * cost for _, cost in blocks.nets]]
    )
    values = values[(values > 0) & (values <= ceiling_s)] / ceiling_s
    candidates = np.arange(between[0], between[1] + 1)
    if not values.size:
        return int(candidates[0])
    scaled = values[None, :] * candidates[:, None]
    lost = (scaled - np.floor(scaled * (1 - 1e-12))).sum(axis=1) / candidates
    return int(candidates[np.argmin(lost)])


def line_up(blocks: Blocks, chosen: Iterable[int]) -> list[int]:
    """Blocks such that few nets are open at a time: next is always one that closes most."""
    inside = set(chosen)
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(blocks.num_blocks))
    graph.add_edges_from(blocks.order_edges)
    parts = nx.condensation(graph)
    line = [b for p in nx.topological_sort(parts) for b in sorted(parts.nodes[p]["members"])]
    place = {b: k for k, b in enumerate(line) if b in inside}
    touching: dict[int, list[int]] = defaultdict(list)
    left = {}
    for e, (pins, _) in enumerate(blocks.nets):
        left[e] = len(inside.intersection(pins))
        for b in inside.intersection(pins):
            touching[b].append(e)
    opened: set[int] = set()
    order: list[int] = []
    rest = set(place)
    while rest:

        def growth(b: int) -> tuple[int, int]:
            own = touching[b]
            return (
                sum(e not in opened for e in own if left[e] > 1)
                - sum(left[e] == 1 and e in opened for e in own),
                place[b],
            )

        near = {b for e in opened for b in blocks.nets[e][0]} & rest
        following = min(near or rest, key=growth)
        rest.remove(following)
        order.append(following)
        for e in touching[following]:
            left[e] -= 1
            opened.add(e)
            if not left[e]:
                opened.discard(e)
    return order
