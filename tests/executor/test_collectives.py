"""Joins between ranks: right, and the same bits everywhere."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from executor import collectives
from executor.collectives import StageJoins
from executor.schedule import Message
from executor.sockets import Parcel
from profiler.program import JOIN_CONCAT, JOIN_SUM, Node

RANKS = (7, 2, 5, 3)


class Post:
    """Mail between threads; a receive takes what was sent under the same ends and tag."""

    def __init__(self) -> None:
        self.boxes: dict[tuple[int, int, int], queue.Queue[torch.Tensor]] = defaultdict(queue.Queue)
        self.sent: list[Message] = []

    def exchange(self, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        for message, tensor in ((p.message, p.tensor) for p in sends):
            assert tensor.is_contiguous()
            self.sent.append(message)
            self.boxes[message.source, message.target, message.tag].put(tensor.clone())
        for message, buffer in ((p.message, p.tensor) for p in receives):
            assert buffer.is_contiguous()
            box = self.boxes[message.source, message.target, message.tag]
            buffer.copy_(box.get(timeout=10))


def joined(parts: list[torch.Tensor], op: str, *more: Any) -> tuple[list[torch.Tensor], Post]:
    post = Post()
    ranks = RANKS[: len(parts)]
    found: dict[int, torch.Tensor] = {}
    node = Node(name="v", op=op, args=({"node": "v.part"}, 3, "v", *more), kwargs={})

    def work(index: int) -> None:
        joins = StageJoins(post, ranks=ranks, rank=ranks[index])
        joins.begin((4, 6))
        found[index] = joins.join(node)(parts[index])
        assert joins.spent_s > 0

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [found[i] for i in range(len(parts))], post


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("shape", [(2, 3), (3, 41, 101), (5,)])
def test_sums_have_the_same_bits_on_every_rank(width: int, shape: tuple[int, ...]) -> None:
    parts = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(width)]
    found, post = joined(parts, JOIN_SUM)
    expected = parts[0].clone()
    for part in parts[1:]:
        expected += part
    assert all(torch.equal(one, expected) for one in found)
    large = parts[0].numel() * 4 > collectives.WHOLE_BYTES
    rounds = 2 if width > 2 and large else 1
    assert len(post.sent) == rounds * width * (width - 1)
    assert {m.items for m in post.sent} == {(4, 6)}
    assert {m.tensor for m in post.sent} == {"join of v"}


def test_terms_whose_memory_is_not_in_order_are_sent_all_the_same() -> None:
    parts = [torch.randn(4, 6).t(), torch.randn(6, 4)]
    found, _ = joined(parts, JOIN_SUM)
    assert all(torch.equal(one, parts[0] + parts[1]) for one in found)


def test_shards_of_unequal_length_lie_in_rank_order() -> None:
    whole = torch.arange(2 * 8 * 3).reshape(2, 8, 3)
    parts = [whole[:, :5], whole[:, 5:6], whole[:, 6:]]
    found, _ = joined([p.contiguous() for p in parts], JOIN_CONCAT, 1, [5, 1, 2])
    assert all(torch.equal(one, whole) for one in found)


def test_shards_of_several_runs_are_put_together_run_by_run() -> None:
    whole = torch.arange(2 * 3 * 8).reshape(2, 24)
    runs = whole.unflatten(1, (3, 8))
    parts = [runs[..., :5].flatten(1).contiguous(), runs[..., 5:].flatten(1).contiguous()]
    found, _ = joined(parts, JOIN_CONCAT, 1, [5, 3])
    assert all(torch.equal(one, whole) for one in found)
