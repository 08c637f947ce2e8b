"""Joins between the ranks of a stage that is split by tensor: partial results become whole.

Point to point, in at most two rounds, in which both directions of a link are used at once. Terms
are added in rank order on every rank: all get the same bits. Two ranks, or terms of at most
:data:`WHOLE_BYTES`, send whole terms to everyone; more ranks first give each a piece to add up,
then pass the sums round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import torch

from executor.joining import place_runs
from executor.schedule import JOINED, Interval, Message
from executor.sockets import Parcel
from profiler.program import JOIN_SUM, Node

WHOLE_BYTES = 32 * 1024
"""Terms up to this size go whole to every rank: one round costs less than two."""

TAG = 2**20 + 16
"""Tag of the first round of the first join: far from those of transfers."""


class Mail(Protocol):
    """What moves the messages of a join; every wait of it has a limit."""

    def exchange(self, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        """Send and receive all of these."""


class StageJoins:
    """The joins of one rank with the other ranks of its stage.

    ``ranks`` are those of the stage in the plan's order. ``items`` and ``spent_s`` belong to the
    piece under way: what messages say when a join fails, and the seconds spent in joins so far.
    """

    def __init__(self, mail: Mail, *, ranks: Sequence[int], rank: int) -> None:
        self.mail = mail
        self.ranks = tuple(ranks)
        self.index = self.ranks.index(rank)
        self.items: Interval | None = None
        self.spent_s = 0.0

    def begin(self, items: Interval) -> None:
        """A piece begins."""
        self.items, self.spent_s = items, 0.0

    def join(self, node: Node) -> Callable[[torch.Tensor], torch.Tensor]:
        """What turns this rank's part into the whole, for one join of its program.

        Raises (when called):
            RankFailedError: another rank of the stage is gone or silent.
        """
        number, name = int(node.args[1]), str(node.args[2])

        def run(part: torch.Tensor) -> torch.Tensor:
            begun = time.perf_counter()
            device = part.device
            part = part.to("cpu").contiguous()
            if node.op == JOIN_SUM:
                whole = self._sum(part, number, name)
            else:
                whole = self._concat(part, number, name, int(node.args[3]), node.args[4])
            whole = whole.to(device)
            self.spent_s += time.perf_counter() - begun
            return whole

        return run

    def _sum(self, part: torch.Tensor, number: int, name: str) -> torch.Tensor:
        width = len(self.ranks)
        if width == 2 or part.numel() * part.element_size() <= WHOLE_BYTES:
            terms = [torch.empty_like(part) for _ in self.ranks]
            self._exchange([part] * width, terms, number, name, second=False)
            terms[self.index] = part
            return _added(terms)
        flat = part.reshape(-1)
        ends = [flat.numel() * i // width for i in range(width + 1)]
        pieces = [flat[a:b] for a, b in pairwise(ends)]
        own = pieces[self.index]
        terms = [torch.empty_like(own) for _ in self.ranks]
        self._exchange(pieces, terms, number, name, second=False)
        terms[self.index] = own
        whole = torch.empty_like(flat)
        sums = [whole[a:b] for a, b in pairwise(ends)]
        sums[self.index].copy_(_added(terms))
        self._exchange([sums[self.index]] * width, sums, number, name, second=True)
        return whole.view(part.shape)

    def _concat(
        self, part: torch.Tensor, number: int, name: str, dim: int, lengths: Sequence[int]
    ) -> torch.Tensor:
        runs = part.shape[dim] // lengths[self.index]
        parts = [
            part.new_empty((*part.shape[:dim], runs * length, *part.shape[dim + 1 :]))
            if index != self.index
            else part
            for index, length in enumerate(lengths)
        ]
        self._exchange([part] * len(parts), parts, number, name, second=False)
        return place_runs(parts, dim=dim, lengths=lengths)

    def _exchange(
        self,
        given: Sequence[torch.Tensor],
        taken: Sequence[torch.Tensor],
        number: int,
        name: str,
        *,
        second: bool,
    ) -> None:
        """Send ``given[i]`` to rank i of the stage and receive ``taken[i]`` from it."""
        tag = TAG + 2 * number + second
        others = [i for i in range(len(self.ranks)) if i != self.index]
        self.mail.exchange(
            [Parcel(self._message(tag, name, self.index, i), given[i]) for i in others],
            [Parcel(self._message(tag, name, i, self.index), taken[i]) for i in others],
        )

    def _message(self, tag: int, name: str, source: int, target: int) -> Message:
        return Message(
            tag=tag,
            tensor=f"{JOINED}{name}",
            source=self.ranks[source],
            target=self.ranks[target],
            source_piece=-1,
            target_piece=-1,
            items=self.items,
        )


def _added(terms: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum, term after term: the same bits wherever it is computed."""
    whole = terms[0] + terms[1]
    for term in terms[2:]:
        whole += term
    return whole
