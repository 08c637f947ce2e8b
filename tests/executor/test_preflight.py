from __future__ import annotations

import pytest

from executor import preflight
from executor.inputs import RunInputs
from executor.preflight import require_real, require_room
from planner.api import plan
from planner.request import PlanRequest
from profiler.errors import InvalidInputError
from profiler.units import format_bytes
from profiler.upgrades import with_speed
from tests.support.builders import GIB, chain_graph, make_cluster, make_profile


def test_a_plan_for_a_device_that_is_not_there_is_not_run() -> None:
    cluster = make_cluster({"a": GIB, "b": GIB})
    profile = make_profile(chain_graph(2), cluster, seconds={"a": [1.0] * 2, "b": [1.0] * 2})
    request = PlanRequest(batch_size=2)
    require_real(plan(profile, request))
    supposed = plan(with_speed(profile, "h/b", 2), request)
    with pytest.raises(InvalidInputError, match=r"hypothetical and cannot be run: rank 1 on h/b"):
        require_real(supposed)


def test_more_items_than_memory_are_refused_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profile = make_profile(chain_graph(2), make_cluster({"a": GIB}), seconds={"a": [1.0] * 2})
    made = plan(profile, PlanRequest(batch_size=4))
    graph = profile.model
    each = sum(graph.tensor[x].num_bytes({"batch": 1}) for x in (*graph.inputs, *graph.outputs))
    monkeypatch.setattr(preflight, "memory_limits", lambda: (GIB, 6 * each))
    for num_items in (1, 4, 10):
        require_room(made, graph, RunInputs(tensors={}, num_items=num_items, symbols={}))
    with pytest.raises(InvalidInputError) as raised:
        require_room(made, graph, RunInputs(tensors={}, num_items=11, symbols={}))
    assert "all 11 items" in str(raised.value)
    assert format_bytes(7 * each) in str(raised.value)
    assert format_bytes(6 * each) in str(raised.value)
