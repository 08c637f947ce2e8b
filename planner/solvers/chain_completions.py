"""From which cuts the devices that are left can finish the model, roughly: what need not be tried.

For a trial period ``T`` and a state ``left`` of devices (and stages) that are still free, let

    F[left, j] = some option n of ``left`` can hold j .. e - 1 and F[left - n, e], or e is the end

where a stage counts as within ``T`` if it is so with the best neighbours that any plan could give
it. That forgets which neighbours a stage has, so ``F`` is true wherever a plan exists and sometimes
where none does. Cuts are bits of 64-bit words here, so that a step is a few logical operations for
all states of a level: far less work than the programme itself, which then skips every cut where
``F`` is false.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.solvers.chain_segments import Flags, Floats, Integers
from planner.solvers.chain_tables import ChainTables


class Completions:
    """``F`` for any trial on one problem's tables."""

    def __init__(self, tables: ChainTables, compute: Floats) -> None:
        self.tables, self._compute = tables, compute
        states = tables.states
        counts = np.array([option.counts(len(tables.problem.classes)) for option in tables.options])
        sizes = np.array([len(members) for members in tables.problem.classes])
        # Which option may stand beside which: there are devices for both.
        self._beside: Flags = (counts[:, None] + counts[None, :] <= sizes).all(axis=2)
        self._full = max(state for level in states.levels for state in level)
        self._steps = [self._followers(level) for level in states.levels[1:]]

    def _followers(self, level: tuple[int, ...]) -> list[tuple[int, Integers]]:
        """For each option the states of a level that hold its devices."""
        rows: dict[int, list[int]] = {}
        for state in level:
            for n in self.tables.states.lasts[state]:
                rows.setdefault(int(n), []).append(state)
        return [(n, np.array(found)) for n, found in sorted(rows.items())]

    def possible(self, within: Floats, receive: Floats, ending: Floats, period_s: float) -> Flags:
        """``[state, cut]``: whether what ``state`` leaves free can finish from a cut.

        ``within[a, n, o, e]``, ``receive[a, n, u, j]`` and ``ending[n, j]`` are those of a trial.
        """
        can = [_packed(stage) for stage in self._stages(within, receive, ending, period_s)]
        end = np.zeros(self.tables.num_layers + 1, dtype=np.bool_)
        end[-1] = True
        finish = np.tile(_packed(end[None]), (self._full + 1, 1))
        code = self.tables.states.code
        for step in self._steps:
            for n, rows in step:
                left = finish[rows - code[n]]
                met = left[:, None, 0] & can[n][None, :, 0]  # [state, cut]
                for word in range(1, left.shape[1]):
                    met |= left[:, None, word] & can[n][None, :, word]
                finish[rows] |= _packed(met != 0, words=left.shape[1])
        # What a state leaves free is the state that completes it.
        return _unpacked(finish[::-1], self.tables.num_layers)

    def _stages(self, within: Floats, receive: Floats, ending: Floats, period_s: float) -> Flags:
        """``[n, j, e]``: whether a stage can be within the period beside the best neighbours."""
        crossing, num_layers = self.tables.crossing, self.tables.num_layers
        beside = self._beside[:, :, None, None]
        received = np.where(beside, receive, np.inf).min(axis=0)  # [n, u, j]
        loaded = np.where(beside, within, -np.inf).max(axis=1)  # [n, o, e]
        starts, ends = np.arange(num_layers)[:, None], np.arange(num_layers)[None, :]
        inner = (starts > 0) & (starts < ends)
        u = np.where(inner, crossing.input_set[:num_layers, :num_layers], 0)
        o = np.where(inner, crossing.output_set[:num_layers, :num_layers], 0)
        can = np.zeros((len(ending), num_layers, num_layers + 1), dtype=np.bool_)
        for n, seconds in enumerate(self._compute):
            load = received[n][u, starts] + seconds[:num_layers, :num_layers]
            can[n, :, :num_layers] = inner & (load <= loaded[n][o, ends])
            last = np.minimum.reduce(received[n], axis=0) + ending[n, :num_layers]
            can[n, :, num_layers] = last <= period_s
        can[:, 0] = False  # a first stage receives nothing from another
        return can


def _packed(flags: Flags, *, words: int | None = None) -> NDArray[np.uint64]:
    """The last axis as bits of words; missing ones are zero."""
    words = words or -(-flags.shape[1] // 64)
    padded = np.zeros((len(flags), 64 * words), dtype=np.bool_)
    padded[:, : flags.shape[1]] = flags
    return np.packbits(padded, axis=1).view(np.uint64)


def _unpacked(words: NDArray[np.uint64], length: int) -> Flags:
    """The first bits of each row."""
    octets = np.ascontiguousarray(words).view(np.uint8)
    return np.unpackbits(octets, axis=1, count=length).astype(np.bool_)
