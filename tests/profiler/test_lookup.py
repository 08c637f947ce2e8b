from __future__ import annotations

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


def test_what_was_measured_holds_where_more_items_take_less() -> None:
    # 8 items take another kernel than 16. Between 4 and 8 the line; up to 16 nobody knows.
    measured = rows({4: 2.0, 8: 4.0, 16: 1.0})
    assert [time_s(measured, n) for n in (3, 4, 6, 8, 9, 15, 16)] == [2, 2, 3, 4, 4, 4, 1]
    # Beyond the last, in proportion: no item is for nothing.
    assert [time_s(measured, n) for n in (17, 32)] == [17 / 16, 2.0]
    assert time_s(rows({2: 3.0, 4: 3.0}), 8) == 6.0


def test_memory_does_not_fall_with_items() -> None:
    measured = rows({2: 3.0, 4: 2.0, 8: 4.0})
    assert [peak_bytes(measured, n) for n in (2, 3, 4, 6, 8)] == [3000, 3000, 3000, 3500, 4000]


def test_one_size_scales() -> None:
    assert [time_s(rows({4: 2.0}), n) for n in (1, 4, 8)] == [2.0, 2.0, 4.0]


def test_memory_is_whole_bytes() -> None:
    assert peak_bytes(rows({1: 0.001, 4: 0.002}), 2) == 1


POINTS = st.dictionaries(st.integers(1, 64), st.floats(0, 10), min_size=1, max_size=6)


@given(POINTS, st.integers(0, 200))
def test_more_items_never_need_less_memory(points: dict[int, float], items: int) -> None:
    measured = rows(points)
    assert peak_bytes(measured, items) <= peak_bytes(measured, items + 1)


@given(POINTS)
def test_measured_sizes_take_what_was_measured(points: dict[int, float]) -> None:
    measured = rows(points)
    assert all(time_s(measured, n) == t for n, t in points.items())


@given(POINTS, st.integers(1, 200))
def test_an_item_takes_least_at_a_measured_size_or_at_the_most(
    points: dict[int, float], most: int
) -> None:
    # What planner.bounds builds on, and that alone.
    measured = rows(points)
    ends = {1, most, *(n for n in points if n <= most)}
    least = min(time_s(measured, n) / n for n in ends)
    assert all(time_s(measured, n) / n >= least * (1 - 1e-12) for n in range(1, most + 1))
    least_s = min(time_s(measured, n) for n in ends)
    assert all(time_s(measured, n) >= least_s * (1 - 1e-12) for n in range(1, most + 1))
