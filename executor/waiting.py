"""A stage that waits instead of computing: what the ranks of a rehearsal run."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import nn

from executor.schedule import StageRole
from profiler.expressions import BATCH, evaluate
from profiler.graph import ModelGraph
from profiler.program import StageProgram


class WaitingStage(nn.Module):
    """Takes a stage's place: waits, then gives its outputs as zeros.

    ``seconds[n - 1]`` is the wait for ``n`` items. What one wait took too long, the next one is
    shorter by: a sleeping process is woken some tens of microseconds late.
    """

    LARGEST_DEBT_S = 0.005
    """Longer delays are the machine's, and not made up for."""

    def __init__(self, graph: ModelGraph, outputs: Sequence[str], seconds: Sequence[float]) -> None:
        super().__init__()
        self._graph, self._outputs, self._seconds = graph, tuple(outputs), tuple(seconds)
        self._made: dict[int, tuple[torch.Tensor, ...]] = {}
        self._owed_s = 0.0

    def forward(self, *taken: object) -> tuple[torch.Tensor, ...]:
        """The outputs; the last argument is the number of items."""
        items = taken[-1]
        assert isinstance(items, int)
        begun = time.perf_counter()
        wanted = self._seconds[min(items, len(self._seconds)) - 1]
        if items not in self._made:
            self._made[items] = tuple(self._zeros(name, items) for name in self._outputs)
        rest = wanted - self._owed_s - (time.perf_counter() - begun)
        if rest > 0:
            time.sleep(rest)
        late = self._owed_s + time.perf_counter() - begun - wanted
        self._owed_s = min(max(late, 0.0), self.LARGEST_DEBT_S)
        return self._made[items]

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
