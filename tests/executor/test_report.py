"""Run reports: figures from the times of pieces, and reports of real local ranks."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from executor.measured import BLOCK_S, period_of, rank_figures
from executor.report import Compared, LinkReport, RunReport, make_report
from executor.report_text import report_lines
from executor.schedule import Schedule
from executor.session import Session
from executor.wirelog import TransferLog
from planner.actual import read_actuals
from planner.api import plan as make_plan
from planner.check import check_plan
from planner.findings import Severity
from planner.inputs import Sources
from planner.planfile import Plan
from profiler.profile import PRELUDE, Profile
from profiler.refitting import fold_back
from profiler.sources import Example
from tests.executor.test_equality import profile_of
from tests.executor.test_pipeline import line
from tests.support import loops, running
from tests.support.captures import captured
from tests.support.cutting import resized
from tests.support.small_plans import CHAIN, two_stages

KEYS = ("busy_s", "computed_s", "joined_s", "sent_s", "dispatched_s", "waited_s", "held_s")


def told(pieces: Sequence[tuple[int, float]], **others: float) -> dict[str, Any]:
    """What a rank tells of pieces of so many items, busy for so long; other times of each piece."""
    return {
        "items": [items for items, _ in pieces],
        **{key: [others.get(key, 0.0)] * len(pieces) for key in KEYS},
        "busy_s": [seconds for _, seconds in pieces],
    }


class TestPeriod:
    """The time between finished batches."""

    def test_a_burst_of_a_rank_that_was_held_is_not_the_pipeline(self) -> None:
        ahead = [0.0, 1.0, 2.0, 2.1, 4.5, 4.6, 6.5, 7.5]
        last = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
        assert period_of([ahead, last], filling=2) == pytest.approx(1.0)

    def test_of_pipelines_side_by_side_the_slower_counts(self) -> None:
        fast, slow = [float(i) for i in range(9)], [3.0 + 1.5 * i for i in range(9)]
        assert period_of([fast, slow], filling=2) == pytest.approx(1.5)

    def test_takes_three_batches(self) -> None:
        assert period_of([[1.0, 2.0]], filling=2) is None
        assert period_of([[1.0, 2.0, 4.0]], filling=2) == 1.0


class TestRankFigures:
    """A typical piece."""

    def test_the_first_and_the_short_pieces_are_left_out(self) -> None:
        figures = rank_figures(told([(4, 9.0), (4, 1.0), (2, 0.6), (4, 1.0), (4, 1.2), (1, 0.2)]))
        assert figures is not None
        assert (figures.items, figures.pieces, figures.busy_s) == (4, 3, 1.0)

    def test_one_piece_is_better_than_none(self) -> None:
        figures = rank_figures(told([(4, 9.0)], computed_s=8.0))
        assert figures is not None
        assert (figures.pieces, figures.busy_s, figures.compute_s, figures.spread) == (1, 9, 8, 0)
        assert rank_figures(told([])) is None

    def test_pauses_count_in_their_true_proportion(self) -> None:
        # A processor at a quarter: 3 ms of work, then a pause of 9 ms after each third piece. The
        # median of pieces would say 3 ms; 1,000 pieces take 6 s.
        pieces = [(1, 0.012 if i % 3 == 0 else 0.003) for i in range(1001)]
        figures = rank_figures(told(pieces))
        assert figures is not None
        assert figures.busy_s == pytest.approx(0.006, rel=0.05)

    def test_an_accident_does_not(self) -> None:
        pieces = [(1, 5.0 if i == 500 else 0.003) for i in range(1001)]
        figures = rank_figures(told(pieces))
        assert figures is not None
        assert figures.busy_s == pytest.approx(0.003, rel=0.02)
        assert figures.spread < 0.01
        assert BLOCK_S == 0.1


class TestLoop:
    """What loops of ranks say of their pieces."""

    def test_waiting_is_not_being_busy(self) -> None:
        # A quick stage before a slow one: 2 ms and 10 ms a piece.
        plan, graph = line(2, batch=8, micro=2)
        x = torch.arange(64.0).reshape(8, 8)
        _, records, _ = loops.run(
            plan, graph, x, repeats=12, pause=lambda rank: 0.01 if rank else 0.002
        )
        quick, slow = (rank_figures(vars(records[rank])) for rank in (0, 1))
        assert slow is not None
        assert quick is not None
        assert 0.01 <= slow.busy_s < 0.02
        assert 0.002 <= quick.busy_s < 0.008
        # The quick one is held up by the slow one, which has what it needs.
        assert quick.held_s > 0.004
        assert slow.waited_s < 0.004
        for figures in (slow, quick):
            assert figures.dispatch_s + figures.send_s < 0.002
            assert figures.compute_s <= figures.busy_s


def silent(log: TransferLog) -> dict[str, Any]:
    return {"transfers": log.to_data(), "clocks": [[0.0, 0.0]] * 3, "symbols": {}}


def made(busy: Sequence[float], *, sources: Sources | None, steps: int = 4) -> RunReport:
    """A report of two_stages() in which each rank's pieces are busy for so long."""
    plan = two_stages()
    ran = [
        {
            **told([(share, seconds)] * (4 * steps), computed_s=seconds, dispatched_s=0.25),
            **silent(TransferLog()),
            "step_ends_s": [10.0 * i for i in range(steps)],
            "wall_s": 10.0 * steps,
            "peak_bytes": 100_000_000,
            "beyond_bytes": 0,
        }
        for share, seconds in zip((2, 1, 1), busy, strict=True)
    ]
    ready = {"weight_bytes": 1, "loaded_bytes": 2, "baseline_bytes": 3}
    return make_report(
        Schedule(plan, CHAIN.model),
        started=[ready] * 3,
        ran=ran,
        num_items=8,
        start_s=1.0,
        sources=sources,
    )


