"""How the time of a search is shared among microbatch sizes. Solvers here only pretend."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import pytest

from planner import search
from planner.cost import CostModel
from planner.problem import PlanningProblem
from planner.request import Limits, PlanRequest
from planner.search import Search
from planner.solvers.base import SolveLimits, SolverResult, SolveStatus
from tests.support.builders import GIB, chain_graph, make_cluster, make_profile

LIMIT_S = 0.6


def searched(
    monkeypatch: pytest.MonkeyPatch, work: Callable[[int, int, SolveLimits], None]
) -> Counter[int]:
    """How often each size of microbatches was searched, where no search proves anything.

    ``work`` gets the size, which search of it this is, and its limits.
    """
    counts: Counter[int] = Counter()

    def solve(
        problem: PlanningProblem, *, cost: CostModel, name: str | None, limits: SolveLimits
    ) -> tuple[str, SolverResult]:
        counts[problem.microbatch] += 1
        work(problem.microbatch, counts[problem.microbatch], limits)
        nothing = SolverResult(
            status=SolveStatus.UNKNOWN,
            assignment=None,
            objective_s=None,
            bound_s=0.0,
            space="",
            candidates=0,
        )
        return "pretending", nothing

    monkeypatch.setattr(search, "solve", solve)
    cluster = make_cluster({"a": GIB, "b": GIB})
    seconds = {"a": [1.0] * 4, "b": [1.0] * 4}
    profile = make_profile(chain_graph(4), cluster, seconds=seconds)
    request = PlanRequest(batch_size=2, limits=Limits(time_s=LIMIT_S))
    one = Search(profile, request, None)
    one.run()
    assert one.best is not None, "a plan by rule"
    return counts


def test_what_time_ended_goes_on_with_what_others_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(size: int, count: int, limits: SolveLimits) -> None:
        # As CP-SAT does, a little before its limit; the other size needs no time at all.
        if size == 2 and count == 1:
            time.sleep(max(0.0, 0.95 * limits.remaining_s()))

    counts = searched(monkeypatch, work)
    assert counts[2] > 1
    assert counts[1] == 1


def test_what_stopped_by_itself_is_not_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    counts = searched(monkeypatch, lambda size, count, limits: None)
    assert set(counts.values()) == {1}
    assert time.monotonic() - begun < LIMIT_S
