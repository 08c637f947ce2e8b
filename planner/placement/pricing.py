"""The set of blocks of the highest price that one device can hold below a ceiling.

Maximise ``sum of prices of S`` over sets ``S`` with ``load(S) <= T``: dynamic programming over the
blocks in an order that keeps few nets open. A state says of each open net whether none, all or some
(paid for) of its blocks so far are in ``S``; loads are counted in ticks, each block and net rounded
down. So every set that fits is looked at, and the highest price found is an upper bound for them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from planner.placement.blocks import Blocks, Floats
from planner.placement.problem import Charging

Ints = NDArray[np.int64]
NONE, ALL, SOME = 0, 1, 2

MAX_STATES = 4000
MAX_CELLS = 6 * 10**7
"""States times ticks over all blocks: two bytes each are kept to find the set again."""


@dataclass(frozen=True, slots=True)
class _Moves:
    """Moves from states before a block to states behind it that take equally many ticks."""

    taken: bool
    ticks: int
    sources: Ints
    targets: Ints


class Pricer:
    """Prices sets of blocks for one class of devices.

    Memory and, where transfers have a wire of their own, transfers are left out: sets that break
    these limits count as fitting, which keeps bounds valid.
    """

    def __init__(
        self, blocks: Blocks, cls: int, *, ceiling_s: float, ticks: tuple[int, int]
    ) -> None:
        self.order = _order(blocks)
        self.num_states = [1]
        self._blocks, self._cls, self._ceiling_s = blocks, cls, ceiling_s
        steps = self._states()
        self.feasible = steps is not None
        if steps is None:
            return
        most = max(50, MAX_CELLS // sum(self.num_states))
        self.ticks = _grid(blocks, cls, ceiling_s, (min(ticks[0], most), min(ticks[1], most)))
        self._steps = self._moves(steps)

    def _states(self) -> list[list[tuple[int, int, bool, float]]] | None:
        """For each block, moves (source, target, taken, seconds); None if states get too many."""
        blocks, cls = self._blocks, self._cls
        serial = blocks.problem.charging is Charging.DEVICE
        factor = float(blocks.factors[cls]) if serial else 0.0
        position = {b: k for k, b in enumerate(self.order)}
        nets = [net for net in blocks.nets if factor > 0]
        touching: dict[int, list[int]] = defaultdict(list)
        closes = []
        for e, (pins, _) in enumerate(nets):
            closes.append(max(position[b] for b in pins))
            for b in pins:
                touching[b].append(e)
        open_nets: list[int] = []
        states: dict[tuple[int, ...], int] = {(): 0}
        steps = []
        for k, b in enumerate(self.order):
            own = touching[b]
            opened = [e for e in own if e not in open_nets]
            following = [e for e in (*open_nets, *opened) if closes[e] > k]
            time_s = float(blocks.times_s[cls, b])
            found: dict[tuple[int, ...], int] = {}
            moves = []
            for state, source in states.items():
                before = dict(zip(open_nets, state, strict=True))
                for taken in (False, True) if time_s <= self._ceiling_s else (False,):
                    here = ALL if taken else NONE
                    after, paid = dict(before), 0.0
                    for e in own:
                        old = before.get(e, here)
                        if old not in (here, SOME):
                            paid += nets[e][1]
                            old = SOME
                        after[e] = old
                    key = tuple(after[e] for e in following)
                    target = found.setdefault(key, len(found))
                    moves.append((source, target, taken, factor * paid + taken * time_s))
            if len(found) > MAX_STATES:
                return None
            states, open_nets = found, following
            self.num_states.append(len(found))
            steps.append(moves)
        return steps

    def _moves(self, steps: list[list[tuple[int, int, bool, float]]]) -> list[list[_Moves]]:
        """Moves of a block, grouped so that no two of a group lead to the same state."""
        unit = self._ceiling_s / self.ticks
        grouped = []
        for moves in steps:
            groups: dict[tuple[bool, int, int], list[tuple[int, int]]] = defaultdict(list)
            seen: dict[tuple[bool, int, int], int] = defaultdict(int)
            for source, target, taken, seconds in moves:
                ticks = int(seconds / unit * (1 - 1e-12))
                if ticks <= self.ticks:
                    layer = seen[taken, ticks, target]
                    seen[taken, ticks, target] += 1
                    groups[taken, ticks, layer].append((source, target))
            grouped.append(
                [
                    _Moves(taken, ticks, *np.array(pairs, np.int64).T.copy())
                    for (taken, ticks, _), pairs in sorted(groups.items())
                ]
            )
        return grouped

    def best(self, prices: Floats) -> tuple[float, tuple[int, ...]]:
        """An upper bound on the price of any set that fits, and the set that reaches it."""
        width = self.ticks + 1
        value = np.full((1, width), -np.inf)
        value[0, 0] = 0.0
        came: list[NDArray[np.int16]] = []
        for b, groups, num in zip(self.order, self._steps, self.num_states[1:], strict=True):
            reached = np.full((num, width), -np.inf)
            source = np.full((num, width), -1, np.int16)
            for move in groups:
                gain = float(prices[b]) if move.taken else 0.0
                offered = value[move.sources, : width - move.ticks] + gain
                present = reached[move.targets, move.ticks :]
                better = offered > present
                reached[move.targets, move.ticks :] = np.where(better, offered, present)
                label = (2 * move.sources + move.taken).astype(np.int16)[:, None]
                old = source[move.targets, move.ticks :]
                source[move.targets, move.ticks :] = np.where(better, label, old)
            came.append(source)
            value = reached
        end = int(np.argmax(value[0]))
        return float(value[0, end]), self._trace(came, end)

    def _trace(self, came: list[NDArray[np.int16]], tick: int) -> tuple[int, ...]:
        """The blocks of the set that ends at ``tick``."""
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


def _order(blocks: Blocks) -> list[int]:
    """Blocks such that few nets are open at a time: next is always one that closes most."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(blocks.num_blocks))
    graph.add_edges_from(blocks.order_edges)
    parts = nx.condensation(graph)
    line = [b for p in nx.topological_sort(parts) for b in sorted(parts.nodes[p]["members"])]
    place = {b: k for k, b in enumerate(line)}
    touching: dict[int, list[int]] = defaultdict(list)
    left = {}
    for e, (pins, _) in enumerate(blocks.nets):
        left[e] = len(pins)
        for b in pins:
            touching[b].append(e)
    opened: set[int] = set()
    order: list[int] = []
    rest = set(line)
    while rest:

        def growth(b: int) -> tuple[int, int]:
            own = touching[b]
            return (
                sum(e not in opened for e in own if left[e] > 1)
                - sum(left[e] == 1 and e in opened for e in own),
                place[b],
            )

        near = {b for e in opened for b in blocks.nets[e][0]} & rest
        chosen = min(near or rest, key=growth)
        rest.remove(chosen)
        order.append(chosen)
        for e in touching[chosen]:
            left[e] -= 1
            opened.add(e)
            if not left[e]:
                opened.discard(e)
    return order