SOURCES = Sources(profile=CHAIN, cluster=CHAIN.cluster)


class TestReport:
    """The document."""

    def test_stages_are_as_busy_as_their_slowest_rank(self) -> None:
        # Estimated: l0, l1 on a, 2 items: 4 s; messages cost 0.5 of 0.1064 s a receive (from the
        # root: none) and of 0.1 + 1024 / 1e4 = 0.2024 s a send, twice: 0.2024 s. a is the root:
        # what comes back counts as one message of 2 items, 0.5 of 0.3048 s.
        report = made([4.3548, 6.5, 9.0], sources=SOURCES)
        first, second = report.stages
        assert first.busy_s.predicted == pytest.approx(4.3548)
        assert first.busy_s.ratio == pytest.approx(1.0)
        assert (first.slowest_rank, first.busy_s.off) == (0, False)
        # Rank 1 on b takes 4 s an item, rank 2 on c 6 s; both receive once and send once.
        assert (second.slowest_rank, second.busy_s.measured) == (2, 9.0)
        assert second.busy_s.predicted == pytest.approx(6 + 0.5 * 2 * 0.2024)
        assert second.busy_s.off

    def test_what_messages_are_charged_is_not_computing(self) -> None:
        report = made([4.3548, 6.5, 9.0], sources=SOURCES)
        assert report.ranks[0].compute_s.measured == pytest.approx(4.0)
        assert report.ranks[0].compute_s.ratio == pytest.approx(1.0)
        assert report.ranks[0].dispatch_s == Compared(predicted=0.0, measured=0.25)

    def test_without_the_profile_there_is_no_estimate_of_dispatching(self) -> None:
        report = made([4.2, 6.5, 9.0], sources=None)
        assert report.ranks[0].dispatch_s.predicted is None
        assert report.stages[0].busy_s.predicted is not None

    def test_it_reads_back_and_refits(self, tmp_path: Path) -> None:
        report = made([4.3548, 6.5, 9.0], sources=SOURCES)
        report.dump(tmp_path / "run.json")
        again = RunReport.load(tmp_path / "run.json")
        assert again.evidence is not None
        assert [r.items for r in again.evidence.ranks] == [2, 1, 1]
        assert again.evidence.ranks[0].twins == {"twin0": 1, "twin1": 1}
        assert [x.count for x in again.evidence.ranks[0].sends] == [1, 1]
        # Nothing from the root to itself; b and c return one piece each with each of its own.
        assert [x.device for x in again.evidence.ranks[0].receives] == ["h/b", "h/c"]
        assert [x.count for x in again.evidence.ranks[0].receives] == [1, 1]
        # In memory and on disk it is the same evidence.
        assert (
            fold_back(CHAIN, [report]).profile == fold_back(CHAIN, [tmp_path / "run.json"]).profile
        )

    def test_off_is_more_than_a_tenth(self) -> None:
        assert not Compared.of(1.0, 1.1 - 1e-9).off
        assert Compared.of(1.0, 1.11).off
        assert Compared.of(1.0, 0.89).off
        assert not Compared.of(None, 3.0).off
        assert Compared.of(0.0, 3.0).ratio is None

    def test_the_worst_is_named_in_words(self) -> None:
        lines = list(report_lines(made([4.3548, 6.5, 30.0], sources=SOURCES)))
        assert max(len(line) for line in lines) <= 100
        # 100 MB of resident memory beside kilobytes of a toy, on all three ranks.
        worst = [line for line in lines if "the worst" in line]
        assert 1 <= len(worst) <= 3
        assert all("peak memory" in line for line in worst)
        assert any(line.endswith("<- off") for line in lines)

    def test_what_was_not_awaited_is_said(self) -> None:
        report = made([4.3548, 6.5, 9.0], sources=SOURCES)
        links = tuple(
            LinkReport(
                source=0,
                target=i % 9,
                source_device="h/a",
                target_device="h/b",
                tensor="t1",
                num_bytes=1024,
                messages=4,
                state="unresolved" if i == 1 else "hidden",
                time_s=Compared(predicted=0.2),
                samples=0,
            )
            for i in range(1, 12)
        )
        lines = list(report_lines(report.replaced(links=links)))
        assert max(len(line) for line in lines) <= 100
        text = " ".join(" ".join(lines).split())
        assert "10 kinds of message are hidden behind computing" in text
        assert "0 -> 7 and 3 more" in text
        assert "1 kind of message is faster than the clocks" in text

    def test_explain_shows_the_same_figures(self) -> None:
        plan, report = two_stages(), made([4.3548, 6.5, 9.0], sources=SOURCES)
        data = json.loads(report.to_text(as_json=True))
        found = {x.what: x for x in read_actuals(plan, data)}
        assert found["pipeline0.stage1 busy (rank 2)"].is_off
        assert not found["pipeline0.stage0 busy"].is_off


