"""What slicing a region saves: measured, and read back in proportion."""

from __future__ import annotations

import pytest

from profiler.graph import SliceRegion
from profiler.measure import Effort
from profiler.profile import DeviceTimings, SliceTiming
from profiler.session import ProfileOptions, profile_captured
from tests.support.builders import GIB, make_cluster
from tests.support.captures import captured


def region(units: int = 8, divided: float = 0.9) -> SliceRegion:
    return SliceRegion(
        name="r",
        axis="heads",
        units=units,
        layers=("a",),
        weights=(),
        joins=(),
        divided=divided,
        twin="r",
    )


def timings(*rows: tuple[int, float]) -> DeviceTimings:
    """Half of the units takes this part of the whole."""
    return DeviceTimings(
        measured_on="h/cpu",
        devices=("h/cpu",),
        layers={},
        slices=tuple(
            SliceTiming(region="r", items=n, units=4, whole_s=1.0, part_s=part, spread=0.0)
            for n, part in rows
        ),
    )


def test_half_the_units_at_that_part_of_the_time() -> None:
    found = timings((2, 0.75), (4, 0.55))
    assert found.divided(region(), 2) == pytest.approx(0.5)
    assert found.divided(region(), 3) == pytest.approx(0.7)
    assert found.divided(region(), 1) == found.divided(region(), 2)
    assert found.divided(region(), 9) == pytest.approx(0.9)
    assert found.most_divided(region()) == pytest.approx(0.9)


def test_neither_more_than_all_nor_less_than_nothing() -> None:
    assert timings((1, 0.4)).divided(region(), 1) == 1.0
    assert timings((1, 1.2)).divided(region(), 1) == 0.0


def test_without_measurements_operations_count() -> None:
    assert timings().divided(region(), 1) == 0.9
    assert timings().most_divided(region()) == 0.9


@pytest.mark.slow
def test_every_distinct_region_is_measured_at_every_batch_size() -> None:
    profile = profile_captured(
        captured("gpt2"),
        cluster=make_cluster({"cpu": 2 * GIB}),
        batch_sizes=[1, 2],
        effort=Effort(min_samples=2, max_samples=3, budget_s=5.0),
        options=ProfileOptions(),
    )
    (found,) = profile.timings
    twins = {one.twin for one in profile.model.regions}
    assert len(twins) == 4  # words, attention, MLP, scores
    assert {(row.region, row.items) for row in found.slices} == {
        (twin, items) for twin in twins for items in (1, 2)
    }
    assert all(row.part_s > 0 and row.whole_s > 0 for row in found.slices)
