"""Tensors of these small worlds are large from a size on that some of them have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

LARGE_FROM = 1500


@pytest.fixture(autouse=True, scope="package")
def large_tensors() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planner.memory.MAPPED_BYTES", LARGE_FROM)
        patch.setattr("planner.ledger.MAPPED_BYTES", LARGE_FROM)
        yield
