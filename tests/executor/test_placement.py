from __future__ import annotations

import pytest

from executor.placement import placed
from executor.torchrun import Environment
from planner.planfile import Plan
from profiler.errors import InvalidInputError
from tests.support.plans import edit
from tests.support.small_plans import two_stages

RANKS = {0: "node-b/x", 1: "node-a/x", 2: "node-b/y"}


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Rank 0 and 2 on node-b, rank 1 on node-a."""
    changes = {f"spec.ranks.{rank}.device": device for rank, device in RANKS.items()}
    return edit(two_stages(), changes)


def environment(rank: int, world_size: int) -> Environment:
    return Environment(rank=rank, world_size=world_size, master_addr="x", master_port=1)


@pytest.mark.parametrize(
    ("host", "local", "rank"),
    [
        ("node-a", 0, 1),
        ("node-b", 0, 0),
        ("node-b", 1, 2),
        ("node-b", 2, None),
        ("node-c", 0, None),
        ("node", 0, None),
    ],
)
def test_processes_of_a_host_take_its_ranks_in_order(
    host: str, local: int, rank: int | None, plan: Plan
) -> None:
    variables = {"APPORTION_HOST": host, "LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": "3"}
    expected = None if rank is None else environment(rank, 3)
    assert placed(environment(7, 12), plan, variables) == expected


@pytest.mark.parametrize("variables", [{}, {"LOCAL_RANK": "1"}, {"APPORTION_HOST": "node-a"}])
def test_without_names_the_launchers_ranks_are_the_plans(
    variables: dict[str, str], plan: Plan
) -> None:
    assert placed(environment(2, 3), plan, variables) == environment(2, 3)


def test_a_host_with_too_few_processes_is_refused(plan: Plan) -> None:
    variables = {"APPORTION_HOST": "node-b", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    with pytest.raises(InvalidInputError, match="2 ranks on host node-b, 1 processes were started"):
        placed(environment(0, 2), plan, variables)
