"""What the root gives up for the model's inputs and outputs, on worlds that fit in a comment."""

from __future__ import annotations

import numpy as np
import pytest

from planner.figures import Figures
from planner.options import find_options
from planner.problem import PlanningProblem
from planner.request import PlanRequest
from planner.root_work import RootRates, RootSeat
from planner.solvers.chain_root import on_root, root_seconds
from profiler.cluster import Link
from profiler.graph import ModelGraph
from tests.support.builders import chain_graph, make_cluster, make_graph, make_profile


def problem_of(graph: ModelGraph, devices: str = "ab", *links: Link) -> PlanningProblem:
    # A microbatch has 2 items of 32 bytes in and 100 bytes out; 1000 bytes/s, 0.1 s latency.
    cluster = make_cluster(
        dict.fromkeys(devices, 2**30),
        links=links,
        latency_s=0.1,
        bytes_per_s=1000.0,
        occupancy=0.5,
    )
    profile = make_profile(graph, cluster, seconds={d: [1.0] * len(graph.layers) for d in devices})
    return PlanningProblem.build(profile, PlanRequest(batch_size=8), microbatch=2)


def rates(problem: PlanningProblem) -> RootRates:
    return Figures(problem).root_rates


IN, OUT = 0.5 * 0.164, 0.5 * 0.3


def small(num_layers: int) -> ModelGraph:
    return chain_graph(num_layers, floats_per_item=25)


def test_an_input_is_sent_if_others_read_it_and_an_output_received_if_others_write_it() -> None:
    found = rates(problem_of(small(3)))
    alone = RootSeat()
    for layers, send_s, receive_s in (
        ([0, 1, 2], 0.0, 0.0),
        ([0, 1], 0.0, OUT),
        ([1], IN, OUT),
        ([2], IN, 0.0),
    ):
        work = found.own(layers, alone)
        assert (work.send_s, work.receive_s) == pytest.approx((send_s, receive_s))
    assert (found.each.send_s, found.each.receive_s) == pytest.approx((IN, OUT))


def test_what_other_ranks_of_its_own_stage_take_is_sent_and_received_in_parts() -> None:
    found = rates(problem_of(small(2)))
    for position, rest in ((0, 0.25), (1, 0.75)):
        work = found.own([0, 1], RootSeat.at(position, (3, 1), divides=False))
        assert (work.send_s, work.receive_s) == pytest.approx((rest * IN, rest * OUT))


def test_ranks_that_divide_layers_need_the_whole_input_and_the_first_has_the_output() -> None:
    found = rates(problem_of(small(2)))
    for position, received in ((0, 0.0), (1, OUT)):
        work = found.own([0, 1], RootSeat.at(position, (2, 2, 2), divides=True))
        assert (work.send_s, work.receive_s) == pytest.approx((2 * IN, received))


def test_an_item_costs_what_it_costs_on_the_cheapest_link_each_way() -> None:
    slow_out = Link(
        source="h/a",
        target="h/b",
        latency_s=5.0,
        bytes_per_s=1.0,
        send_occupancy=1.0,
        receive_occupancy=1.0,
    )
    cheap_in = Link(
        source="h/c",
        target="h/a",
        latency_s=0.0,
        bytes_per_s=2000.0,
        send_occupancy=1.0,
        receive_occupancy=0.1,
    )
    each = rates(problem_of(small(2), "abc", slow_out, cheap_in)).each
    assert each.send_s == pytest.approx(IN)
    assert each.receive_s == pytest.approx(0.1 * 200 / 2000)


def test_an_input_that_several_stages_read_leaves_the_root_once() -> None:
    # l0 and l1 read x, l2 joins them.
    found = rates(problem_of(make_graph([(0, 2), (1, 2)], 3, floats_per_item=25)))
    alone = RootSeat()
    assert found.own([2], alone).send_s == pytest.approx(IN)
    assert found.own([0], alone).send_s == pytest.approx(IN)
    assert found.own([0, 1], alone).send_s == 0.0


def test_a_root_without_others_has_nothing_to_move() -> None:
    assert rates(problem_of(small(2), "a")).each.total_s == 0.0


def test_the_chain_solvers_arrays_are_the_same_for_every_option_and_run_of_layers() -> None:
    graph = make_graph([(0, 1), (1, 2), (0, 2), (2, 3)], 4, floats_per_item=25, whole_batch=[2])
    problem = problem_of(graph, "abc")
    figures = Figures(problem)
    found, options = figures.root_rates, find_options(problem, figures).options
    seconds, seated = root_seconds(problem, found, options), on_root(problem, options)
    assert 0 < seated.sum() < len(options)
    root = problem.class_of[problem.cluster.root]
    for n, option in enumerate(options):
        members = [c for c, _ in option.members]
        assert seated[n] == (root in members)
        if not seated[n]:
            assert not np.any(seconds[n])
            continue
        seat = RootSeat.at(
            members.index(root), [share for _, share in option.members], divides=option.is_tensor
        )
        runs = problem.num_microbatches if option.whole_batch else 1
        for start in range(problem.num_layers):
            for end in range(start + 1, problem.num_layers + 1):
                own = found.own(range(start, end), seat).total_s * runs
                assert seconds[n, start, end] == pytest.approx(own)
