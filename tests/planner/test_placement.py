"""Placement problems: what is refused, what preprocessing may merge, cases with known answers."""

from __future__ import annotations

import itertools
import math
import random
import time
from dataclasses import replace

import numpy as np
import pytest

from planner.placement import (
    Charging,
    Flow,
    Operator,
    Place,
    PlacementProblem,
    check_latency,
    check_loads,
    greedy_latency,
    place_any,
    place_contiguous,
    place_latency,
)
from planner.placement.blocks import Blocks, inseparable, without_appendages
from planner.placement.bounds import load_bound_s
from planner.placement.column_bound import Refutation
from planner.placement.contiguous import best_line
from planner.placement.downsets import down_sets
from planner.placement.exhaustive import best_loads
from planner.placement.loads import place_contiguous_by_integers
from planner.placement.pricing import Pricer, Splitter
from planner.solvers.base import SolveLimits, SolveStatus
from profiler.errors import InvalidInputError
from tests.support.placements import limits, random_problems

FAST = Place(name="fast", kind="fast")
TWO = (FAST, Place(name="fast2", kind="fast"))


def operator(name: str, time_s: float = 1.0, **more: object) -> Operator:
    return Operator(name=name, times_s={"fast": time_s, "host": 10 * time_s}, **more)  # type: ignore[arg-type]


def chain(
    *times: float, transfer_s: float = 0.5, places: tuple[Place, ...] = TWO
) -> PlacementProblem:
    """A line of operators, each reading the one before."""
    return PlacementProblem(
        operators=tuple(operator(f"n{i}", t) for i, t in enumerate(times)),
        flows=tuple(
            Flow(producer=f"n{i}", consumers=(f"n{i + 1}",), transfer_s=transfer_s)
            for i in range(len(times) - 1)
        ),
        places=places,
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"operators": ()}, "at least one operator"),
        ({"places": ()}, "at least one device"),
        ({"places": (FAST, FAST)}, "two devices are called 'fast'"),
        ({"operators": (operator("n0"), operator("n0"))}, "two operators are called 'n0'"),
        ({"operators": (operator("n0", -1.0),)}, "is -1.0"),
        ({"operators": (operator("n0", math.nan),)}, "is nan"),
        ({"operators": (operator("n0", math.inf),)}, "is inf"),
        ({"operators": (Operator(name="n0", times_s={}),)}, "no time for any kind"),
        (
            {"operators": (Operator(name="n0", times_s={"other": 1.0}),), "flows": ()},
            "add a device or a time",
        ),
        ({"operators": (operator("n0", size_bytes=-1),)}, "the size of operator 'n0' is -1"),
        ({"flows": (Flow(producer="n0", consumers=("n9",)),)}, "'n9'"),
        ({"flows": (Flow(producer="n0", consumers=("n0",)),)}, "its own output"),
        (
            {"flows": (Flow(producer="n0", consumers=("n1",), transfer_s=-1.0),)},
            "the transfer time of a tensor of 'n0' is -1.0",
        ),
        (
            {
                "flows": (
                    Flow(producer="n0", consumers=("n1",)),
                    Flow(producer="n1", consumers=("n0",)),
                )
            },
            "the graph has a cycle: n",
        ),
        ({"places": (replace(FAST, memory_bytes=-5),)}, "the memory of device 'fast' is -5"),
    ],
)
def test_what_cannot_be_right_is_refused(parts: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        replace(chain(1.0, 1.0), **parts)  # type: ignore[arg-type]


def test_a_group_without_a_common_device_is_refused() -> None:
    operators = (
        Operator(name="n0", times_s={"fast": 1.0}, together="x"),
        Operator(name="n1", times_s={"host": 1.0}, together="x"),
    )
    with pytest.raises(InvalidInputError, match="no kind of device runs all of them"):
        PlacementProblem(operators=operators, flows=(), places=(FAST, Place(name="h", kind="host")))


def test_jobs_below_one_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="runs 0 jobs"):
        place_latency(chain(1.0), limits(), max_jobs=0)


def test_what_fits_nowhere_is_proved_infeasible() -> None:
    small = tuple(replace(p, memory_bytes=1) for p in TWO)
    problem = replace(
        chain(1.0, 1.0, places=small), operators=(operator("n0"), operator("n1", size_bytes=2))
    )
    for solve in (place_contiguous, place_any, place_latency):
        assert solve(problem, limits()).status is SolveStatus.INFEASIBLE


