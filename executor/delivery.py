"""Who has the answer when a run ends: the root, every rank, or each rank that of its own items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from executor.aggregation import combine_tensors
from executor.schedule import Interval, Message, Schedule
from executor.transport import Transport
from planner.planfile import Plan


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


def kept_items(
    plan: Plan, ran: Sequence[Mapping[str, Any]], names: Mapping[str, str]
) -> list[tuple[int, str, dict[str, list[tuple[int, int]]]]]:
    """Ranks that keep a part of the answer, their devices, and the items of each output there.

    ``ran`` are the ranks' reports in rank order, ``names`` those of outputs for users.
    """
    return [
        (
            binding.rank,
            binding.device,
            {
                name: [(int(low), int(high)) for low, high in one["kept"][own]]
                for name, own in names.items()
                if own in one["kept"]
            },
        )
        for binding, one in zip(plan.spec.ranks, ran, strict=True)
        if one["kept"]
    ]
