"""What keeps a rank's process near the memory that its plan foresees."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from executor.footprint import Footprint
from executor.schedule import Schedule
from planner.planfile import Plan
from planner.request import PlanRequest
from profiler.allocator import MAPPED_BYTES, heap_environment
from profiler.graph import ModelGraph
from tests.support import loops
from tests.support.builders import GIB, make_cluster, make_graph, make_profile
from tests.support.plans import Part, make_plan

MIB = 2**20


class Process:
    """A process whose resident memory is what a test says, and grows back by ``holes``."""

    def __init__(self, resident: int, *, holes: int = 0) -> None:
        self.resident, self.holes = resident, holes
        self.seconds = 0.0
        self.released_at: list[float] = []

    def release(self) -> bool:
        self.released_at.append(self.seconds)
        self.resident -= self.holes
        return True

    def footprint(self, foreseen: int, largest: int = 0) -> Footprint:
        return Footprint(
            foreseen,
            largest,
            resident=lambda: self.resident,
            release=self.release,
            clock=lambda: self.seconds,
        )


@pytest.mark.parametrize(
    ("resident", "largest", "releases"),
    [
        (1000, 0, False),
        (1020, 0, False),  # two hundredths are no cause
        (1021, 0, True),
        (1000, 20, False),
        (1000, 21, True),  # one more such tensor would be too much
    ],
)
def test_pages_are_given_back_when_the_next_piece_may_pass_the_plan(
    resident: int, largest: int, releases: bool
) -> None:
    process = Process(resident * MIB, holes=100 * MIB)
    footprint = process.footprint(1000 * MIB, largest * MIB)
    footprint.keep()
    assert bool(process.released_at) == releases
    assert footprint.given_back == (100 * MIB if releases else 0)


def test_taking_pages_again_is_a_small_part_of_the_time() -> None:
    process = Process(2000 * MIB, holes=100 * MIB)
    footprint = process.footprint(1000 * MIB)
    for _ in range(1000):
        process.resident = 2000 * MIB
        footprint.keep()
        process.seconds += 0.01
    # 100 MiB are taken again within about 30 ms: no more than a fiftieth of the time.
    gaps = [b - a for a, b in zip(process.released_at, process.released_at[1:], strict=False)]
    assert len(gaps) >= 3
    assert min(gaps) >= 50 * 0.02


def line(
    num_stages: int, *, floats_per_item: int, whole_batch: bool = False
) -> tuple[Plan, ModelGraph]:
    """One layer a stage, one stage a device; batches of eight, two at a time."""
    edges = [(i, i + 1) for i in range(num_stages - 1)]
    waiting = [num_stages - 1] if whole_batch else []
    graph = make_graph(edges, num_stages, floats_per_item=floats_per_item, whole_batch=waiting)
    names = [f"d{i}" for i in range(num_stages)]
    cluster = make_cluster(dict.fromkeys(names, GIB))
    profile = make_profile(graph, cluster, seconds={name: [0.01] * num_stages for name in names})
    parts = [
        Part(layers=[i], devices=[f"h/{name}"], whole_batch=i in waiting)
        for i, name in enumerate(names)
    ]
    request = PlanRequest(batch_size=8, microbatch_size=2)
    return make_plan(profile, parts, request=request), graph


@pytest.mark.parametrize(
    ("floats_per_item", "largest"),
    [
        (1000, 2 * 1000 * 4),
        (MAPPED_BYTES // 8, 0),  # as long as blocks that lie outside of the heap
        (MAPPED_BYTES // 8 - 1, MAPPED_BYTES - 8),
    ],
)
def test_a_rank_knows_what_its_plan_foresees(floats_per_item: int, largest: int) -> None:
    plan, graph = line(2, floats_per_item=floats_per_item)
    foreseen = plan.estimate.ranks[1].memory.total_bytes
    reserve = plan.estimate.ranks[1].memory.reserve_bytes
    footprint = Footprint.of(Schedule(plan, graph), 1, baseline_bytes=reserve)
    assert footprint is not None
    assert footprint.most_bytes == pytest.approx(1.02 * foreseen - largest)
    # No reserve was asked for, or there was no profile of an empty rank: it has what it has.
    larger = Footprint.of(Schedule(plan, graph), 1, baseline_bytes=reserve + 100 * MIB)
    assert larger is not None
    assert larger.most_bytes == pytest.approx(1.02 * (foreseen + 100 * MIB) - largest)


def test_a_stage_that_waits_for_the_batch_has_its_tensors_of_all_items() -> None:
    plan, graph = line(2, floats_per_item=1000, whole_batch=True)
    memory = plan.estimate.ranks[1].memory
    footprint = Footprint.of(Schedule(plan, graph), 1, baseline_bytes=0)
    assert footprint is not None
    assert footprint.most_bytes == pytest.approx(1.02 * memory.total_bytes - 8 * 1000 * 4)


def test_a_rank_of_which_the_plan_says_nothing_has_none() -> None:
    plan, graph = line(2, floats_per_item=8)
    silent = plan.model_copy(
        update={"estimate": plan.estimate.model_copy(update={"ranks": plan.estimate.ranks[:1]})}
    )
    assert Footprint.of(Schedule(silent, graph), 1, baseline_bytes=0) is None


def test_every_piece_asks() -> None:
    plan, graph = line(2, floats_per_item=1)
    asked = [0, 0]

    class Counting(Footprint):
        def __init__(self, rank: int) -> None:
            super().__init__(GIB, 0, resident=lambda: 0)
            self._rank = rank

        def keep(self) -> None:
            asked[self._rank] += 1
            super().keep()

    x = torch.arange(8 * 8, dtype=torch.float32).reshape(8, 8)
    loops.run(plan, graph, x, repeats=3, footprint=Counting)
    assert asked == [3 * 4, 3 * 4]


SCRIPT = """
import json, sys
import torch
from executor.footprint import Footprint, resident_bytes
from planner.planfile import Plan
from planner.request import PlanRequest
from profiler.allocator import keep_freed_memory

keep_freed_memory()
torch.ones(8).sum()
before = resident_bytes()
blocks = [torch.full((1 << 20,), float(i)) for i in range(60)]  # of 4 MiB
kept, blocks = blocks[::2], None
holed = resident_bytes()
footprint = Footprint(before + 140 * 2**20 if sys.argv[1] == "small" else 2 * holed, 4 * 2**20)
footprint.keep()
after = resident_bytes()
again = [torch.full((1 << 20,), -1.0) for _ in range(20)]
right = all(bool((x == 2 * i).all()) for i, x in enumerate(kept))
right = right and all(bool((x == -1).all()) for x in again)
print(json.dumps([holed - before, after - before, footprint.given_back, right]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
@pytest.mark.parametrize("foreseen", ["small", "large"])
def test_a_real_heap_gets_smaller_and_what_is_alive_stays(foreseen: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, foreseen],
        capture_output=True,
        text=True,
        check=True,
        env=heap_environment(os.environ),
    )
    holed, after, given_back, right = json.loads(run.stdout)
    assert right
    assert holed > 230 * MIB
    if foreseen == "small":
        assert after < 140 * MIB
        assert given_back == holed - after
    else:
        assert after > 230 * MIB
        assert given_back == 0