def test_two_operators_that_fit_only_apart() -> None:
    # 3 + 3 bytes in 4: each device pays 1 s of computing and 0.5 s for the tensor.
    small = tuple(replace(p, memory_bytes=4) for p in TWO)
    problem = replace(
        chain(1.0, 1.0, places=small),
        operators=(operator("n0", size_bytes=3), operator("n1", size_bytes=3)),
    )
    assert place_contiguous(problem, limits()).objective_s == pytest.approx(1.5)
    # One after the other: 1 + 0.5 out, then 0.5 in + 1.
    assert place_latency(problem, limits()).objective_s == pytest.approx(3.0)


def test_a_wire_of_its_own_hides_the_cheaper_of_computing_and_transfers() -> None:
    problem = replace(chain(1.0, 1.0), charging=Charging.WIRE)
    assert place_contiguous(problem, limits()).objective_s == pytest.approx(1.0)
    dear = replace(chain(1.0, 1.0, transfer_s=3.0), charging=Charging.WIRE)
    assert place_contiguous(dear, limits()).objective_s == pytest.approx(2.0)


def test_one_device_takes_everything() -> None:
    result = place_any(chain(1.0, 2.0, 3.0, places=(FAST,)), limits())
    assert result.objective_s == pytest.approx(6.0)
    assert result.status is SolveStatus.OPTIMAL


def test_disconnected_operators_balance() -> None:
    problem = replace(chain(3.0, 1.0, 2.0), flows=())
    assert place_contiguous(problem, limits()).objective_s == pytest.approx(3.0)


def test_a_nanosecond_beside_a_hundred_seconds_is_not_lost() -> None:
    slow = Place(name="h", kind="host", transfer_factor=0.0)
    # The host would take a thousand seconds: nothing of that may blur the nanoseconds.
    problem = replace(
        chain(1e-9, 2e-9, 3e-9, transfer_s=1e-10, places=(*TWO, slow)),
        operators=tuple(
            Operator(name=f"n{i}", times_s={"fast": t, "host": 100.0})
            for i, t in enumerate((1e-9, 2e-9, 3e-9))
        ),
    )
    for solve in (place_contiguous, place_any):
        assert solve(problem, limits()).objective_s == pytest.approx(3.1e-9, rel=1e-9)
    mixed = chain(100.0, 1e-9, 1e-9, transfer_s=0.0)
    result = place_contiguous(mixed, limits())
    assert result.objective_s == pytest.approx(100.0, rel=1e-15)


def test_transfers_are_paid_once_per_device_whatever_the_readers() -> None:
    problem = PlacementProblem(
        operators=tuple(operator(f"n{i}") for i in range(4)),
        flows=(Flow(producer="n0", consumers=("n1", "n2", "n3"), transfer_s=0.25),),
        places=TWO,
    )
    assert check_loads(problem, (0, 1, 1, 1), contiguous=True).objective_s == 3.25
    assert check_loads(problem, (0, 0, 1, 1), contiguous=True).objective_s == 2.25


def test_the_checker_names_what_is_wrong() -> None:
    problem = chain(1.0, 1.0, 1.0)
    assert check_loads(problem, (0, 1, 0), contiguous=True).violations == (
        "tensors flow in a circle between devices",
    )
    assert check_loads(problem, (0, 1, 0), contiguous=False).violations == ()
    assert check_loads(problem, (0, 1), contiguous=False).violations == (
        "2 devices for 3 operators",
    )
    tied = replace(problem, operators=tuple(replace(o, together="x") for o in problem.operators))
    assert check_loads(tied, (0, 1, 1), contiguous=False).violations == ("group x is on 2 devices",)
    small = replace(
        problem,
        operators=tuple(replace(o, size_bytes=2) for o in problem.operators),
        places=tuple(replace(p, memory_bytes=3) for p in TWO),
    )
    assert check_loads(small, (0, 0, 1), contiguous=False).violations == (
        "device fast holds 4 of 3 bytes",
    )
    circle = check_latency(problem, (0, 1, 0), (0, 0, 0), max_jobs=1)
    assert circle.violations == ("jobs wait for each other in a circle",)
    # Two jobs on one device: 1 + .5, then .5 + 1 + .5, then .5 + 1.
    twice = check_latency(problem, (0, 1, 0), (0, 0, 1), max_jobs=1)
    assert twice.objective_s == pytest.approx(5.0)
    assert twice.violations == ("device fast runs 2 jobs, at most 1",)


