"""Tensors of these small worlds are large from a size on that some of them have; and partial sums
too large to be sent whole. Undone after each module: other tests see the real sizes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

LARGE_FROM = 1500
WHOLE_UP_TO = 700


@pytest.fixture(autouse=True, scope="module")
def large_tensors() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planner.memory.MAPPED_BYTES", LARGE_FROM)
        patch.setattr("planner.ledger.MAPPED_BYTES", LARGE_FROM)
        patch.setattr("planner.communication.MAX_WHOLE_BYTES", WHOLE_UP_TO)
        patch.setattr("planner.joins.WHOLE_UP_TO_BYTES", WHOLE_UP_TO)
        yield
