"""Profiles corrected by runs: times of layers, dispatching, links; and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from planner.cost import CostModel
from planner.problem import PlanningProblem
from planner.request import PlanRequest
from profiler import lookup
from profiler.cli import app
from profiler.cluster import Cluster, Link
from profiler.errors import InvalidInputError, StalePlanError
from profiler.evidence import (
    Exchange,
    LinkEvidence,
    RankEvidence,
    RunEvidence,
    SliceEvidence,
    Throttling,
)
from profiler.profile import DeviceTimings, Profile
from profiler.refit_links import refit_links
from profiler.refitting import fold_back, refit
from tests.support.builders import GIB, chain_graph, make_cluster, make_profile, make_region

SIZES = (1, 2, 4, 8, 16)


def world(
    names: str = "ab", num_layers: int = 4, *, together: bool = False, **links: float
) -> Profile:
    """Layers of 1, 2, 3, ... ms an item on every device; with ``together``, measured as one."""
    cluster = make_cluster(dict.fromkeys(names, GIB), types=dict.fromkeys(names, "x"), **links)
    graph = chain_graph(num_layers)
    seconds = [0.001 * (i + 1) for i in range(num_layers)]
    profile = make_profile(graph, cluster, seconds=dict.fromkeys(names, seconds))
    if not together:
        return profile
    first = profile.timings[0].model_copy(update={"devices": tuple(f"h/{name}" for name in names)})
    return profile.model_copy(update={"timings": (first,)})


def ran(
    device: str,
    layers: Mapping[int, int] | Sequence[int],
    busy_s: float,
    *,
    items: int = 4,
    rank: int = 0,
    pieces: int = 20,
    dispatch_s: float = 0.0,
    send_s: float = 0.0,
    sends: Sequence[Exchange] = (),
) -> RankEvidence:
    """A rank that ran layers by position (a mapping counts copies)."""
    counts = layers if isinstance(layers, Mapping) else dict.fromkeys(layers, 1)
    return RankEvidence(
        rank=rank,
        device=f"h/{device}",
        device_type="x",
        twins={f"twin{i}": n for i, n in counts.items()},
        items=items,
        pieces=pieces,
        busy_s=busy_s,
        compute_s=busy_s - dispatch_s - send_s,
        dispatch_s=dispatch_s,
        send_s=send_s,
        spread=0.02,
        sends=tuple(sends),
    )


def moved(
    source: str, target: str, num_bytes: int, time_s: float, samples: int = 50
) -> LinkEvidence:
    return LinkEvidence(
        source=f"h/{source}",
        target=f"h/{target}",
        num_bytes=num_bytes,
        time_s=time_s,
        samples=samples,
    )


def report(
    *ranks: RankEvidence, links: Sequence[LinkEvidence] = (), **changes: object
) -> dict[str, object]:
    """A RunReport as data, with nothing in it but what a refit reads."""
    evidence = RunEvidence(
        plan_id="sha256:plan", model="sha256:toy", symbols={}, ranks=ranks, links=tuple(links)
    )
    data = evidence.model_dump(mode="json", exclude_none=True)
    top = {
        key: changes.pop(key) for key in ("kind", "rehearsed", "format_version") & changes.keys()
    }
    return {
        "kind": "RunReport",
        "format_version": "1.0",
        "evidence": {**data, **changes},
        **top,
    }


def time_of(profile: Profile, device: str, layers: Sequence[int], items: int) -> float:
    """What the cost model says of a stage, dispatching included."""
    timings = profile.timings_of[f"h/{device}"]
    rows = (timings.layers[f"twin{i}"] for i in layers)
    return timings.dispatch_s + sum(lookup.time_s(measured, items) for measured in rows)


def factor(new: Profile, old: Profile, device: str, layer: int, items: int) -> float:
    def at(profile: Profile) -> float:
        rows = profile.timings_of[f"h/{device}"].layers[f"twin{layer}"]
        return lookup.time_s(rows, items)

    return at(new) / at(old)


def throttled(one: RankEvidence, fraction: float) -> RankEvidence:
    """The rank where a quota of periods of 10 ms had been used up in such a part of them."""
    return one.model_copy(update={"throttling": Throttling(period_s=0.01, fraction=fraction)})


@pytest.mark.parametrize(("busy_s", "fraction"), [(0.02, 0.9), (0.06, 0.1)])
def test_a_rationed_processor_teaches_where_the_quota_shows(busy_s: float, fraction: float) -> None:
    old = world(together=False)
    seen = throttled(ran("a", [0, 1], busy_s), fraction)
    new = fold_back(old, [report(seen)])
    assert not new.ignored
    assert new.profile == refit(old, [report(ran("a", [0, 1], busy_s))]).replaced(
        conditions=new.profile.conditions
    )


def test_short_pieces_that_never_meet_their_quota_teach_nothing() -> None:
    old = world(together=False)
    free = throttled(ran("a", [0, 1], 0.003), 0.3)
    with pytest.raises(InvalidInputError, match=r"30 % of the periods of 10(\.0)? ms, with pieces"):
        refit(old, [report(free)])
    other = ran("b", [2, 3], 0.03, rank=1)
    made = fold_back(old, [report(free, other)])
    assert made.profile.timings_of["h/a"].layers == old.timings_of["h/a"].layers
    assert made.profile.timings_of["h/b"].layers != old.timings_of["h/b"].layers
    assert any("rank 0 on h/a used up its processor quota" in line for line in made.ignored)


def sliced_world(*, divided: float = 1.0) -> Profile:
    """``world``, where layers 1 and 2 are a region of four units."""
    cluster = make_cluster({"a": GIB, "b": GIB}, types={"a": "x", "b": "x"})
    graph = chain_graph(4, regions=(make_region([1, 2], units=4, divided=divided),))
    seconds = [0.001, 0.002, 0.003, 0.004]
    profile = make_profile(graph, cluster, seconds={"a": seconds, "b": seconds})
    return profile.model_copy(
        update={"timings": tuple(t.model_copy(update={"slices": ()}) for t in profile.timings)}
    )


def ran_slices(
    device: str, layers: Sequence[int], units: int, busy_s: float, *, rank: int = 1
) -> RankEvidence:
    """A rank that ran ``layers`` in full and so many units of the region, for 4 items."""
    return ran(device, layers, busy_s, rank=rank).model_copy(
        update={"slices": (SliceEvidence(region="region1", units=units),), "joined_s": 0.5}
    )


def stage_s(profile: Profile, device: str, layers: Sequence[int], units: int) -> float:
    """What the cost model says of such a rank."""
    problem = PlanningProblem.build(profile, PlanRequest(batch_size=4), microbatch=4)
    figures, name = CostModel(problem).figures, f"h/{device}"
    return figures.compute_s(layers, name, 4) + figures.slice_s(0, name, 4, units)


class TestSlices:
    """Ranks that divide a stage; joins are not in their busy time."""

    def test_a_rank_that_divides_takes_what_it_took(self) -> None:
        # Layer 0 in full, 4 ms for 4 items; of the region's 20 ms 3/4, 15 ms. It took 28.5 ms.
        before = sliced_world()
        after = refit(before, [report(ran_slices("a", [0], 3, 0.0285))])
        assert stage_s(before, "a", [0], 3) == pytest.approx(0.019)
        assert stage_s(after, "a", [0], 3) == pytest.approx(0.0285)
        assert [factor(after, before, "a", i, 4) for i in range(3)] == pytest.approx([1.5] * 3)
        assert after.timings_of["h/a"].slices == ()

    def test_what_also_ran_in_full_tells_what_slicing_saves(self) -> None:
        # In full the region takes 1.1 times as long as the profile says, 22 ms, and the half of it
        # 15.4 ms: 0.7 of that, so 0.6 of it is divided.
        before = sliced_world()
        after = refit(
            before,
            [
                report(ran("a", [0, 1, 2], 1.1 * 0.024)),
                report(ran_slices("a", [0], 2, 1.1 * 0.004 + 0.0154), plan_id="sha256:other"),
            ],
        )
        assert factor(after, before, "a", 1, 4) == pytest.approx(1.1)
        timings = after.timings_of["h/a"]
        assert timings.divided(after.model.regions[0], 4) == pytest.approx(0.6)
        assert stage_s(after, "a", [0], 2) == pytest.approx(1.1 * 0.004 + 0.0154)
        assert timings.slices[0].whole_s == pytest.approx(0.022)
        assert after.timings_of["h/b"] == before.timings_of["h/b"]

    def test_other_counts_of_units_follow(self) -> None:
        before = sliced_world(divided=0.5)
        reports = [
            report(ran("a", [1, 2], 0.020)),
            report(ran_slices("a", [], 1, 0.020 * 0.4), plan_id="sha256:other"),
        ]
        after = refit(before, reports)
        # A quarter of the units takes 0.4 of the whole: 0.8 is divided.
        assert after.timings_of["h/a"].divided(after.model.regions[0], 4) == pytest.approx(0.8)
        assert stage_s(after, "a", [], 3) == pytest.approx(0.020 * (0.2 + 0.8 * 0.75))

    def test_a_run_that_agrees_changes_no_slices(self) -> None:
        before = sliced_world(divided=0.9)
        seconds = stage_s(before, "a", [0], 2)
        after = refit(
            before,
            [
                report(ran("a", [1, 2], 0.020)),
                report(ran_slices("a", [0], 2, seconds), plan_id="sha256:other"),
            ],
        )
        assert after.timings == before.timings

    def test_no_more_is_divided_than_there_is(self) -> None:
        before = sliced_world()
        reports = [
            report(ran("a", [1, 2], 0.020)),
            report(ran_slices("a", [], 2, 0.020 * 0.3), plan_id="sha256:other"),
        ]
        timings = refit(before, reports).timings_of["h/a"]
        assert timings.divided(before.model.regions[0], 4) == 1.0

    def test_slices_of_unknown_regions_are_ignored_and_named(self) -> None:
        strange = ran("a", [0], 0.004).model_copy(
            update={"slices": (SliceEvidence(region="another", units=1),)}
        )
        found = fold_back(sliced_world(), [report(strange, ran("b", [0], 0.005, rank=1))])
        assert any("regions that the profile lacks" in line for line in found.ignored)


class TestTimes:
    """Times of layers."""

    def test_a_stage_takes_what_it_took(self) -> None:
        # Layers 0 and 1 for 4 items: 4 x (1 + 2) = 12 ms; it took 18 ms, 1.5 times as long.
        before = world()
        after = refit(before, [report(ran("a", [0, 1], 0.018))])
        assert time_of(after, "a", [0, 1], 4) == pytest.approx(0.018)
        assert [factor(after, before, "a", i, 4) for i in (0, 1)] == pytest.approx([1.5, 1.5])

    def test_every_count_has_the_factor_of_the_one_that_ran(self) -> None:
        before = world()
        after = refit(before, [report(ran("a", [0], 0.006))])
        assert [factor(after, before, "a", 0, n) for n in SIZES] == pytest.approx([1.5] * 5)

    def test_layers_that_did_not_run_there_get_the_mean(self) -> None:
        # Left alone they would look 1.5 times as quick as those that ran, and move there next.
        before = world()
        after = refit(before, [report(ran("a", [0, 1], 0.018))])
        assert factor(after, before, "a", 3, 4) == pytest.approx(1.5)

    def test_other_devices_stay_as_they_were(self) -> None:
        before = world()
        after = refit(before, [report(ran("a", [0, 1], 0.018))])
        assert after.timings_of["h/b"] == before.timings_of["h/b"]

    def test_a_count_between_measured_ones_becomes_a_row(self) -> None:
        # 3 items of layer 0 are 3 ms; they took 3.3.
        before = world()
        after = refit(before, [report(ran("a", [0], 0.0033, items=3))])
        row = next(r for r in after.timings_of["h/a"].layers["twin0"] if r.items == 3)
        assert (row.median_s, row.samples, row.spread) == (pytest.approx(0.0033), 20, 0.02)
        assert [r.items for r in after.timings_of["h/a"].layers["twin1"]] == list(SIZES)

    def test_between_two_counts_the_factor_goes_with_the_logarithm(self) -> None:
        # 1.0 at 2 items, 2.0 at 8: 1.5 at 4, the nearest one's beyond.
        before = world()
        reports = [report(ran("a", [0], 0.002, items=2)), report(ran("a", [0], 0.016, items=8))]
        after = refit(before, reports)
        found = [factor(after, before, "a", 0, n) for n in (1, 2, 4, 8, 16)]
        assert found == pytest.approx([1.0, 1.0, 1.5, 2.0, 2.0])

    def test_twins_of_several_stages_get_the_mean(self) -> None:
        # Layers 0, 1: 1.5 times as long; 1, 2: as profiled. Layer 1 was there twice in the second.
        before = world()
        reports = [report(ran("a", [0, 1], 0.018)), report(ran("a", {1: 2, 2: 1}, 0.028))]
        after = refit(before, reports)
        found = [factor(after, before, "a", i, 4) for i in range(3)]
        assert found == pytest.approx([1.5, (1.5 + 2 * 1.0) / 3, 1.0])

    def test_contradictions_stay_within_what_was_seen(self) -> None:
        # With layer 4 in it a stage took less than without: nobody concludes that it takes none.
        before = world("a", 5)
        reports = [report(ran("a", range(4), 0.048)), report(ran("a", range(5), 0.045))]
        after = refit(before, reports)
        assert all(0.75 <= factor(after, before, "a", i, 4) <= 1.2 for i in range(5))

    def test_copies_of_a_layer_count(self) -> None:
        before = world()
        after = refit(before, [report(ran("a", {0: 3, 1: 1}, 0.040))])
        # 4 x (3 x 1 + 2) = 20 ms took 40.
        assert factor(after, before, "a", 0, 4) == pytest.approx(2.0)

    def test_the_loop_is_parted_from_the_layers(self) -> None:
        before = world()
        after = refit(before, [report(ran("a", [0, 1], 0.019, dispatch_s=0.001))])
        assert after.timings_of["h/a"].dispatch_s == pytest.approx(0.001)
        assert factor(after, before, "a", 0, 4) == pytest.approx(1.5)
        assert time_of(after, "a", [0, 1], 4) == pytest.approx(0.019)

    def test_what_messages_are_charged_is_not_charged_to_layers(self) -> None:
        # 1 MB over 1 GB/s is 1 ms, half of which the sender cannot compute: 0.5 ms of 18.5. Handing
        # it on took 0.2 ms of the processor: less than is charged, so nothing more for the loop.
        before = world(bytes_per_s=1e9, occupancy=0.5)
        to_b = Exchange(device="h/b", num_bytes=10**6)
        one = ran("a", [0, 1], 0.0185, send_s=0.0002, sends=[to_b])
        after = refit(before, [report(one)])
        assert after.timings_of["h/a"].dispatch_s == 0.0
        assert time_of(after, "a", [0, 1], 4) + 0.0005 == pytest.approx(0.0185)

    def test_handing_on_beyond_what_is_charged_is_the_loops(self) -> None:
        before = world()
        to_b = Exchange(device="h/b", num_bytes=10**6)
        one = ran("a", [0, 1], 0.019, send_s=0.001, sends=[to_b])
        after = refit(before, [report(one)])
        assert after.timings_of["h/a"].dispatch_s == pytest.approx(0.001)
        assert time_of(after, "a", [0, 1], 4) == pytest.approx(0.019)

    def test_memory_stays(self) -> None:
        before = world()
        after = refit(before, [report(ran("a", [0], 0.0033, items=3))])
        old, new = (p.timings_of["h/a"].layers["twin0"] for p in (before, after))
        assert lookup.peak_bytes(new, 3) == lookup.peak_bytes(old, 3)


class TestTogether:
    """Devices that were measured as one."""

    def groups(self, *ranks: RankEvidence, names: str = "abc") -> list[tuple[str, ...]]:
        after = refit(world(names, together=True), [report(*ranks)])
        return [tuple(n.removeprefix("h/") for n in t.devices) for t in after.timings]

    def test_equal_ones_stay_together(self) -> None:
        assert self.groups(ran("a", [0], 0.006), ran("b", [0], 0.0061, rank=1)) == [("a", "b", "c")]

    def test_those_that_differ_by_more_than_a_twentieth_part(self) -> None:
        # b runs as profiled; c did not run and stays with what is closest to the profile.
        assert self.groups(ran("a", [0], 0.006), ran("b", [0], 0.004, rank=1)) == [
            ("a",), ("b", "c"),
        ]  # fmt: skip

    def test_each_part_has_its_own_figures(self) -> None:
        before = world("abc", together=True)
        ranks = [ran("a", [0], 0.006), ran("b", [0], 0.004, rank=1)]
        after = refit(before, [report(*ranks)])
        assert [factor(after, before, n, 0, 4) for n in "abc"] == pytest.approx([1.5, 1.0, 1.0])
        assert [t.measured_on for t in after.timings] == ["h/a", "h/b"]

    def test_layers_that_differ_are_no_difference_of_devices(self) -> None:
        # a ran only layer 0, b only layer 1: the layers are off, not the devices.
        before = world("abc", together=True)
        ranks = [ran("a", [0], 0.006), ran("b", [1], 0.008, rank=1)]
        after = refit(before, [report(*ranks)])
        assert [t.devices for t in after.timings] == [before.timings[0].devices]
        assert factor(after, before, "c", 0, 4) == pytest.approx(1.5)
        assert factor(after, before, "c", 1, 4) == pytest.approx(1.0)

    def test_the_profile_stays_whole(self) -> None:
        after = refit(world("abcd", together=True), [report(*(
            ran(name, [0, 1], 0.012 * (1 + 0.2 * i), rank=i) for i, name in enumerate("abcd")
        ))])  # fmt: skip
        assert sorted(after.timings_of) == [f"h/{name}" for name in "abcd"]
        assert len(after.timings) == 4


class TestLinks:
    """Latency and bandwidth."""

    def link(
        self, before: Cluster, *links: LinkEvidence, pair: tuple[str, str] = ("h/a", "h/b")
    ) -> Link:
        return refit_links(before, links).cluster.link(*pair)

    def cluster(self, *links: Link, latency_s: float = 1e-3, bytes_per_s: float = 1e9) -> Cluster:
        return make_cluster(
            dict.fromkeys("abc", GIB), links=links, latency_s=latency_s, bytes_per_s=bytes_per_s
        )

    def test_one_large_size_gives_the_bandwidth(self) -> None:
        # 100 MB should take 1 + 100 ms; they took 201 ms: 200 of them on a wire of 0.5 GB/s.
        found = self.link(self.cluster(), moved("a", "b", 10**8, 0.201))
        assert (found.latency_s, found.bytes_per_s) == (1e-3, pytest.approx(0.5e9))

    def test_one_small_size_gives_the_latency(self) -> None:
        # 1 KB should take 1 ms and a microsecond; that it took 3 ms says nothing of the bandwidth.
        found = self.link(self.cluster(), moved("a", "b", 1000, 3e-3))
        assert (found.latency_s, found.bytes_per_s) == (pytest.approx(3e-3 - 1e-6), 1e9)

    def test_several_sizes_give_both(self) -> None:
        # 2 ms and 0.1 GB/s.
        found = self.link(
            self.cluster(), *(moved("a", "b", n, 2e-3 + n / 1e8) for n in (1000, 10**5, 10**7))
        )
        assert (found.latency_s, found.bytes_per_s) == pytest.approx((2e-3, 1e8))
        assert found.error_fraction == pytest.approx(0.0, abs=1e-9)

    def test_scatter_around_the_line_is_its_error(self) -> None:
        found = self.link(
            self.cluster(), *(moved("a", "b", n, 2e-3 + n / 1e8 * f)
                              for n, f in ((10**6, 1.2), (10**7, 1.0), (2 * 10**7, 0.9))),
        )  # fmt: skip
        assert found.error_fraction is not None
        assert 0.02 < found.error_fraction < 0.2

    def test_a_latency_is_never_fitted_away(self) -> None:
        # Back to back, larger messages took more than in proportion: no line through the origin's
        # side of zero. Half of the shortest time is still believed to be latency.
        found = self.link(
            self.cluster(), moved("a", "b", 65536, 1e-4), moved("a", "b", 131072, 2.8e-4)
        )
        assert found.latency_s == pytest.approx(0.5e-4)
        assert 65536 / 2.8e-4 < found.bytes_per_s < 1e10

    def test_a_message_quicker_than_the_latency_lowers_it(self) -> None:
        found = self.link(self.cluster(), moved("a", "b", 1000, 4e-4))
        assert found.transfer_time_s(1000) == pytest.approx(4e-4)
        found = self.link(self.cluster(), moved("a", "b", 10**7, 4e-4))
        assert found.transfer_time_s(10**7) == pytest.approx(4e-4)

    def test_pairs_of_one_entry_that_agree_stay_one(self) -> None:
        cluster = self.cluster()
        evidence = [moved("a", "b", 10**8, 0.201), moved("b", "c", 10**8, 0.203)]
        after = refit_links(cluster, evidence).cluster
        assert [(x.source, x.target) for x in after.links] == [("h", "h")]
        # What was never measured is between the same hosts, and taken to be like it.
        assert after.link("h/c", "h/a").bytes_per_s == pytest.approx(0.5e9, rel=0.02)

    def test_pairs_that_differ_get_entries_of_their_own(self) -> None:
        evidence = [moved("a", "b", 10**8, 0.201), moved("b", "c", 10**8, 0.401)]
        after = refit_links(self.cluster(), evidence).cluster
        assert [(x.source, x.target) for x in after.links] == [("h/a", "h/b"), ("h/b", "h/c")]
        assert after.link("h/c", "h/a").bytes_per_s == 1e9

    def test_an_entry_keeps_what_was_not_measured(self) -> None:
        entry = Link(
            source="h/a", target="h/b", latency_s=1e-3, bytes_per_s=1e9, send_occupancy=0.25
        )
        found = self.link(self.cluster(entry), moved("a", "b", 10**8, 0.201))
        assert (found.send_occupancy, found.bytes_per_s) == (0.25, pytest.approx(0.5e9))

    def test_shared_wires_are_left_alone(self) -> None:
        entry = Link(source="h", target="h", latency_s=1e-3, bytes_per_s=1e9, shares="air")
        cluster = self.cluster(entry)
        found = refit_links(cluster, [moved("a", "b", 10**8, 0.201)])
        assert found.cluster == cluster
        assert (found.used, found.ignored) == (0, ("h/a -> h/b shares a wire with others",))

    def test_too_few_messages_are_no_measurement(self) -> None:
        found = refit_links(self.cluster(), [moved("a", "b", 10**8, 0.201, samples=2)])
        assert (found.used, found.cluster) == (0, self.cluster())
        assert "fewer than 3" in found.ignored[0]


@given(st.integers(0, 10_000))
def test_a_run_that_agrees_changes_nothing(seed: int) -> None:
    """The second of two refits is by a run that takes what the profile says after the first."""
    chance = random.Random(seed)
    before = world(
        "abcd", 6, together=chance.random() < 0.5, latency_s=1e-3, bytes_per_s=1e8,
        occupancy=chance.choice([0.0, 0.5]),
    )  # fmt: skip
    cuts = [(name, random_stage(chance)) for name in chance.sample("abcd", 3)]
    first = report(
        *(agreeing(before, name, layers, items, rank, chance.uniform(0.5, 2.0))
          for rank, (name, (layers, items)) in enumerate(cuts)),
        links=[moved(a, b, size, (1e-3 + size / 1e8) * chance.uniform(0.3, 3.0))
               for a, b in (("a", "b"), ("b", "c")) for size in (100, 10**6)],
    )  # fmt: skip
    once = refit(before, [first])
    second = report(
        *(agreeing(once, name, layers, items, rank, 1.0)
          for rank, (name, (layers, items)) in enumerate(cuts)),
        links=[moved(a, b, size, once.cluster.link(f"h/{a}", f"h/{b}").transfer_time_s(size))
               for a, b in (("a", "b"), ("b", "c")) for size in (100, 10**6)],
    )  # fmt: skip
    twice = refit(once, [second])
    assert [t.devices for t in twice.timings] == [t.devices for t in once.timings]
    for old, new in zip(once.timings, twice.timings, strict=True):
        assert new.dispatch_s == pytest.approx(old.dispatch_s)
        for twin, rows in old.layers.items():
            assert [r.items for r in new.layers[twin]] == [r.items for r in rows]
            expected = [r.median_s for r in rows]
            # The report has five digits.
            assert [r.median_s for r in new.layers[twin]] == pytest.approx(expected, rel=2e-4)
    for old_link, new_link in zip(once.cluster.links, twice.cluster.links, strict=True):
        assert new_link.latency_s == pytest.approx(old_link.latency_s, rel=2e-3)
        assert new_link.bytes_per_s == pytest.approx(old_link.bytes_per_s, rel=2e-3)


def random_stage(chance: random.Random) -> tuple[list[int], int]:
    first = chance.randrange(5)
    return list(range(first, chance.randrange(first + 1, 7))), chance.choice([1, 3, 4, 24])


def agreeing(
    profile: Profile, device: str, layers: Sequence[int], items: int, rank: int, factor: float
) -> RankEvidence:
    """A rank whose layers take ``factor`` times what the profile says."""
    timings = profile.timings_of[f"h/{device}"]
    other = "b" if device == "a" else "a"
    layers_s = time_of(profile, device, layers, items) - timings.dispatch_s
    link = profile.cluster.link(f"h/{device}", f"h/{other}")
    dispatch_s = timings.dispatch_s or 0.0001
    return ran(
        device,
        layers,
        factor * layers_s + dispatch_s + link.send_occupancy * link.transfer_time_s(1000),
        items=items,
        rank=rank,
        dispatch_s=dispatch_s,
        sends=[Exchange(device=f"h/{other}", num_bytes=1000)],
    )


class TestNotes:
    """What a refitted profile says of itself."""

    def test_the_runs_are_named_once(self) -> None:
        one, other = report(ran("a", [0], 0.006)), report(ran("a", [0], 0.005))
        once = refit(world(), [one])
        (noted,) = once.conditions.refits
        assert (noted.plan_id, noted.ranks, noted.links) == ("sha256:plan", 1, 0)
        assert noted.report.startswith("sha256:")
        assert refit(once, [one]) == once
        assert len(refit(once, [other]).conditions.refits) == 2

    def test_a_profile_without_refits_has_the_digest_that_it_had(self) -> None:
        assert '"refits"' not in world().canonical()

    def test_changes_are_told(self) -> None:
        done = fold_back(
            world("ab", together=True),
            [report(ran("a", [0], 0.006), ran("b", [0], 0.004, rank=1, pieces=4))],
        )
        assert done.changes == ("h/a, h/b: layers x1.500 at 4 items, dispatch 0 s became 0 s",)
        assert done.ignored == ("rank 1 on h/b ran 4 pieces only",)

    def test_a_rehearsal_teaches_links_alone(self) -> None:
        before = world()
        links = [moved("a", "b", 10**8, 0.2)]
        after = refit(before, [report(ran("a", [0], 0.006), links=links, rehearsed=True)])
        assert after.timings == before.timings
        assert after.cluster.link("h/a", "h/b").bytes_per_s == pytest.approx(0.5e9)


class TestRefused:
    """What is no evidence about this profile."""

    def test_another_model(self) -> None:
        with pytest.raises(StalePlanError, match="sha256:other, the profile of toy has sha256:toy"):
            refit(world(), [report(ran("a", [0], 0.006), model="sha256:other")])

    def test_another_cluster(self) -> None:
        with pytest.raises(StalePlanError, match="it ran on h/z, the profile has h/a, h/b"):
            refit(world(), [report(ran("z", [0], 0.006))])
        with pytest.raises(StalePlanError, match="it ran on h/z"):
            refit(world(), [report(ran("a", [0], 0.006), links=[moved("a", "z", 10, 1.0)])])
        other = ran("a", [0], 0.006).model_copy(update={"device_type": "y"})
        with pytest.raises(StalePlanError, match="its h/a is a 'y', the profile's a 'x'"):
            refit(world(), [report(other)])

    def test_inputs_of_another_length(self) -> None:
        profile = world()
        model = profile.model.model_copy(update={"symbols": {"batch": 2, "tokens": 128}})
        profile = profile.model_copy(update={"model": model})
        one = ran("a", [0], 0.006)
        with pytest.raises(InvalidInputError, match="tokens = 64, the profile was measured at 128"):
            refit(profile, [report(one, symbols={"tokens": 64})])
        assert refit(profile, [report(one, symbols={"tokens": 128})])

    def test_too_little(self) -> None:
        with pytest.raises(InvalidInputError, match="rank 0 on h/a ran 4 pieces only"):
            refit(world(), [report(ran("a", [0], 0.006, pieces=4))])
        with pytest.raises(InvalidInputError, match="too little to learn from"):
            refit(world(), [report()])
        with pytest.raises(InvalidInputError, match="no run report"):
            refit(world(), [])

    @pytest.mark.parametrize("busy_s", [0.004 * 11, 0.004 / 11])
    def test_what_cannot_be_drift(self, busy_s: float) -> None:
        with pytest.raises(InvalidInputError, match="more than 10 times off is no drift"):
            refit(world(), [report(ran("a", [0], busy_s))])

    def test_layers_that_the_profile_does_not_know(self) -> None:
        with pytest.raises(InvalidInputError, match="knows none of the layers that h/a ran"):
            refit(world(), [report(ran("a", [9], 0.006))])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"kind": "Plan"}, "is not a RunReport: its kind is 'Plan'"),
            ({"format_version": "2.0"}, "format_version '2.0'; this apportion reads '1.0'"),
            ({"ranks": "all"}, "evidence of report 1 is not valid:\n  ranks"),
            ({"symbols": {"tokens": "many"}}, "symbols.tokens"),
            ({"more": 1}, "more: unknown key"),
        ],
    )
    def test_what_is_no_report(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(InvalidInputError) as caught:
            refit(world(), [report(ran("a", [0], 0.006), **changes)])
        assert message in str(caught.value)

    def test_a_report_from_before_there_was_evidence(self) -> None:
        with pytest.raises(InvalidInputError, match="holds no evidence for a refit"):
            refit(world(), [{"kind": "RunReport", "format_version": "1.0"}])


class TestCommand:
    """``apportion refit`` and ``apportion profile --refit``."""

    @pytest.fixture
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        world().dump("profile.json")
        Path("run.json").write_text(json.dumps(report(ran("a", [0, 1], 0.018))))
        return tmp_path

    def call(self, *arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    def test_both_ways_write_the_same(self, here: Path) -> None:
        code, out, _ = self.call("refit", "profile.json", "run.json", "-o", "one.json")
        assert code == 0
        assert "h/a: layers x1.500 at 4 items" in out
        assert self.call(
            "profile", "--refit", "run.json", "profile.json", "-o", "two.json"
        )[0] == 0  # fmt: skip
        assert Path("one.json").read_bytes() == Path("two.json").read_bytes()
        assert time_of(Profile.load("one.json"), "a", [0, 1], 4) == pytest.approx(0.018)

    def test_what_agrees_says_so(self, here: Path) -> None:
        self.call("refit", "profile.json", "run.json", "-o", "one.json")
        _, out, _ = self.call("refit", "one.json", "run.json", "-o", "two.json")
        assert "nothing changed" in out
        assert "not used: run.json is in the profile already" in out
        assert Path("one.json").read_bytes() == Path("two.json").read_bytes()

    def test_json(self, here: Path) -> None:
        _, out, _ = self.call(
            "refit", "profile.json", "run.json", "-o", "n.json", "--format", "json"
        )
        data = json.loads(out)
        assert data["fingerprint"] == Profile.load("n.json").content_digest()
        assert len(data["changes"]) == 1

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["refit", "profile.json", "none.json", "-o", "n.json"], 2, "there is no file none"),
            (["refit", "run.json", "run.json", "-o", "n.json"], 2, "is not a Profile"),
            (["refit", "profile.json", "profile.json", "-o", "n.json"], 2, "not a RunReport"),
            (["refit", "profile.json", "run.json", "-o", "n.yaml"], 2, "does not end in .json"),
            (
                ["profile", "--refit", "run.json", "profile.json", "-c", "c.yaml", "-o", "n.json"],
                2,
                "it takes no --cluster",
            ),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, here: Path, arguments: list[str], code: int, message: str
    ) -> None:
        ended, out, err = self.call(*arguments)
        assert (ended, out) == (code, "")
        assert message in err
        assert not Path("n.json").exists()

    def test_a_stale_report_exits_with_4(self, here: Path) -> None:
        stale = report(ran("a", [0], 0.006), model="sha256:other")
        Path("run.json").write_text(json.dumps(stale))
        code, _, err = self.call("refit", "profile.json", "run.json", "-o", "n.json")
        assert (code, "is of a model with fingerprint" in err) == (4, True)


def test_segments_stay_with_the_timings(tmp_path: Path) -> None:
    before = world("ab", together=True)
    timings: DeviceTimings = before.timings[0]
    after = refit(before, [report(ran("a", [0], 0.006), ran("b", [0], 0.004, rank=1))])
    assert [t.segments for t in after.timings] == [timings.segments] * 2
    assert [t.baseline_bytes for t in after.timings] == [timings.baseline_bytes] * 2
