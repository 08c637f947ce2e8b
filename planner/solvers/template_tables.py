"""Figures of stages and hops by *kind* of device, as arrays for pricing templates of pipelines.

A template's stages are runs of layers ``j .. e - 1``, each in a mode ``m``: on one device of a kind
``t``, or divided among some of one pool. Seconds are for one microbatch:

    own[m, j, e]       computing and joining, and what the model's inputs and outputs keep a device
                       from it
    apart[t, j, e]     the busiest wire between a device and the root
    moving[h, j]       what the tensors across cut ``j`` take on path ``h``

A hop from ``t`` to ``u`` inside a pool or outside takes path ``h``; of its time a part keeps either
end from computing, the sender once for each device behind. Paths that keep an end for equally long
are one *port* of it; where that depends on how many devices are behind, it is a port for so many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.figures import Figures
from planner.pools import Path, Paths, Pools
from planner.problem import PlanningProblem
from planner.request import Split
from planner.solvers.arrays import Floats, Integers
from planner.solvers.template_modes import Mode, Modes

MAX_RUN = 16
"""Larger pools count as endless: their devices are counted one by one."""


@dataclass(frozen=True, slots=True)
class Hop:
    """A way from a stage on kind ``source`` to one on ``target``: by port of either end, path.

    ``width`` is the number of devices of the stage behind; 0: any.
    """

    source: int
    target: int
    leaves: int
    enters: int
    path: int
    width: int = 0

    def leads_to(self, width: int) -> bool:
        """Whether a stage on so many devices is reached by it."""
        return self.width in (0, width)


@dataclass(frozen=True)
class TemplateTables:
    """All arrays under one assumption about where devices stand.

    ``modes`` begins with one device of each kind. ``receive[t, p, j]`` and ``send[t, p, e]`` are
    seconds by port, zero at the ends of the model; unused ports are infinite. ``entering[m, p, j]``
    is ``receive`` of the mode's kind, infinite for ports that lead to another width. ``runs[t]`` is
    how many devices of a pool may follow each other (1: nothing is gained inside; 0: pools are
    endless).
    """

    modes: tuple[Mode, ...]
    own: Floats
    number: Integers  # which of a mode's slicings, by run
    apart: Floats
    moving: Floats
    receive: Floats
    send: Floats
    entering: Floats
    inside: tuple[tuple[Hop, ...], ...]
    outside: tuple[Hop, ...]
    runs: tuple[int, ...]
    longest: Integers  # of the runs ending at e that any kind can hold, the one that starts first

    @property
    def num_kinds(self) -> int:
        """Kinds of device."""
        return len(self.apart)

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return int(self.own.shape[1]) - 1

    @cached_property
    def kind_of(self) -> Integers:
        """The kind of each mode."""
        return np.array([mode.kind for mode in self.modes], dtype=np.int64)

    @cached_property
    def position(self) -> dict[tuple[int, int], int]:
        """Position of each mode by kind and width."""
        return {mode.key: m for m, mode in enumerate(self.modes)}

    @cached_property
    def busy(self) -> Floats:
        """The least time between microbatches of every run, by mode."""
        return np.where(
            np.isfinite(self.own), np.maximum(self.own, self.apart[self.kind_of]), np.inf
        )

    def least_s(self) -> float:
        """No pipeline takes less between microbatches: some stage holds each layer."""
        loads = self.busy.min(axis=0)
        # Of the runs that begin at or before a layer and end behind it, the least.
        loads = np.minimum.accumulate(loads, axis=0)
        loads = np.minimum.accumulate(loads[:, ::-1], axis=1)[:, ::-1]
        layers = np.arange(self.num_layers)
        return float(loads[layers, layers + 1].max())


class StageFigures:
    """What does not depend on where devices stand: computing and room, by mode."""

    def __init__(self, problem: PlanningProblem, figures: Figures, pools: Pools) -> None:
        self.problem, self.figures, self.pools = problem, figures, pools
        self.modes = Modes(problem, figures, pools)
        self.crossing = self.modes.crossing
        self.root_can_stay_empty = self.modes.root_can_stay_empty
        self._sizes = [
            [figures.tensor_bytes(name, problem.microbatch) for name in self.crossing.at(cut)]
            for cut in range(problem.num_layers)
        ]

    def tables(self, paths: Paths, *, divided: bool | None = None) -> TemplateTables:
        """The arrays for these paths, with stages that several devices divide (by default, where
        there are any) or without."""
        num_kinds, num_layers = len(self.pools.kinds), self.problem.num_layers
        some = bool(self.modes.widths) if divided is None else divided
        times = self.modes.times(paths.inner, divided=some)
        modes, own = times.modes, times.seconds.copy()
        if Split.LAYERS not in self.problem.request.splits:
            own[:] = np.inf
            own[:, 0, -1] = times.seconds[:, 0, -1]
        apart = np.zeros((num_kinds, *own.shape[1:]))
        for t in range(num_kinds):
            held = self._root_traffic(t, paths, apart[t])
            for m, mode in enumerate(modes):
                if mode.kind == t:
                    own[m] += held
        known: dict[Path, int] = {}
        for path in (*paths.inner.values(), *paths.outer.values()):
            known.setdefault(path, len(known))
        moving = np.zeros((max(1, len(known)), num_layers + 1))
        for path, h in known.items():
            for cut, sizes in enumerate(self._sizes):
                moving[h, cut] = sum(_seconds(path, n) for n in sizes)
        widths = [
            tuple(sorted({mode.width for mode in modes if mode.kind == t}))
            for t in range(num_kinds)
        ]
        ports = _Ports(widths, moving)
        inside: list[tuple[Hop, ...]] = []
        runs = []
        for t, kind in enumerate(self.pools.kinds):
            inner, alone = paths.inner.get(t), widths[t] == (1,)
            if inner is None or (alone and inner == paths.outer.get((t, t))):
                inside.append(())
                runs.append(1)
            else:
                inside.append(tuple(ports.hops(t, t, inner, known[inner])))
                runs.append(kind.largest_pool if kind.largest_pool <= MAX_RUN else 0)
        outside = tuple(
            hop
            for (t, u), path in paths.outer.items()
            for hop in ports.hops(t, u, path, known[path])
        )
        can = np.isfinite(own).any(axis=0)
        receive = ports.arrays(ports.entering)
        return TemplateTables(
            modes=modes,
            own=own,
            number=times.number,
            apart=apart,
            moving=moving,
            receive=receive,
            send=ports.arrays(ports.leaving),
            entering=ports.entering_by(modes, receive),
            inside=tuple(inside),
            outside=outside,
            runs=tuple(runs),
            longest=np.where(can.any(axis=0), can.argmax(axis=0), num_layers + 1),
        )

    def _root_traffic(self, t: int, paths: Paths, apart: Floats) -> Floats:
        """What inputs and outputs keep a device of kind ``t`` from computing; their wires go to
        ``apart``."""
        crossing, items = self.crossing, self.problem.microbatch
        total = np.zeros_like(apart)
        for sets, which, path in (
            (crossing.input_sets, crossing.input_set, paths.inward.get(t)),
            (crossing.output_sets, crossing.output_set, paths.outward.get(t)),
        ):
            if path is None:
                continue
            moved = np.array(
                [
                    sum(_seconds(path, self.figures.tensor_bytes(n, items)) for n in names)
                    for names in sets
                ]
            )
            inward = sets is crossing.input_sets
            held = path.receive_occupancy if inward else path.send_occupancy
            if held:
                total += held * moved[which]
            np.maximum(apart, moved[which], out=apart)
        return total


class _Ports:
    """The different rows of waiting that each kind has at its ends.

    ``widths`` are the numbers of devices that a stage of each kind may have.
    """

    def __init__(self, widths: Sequence[tuple[int, ...]], moving: Floats) -> None:
        self.widths, self.moving = widths, moving
        # What is first comes from nowhere, by a port that leads to any width.
        self.entering: list[dict[_Port, int]] = [
            {_Port(0.0, -1, 0): 0} if len(own) > 1 else {} for own in widths
        ]
        self.leaving: list[dict[_Port, int]] = [{} for _ in widths]

    def hops(self, source: int, target: int, path: Path, h: int) -> Iterator[Hop]:
        """The hops on a path: one, or one for each width of the stage behind if that matters."""
        same = len(self.widths[target]) == 1 or not path.send_occupancy
        for width in (0,) if same else self.widths[target]:
            sending = path.send_occupancy * max(1, width)
            leaves = self._port(self.leaving[source], sending, h, 0)
            enters = self._port(self.entering[target], path.receive_occupancy, h, width)
            yield Hop(source, target, leaves, enters, h, width)

    def arrays(self, ports: Sequence[dict[_Port, int]]) -> Floats:
        """Seconds by kind, port and cut."""
        most = max(1, *(len(own) for own in ports))
        found = np.full((len(ports), most, self.moving.shape[1]), np.inf)
        found[:, 0] = 0.0
        for t, own in enumerate(ports):
            for port, p in own.items():
                found[t, p] = port.fraction * self.moving[port.path] if port.fraction else 0.0
        # Nothing crosses the ends of the model; what comes from the root is in ``own``.
        found[:, :, 0] = found[:, :, -1] = np.inf
        found[:, 0, 0] = found[:, 0, -1] = 0.0
        return found

    def entering_by(self, modes: Sequence[Mode], receive: Floats) -> Floats:
        """``receive`` by mode: what leads to another number of devices is no way."""
        found = np.stack([receive[mode.kind] for mode in modes])
        for m, mode in enumerate(modes):
            for port, p in self.entering[mode.kind].items():
                if port.width not in (0, mode.width):
                    found[m, p] = np.inf
        return found

    @staticmethod
    def _port(known: dict[_Port, int], fraction: float, h: int, width: int) -> int:
        return known.setdefault(_Port(fraction, h if fraction else -1, width), len(known))


@dataclass(frozen=True, slots=True)
class _Port:
    """The part of a path's time for which an end waits; how many devices are behind (0: any)."""

    fraction: float
    path: int
    width: int


def _seconds(path: Path, num_bytes: int) -> float:
    return path.latency_s + num_bytes / path.bytes_per_s if num_bytes else 0.0