# --- real ranks ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Plan, Profile, Session]]:
    model = captured("resnet50")
    profile = running.made_up_profile(model)
    plan = running.pipeline(profile, batch_size=8, microbatch_size=4)
    with running.session(plan, model, profile) as session:
        yield plan, profile, session


IMAGES = torch.zeros(8, 3, 32, 32)


@pytest.mark.distributed
def test_every_message_of_local_ranks_is_in_the_report(
    world: tuple[Plan, Profile, Session],
) -> None:
    plan, profile, session = world
    report = session.run(IMAGES, repeats=10).report
    schedule = Schedule(plan, profile.model)
    expected: dict[tuple[int, int, str], int] = {}
    for binding in plan.spec.ranks:
        step = schedule.step(binding.rank, (0, 8))
        for message in [m for piece in step.pieces for m in piece.receives] + list(step.collects):
            if message.source != message.target:
                key = message.source, message.target, message.tensor
                expected[key] = expected.get(key, 0) + 10
    assert {(x.source, x.target, x.tensor): x.messages for x in report.links} == expected
    for link in report.links:
        assert link.state in ("measured", "hidden")
        assert link.num_bytes == profile.model.tensor[link.tensor].num_bytes(
            profile.model.symbols_at(4)
        )
        assert link.time_s.predicted == pytest.approx(link.num_bytes / 1e12)
        if link.state == "measured":
            assert link.time_s.measured is not None
            assert 0 < link.time_s.measured < 1
            assert link.bytes_per_s == pytest.approx(link.num_bytes / link.time_s.measured)
    assert report.clock_error_s == 0.0
    assert report.evidence is not None
    assert [rank.items for rank in report.evidence.ranks] == [4, 4, 4]
    assert all(rank.pieces == 19 for rank in report.evidence.ranks)


@pytest.mark.distributed
def test_a_second_run_starts_counting_anew(world: tuple[Plan, Profile, Session]) -> None:
    _, _, session = world
    first, second = (session.run(IMAGES, repeats=4).report for _ in range(2))
    assert [x.messages for x in first.links] == [x.messages for x in second.links]