def test_backward_operators_follow_their_forward_ones() -> None:
    forward = [operator(f"n{i}", together=f"g{i}") for i in range(3)]
    backward = [operator(f"b{i}", together=f"g{i}", backward=True) for i in range(3)]
    flows = (
        Flow(producer="n0", consumers=("n1", "b0")),
        Flow(producer="n1", consumers=("n2", "b1")),
        Flow(producer="n2", consumers=("b2",)),
        Flow(producer="b2", consumers=("b1",)),
        Flow(producer="b1", consumers=("b0",)),
    )
    problem = PlacementProblem(operators=(*forward, *backward), flows=flows, places=TWO)
    result = place_contiguous(problem, limits())
    assert result.objective_s == pytest.approx(4.0)
    assert result.placement is not None
    assert not check_loads(problem, result.placement.devices, contiguous=True).violations


def test_merging_appendages_keeps_the_optimum() -> None:
    merged = 0
    for problem in random_problems(200):
        blocks = without_appendages(Blocks.build(problem, ordered=False))
        merged += blocks.num_blocks < len(problem.groups)
        best, _ = best_loads(problem, contiguous=False)
        if math.isinf(best):
            continue
        loads = (
            max(
                blocks.load_s([b for b in range(blocks.num_blocks) if devices[b] == p], c)
                for c, places in enumerate(problem.classes)
                for p in places
            )
            for devices in itertools.product(range(len(problem.places)), repeat=blocks.num_blocks)
            if not check_loads(problem, blocks.spread(devices), contiguous=False).violations
        )
        assert min(loads) <= best * (1 + 1e-12)
    assert merged > 20


def test_inseparable_blocks_are_together_in_every_better_placement() -> None:
    merged = 0
    for problem in random_problems(200):
        blocks = Blocks.build(problem, ordered=False)
        best, placement = best_loads(problem, contiguous=False)
        if placement is None or best == 0:
            continue
        kept = inseparable(blocks, best * 1.001)
        merged += kept.num_blocks < blocks.num_blocks
        for members in kept.members:
            assert len({placement.devices[i] for i in members}) == 1
    assert merged > 20


def test_bounds_of_columns_never_refute_what_exists() -> None:
    refuted = 0
    for problem in random_problems(100):
        blocks = Blocks.build(problem, ordered=False)
        best, _ = best_loads(problem, contiguous=False)
        if math.isinf(best) or best == 0:
            continue
        assert load_bound_s(blocks) <= best * (1 + 1e-9)
        exists = Refutation(blocks, ceiling_s=best * (1 + 1e-9), ticks=(50, 200))
        assert exists.run(limits()) is not SolveStatus.INFEASIBLE
        below = Refutation(blocks, ceiling_s=best * 0.7, ticks=(50, 200))
        refuted += below.run(limits()) is SolveStatus.INFEASIBLE
    assert refuted > 30


def test_the_dearest_set_is_never_undervalued() -> None:
    source = random.Random(0)
    for problem in random_problems(60):
        blocks = Blocks.build(problem, ordered=False)
        prices = np.array([source.uniform(-1, 3) for _ in range(blocks.num_blocks)])
        ceiling = 0.6 * float(np.where(np.isfinite(blocks.times_s), blocks.times_s, 0).sum()) + 1
        value, _ = Pricer(blocks, 0, ceiling_s=ceiling, ticks=(400, 500)).best(prices, more=3)
        for size in range(blocks.num_blocks + 1):
            for chosen in itertools.combinations(range(blocks.num_blocks), size):
                if blocks.load_s(chosen, 0) <= ceiling:
                    assert value >= sum(prices[list(chosen)]) - 1e-9


