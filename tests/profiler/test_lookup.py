from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.lookup import extrapolates, peak_bytes, time_s
from profiler.profile import Measurement


def rows(points: dict[int, float]) -> list[Measurement]:
    return [
        Measurement(items=n, median_s=t, spread=0.0, samples=3, peak_bytes=round(t * 1000))
        for n, t in sorted(points.items())
    ]


def test_between_sizes_the_line_and_beyond_them_the_last_slope() -> None:
    measured = rows({2: 1.0, 4: 2.0, 8: 6.0})
    assert [time_s(measured, n) for n in (0, 1, 2, 3, 4, 6, 8, 10)] == [
        0.0, 1.0, 1.0, 1.5, 2.0, 4.0, 6.0, 8.0,
    ]  # fmt: skip
    assert [extrapolates(measured, n) for n in (1, 8, 9)] == [False, False, True]


def test_a_dip_is_not_believed() -> None:
    # 4 items cannot take less than 2: the envelope is flat there, and beyond 8 nothing is won.
    measured = rows({2: 3.0, 4: 2.0, 8: 4.0})
    assert [time_s(measured, n) for n in (2, 3, 4, 6, 8)] == [3.0, 3.0, 3.0, 3.5, 4.0]
    assert time_s(rows({2: 3.0, 4: 2.0}), 100) == 3.0


def test_one_size_scales() -> None:
    assert [time_s(rows({4: 2.0}), n) for n in (1, 4, 8)] == [2.0, 2.0, 4.0]


def test_memory_is_whole_bytes() -> None:
    assert peak_bytes(rows({1: 0.001, 4: 0.002}), 2) == 1


POINTS = st.dictionaries(st.integers(1, 64), st.floats(0, 10), min_size=1, max_size=6)


@given(POINTS, st.integers(0, 200))
def test_more_items_never_take_less(points: dict[int, float], items: int) -> None:
    measured = rows(points)
    assert time_s(measured, items) <= time_s(measured, items + 1) * (1 + 1e-12)


@given(POINTS)
def test_measured_sizes_take_at_least_what_was_measured(points: dict[int, float]) -> None:
    measured = rows(points)
    assert all(time_s(measured, n) >= t for n, t in points.items())
    assert time_s(measured, max(points)) == pytest.approx(max(points.values()))
