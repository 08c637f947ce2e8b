"""All down-sets of an ordered block graph: sets of blocks that hold whatever stands before them.

A contiguous answer is a chain of down-sets, each next one adding the blocks of one device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.placement.blocks import Blocks, slowness

CHUNK = 4096


@dataclass(frozen=True, kw_only=True)
class DownSets:
    """Down-sets in an order in which each stands behind all it contains, by least work.

    ``holds[b, i]`` says whether set ``i`` holds block ``b``. ``work[i]`` is the least time of
    its blocks over all classes of devices, in units of ``unit_s``, each block rounded down. The
    first set is empty, the last holds everything.
    """

    holds: NDArray[np.bool_]
    work: NDArray[np.int64]
    unit_s: float

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.holds.shape[1])

    def subset(self, chosen: NDArray[np.int64]) -> DownSets:
        """Those at the positions ``chosen``, which ascend."""
        return DownSets(
            holds=np.ascontiguousarray(self.holds[:, chosen]),
            work=self.work[chosen],
            unit_s=self.unit_s,
        )


def down_sets(blocks: Blocks, *, limit: int) -> DownSets | None:
    """Every down-set of ``blocks``, or None if there are more than ``limit``."""
    num = blocks.num_blocks
    before = [0] * num
    behind: list[list[int]] = [[] for _ in range(num)]
    for first, second in sorted(blocks.order_edges):
        before[second] |= 1 << first
        behind[first].append(second)
    ready = sum(1 << b for b in range(num) if not before[b])
    # A set is a Python integer of one bit a block; with it goes the set of blocks that may follow.
    layer, found = {0: ready}, [0]
    while layer:
        following: dict[int, int] = {}
        for held, candidates in layer.items():
            rest = candidates
            while rest:
                bit = rest & -rest
                rest ^= bit
                grown = held | bit
                if grown in following:
                    continue
                more = candidates ^ bit
                for b in behind[bit.bit_length() - 1]:
                    if before[b] & ~grown == 0:
                        more |= 1 << b
                following[grown] = more
            if len(found) + len(following) > limit:
                return None
        found.extend(following)
        layer = following
    return _table(blocks, found)


def _table(blocks: Blocks, found: list[int]) -> DownSets:
    width = (blocks.num_blocks + 7) // 8
    raw = b"".join(held.to_bytes(width, "little") for held in found)
    rows = np.frombuffer(raw, np.uint8).reshape(len(found), width)
    bits = np.unpackbits(rows, axis=1, count=blocks.num_blocks, bitorder="little")
    least, _ = slowness(blocks)
    # Whole numbers, because rounding must never make a larger set lighter than one it contains.
    unit = max(float(least.sum()), 1e-300) / 2**50
    whole = np.floor(least / unit).astype(np.int64)
    parts = [bits[k : k + CHUNK].astype(np.int64) @ whole for k in range(0, len(bits), CHUNK)]
    work = np.concatenate(parts)
    order = np.lexsort((np.arange(len(found)), work))
    return DownSets(
        holds=np.ascontiguousarray(bits[order].T.astype(np.bool_)), work=work[order], unit_s=unit
    )


def prefixes(blocks: Blocks) -> DownSets:
    """The down-sets along one order of the blocks: a chain, for a quick first answer."""
    num = blocks.num_blocks
    holds = np.arange(num)[:, None] < np.arange(num + 1)[None, :]
    least = blocks.times_s.min(axis=0)
    finite = np.where(np.isfinite(least), least, 0.0)
    unit = max(float(finite.sum()), 1e-300) / 2**50
    work = np.concatenate([[0], np.cumsum(np.floor(finite / unit).astype(np.int64))])
    return DownSets(holds=holds, work=work, unit_s=unit)
