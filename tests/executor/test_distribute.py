"""Weights on their way from rank 0 to those that hold them."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from executor import distribute
from executor.distribute import IN_FLIGHT_BYTES, WEIGHTS_FILE, send_weights
from executor.schedule import Message
from executor.transport import Pending


class Post:
    """Keeps what is sent until it is waited for."""

    def __init__(self) -> None:
        self.under_way: deque[Pending] = deque()
        self.sent: list[tuple[int, str, torch.Tensor]] = []
        self.most_bytes = 0

    def send(self, tensor: torch.Tensor, message: Message) -> Pending:
        pending = Pending(work=None, tensor=tensor, message=message)
        self.under_way.append(pending)
        self.sent.append((message.target, message.tensor.removeprefix("weight "), tensor.clone()))
        self.most_bytes = max(self.most_bytes, sum(x.tensor.nbytes for x in self.under_way))
        return pending

    def finish(self, pending: Pending) -> torch.Tensor:
        assert self.under_way.popleft() is pending
        return pending.tensor


def posted(
    directory: Path,
    weights: dict[str, torch.Tensor],
    lacking: list[list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> Post:
    """What rank 0 sends if ranks 1, 2, ... ask for these ports."""
    save_file(weights, directory / WEIGHTS_FILE)
    recipes: dict[str, Any] = {name: {"root": name} for name in weights}
    recipes["in a file"] = {"file": "f", "key": "v"}
    for rank, ports in enumerate(lacking, 1):
        own = {"recipes": recipes, "program": {"weights": ports}}
        (directory / f"rank-{rank}.json").write_text(json.dumps(own))
    monkeypatch.setattr(distribute.dist, "get_world_size", lambda: len(lacking) + 1)
    post = Post()
    send_weights(directory, post)  # type: ignore[arg-type]
    assert not post.under_way, "all have left"
    return post


def test_few_are_under_way_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mib = 2**18
    weights = {f"w{i}": torch.full((3 * mib,), float(i)) for i in range(20)}
    ports = [{"weight": name} for name in weights]
    post = posted(tmp_path, weights, [ports[:10], ports[10:]], monkeypatch)
    assert len(post.sent) == 20
    assert 3 * 2**20 < post.most_bytes <= IN_FLIGHT_BYTES < 60 * 2**20
    for _, name, value in post.sent:
        assert torch.equal(value, weights[name])


def test_a_weight_larger_than_all_that_may_be_is_sent_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"large": torch.zeros(IN_FLIGHT_BYTES // 4 + 1), "small": torch.ones(1000)}
    ports = [{"weight": name} for name in ("small", "large", "small")]
    post = posted(tmp_path, weights, [ports[:2], ports[2:]], monkeypatch)
    assert [(rank, name) for rank, name, _ in post.sent] == [
        (1, "small"), (2, "small"), (1, "large"),
    ]  # fmt: skip
    assert post.most_bytes == weights["large"].nbytes


def test_ranks_take_turns_and_each_gets_its_own_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {name: torch.randn(4) for name in "abcd"}
    ports = [[{"weight": name} for name in names] for names in ("cab", "", "d")]
    post = posted(tmp_path, weights, ports, monkeypatch)
    assert [(rank, name) for rank, name, _ in post.sent] == [
        (1, "c"), (3, "d"), (1, "a"), (1, "b"),
    ]  # fmt: skip


def test_nothing_is_sent_where_all_is_in_files(tmp_path: Path) -> None:
    send_weights(tmp_path, Post())  # type: ignore[arg-type]


def test_a_rank_gets_its_shards_and_each_of_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.arange(12.0).reshape(4, 3)
    shard = {"dim": 0, "runs": [[0, 2]], "whole": [4, 3]}
    ports = [
        {"weight": "w", "shard": shard},
        {"weight": "in a file"},
        {"weight": "w"},
        {"weight": "w"},
    ]
    ports.append({"weight": "constant"})  # it has no recipe
    post = posted(tmp_path, {"w": whole}, [ports], monkeypatch)
    first, second = (value for _, _, value in post.sent)
    assert torch.equal(first, whole[:2])
    assert torch.equal(second, whole)
