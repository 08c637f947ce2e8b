"""Connections between the ranks of a stage: everything arrives, strangers and silence are told."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from executor import sockets
from executor.schedule import Message
from executor.sockets import Parcel, StageSockets
from executor.transport import Pending
from executor.wirelog import TransferLog
from profiler.errors import RankFailedError

Boxes = defaultdict[tuple[int, int, int], "queue.Queue[torch.Tensor]"]


class Post:
    """A transport between threads."""

    def __init__(self, rank: int, boxes: Boxes, timeout_s: float) -> None:
        self.rank, self.boxes, self.timeout_s, self.log = rank, boxes, timeout_s, TransferLog()

    def send(self, tensor: torch.Tensor, message: Message) -> Pending:
        self.boxes[message.source, message.target, message.tag].put(tensor.clone())
        return Pending(work=None, tensor=tensor, message=message)

    def receive(self, buffer: torch.Tensor, message: Message) -> Pending:
        return Pending(work="receive", tensor=buffer, message=message)  # type: ignore[arg-type]

    def finish(self, pending: Pending) -> torch.Tensor:
        if pending.work is not None:
            m = pending.message
            pending.tensor.copy_(self.boxes[m.source, m.target, m.tag].get(timeout=self.timeout_s))
        return pending.tensor


def message(source: int, target: int) -> Message:
    return Message(
        tag=9,
        tensor="join of v",
        source=source,
        target=target,
        source_piece=-1,
        target_piece=-1,
        items=(2, 4),
    )


def together(
    ranks: list[int], work: Callable[[int, StageSockets, Post], None], *, timeout_s: float = 10
) -> dict[int, str]:
    """Every rank's ``work`` in a thread of its own, connected; what those that failed said."""
    boxes: Boxes = defaultdict(queue.Queue)
    said: dict[int, str] = {}

    def be(rank: int) -> None:
        post = Post(rank, boxes, timeout_s)
        try:
            connected = StageSockets.connect(post, ranks, rank)  # type: ignore[arg-type]
            try:
                work(rank, connected, post)
            finally:
                connected.close()
        except RankFailedError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=be, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return said


@pytest.mark.parametrize("ranks", [[0, 1], [5, 2, 9]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_everything_arrives_in_order(ranks: list[int], dtype: torch.dtype) -> None:
    # 4 MiB and more do not fit in any socket's buffer; the receiver is slow now and then.
    sizes = [1, 100_003, 0, 1_500_000, 7]
    came: dict[tuple[int, int, int], torch.Tensor] = {}

    def value(source: int, target: int, turn: int) -> torch.Tensor:
        seed = torch.Generator().manual_seed(100 * source + 10 * target + turn)
        return (10 * torch.rand(sizes[turn] * (1 + source), generator=seed)).to(dtype)

    def work(rank: int, connected: StageSockets, post: Post) -> None:
        others = [other for other in ranks if other != rank]
        for turn, size in enumerate(sizes):
            if turn == rank % 3:
                time.sleep(0.1)
            taken = {o: torch.empty(size * (1 + o), dtype=dtype) for o in others}
            connected.exchange(
                [Parcel(message(rank, o), value(rank, o, turn)) for o in others],
                [Parcel(message(o, rank), taken[o]) for o in others],
            )
            came.update({(o, rank, turn): t for o, t in taken.items()})
        counted = sum(count for *_, count in post.log.to_data()["kinds"])
        assert counted == 4 * len(others)  # one message of each other rank was empty

    assert not together(ranks, work)
    assert len(came) == len(sizes) * len(ranks) * (len(ranks) - 1)
    assert all(torch.equal(tensor, value(*key)) for key, tensor in came.items())


def test_a_rank_that_hangs_up_is_named() -> None:
    def work(rank: int, connected: StageSockets, post: Post) -> None:
        if rank == 1:
            return
        buffer = torch.empty(3)
        connected.exchange([], [Parcel(message(1, 0), buffer)])

    said = together([0, 1], work)
    assert list(said) == [0]
    assert "rank 0 failed receiving join of v for items 2 to 3 (12 B) from rank 1" in said[0]
    assert "hung up" in said[0]


def test_a_silent_rank_is_named_within_the_time_limit() -> None:
    over = threading.Event()

    def work(rank: int, connected: StageSockets, post: Post) -> None:
        if rank == 1:
            over.wait(20)
            return
        try:
            connected.exchange([], [Parcel(message(1, 0), torch.empty(3))])
        finally:
            over.set()

    said = together([0, 1], work, timeout_s=0.5)
    assert "from rank 1: nothing came through in 0.5 s" in said[0]


def test_strangers_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = sockets._listener

    def crowded(backlog: int) -> socket.socket:
        listener = opened(backlog)
        for text in (b"GET / HTTP/1.1\r\n\r\n" + b" " * 40, b"x"):
            with socket.create_connection(("127.0.0.1", listener.getsockname()[1])) as stranger:
                stranger.sendall(text)
        return listener

    monkeypatch.setattr(sockets, "_listener", crowded)
    test_everything_arrives_in_order([0, 1], torch.float32)


def test_a_rank_that_answers_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = sockets._answered

    def late(*args: Any) -> Any:
        time.sleep(0.5)
        return answered(*args)

    monkeypatch.setattr(sockets, "TRY_S", 0.1)
    monkeypatch.setattr(sockets, "_answered", late)
    monkeypatch.setattr(sockets, "addresses", lambda: ["127.0.0.1", "127.0.0.2"])
    assert not together([4, 0, 7], lambda *_: None)


def test_addresses_that_nobody_answers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    monkeypatch.setattr(sockets, "addresses", lambda: ["127.0.0.1"])
    exchanged = sockets._exchange_cards

    def wrong(*args: Any) -> dict[int, sockets.Card]:
        return {other: replace(card, port=closed) for other, card in exchanged(*args).items()}

    monkeypatch.setattr(sockets, "_exchange_cards", wrong)
    said = together([0, 1], lambda *_: None, timeout_s=1)
    assert "rank 1 cannot connect with rank 0, which divides a stage with it" in said[1]
    assert f"at port {closed} of 127.0.0.1" in said[1]
    assert "rank 0 waited in vain for a connection from rank 1" in said[0]


def test_addresses_are_those_of_the_named_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert "127.0.0.1" in sockets.addresses()
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    others = [a for a in sockets.addresses() if not a.startswith("127.")]
    assert others or sockets.addresses() == ["127.0.0.1"]