@pytest.mark.distributed
def test_a_refit_makes_the_estimate_what_was_measured(
    world: tuple[Plan, Profile, Session],
) -> None:
    plan, profile, session = world
    report = session.run(IMAGES, repeats=20).report
    assert report.evidence is not None
    # The made-up profile is far from any machine: bring it near, so that the refit believes it.
    total = sum(rank.busy_s for rank in report.evidence.ranks)
    layers = len(profile.model.layers)
    near = scaled(profile, total / (4 * 0.001 * layers))
    done = fold_back(near, [report])
    for rank in report.evidence.ranks:
        timings = done.profile.timings_of[rank.device]
        expected = timings.dispatch_s + sum(
            count * next(row.median_s for row in timings.layers[twin] if row.items == rank.items)
            for twin, count in rank.twins.items()
            if twin in timings.layers
        )
        assert PRELUDE not in rank.twins
        assert expected == pytest.approx(rank.busy_s, rel=1e-3)
    assert fold_back(done.profile, [report]).profile == done.profile
    (noted,) = done.profile.conditions.refits
    assert (noted.plan_id, noted.ranks) == (plan.plan_id, 3)
    # And back to the planner: is the plan that ran still the best?
    new = make_plan(done.profile, baseline=plan, solver="greedy")
    assert new.search.baseline is not None
    assert new.search.baseline.plan_id == plan.plan_id
    assert new.inputs.request.batch_size == 8
    busy_s = 2 * max(rank.busy_s for rank in report.evidence.ranks)  # two microbatches a batch
    # On a machine that is busy with other work, messages can take longer than the ranks.
    device = {rank.rank: rank.device for rank in report.evidence.ranks}
    wire_s: dict[tuple[int, int], float] = defaultdict(float)
    for sent in report.links:
        link = done.profile.cluster.link(device[sent.source], device[sent.target])
        messages = sent.messages / 20
        wire_s[sent.source, sent.target] += messages * link.transfer_time_s(sent.num_bytes)
    expected_s = max(busy_s, *wire_s.values())
    assert new.search.baseline.objective_s == pytest.approx(expected_s, rel=0.2)
    assert [x for x in check_plan(new, done.profile) if x.severity is Severity.ERROR] == []


def scaled(profile: Profile, factor: float) -> Profile:
    timings = tuple(
        one.model_copy(
            update={
                "layers": {
                    twin: tuple(
                        row.model_copy(update={"median_s": row.median_s * factor}) for row in rows
                    )
                    for twin, rows in one.layers.items()
                }
            }
        )
        for one in profile.timings
    )
    return profile.model_copy(update={"timings": timings})


def test_taking_notes_costs_microseconds() -> None:
    # Gloo needs about 100 us to move a byte; both ends' notes of it take less than a tenth.
    log = TransferLog()
    message = Schedule(two_stages(), CHAIN.model).step(0, (0, 8)).pieces[0].sends[0]
    best = 1.0
    for _ in range(5):
        begun = time.thread_time()
        for _ in range(1000):
            log.sent(message, log.now())
            log.arrived(log.asked(message, log.now(), num_bytes=8), begun_s=0.0)
        best = min(best, (time.thread_time() - begun) / 1000)
    assert best < 10e-6


@pytest.mark.distributed
def test_what_is_held_beyond_a_batch_is_in_the_predicted_memory() -> None:
    profile, model = profile_of("bert"), captured("bert")
    plan = running.pipeline(profile)
    with running.session(plan, model, profile) as session:
        for num_items in (5, 8, 24):
            args, kwargs = resized(model, num_items)
            found = session.run(Example(args=args, kwargs=kwargs))
            ends = [*args, *kwargs.values(), *found.outputs.values()]
            beyond = max(0, num_items - 8) * sum(x.nbytes for x in ends if x is not None)
            for rank, planned in zip(found.report.ranks, plan.estimate.ranks, strict=True):
                extra = beyond // num_items if rank.rank == 0 else 0
                expected = planned.memory.total_bytes + extra
                assert rank.memory_bytes.predicted == pytest.approx(expected, abs=1)
