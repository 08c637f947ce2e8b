from __future__ import annotations

import pytest

from profiler.environment import Environment, first_line
from profiler.errors import InvalidInputError, RankFailedError
from tests.support.hosts import free_port

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_what_torchrun_sets_is_read() -> None:
    found = Environment.read(TORCHRUN)
    assert found == Environment(rank=1, world_size=3, master_addr="10.0.0.1", master_port=29500)
    assert not found.hosts_store


def test_no_rank_no_environment() -> None:
    assert Environment.read({"WORLD_SIZE": "3"}) is None


def test_an_agent_of_torchrun_keeps_the_store() -> None:
    rank0 = {**TORCHRUN, "RANK": "0"}
    alone, agent = (
        Environment.read(rank0),
        Environment.read(
            {**rank0, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}
        ),
    )
    assert alone is not None
    assert agent is not None
    assert (alone.hosts_store, agent.hosts_store) == (True, False)
    assert agent.attempt == "2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MASTER_PORT": None, "WORLD_SIZE": None}, "not WORLD_SIZE, MASTER_PORT"),
        ({"RANK": "one"}, "must be numbers"),
        ({"RANK": "3"}, "RANK is 3 and WORLD_SIZE 3"),
        ({"RANK": "-1"}, "ranks count from 0"),
    ],
)
def test_half_an_environment_is_refused(change: dict[str, str | None], message: str) -> None:
    variables = {k: v for k, v in {**TORCHRUN, **change}.items() if v is not None}
    with pytest.raises(InvalidInputError, match=message):
        Environment.read(variables)


def test_a_store_that_nobody_keeps_is_named() -> None:
    port = free_port()
    alone = Environment(rank=1, world_size=2, master_addr="127.0.0.1", master_port=port)
    with pytest.raises(
        RankFailedError, match=rf"rank 1 on .* cannot reach 127.0.0.1:{port} in 1 s"
    ):
        alone.store(timeout_s=1.0)


def test_errors_of_torch_lose_the_place_they_come_from() -> None:
    shown = first_line(RuntimeError("[/__w/third_party/gloo/pair.cc:537] Read error\nframe #0"))
    assert shown == "Read error"
    assert first_line(RuntimeError("")) == "RuntimeError"
