"""Bounds of groups on the root against all plans that they may have."""

from __future__ import annotations

import random

import numpy as np
import pytest

from planner.solvers.group_root import RootedGroups, RootedPlan

MOST = 7
SLACK = 1e-12


def seconds(plan: tuple[float, float], count: int, each_s: float) -> float:
    others_s, of_root_s = plan
    return max(count * others_s, count * of_root_s + (MOST - count) * each_s)


def test_a_pipeline_on_the_root_takes_longer_the_more_others_have() -> None:
    groups = RootedGroups(np.array([False, True]), np.array([9.0, 1.0]), MOST, each_s=0.5)
    assert list(groups.groups) == [1]
    assert groups.beside_s(2) == 2.5 * 0.5
    groups.note(1, RootedPlan(3.0, 2.0, []))
    # 7 of 7: 21 s; 3 of 7: max(9, 6 + 2) s; 1 of 7: max(3, 2 + 3) s.
    assert [groups.known_s(1, k) for k in (7, 3, 1)] == [21.0, 9.0, 5.0]
    assert groups.least_s(1, 3) == 3.0
    assert groups.known_capacity(9.5).tolist() == [3]
    assert groups.known_capacity(4.9).tolist() == [0]
    assert groups.capacity(5.5).tolist() == [5]


def test_the_best_plan_depends_on_how_much_there_is_to_do_for_others() -> None:
    groups = RootedGroups(np.array([True]), np.array([0.0]), MOST, each_s=1.0)
    spares, works = RootedPlan(5.0, 0.0, []), RootedPlan(3.0, 2.9, [])
    groups.note(0, spares)
    groups.note(0, works)
    assert groups.steps(0, 1) is spares.steps
    assert groups.steps(0, MOST) is works.steps
    assert [steps for _, steps in groups.plans()] == [spares.steps, works.steps]


@pytest.mark.parametrize("seed", range(20))
def test_trials_and_plans_enclose_the_best_and_meet_there(seed: int) -> None:
    # One group that has a few plans; trials as the search makes them, in any order.
    rng = random.Random(seed)
    each_s = rng.choice([0.05, 0.5, 2.0])
    plans = [(rng.uniform(1, 5), rng.uniform(1, 5)) for _ in range(rng.randint(1, 4))]
    counts = range(1, MOST + 1)
    best = {k: min(seconds(plan, k, each_s) for plan in plans) for k in counts}
    # Fewer microbatches may take longer: a bound is for so many or more.
    bound = {k: min(best[m] for m in counts if m >= k) for k in counts}
    groups = RootedGroups(
        np.array([True]), np.array([min(max(p) for p in plans) / 2]), MOST, each_s=each_s
    )

    def attempt(count: int, within_s: float) -> None:
        trial_s, beside_s = within_s / count, groups.beside_s(count)
        kept = [p for p in plans if p[0] <= trial_s and p[1] <= trial_s - beside_s]
        if kept:
            groups.note(0, RootedPlan(*kept[0], []))
        else:
            groups.refuse(np.array([True]), trial_s, beside_s)
        groups.close(SLACK)

    def check() -> None:
        for k in counts:
            assert groups.least_s(0, k) <= bound[k] * (1 + 4 * SLACK)
            assert groups.known_s(0, k) >= best[k] * (1 - 4 * SLACK)

    for _ in range(30):
        count = rng.randint(1, MOST)
        attempt(count, best[count] * rng.uniform(0.5, 1.5))
        check()
    for count in reversed(counts):
        for _ in range(60):
            low, high = groups.least_s(0, count), groups.known_s(0, count)
            if low >= bound[count] * (1 - 1e-9) and high <= best[count] * (1 + 1e-9):
                break
            attempt(count, min(2 * low, (low + best[count]) / 2) if low < best[count] else high)
            check()
        assert groups.least_s(0, count) == pytest.approx(bound[count], rel=1e-8)
        assert groups.capacity(best[count] * (1 + 1e-7))[0] >= count
