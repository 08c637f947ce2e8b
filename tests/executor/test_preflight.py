from __future__ import annotations

import pytest

from executor.preflight import require_real
from planner.api import plan
from planner.request import PlanRequest
from profiler.errors import InvalidInputError
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
