"""When a batch is through: every stage and every hop between two is a server that takes the
microbatches in order (``docs/cost-model.md``, time of one batch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """One stage, in seconds a microbatch (a batch, if it waits for one)."""

    compute_s: float
    join_s: float
    receive_s: float
    send_s: float
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HopCost:
    """All tensors from one stage to another (None: input, output), seconds a move.

    ``rest_s`` is what the target has still to compute when it first reads any of them.
    """

    source: int | None
    target: int | None
    duration_s: float
    rest_s: float
    runs: int


def batch_latency_s(stages: Sequence[StageCost], hops: Sequence[HopCost]) -> float:
    """Largest ``last`` over the hops into the output; ``stages`` are in topological order."""
    done: dict[int | None, tuple[float, float]] = {None: (0.0, 0.0)}
    # When the first and the last microbatch would be computed if only for this hop.
    ends: dict[int, list[tuple[float, float]]] = {s: [] for s in range(len(stages))}
    out_of: dict[int | None, list[HopCost]] = {}
    finished = 0.0

    def pass_on(hop: HopCost, start: tuple[float, float]) -> None:
        nonlocal finished
        first, last = _through(hop, start)
        if hop.target is None:
            finished = max(finished, last)
        else:
            ends[hop.target].append((first + hop.rest_s, last + hop.rest_s))

    for hop in hops:
        out_of.setdefault(hop.source, []).append(hop)
    for hop in out_of.get(None, []):
        pass_on(hop, done[None])
    for s, stage in enumerate(stages):
        first = max((end for end, _ in ends[s]), default=stage.run_s)
        last = max((end for _, end in ends[s]), default=stage.run_s)
        if stage.whole_batch:
            first = last
        else:
            first = max(first, stage.run_s)
            last = max(last, first + (stage.runs - 1) * stage.busy_s)
        done[s] = first, last
        for hop in out_of.get(s, []):
            pass_on(hop, done[s])
    return finished or max(last for _, last in done.values())


def _through(hop: HopCost, start: tuple[float, float]) -> tuple[float, float]:
    """First and last microbatch behind a hop, from first and last before it."""
    first = start[0] + hop.duration_s
    return first, max(start[1] + hop.duration_s, first + (hop.runs - 1) * hop.duration_s)
