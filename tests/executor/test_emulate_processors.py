"""Which processors emulated hosts get: each as many as it has cores, none of them overbooked."""

from __future__ import annotations

import math
import os

from hypothesis import given
from hypothesis import strategies as st

from executor.emulate.processors import free_processors, share_out

CORES = st.one_of(st.none(), st.floats(0.01, 4.0))


@given(st.lists(CORES, max_size=8), st.dictionaries(st.integers(0, 7), st.floats(0.0, 1.0)))
def test_no_processor_is_overbooked(cores: list[float | None], free: dict[int, float]) -> None:
    shares = share_out(cores, free)
    assert len(shares) == len(cores)
    left = dict(free)
    for asked, share in zip(cores, shares, strict=True):
        for processor, part in share:
            left[processor] -= part
        if any(shares) and asked is not None:
            assert len({processor for processor, _ in share}) == len(share) == math.ceil(asked)
            assert math.isclose(sum(part for _, part in share), asked)
        if asked is None:
            assert share == ()
    assert all(part > -1e-5 for part in left.values())


@given(st.floats(0.01, 1.0))
def test_one_host_of_a_core_or_less_always_fits(cores: float) -> None:
    assert share_out([cores], {3: 1.0}) == (((3, cores),),)


def test_what_others_have_is_not_free() -> None:
    mine = sorted(os.sched_getaffinity(0))
    elsewhere = mine[-1] + 1
    free = free_processors([((mine[0], 0.75),), ((mine[0], 0.125), (elsewhere, 1.0)), ()])
    assert free == {**dict.fromkeys(mine, 1.0), mine[0]: 0.125}
