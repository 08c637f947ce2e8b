"""Figures of stages and hops by *kind* of device, as arrays for pricing templates of pipelines.

A template's stages are runs of layers ``j .. e - 1``, each on one device of a kind ``t``. Seconds
are for one microbatch:

    own[t, j, e]       computing, and what the model's inputs and outputs keep the device from it
    apart[t, j, e]     the busiest wire between the device and the root
    moving[h, j]       what the tensors across cut ``j`` take on path ``h``

A hop from ``t`` to ``u`` inside a pool or outside takes path ``h``; of its time a part keeps either
end from computing. Paths that keep an end for equally long are one *port* of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.figures import Figures
from planner.options import Option
from planner.pools import Path, Paths, Pools
from planner.problem import PlanningProblem
from planner.request import Split
from planner.solvers.chain_segments import Floats, Integers, Segments

MAX_RUN = 16
"""Larger pools count as endless: their devices are counted one by one."""


@dataclass(frozen=True, slots=True)
class Hop:
    """A way from a device of kind ``source`` to one of ``target``: by port of either end, path."""

    source: int
    target: int
    leaves: int
    enters: int
    path: int


@dataclass(frozen=True)
class TemplateTables:
    """All arrays under one assumption about where devices stand.

    ``receive[t, p, j]`` and ``send[t, p, e]`` are seconds by port, zero at the ends of the model;
    unused ports are infinite. ``runs[t]`` is how many devices of a pool may follow each other
    (1: hops inside are no better than outside; 0: pools are endless).
    """

    own: Floats
    apart: Floats
    moving: Floats
    receive: Floats
    send: Floats
    inside: tuple[Hop | None, ...]
    outside: tuple[Hop, ...]
    runs: tuple[int, ...]
    longest: Integers  # of the runs ending at e that any kind can hold, the one that starts first

    @property
    def num_kinds(self) -> int:
        """Kinds of device."""
        return len(self.own)

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return int(self.own.shape[1]) - 1

    def least_s(self) -> float:
        """No pipeline takes less between microbatches: some stage holds each layer."""
        loads = np.maximum(self.own, self.apart).min(axis=0)
        # Of the runs that begin at or before a layer and end behind it, the least.
        loads = np.minimum.accumulate(loads, axis=0)
        loads = np.minimum.accumulate(loads[:, ::-1], axis=1)[:, ::-1]
        layers = np.arange(self.num_layers)
        return float(loads[layers, layers + 1].max())


class StageFigures:
    """What does not depend on where devices stand: computing and room, by kind."""

    def __init__(self, problem: PlanningProblem, figures: Figures, pools: Pools) -> None:
        self.problem, self.figures, self.pools = problem, figures, pools
        kinds = replace(problem, classes=tuple((kind.device,) for kind in pools.kinds))
        options = [Option(((t, problem.microbatch),)) for t in range(len(pools.kinds))]
        segments = Segments(kinds, figures, options)
        self.crossing = segments.crossing
        self.root_can_stay_empty = segments.root_can_stay_empty
        self.compute = np.stack([segments.compute_s(option) for option in options])
        if Split.LAYERS not in problem.request.splits:
            whole = self.compute[:, 0, -1].copy()
            self.compute[:] = np.inf
            self.compute[:, 0, -1] = whole
        self._sizes = [
            [figures.tensor_bytes(name, problem.microbatch) for name in self.crossing.at(cut)]
            for cut in range(problem.num_layers)
        ]

    def tables(self, paths: Paths) -> TemplateTables:
        """The arrays for these paths."""
        num_kinds, num_layers = len(self.pools.kinds), self.problem.num_layers
        own, apart = self.compute.copy(), np.zeros_like(self.compute)
        for t in range(num_kinds):
            self._root_traffic(t, paths, own[t], apart[t])
        known: dict[Path, int] = {}
        for path in (*paths.inner.values(), *paths.outer.values()):
            known.setdefault(path, len(known))
        moving = np.zeros((max(1, len(known)), num_layers + 1))
        for path, h in known.items():
            for cut, sizes in enumerate(self._sizes):
                moving[h, cut] = sum(_seconds(path, n) for n in sizes)
        ports = _Ports(num_kinds, moving)
        inside: list[Hop | None] = []
        runs = []
        for t, kind in enumerate(self.pools.kinds):
            inner = paths.inner.get(t)
            if inner is None or inner == paths.outer.get((t, t)):
                inside.append(None)
                runs.append(1)
            else:
                inside.append(ports.hop(t, t, inner, known[inner]))
                runs.append(kind.largest_pool if kind.largest_pool <= MAX_RUN else 0)
        outside = tuple(ports.hop(t, u, path, known[path]) for (t, u), path in paths.outer.items())
        can = np.isfinite(own).any(axis=0)
        return TemplateTables(
            own=own,
            apart=apart,
            moving=moving,
            receive=ports.arrays(ports.entering),
            send=ports.arrays(ports.leaving),
            inside=tuple(inside),
            outside=outside,
            runs=tuple(runs),
            longest=np.where(can.any(axis=0), can.argmax(axis=0), num_layers + 1),
        )

    def _root_traffic(self, t: int, paths: Paths, own: Floats, apart: Floats) -> None:
        crossing, items = self.crossing, self.problem.microbatch
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
                own += held * moved[which]
            np.maximum(apart, moved[which], out=apart)


class _Ports:
    """The different rows of waiting that each kind has at its ends."""

    def __init__(self, num_kinds: int, moving: Floats) -> None:
        self.moving = moving
        self.entering: list[dict[tuple[float, int], int]] = [{} for _ in range(num_kinds)]
        self.leaving: list[dict[tuple[float, int], int]] = [{} for _ in range(num_kinds)]

    def hop(self, source: int, target: int, path: Path, h: int) -> Hop:
        leaves = self._port(self.leaving[source], path.send_occupancy, h)
        enters = self._port(self.entering[target], path.receive_occupancy, h)
        return Hop(source, target, leaves, enters, h)

    def arrays(self, ports: Sequence[dict[tuple[float, int], int]]) -> Floats:
        most = max(1, *(len(own) for own in ports))
        found = np.full((len(ports), most, self.moving.shape[1]), np.inf)
        found[:, 0] = 0.0
        for t, own in enumerate(ports):
            for (fraction, h), p in own.items():
                found[t, p] = fraction * self.moving[h] if fraction else 0.0
        # Nothing crosses the ends of the model; what comes from the root is in ``own``.
        found[:, :, 0] = found[:, :, -1] = np.inf
        found[:, 0, 0] = found[:, 0, -1] = 0.0
        return found

    @staticmethod
    def _port(known: dict[tuple[float, int], int], fraction: float, h: int) -> int:
        return known.setdefault((fraction, h if fraction else -1), len(known))


def _seconds(path: Path, num_bytes: int) -> float:
    return path.latency_s + num_bytes / path.bytes_per_s if num_bytes else 0.0
