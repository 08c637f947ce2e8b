"""What a stage of a template may run on: a device of a kind, or some of one pool that divide it.

Of a pool 2, 4, 8 or 16 devices may divide the regions of a stage among them. They are alike, so
their slices are even; ``planner.slicings`` says of which regions. What stands between devices of a
pool is what the paths at hand say: the best or the worst of any pool of the kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.figures import Figures
from planner.options import Option
from planner.pools import Path, Pools
from planner.problem import PlanningProblem
from planner.room import ModelRoom
from planner.slices import Slicing
from planner.slicings import MAX_SLICINGS, find_slicings
from planner.solvers.arrays import Floats, Integers
from planner.solvers.chain_segments import Segments

WIDTHS = (2, 4, 8, 16)
"""Devices of one pool that may divide a stage."""

MAX_FIGURES = 5e7
"""Modes times layers squared; with more, no stage is divided."""


@dataclass(frozen=True, slots=True)
class Mode:
    """``width`` devices of one pool of ``kind``, and the ways in which they may slice regions."""

    kind: int
    width: int = 1
    slicings: tuple[Slicing, ...] = ((),)

    @property
    def key(self) -> tuple[int, int]:
        """What a stage of a template says of it."""
        return self.kind, self.width

    def options(self, items: int) -> list[Option]:
        """The options that a stage in this mode takes, its kind as the class."""
        members = ((self.kind, items),) * self.width
        return [Option(members, slicing=slicing) for slicing in self.slicings]


@dataclass(frozen=True)
class ModeTimes:
    """Modes with the seconds of every run of layers ``[m, j, e]``, and the slicing that takes
    them."""

    modes: tuple[Mode, ...]
    seconds: Floats
    number: Integers


class Modes:
    """The modes of a problem's kinds, one device first, and the seconds of every run on them."""

    def __init__(self, problem: PlanningProblem, figures: Figures, pools: Pools) -> None:
        most = WIDTHS[-1]
        members = [max(kind.pools, key=len)[:most] for kind in pools.kinds]
        # One pool stands for all of its kind.
        self._problem = replace(problem, classes=tuple(members))
        self._figures = figures
        self._known: dict[object, ModeTimes] = {}
        self._alone = tuple(Mode(t) for t in range(len(members)))
        self.all = (*self._alone, *self._divided(members))
        if len(self.all) * problem.num_layers**2 > MAX_FIGURES:
            self.all = self._alone
        self._segments = Segments(problem=self._problem, figures=figures, options=())
        self.crossing = self._segments.crossing
        self.root_can_stay_empty = self._segments.root_can_stay_empty

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of devices that may divide a stage, ascending."""
        return tuple(sorted({mode.width for mode in self.all} - {1}))

    def describe(self, *, divided: bool) -> str:
        """The part of the search space that the modes stand for, with divided stages or without."""
        if not divided or not self.widths:
            left_out = self._problem.tensor_splits
            return "each run on one device" + " (tensor splits were left out)" * left_out
        *some, last = map(str, self.widths)
        widths = f"{', '.join(some)} or {last}" if some else last
        return (
            f"each run on one device, or divided by tensor in even slices among {widths} like "
            f"devices of one host (at most {MAX_SLICINGS} ways to slice the model's regions; "
            "other slices were left out)"
        )

    def times(self, inner: Mapping[int, Path], *, divided: bool) -> ModeTimes:
        """The modes that are of use, all or those of one device only, where ``inner`` is what lies
        between the devices of a pool."""
        key = tuple(sorted(inner.items(), key=lambda x: x[0])) if divided else None
        if key not in self._known:
            segments = self._segments
            if divided:
                segments = Segments(self._problem, _InPools(self._problem, inner), ())
            modes = self.all if divided else self._alone
            items = self._problem.microbatch
            found = [
                np.stack([segments.compute_s(option) for option in mode.options(items)])
                for mode in modes
            ]
            seconds = [each.min(axis=0) for each in found]
            useful = _useful(modes, seconds)
            self._known[key] = ModeTimes(
                modes=tuple(modes[m] for m in useful),
                seconds=np.stack([seconds[m] for m in useful]),
                number=np.stack([found[m].argmin(axis=0).astype(np.int8) for m in useful]),
            )
        return self._known[key]

    def _divided(self, members: Sequence[Sequence[str]]) -> Iterator[Mode]:
        if not self._problem.tensor_splits:
            return
        room = ModelRoom(self._figures)
        for t, pool in enumerate(members):
            for width in WIDTHS:
                if width <= len(pool):
                    found = find_slicings(self._problem, self._figures, pool[:width], room)
                    if found:
                        yield Mode(t, width, tuple(found))


class _InPools(Figures):
    """Figures of a problem whose messages all stay inside pools, on paths by class of device."""

    def __init__(self, problem: PlanningProblem, inner: Mapping[int, Path]) -> None:
        super().__init__(problem)
        self._inner = inner

    def message_s(self, source: str, target: str, num_bytes: float) -> float:
        """Seconds of one message between devices of one pool."""
        if source == target or not num_bytes:
            return 0.0
        path = self._inner[self.problem.class_of[source]]
        return path.latency_s + num_bytes / path.bytes_per_s


def _useful(modes: Sequence[Mode], seconds: Sequence[Floats]) -> list[int]:
    """Positions of the modes that no other of their kind with as few devices is as good as."""
    kept: list[int] = []
    for m, mode in enumerate(modes):
        rivals = [n for n in kept if modes[n].kind == mode.kind and modes[n].width <= mode.width]
        if mode.width == 1 or not any((seconds[n] <= seconds[m]).all() for n in rivals):
            kept.append(m)
    return kept
