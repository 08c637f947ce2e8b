"""Weights that exist only on rank 0, to the ranks whose stages hold them.

Needed when ranks on other hosts run a model that a factory made: its weights are in no file that
they could read. Each goes to each rank that holds it, once, in an order both ends know.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open

from executor.schedule import Message
from executor.transport import Pending, Transport
from profiler.errors import InvalidInputError
from profiler.program import Shard, read_shard
from profiler.weights import Recipe, cut, fill_shard

WEIGHTS_FILE = "weights.safetensors"
TAG = 2**20
"""Tag of weight messages: far from those of transfers."""

IN_FLIGHT_BYTES = 16 * 2**20
"""What rank 0 holds at most of the others' weights at a time, if no single one is larger."""


def held_by_root(recipe: Recipe) -> bool:
    """Whether a recipe says that the value must come from rank 0."""
    return "root" in recipe


def send_weights(directory: Path, transport: Transport) -> None:
    """Send every rank what it lacks; rank 0 calls this before it loads its own.

    A few at a time, so that rank 0 never holds what belongs to the others: the others must come to
    read without waiting for rank 0, and have connected what they connect with it.

    Raises:
        RankFailedError: a rank did not take its weights in time.
    """
    under_way: deque[Pending] = deque()
    held = 0
    for rank, name, shard in _in_turn(directory):
        # Opened for each: what is open stays mapped, and counts, page by page.
        with safe_open(directory / WEIGHTS_FILE, framework="pt") as opened:
            value = cut(opened.get_tensor(name), shard)
        held += value.nbytes
        while under_way and held > IN_FLIGHT_BYTES:
            held -= transport.finish(under_way.popleft()).nbytes
        under_way.append(transport.send(value, _message(name, rank)))
    for one in under_way:
        transport.finish(one)


def _in_turn(directory: Path) -> Iterator[tuple[int, str, Shard | None]]:
    """Rank, weight and shard of every message: each rank in its order, one of every rank in turn,
    so that none waits for all of another's."""
    if not (directory / WEIGHTS_FILE).exists():
        return
    lacking = []
    for rank in range(1, dist.get_world_size()):
        own = json.loads((directory / f"rank-{rank}.json").read_text())
        lacking.append([(rank, *one) for one in dict.fromkeys(_lacking(own))])
    for turn in zip_longest(*lacking):
        yield from (one for one in turn if one is not None)


def _lacking(own: Mapping[str, Any]) -> Iterator[tuple[str, Shard | None]]:
    """What a rank needs of the root, in the order in which it will ask."""
    for port in (own["program"] or {"weights": ()})["weights"]:
        recipe = own["recipes"].get(port["weight"])
        if recipe is not None and held_by_root(recipe):
            yield recipe["root"], read_shard(port)


class RemoteWeights:
    """Reads recipes on one rank: files as they are, the rest from rank 0 in the agreed order."""

    def __init__(self, directory: Path, transport: Transport, *, rank: int) -> None:
        self.directory = directory
        self.transport = transport
        self.rank = rank

    def read(self, name: str, recipe: Recipe, shard: Shard | None, target: torch.Tensor) -> None:
        """Fill ``target`` with a weight, or with a shard of it."""
        if not held_by_root(recipe):
            if not _readable(recipe):
                raise InvalidInputError(
                    f"weight {name} is stored in {_first_file(recipe)}, which this host does not "
                    "have: put the model directory at the same path on every host"
                )
            fill_shard(target, recipe, shard, name=name)
        elif self.rank == 0:
            stored = {"file": str(self.directory / WEIGHTS_FILE), "key": recipe["root"]}
            fill_shard(target, stored, shard, name=name)
        else:
            host = torch.empty(target.shape, dtype=target.dtype)
            message = _message(recipe["root"], self.rank)
            target.copy_(self.transport.finish(self.transport.receive(host, message)))


def _message(name: str, rank: int) -> Message:
    return Message(
        tag=TAG,
        tensor=f"weight {name}",
        source=0,
        target=rank,
        source_piece=-1,
        target_piece=-1,
        items=None,
    )


def _first_file(recipe: Recipe) -> str:
    while "parts" in recipe:
        recipe = recipe["parts"][0]
    return str(recipe["file"])


def _readable(recipe: Recipe) -> bool:
    return Path(_first_file(recipe)).is_file()