def test_a_split_of_two_devices_is_as_good_as_it_says() -> None:
    for problem in random_problems(60):
        if problem.charging is Charging.WIRE:
            continue
        blocks = Blocks.build(problem, ordered=False)
        everything = range(blocks.num_blocks)
        top = blocks.load_s(everything, 0)
        if not 0 < top < math.inf:
            continue
        larger, own = next(Splitter(blocks, everything, (0, 0), ceiling_s=top).splits(2000))
        rest = [b for b in everything if b not in own]
        true = max(blocks.load_s(own, 0), blocks.load_s(rest, 0))
        assert true <= larger * (1 + 1e-9)
        best = min(
            max(
                blocks.load_s(chosen, 0),
                blocks.load_s([b for b in everything if b not in chosen], 0),
            )
            for size in range(blocks.num_blocks + 1)
            for chosen in itertools.combinations(everything, size)
        )
        assert larger <= best * 1.01 + 1e-12


def test_integers_and_down_sets_agree_on_lines() -> None:
    for problem in random_problems(60):
        one = place_contiguous(problem, limits())
        other = place_contiguous_by_integers(problem, limits())
        assert other.status is one.status
        if one.objective_s is not None:
            assert other.objective_s == pytest.approx(one.objective_s, rel=1e-6, abs=1e-300)


def test_too_many_down_sets_are_counted_no_further() -> None:
    wide = replace(chain(*[1.0] * 18), flows=())
    blocks = Blocks.build(wide, ordered=True)
    assert down_sets(blocks, limit=1000) is None
    few = down_sets(Blocks.build(chain(*[1.0] * 18), ordered=True), limit=1000)
    assert few is not None
    assert few.count == 19


def test_no_time_leaves_a_bound_or_an_answer_and_no_false_proof() -> None:
    problem = chain(*[1.0 + i / 7 for i in range(40)], places=TWO)
    over = SolveLimits(deadline=time.monotonic() - 1)
    for solve in (place_contiguous, place_any, place_latency):
        result = solve(problem, over)
        assert result.status is not SolveStatus.INFEASIBLE
        if result.objective_s is not None:
            assert result.bound_s is not None
            assert result.bound_s <= result.objective_s


def test_latency_is_never_worse_than_greedy() -> None:
    for problem in random_problems(60, one_host=True):
        greedy = greedy_latency(problem)
        result = place_latency(problem, limits())
        if greedy.objective_s is not None:
            assert result.objective_s is not None
            assert result.objective_s <= greedy.objective_s * (1 + 1e-12)


def test_a_line_through_all_down_sets_needs_no_ceiling() -> None:
    problem = chain(2.0, 1.0, 1.0, 2.0, transfer_s=0.25)
    blocks = Blocks.build(problem, ordered=True)
    sets = down_sets(blocks, limit=100)
    assert sets is not None
    line = best_line(blocks, sets, ceiling_s=100.0, limits=limits())
    assert line is not None
    assert line.load_s == line.bound_s == pytest.approx(3.25)


def test_latency_with_very_many_down_sets_is_sought_with_fewer_blocks() -> None:
    # Two branches of 12 operators, each with an end nobody reads: 2**24 down-sets and more. One
    # branch fits on each accelerator, the first and the last operator on hosts.
    names = [f"{branch}{i}" for branch in "ab" for i in range(12)]
    flows = [Flow(producer="in", consumers=("a0", "b0"), transfer_s=0.1)]
    for name in names:
        branch, i = name[0], int(name[1:])
        following = f"{branch}{i + 1}" if i < 11 else "out"
        flows.append(Flow(producer=name, consumers=(following, f"{name}x"), transfer_s=0.1))
    problem = PlacementProblem(
        operators=(
            *(operator(name, 0.01) for name in ("in", "out")),
            *(operator(name, 1.0, size_bytes=1) for name in names),
            *(operator(f"{name}x", 0.0) for name in names),
        ),
        flows=tuple(flows),
        places=(
            *(Place(name=f"fast{i}", kind="fast", memory_bytes=12) for i in range(2)),
            Place(name="host", kind="host", transfer_factor=0.0),
        ),
    )
    result = place_latency(problem, limits(10.0))
    # 0.1 on a host; a branch receives one tensor, computes 12 s, sends one; 0.1 on a host.
    assert result.objective_s == pytest.approx(0.1 + 0.1 + 12.0 + 0.1 + 0.1)
