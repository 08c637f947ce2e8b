"""Who has the answer when a run ends: the root, every rank, or each rank that of its own items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from executor.aggregation import combine_tensors
from executor.schedule import Interval, Message, Schedule
from executor.transport import Transport


@dataclass
class Kept:
    """The outputs that a rank computes, where each rank keeps those of its own items."""

    parts: dict[str, dict[Interval, torch.Tensor]] = field(default_factory=dict)

    def add(self, name: str, items: Interval, value: torch.Tensor) -> None:
        """Keep a part; when a run is repeated, the last one counts."""
        self.parts.setdefault(name, {})[items] = value.detach().to("cpu").clone()

    def joined(self, dims: Mapping[str, int | None]) -> dict[str, torch.Tensor]:
        """Each output on the items that are here, in item order."""
        made = {}
        for name, parts in self.parts.items():
            tensors = [parts[items] for items in sorted(parts)]
            dim = dims[name]
            made[name] = tensors[0] if dim is None else torch.cat(tensors, dim=dim)
        return made

    def items(self) -> dict[str, list[Interval]]:
        """For each output the items that are here, runs that follow each other as one."""
        return {name: _merged(sorted(parts)) for name, parts in self.parts.items()}


def _merged(spans: list[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for low, high in spans:
        if merged and merged[-1][1] == low:
            merged[-1] = (merged[-1][0], high)
        else:
            merged.append((low, high))
    return merged


def rank_file(path: Path, rank: int) -> Path:
    """Where a rank writes what it has of the answer, beside the root's ``path``.

    >>> str(rank_file(Path("out/y.safetensors"), 2))
    'out/y.rank2.safetensors'
    """
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def send_answer(
    schedule: Schedule, transport: Transport, answer: Mapping[str, torch.Tensor]
) -> None:
    """Send the whole answer from the root to every other rank, at once.

    Raises:
        RankFailedError: a rank did not take it in time.
    """
    under_way = [
        transport.send(tensor, _message(schedule, position, name, rank))
        for rank in sorted(schedule.stage_of)
        if rank != schedule.root
        for position, (name, tensor) in enumerate(answer.items())
    ]
    for one in under_way:
        transport.finish(one)


def receive_answer(
    schedule: Schedule, transport: Transport, outputs: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Take the whole answer on another rank.

    ``outputs`` are the outputs as the root has them before members are combined, without values
    (on the device ``meta``): putting those together tells the shapes of what will come.

    Raises:
        RankFailedError: it did not come in time.
    """
    expected = combine_tensors(schedule.graph.ensemble, schedule.plan.spec.aggregation, outputs)
    under_way = []
    for position, (name, like) in enumerate(expected.items()):
        buffer = torch.empty(like.shape, dtype=like.dtype)
        message = _message(schedule, position, name, transport.rank)
        under_way.append((name, transport.receive(buffer, message)))
    return {name: transport.finish(one) for name, one in under_way}


def _message(schedule: Schedule, position: int, name: str, rank: int) -> Message:
    return Message(
        tag=len(schedule.plan.spec.transfers) + position,
        tensor=name,
        source=schedule.root,
        target=rank,
        source_piece=-1,
        target_piece=-1,
        items=None,
    )
