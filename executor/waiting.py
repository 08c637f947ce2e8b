"""A stage that waits instead of computing: what the ranks of a rehearsal run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from executor.schedule import StageRole
from profiler.expressions import BATCH, evaluate
from profiler.graph import ModelGraph
from profiler.program import StageProgram


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """Seconds for 1, 2, ... items: of the whole stage, and of its part ``before`` it first reads
    an input (none: that is read at once)."""

    whole: list[float]
    before: dict[str, list[float]]


class WaitingStage(nn.Module):
    """Takes a stage's place: waits, for time to pass and for inputs where the stage would first
    read them, then gives its outputs as zeros.

    What one wait took too long, the next one is shorter by: a sleeping process is woken some tens
    of microseconds late.
    """

    LARGEST_DEBT_S = 0.005
    """Longer delays are the machine's, and not made up for."""

    def __init__(self, graph: ModelGraph, program: StageProgram, waits: Waits) -> None:
        super().__init__()
        self._graph, self._program, self._waits = graph, program, waits
        self._made: dict[int, tuple[torch.Tensor, ...]] = {}
        self._owed_s = 0.0

    def forward(self, *taken: Any) -> tuple[torch.Tensor, ...]:
        """The outputs. Takes the inputs, to be awaited, and the number of items."""
        *inputs, items = taken
        assert isinstance(items, int)
        if items not in self._made:
            self._made[items] = tuple(self._zeros(name, items) for name in self._program.outputs)

        def seconds(each: list[float]) -> float:
            return each[min(items, len(each)) - 1]

        before, done_s = self._waits.before, 0.0
        reads = sorted(
            (
                (seconds(before[name]) if name in before else 0.0, at)
                for at, name in enumerate(self._program.inputs)
            ),
        )
        for at_s, at in reads:
            if at_s > done_s:
                self._pass(at_s - done_s)
                done_s = at_s
            inputs[at].wait()
        self._pass(seconds(self._waits.whole) - done_s)
        return self._made[items]

    def _pass(self, seconds: float) -> None:
        begun = time.perf_counter()
        if seconds > self._owed_s:
            time.sleep(seconds - self._owed_s)
        late = self._owed_s + time.perf_counter() - begun - seconds
        self._owed_s = min(max(late, 0.0), self.LARGEST_DEBT_S)

    def _zeros(self, name: str, items: int) -> torch.Tensor:
        tensor = self._graph.tensor[name]
        symbols = self._graph.symbols_at(items)
        shape = [evaluate(size, symbols) for size in tensor.shape]
        return torch.zeros(shape, dtype=getattr(torch, tensor.dtype))


def waiting_program(graph: ModelGraph, role: StageRole) -> StageProgram:
    """A program without operators: takes what the stage receives, gives what it would compute."""
    own = {name for layer in role.layers for name in graph.layers[graph.layer_index[layer]].writes}
    return StageProgram(
        inputs=role.receives,
        sizes=(("items", BATCH),),
        weights=(),
        nodes=(),
        outputs=tuple(name for name in role.sends if name in own),
        graphs={},
    )
