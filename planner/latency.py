"""When a batch is through: every stage and every hop between two is a server that takes the
microbatches in order (``docs/cost-model.md``, time of one batch)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner.memory import BUFFER_DEPTH


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """One stage, in seconds a microbatch (a batch, if it waits for one).

    ``root_s``: what sending inputs and receiving outputs adds where it is on the root.
    That counts where batches follow each other; while one is on its way alone, the inputs leave
    before the root computes and the outputs arrive when it has.
    """

    compute_s: float
    join_s: float
    receive_s: float
    send_s: float
    root_s: float
    runs: int
    whole_batch: bool

    @property
    def run_s(self) -> float:
        """Time from a microbatch's being there to its being computed."""
        return self.compute_s + self.join_s

    @property
    def busy_s(self) -> float:
        """Time the stage is taken up by one microbatch."""
        return self.run_s + self.receive_s + self.send_s

    @property
    def batch_s(self) -> float:
        """Time the stage is taken up by each of many batches."""
        return self.runs * (self.busy_s + self.root_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class HopCost:
    """All tensors from one stage to another (None: input, output), seconds a move.

    ``rest_s`` is what the target has still to compute when it first reads any of them.
    ``crowd`` is when the first and the last are there at the earliest, for those that share a wire
    with inputs of other pipelines.
    """

    source: int | None
    target: int | None
    duration_s: float
    rest_s: float
    runs: int
    crowd: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFlow:
    """What a stage is sent of the model's inputs over one wire: seconds a microbatch, how many
    microbatches, how many connections these take. ``pipeline`` and ``stage`` are whose."""

    pipeline: int
    stage: int
    wire: str
    once_s: float
    runs: int
    connections: int

    def arrives(self, others: Sequence[InputFlow]) -> tuple[float, float]:
        """When the first and the last microbatch are there, while ``others`` are under way too.

        Connections get equal parts of a wire. Beside the first, others have no more on their way
        than is received ahead of computing; beside the last, all of theirs counts.
        """
        whole_s, each = self.runs * self.once_s, 1 / self.connections
        first_s, last_s = self.once_s, whole_s
        for x in others:
            ahead_s = min(x.runs, BUFFER_DEPTH) * x.once_s
            first_s += min(x.connections * each * self.once_s, ahead_s)
            last_s += min(x.connections * each * whole_s, x.runs * x.once_s)
        return first_s, last_s


@dataclass(frozen=True, slots=True, kw_only=True)
class WireUse:
    """What the hops of one pipeline do to a wire in a batch: seconds that their messages take,
    before which none can begin, and that remain after any of them."""

    busy_s: float
    release_s: float
    rest_s: float


class BatchTimes:
    """When the stages of one pipeline, in topological order, are through with a batch.

    ``latency_s``: largest ``last`` over the hops into the output.
    """

    def __init__(self, stages: Sequence[StageCost], hops: Sequence[HopCost]) -> None:
        # First and last microbatch through a stage.
        self._done: dict[int | None, tuple[float, float]] = {None: (0.0, 0.0)}
        self._out_of: dict[int | None, list[HopCost]] = {}
        self._onward: dict[int, float] = {}
        # When the first and the last microbatch would be computed if only for this hop.
        ends: dict[int, list[tuple[float, float]]] = {s: [] for s in range(len(stages))}
        finished = 0.0
        for hop in hops:
            self._out_of.setdefault(hop.source, []).append(hop)
        for s in (None, *range(len(stages))):
            if s is not None:
                self._done[s] = _through_stage(stages[s], ends[s])
            for hop in self._out_of.get(s, []):
                first, last = _through_hop(hop, self._done[s])
                if hop.target is None:
                    finished = max(finished, last)
                else:
                    ends[hop.target].append((first + hop.rest_s, last + hop.rest_s))
        self.latency_s = finished or max(last for _, last in self._done.values())

    def use(self, hop: HopCost, busy_s: float) -> WireUse:
        """What a hop does to a wire on which its messages take ``busy_s`` a batch."""
        return WireUse(
            busy_s=busy_s, release_s=self._done[hop.source][0], rest_s=self._after_s(hop)
        )

    def _after_s(self, hop: HopCost) -> float:
        """The least time from a hop to the end of the batch."""
        if hop.target is None:
            return 0.0
        if hop.target not in self._onward:
            onward = [x.duration_s + self._after_s(x) for x in self._out_of.get(hop.target, [])]
            self._onward[hop.target] = max(onward, default=0.0)
        return hop.rest_s + self._onward[hop.target]


def crowded_inputs(flows: Iterable[InputFlow]) -> dict[tuple[int, int | None], tuple[float, float]]:
    """When the first and the last inputs are there, by pipeline and stage, for those that share a
    wire with another pipeline's. All leave at the start."""
    by_wire: dict[str, list[InputFlow]] = {}
    for flow in flows:
        by_wire.setdefault(flow.wire, []).append(flow)
    found: dict[tuple[int, int | None], tuple[float, float]] = {}
    for every in by_wire.values():
        if len({x.pipeline for x in every}) > 1:
            for at, flow in enumerate(every):
                first_s, last_s = flow.arrives([*every[:at], *every[at + 1 :]])
                known = found.get((flow.pipeline, flow.stage), (0.0, 0.0))
                found[flow.pipeline, flow.stage] = max(known[0], first_s), max(known[1], last_s)
    return found


def crowded_s(uses: Sequence[tuple[int, str, WireUse]]) -> float:
    """The least time of a batch for wires on which several pipelines send.

    ``uses`` are by pipeline and wire. A wire takes one message after another: it begins when the
    first is ready, and after the last one its way goes on.
    """
    by_wire: dict[str, list[WireUse]] = {}
    users: dict[str, set[int]] = {}
    for pipeline, wire, use in uses:
        by_wire.setdefault(wire, []).append(use)
        users.setdefault(wire, set()).add(pipeline)
    return max(
        (
            min(x.release_s for x in every)
            + sum(x.busy_s for x in every)
            + min(x.rest_s for x in every)
            for wire, every in by_wire.items()
            if len(users[wire]) > 1
        ),
        default=0.0,
    )


def _through_stage(stage: StageCost, ends: Sequence[tuple[float, float]]) -> tuple[float, float]:
    first = max([stage.run_s, *(first for first, _ in ends)])
    last = max([stage.run_s, *(last for _, last in ends)])
    if stage.whole_batch:
        return last, last
    return first, max(last, first + (stage.runs - 1) * stage.busy_s)


def _through_hop(hop: HopCost, start: tuple[float, float]) -> tuple[float, float]:
    """First and last microbatch behind a hop, from first and last before it."""
    first = max(start[0] + hop.duration_s, hop.crowd[0])
    through = first + (hop.runs - 1) * hop.duration_s
    return first, max(start[1] + hop.duration_s, through, hop.crowd[1])
