"""Clashes and remedies against brute force: sets of limits, and one step less of every change."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from itertools import combinations

import pytest

from planner.clashes import ClashSearch, least_hitting_set
from planner.infeasible import explain_failure
from planner.limits import Limit, least_demanding, limits_of_feasibility
from planner.problem import PlanningProblem
from planner.request import PlanRequest
from planner.smallest_change import least_size, most_size, written
from profiler.errors import Change, InfeasiblePlanError, InvalidInputError
from profiler.profile import Profile
from tests.support.wishes import Variant, fits, lifted, resized, with_wishes
from tests.support.worlds import random_branching, random_chain

COUNT = 40
MAX_LIMITS = 9


def infeasible(count: int) -> Iterator[tuple[Profile, PlanRequest, tuple[Limit, ...]]]:
    """Small questions without an answer, every third one on a branching model."""
    seed = found = 0
    while found < count:
        rng = random.Random(seed)
        make = random_branching if seed % 3 == 0 else random_chain
        profile, request, _ = with_wishes(rng, make(rng, max_layers=4, max_devices=3))
        seed += 1
        try:
            problem = PlanningProblem.build(
                profile, request, microbatch=least_demanding(profile, request)
            )
        except InvalidInputError:
            continue
        limits = limits_of_feasibility(problem)
        if len(limits) <= MAX_LIMITS and not fits((profile, request, profile.cluster)):
            found += 1
            yield profile, request, limits


@cache
def refusals() -> tuple[tuple[Profile, PlanRequest, tuple[Limit, ...], InfeasiblePlanError], ...]:
    return tuple(
        (profile, request, limits, explain_failure(profile, request, cluster=None, evidence=""))
        for profile, request, limits in infeasible(COUNT)
    )


def test_the_reported_clash_is_one_and_none_is_smaller() -> None:
    sizes = set()
    for profile, request, limits, error in refusals():

        @cache
        def kept(
            held: frozenset[Limit],
            profile: Profile = profile,
            request: PlanRequest = request,
            limits: tuple[Limit, ...] = limits,
        ) -> bool:
            return fits(lifted(profile, request, [x for x in limits if x not in held]))

        texts = {conflict.text for conflict in error.conflicts}
        clash = frozenset(x for x in limits if x.text in texts)
        assert len(clash) == len(error.conflicts)
        assert error.smallest
        assert not kept(clash)
        for size in range(len(clash)):
            assert all(kept(frozenset(some)) for some in combinations(limits, size)), texts
        sizes.add(len(clash))
    assert len(sizes) > 2, sizes


def changed(variant: Variant, change: Change, limits: tuple[Limit, ...], less: int) -> Variant:
    """The question after a change that is ``less`` steps smaller than it was said to be."""
    profile, request, cluster = variant
    if change.becomes is None:
        gone = [x for x in limits if (x.kind, x.subject) == (change.limit, change.subject)]
        text = [x for x in gone if x.text in change.text]
        return lifted(profile, request, (text or gone)[:1])
    now, becomes = change.now or 0, change.becomes
    match change.limit:
        case "memory":
            (limit,) = (x for x in limits if (x.kind, x.subject) == ("memory", change.subject))
            devices = limit.devices if "each of" in change.text else (change.subject,)
            extra = change.text.split(" another ")[1].split(" (")[0]
            step = _step(extra)
            return profile, request, resized(cluster, dict.fromkeys(devices, becomes - less * step))
        case "max_bytes":
            step = _step(change.text.split(" to ")[1])
            caps = {**request.max_bytes, change.subject: becomes - less * step}
            return profile, request.replaced(max_bytes=caps), cluster
        case "reserve_bytes":
            step = _step(change.text.split(" to ")[1].removesuffix(" or less"))
            return profile, request.replaced(reserve_bytes=becomes + less * step), cluster
        case "batch_size":
            batch = becomes + less
            size = request.microbatch_size
            micro = None if size is None else min(size, batch)
            return profile, request.replaced(batch_size=batch, microbatch_size=micro), cluster
        case "microbatch_size":
            return profile, request.replaced(microbatch_size=becomes + less), cluster
    assert now < becomes
    return profile, request.replaced(max_stages=becomes - less), cluster


def _step(size: str) -> int:
    number, unit = size.split()
    scale = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit]
    return -(-scale // 10 ** len(number.partition(".")[2]))


def test_each_change_makes_a_plan_fit_and_one_step_less_does_not() -> None:
    kinds = set()
    for profile, request, limits, error in refusals():
        base = profile, request, profile.cluster
        for changes in error.remedies:
            if len(changes) == 1:
                (change,) = changes
                kinds.add(change.limit)
                assert fits(changed(base, change, limits, 0)), change
                if change.becomes is not None:
                    assert not fits(changed(base, change, limits, 1)), change
    assert kinds >= {"memory", "pin", "max_stages", "max_bytes", "batch_size"}, kinds


def test_a_limit_without_a_change_of_its_own_does_not_help_alone() -> None:
    seen = 0
    for profile, request, limits, error in refusals():
        alone = {c.text for c in error.conflicts if c.change}
        for limit in limits:
            helps = fits(lifted(profile, request, [limit]))
            assert helps == (limit.text in alone), limit
            seen += not helps
    assert seen


def test_several_changes_fit_together_where_none_does_alone() -> None:
    seen = 0
    for profile, request, limits, error in refusals():
        if not error.remedies or len(error.remedies[0]) == 1:
            continue
        variant: Variant = profile, request, profile.cluster
        for change in error.remedies[0]:
            variant = _then(variant, change, limits)
        assert fits(variant), error
        assert not any(fits(lifted(profile, request, [limit])) for limit in limits)
        seen += 1
    assert seen


def _then(variant: Variant, change: Change, limits: tuple[Limit, ...]) -> Variant:
    """Changes one after another: removals by their text, since positions move."""
    profile, request, cluster = variant
    if change.becomes is not None:
        return changed(variant, change, limits, 0)
    _, after, _ = changed((profile, request, cluster), change, _present(request, limits), 0)
    return profile, after, cluster


def _present(request: PlanRequest, limits: tuple[Limit, ...]) -> tuple[Limit, ...]:
    from planner.limits import wishes

    return tuple(wishes(request)) or limits


@pytest.mark.parametrize("seed", range(60))
def test_smallest_clashes_of_random_families(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(1, 9)
    clashes = [
        frozenset(rng.sample(range(count), rng.randint(1, min(count, 4))))
        for _ in range(rng.randint(1, 6))
    ]
    asked: list[frozenset[int]] = []

    def keeps(held: frozenset[int]) -> bool:
        asked.append(held)
        return not any(clash <= held for clash in clashes)

    search = ClashSearch(count=count, oracle=keeps)
    found = search.smallest()
    assert found.smallest
    assert found.irreducible
    assert frozenset(found.members) in clashes
    assert len(found.members) == min(map(len, clashes))
    assert all(not any(clash <= frozenset(range(count)) - x for clash in clashes)
               for x in search.left_out)  # fmt: skip


def test_what_is_not_known_is_not_claimed() -> None:
    def keeps(held: frozenset[int]) -> bool | None:
        return None if len(held) == 2 else len(held) < 2

    found = ClashSearch(count=4, oracle=keeps).smallest()
    assert not found.smallest
    assert len(found.members) >= 3


@pytest.mark.parametrize("seed", range(40))
def test_hitting_sets_are_of_least_size(seed: int) -> None:
    rng = random.Random(seed)
    sets = [frozenset(rng.sample(range(7), rng.randint(1, 3))) for _ in range(rng.randint(0, 6))]
    least = next(
        size
        for size in range(8)
        for some in combinations(range(7), size)
        if all(x & set(some) for x in sets)
    )
    found = least_hitting_set(sets, most=7)
    assert found is not None
    assert len(found) == least
    assert all(x & set(found) for x in sets)
    assert least_hitting_set(sets, most=least - 1) is None


@pytest.mark.parametrize("seed", range(100))
def test_sizes_are_at_the_last_digit(seed: int) -> None:
    rng = random.Random(seed)
    needed = max(1, int(10 ** rng.uniform(0, 12)))
    least = least_size(2**60, lambda n: n >= needed)
    assert least is not None
    assert least.at(least.steps - 1).num_bytes < needed <= least.num_bytes
    ceiling = needed + rng.randint(1, 10**9)
    most = most_size(ceiling, lambda n: n <= needed)
    assert most is not None
    over = most.at(most.steps + 1).num_bytes
    assert most.num_bytes <= needed < over or over >= ceiling


@pytest.mark.parametrize("num_bytes", [7, 1023, 1025, 10**6 + 1, 3 * 2**30 + 7, 2**41 + 12345])
def test_a_written_size_is_on_the_safe_side(num_bytes: int) -> None:
    import math

    assert written(num_bytes, math.ceil).num_bytes >= num_bytes
    assert written(num_bytes, math.floor).num_bytes <= num_bytes
