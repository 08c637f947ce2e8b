"""The shapes of a run: of tensors and of their parts for some items, in numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from executor.schedule import Message
from profiler.expressions import BATCH, evaluate
from profiler.graph import ModelGraph, Tensor
from profiler.program import StageProgram


class Shapes:
    """Shapes with the sizes of a run of ``num_items`` items, each worked out once.

    A tensor of the whole batch has the run's items in its shape: such runs have one step.
    """

    def __init__(self, graph: ModelGraph, symbols: Mapping[str, int], num_items: int) -> None:
        self._tensors = graph.tensor
        self._symbols = {**graph.symbols, **symbols, BATCH: num_items}
        self._shapes: dict[tuple[str, int], tuple[int, ...]] = {}
        self._sizes: dict[int, list[int]] = {}
        self._rows: dict[str, int] = {}

    def of(self, tensor: Tensor, items: int | None = None) -> tuple[int, ...]:
        """The shape of a tensor for ``items`` items; of the run if none are given."""
        if items is None:
            items = self._symbols[BATCH]
        key = (tensor.name, items)
        if key not in self._shapes:
            symbols = {**self._symbols, BATCH: items}
            self._shapes[key] = tuple(evaluate(size, symbols) for size in tensor.shape)
        return self._shapes[key]

    def of_message(self, message: Message) -> tuple[int, ...]:
        """The shape of what a message carries."""
        low, high = message.items or (0, self._symbols[BATCH])
        return self.of(self._tensors[message.tensor], high - low)

    def buffer(self, message: Message) -> torch.Tensor:
        """Room for what a message carries."""
        tensor = self._tensors[message.tensor]
        return torch.empty(self.of_message(message), dtype=getattr(torch, tensor.dtype))

    def rows(self, tensor: Tensor) -> int:
        """How many places of its batch dim belong to an item."""
        if tensor.batch_dim is None:
            return 1
        if tensor.name not in self._rows:
            self._rows[tensor.name] = tensor.rows_per_item(self._symbols)
        return self._rows[tensor.name]

    def cut(self, whole: torch.Tensor, message: Message, first_item: int) -> torch.Tensor:
        """The part that a message carries of a tensor whose items begin with ``first_item``."""
        tensor = self._tensors[message.tensor]
        if message.items is None or tensor.batch_dim is None:
            return whole
        rows = self.rows(tensor)
        low, high = message.items
        return whole.narrow(tensor.batch_dim, (low - first_item) * rows, (high - low) * rows)

    def sizes(self, program: StageProgram, items: int) -> list[int]:
        """The numbers that a stage's program takes, for ``items`` items."""
        if items not in self._sizes:
            symbols = {**self._symbols, BATCH: items}
            self._sizes[items] = [evaluate(size, symbols) for _, size in program.sizes]
        return self._sizes[items]
