"""Offsets of clocks, over messages in threads of one process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping

import pytest

from executor.clocks import ROUND_TRIPS, clock_identity, compare_clocks
from executor.links import Offset
from profiler.allocator import heap_environment
from tests.support.loops import Board, BoardTransport, Stuck
from tests.support.warm import WarmPopen


def offsets(
    clocks: list[Callable[[], int]], identities: list[int], board: Board
) -> Mapping[int, Offset]:
    found: dict[int, Mapping[int, Offset]] = {}
    failures: list[BaseException] = []

    def be(rank: int) -> None:
        try:
            found[rank] = compare_clocks(
                BoardTransport(board),  # type: ignore[arg-type]
                rank=rank,
                root=0,
                world_size=len(clocks),
                clock=clocks[rank],
                identity=identities[rank],
            )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=be, args=(r,), daemon=True) for r in range(len(clocks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    if failures:
        raise failures[0]
    assert all(not found[rank] for rank in range(1, len(clocks)))
    return found[0]


def ahead(seconds: float) -> Callable[[], int]:
    return lambda: time.perf_counter_ns() + round(seconds * 1e9)


def test_the_error_bounds_how_far_the_offset_is_off() -> None:
    board = Board()
    found = offsets([ahead(0.0), ahead(3600.0), ahead(-0.25)], [1, 2, 3], board)
    assert found[0] == Offset(0.0, 0.0)
    for rank, seconds in ((1, 3600.0), (2, -0.25)):
        assert abs(found[rank].seconds - seconds) <= found[rank].error_s
        assert 0 < found[rank].error_s < 0.5
    assert board.moved == 2 * 2 * ROUND_TRIPS


def test_ranks_with_one_clock_know_it_after_one_round_trip() -> None:
    board = Board()
    found = offsets([ahead(0.0)] * 3, [7, 7, 7], board)
    assert set(found.values()) == {Offset(0.0, 0.0)}
    assert board.moved == 2 * 2


def test_a_rank_that_does_not_answer_is_no_hang() -> None:
    with pytest.raises(Stuck):
        compare_clocks(
            BoardTransport(Board()),  # type: ignore[arg-type]
            rank=0,
            root=0,
            world_size=2,
        )


def test_processes_of_one_machine_have_one_clock() -> None:
    script = "from executor.clocks import clock_identity; print(clock_identity())"
    other = WarmPopen(
        [sys.executable, "-c", script],
        env=heap_environment(os.environ),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert clock_identity() == int(other.communicate()[0])
    assert -(2**63) <= clock_identity() < 2**63
