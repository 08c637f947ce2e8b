"""What differs between two plans."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.compare import compare
from planner.diff import PlanDiff, diff, headline
from planner.diff_text import render_diff
from planner.planfile import Plan
from planner.request import PlanRequest
from planner.selection import expand
from profiler.errors import StalePlanError
from profiler.graph import ModelGraph
from profiler.profile import Profile
from tests.support.builders import GIB, chain_graph, make_cluster, make_profile
from tests.support.plans import Part, edit, make_plan
from tests.support.small_plans import (
    CHAIN,
    REQUEST,
    three_stages,
    two_pipelines,
    two_stages,
)
from tests.support.stories import everyday_plan

Golden = Callable[[str, str], None]


def moves(found: PlanDiff) -> list[tuple[str, str, str]]:
    return [(", ".join(x.layers), x.before, x.after) for x in found.moves]


def settings(found: PlanDiff) -> list[str]:
    return [x.text for x in found.settings]


def cut(*layers: range, devices: str = "abc", **options: object) -> Plan:
    parts = [Part(layers=x, devices=[f"h/{d}"]) for x, d in zip(layers, devices, strict=False)]
    return make_plan(CHAIN, parts, request=REQUEST, **options)  # type: ignore[arg-type]


class TestSame:
    """Plans that decide the same."""

    @pytest.mark.parametrize("plan", [two_stages(), two_pipelines(), three_stages()])
    def test_a_plan_is_like_itself(self, plan: Plan) -> None:
        found = diff(plan, Plan.parse(plan.to_text(as_json=False), name="x"))
        assert found.same
        assert (found.inputs, found.asked, found.settings, found.moves, found.transfers) == (
            (), (), (), (), (),
        )  # fmt: skip
        assert render_diff(found) == "The same decision"
        assert headline(found) == "nothing differs"

    def test_another_profile_is_told_and_is_no_other_decision(self) -> None:
        other = edit(two_stages(), {"inputs.profile.fingerprint": "sha256:new"})
        found = diff(two_stages(), other)
        assert found.same
        assert [x.what for x in found.inputs] == ["profile"]
        assert render_diff(found) == "The same decision; made from another profile"

    def test_another_question_is_another_plan(self) -> None:
        other = edit(two_stages(), {"inputs.request.max_stages": 3})
        found = diff(two_stages(), other)
        assert not found.same
        assert [x.text for x in found.asked] == ["max_stages added: 3"]
        assert "same layers on the same devices" in render_diff(found)


class TestMoves:
    """Layers that run elsewhere."""

    def test_a_cut_that_moved(self) -> None:
        found = diff(cut(range(2), range(2, 4)), cut(range(3), range(3, 4)))
        assert moves(found) == [("l2", "h/b", "h/a")]
        assert settings(found) == []
        assert headline(found) == "l2: h/b -> h/a"

    def test_neighbours_that_move_alike_are_one_line(self) -> None:
        found = diff(cut(range(1), range(1, 4)), cut(range(1), range(1, 4), devices="ac"))
        assert moves(found) == [("l1, l2, l3", "h/b", "h/c")]
        assert settings(found) == ["devices h/b -> h/c"]

    def test_shares_that_changed(self) -> None:
        def shared(*shares: int) -> Plan:
            part = Part(layers=range(4), devices=["h/a", "h/b"], shares=shares)
            request = REQUEST.model_copy(update={"microbatch_size": 4})
            return make_plan(CHAIN, [part], request=request)

        found = diff(shared(2, 2), shared(3, 1))
        assert [(x.before, x.after) for x in found.moves] == [
            ("h/a (2) + h/b (2)", "h/a (3) + h/b (1)")
        ]

    def test_a_device_more(self) -> None:
        found = diff(cut(range(4)), cut(range(2), range(2, 4)))
        assert settings(found) == ["stages 1 -> 2", "devices added: h/b"]
        found = diff(cut(range(2), range(2, 4)), cut(range(4)))
        assert settings(found) == ["stages 2 -> 1", "devices dropped: h/b"]

    def test_a_pipeline_more(self) -> None:
        found = diff(cut(range(4)), two_pipelines())
        assert settings(found)[:2] == ["items 8 -> 6 + 2", "stages 1 -> 1 + 2"]
        assert [(x.pipeline, x.before) for x in found.moves] == [(1, "-"), (1, "-")]
        assert "pipeline 1: l0, l1: - -> h/b" in render_diff(found)

    def test_a_module_is_compared_by_its_parts(self) -> None:
        # One plan names a module whole, the other its parts, one of them exactly.
        graph = nested()
        profile = made_for(graph)

        def split(at: int) -> Plan:
            parts = [
                Part(layers=range(at), devices=["h/a"]),
                Part(layers=range(at, 5), devices=["h/b"]),
            ]
            return make_plan(profile, parts, request=REQUEST)

        # blocks.0, blocks.0.attn, blocks.1.attn, blocks.1.mlp, head
        whole, parted, inside = split(2), split(3), split(1)
        assert whole.spec.pipelines[0].stages[0].layers == ("blocks.0",)
        assert parted.spec.pipelines[0].stages[0].layers == ("blocks.0", "blocks.1.attn")
        assert inside.spec.pipelines[0].stages[0].layers == ("=blocks.0",)
        assert moves(diff(whole, parted)) == [("blocks.1.attn", "h/b", "h/a")]
        assert moves(diff(whole, inside)) == [("blocks.0.attn", "h/a", "h/b")]
        assert moves(diff(inside, parted)) == [("blocks.0.attn, blocks.1.attn", "h/b", "h/a")]

    @given(st.integers(0, 10_000))
    def test_every_layer_that_moved_is_told_and_no_other(self, seed: int) -> None:
        chance = random.Random(seed)
        num = chance.randrange(2, 12)
        names = [chance.choice(["", "m.", "m.n.", "k.0."]) + f"l{i}" for i in range(num)]
        names += ["m"] if chance.random() < 0.3 else []
        graph = renamed(chain_graph(len(names)), names)
        profile = made_for(graph)
        plans, homes = [], []
        for _ in range(2):
            at = chance.randrange(1, len(names))
            parts = [
                Part(layers=range(at), devices=["h/a"]),
                Part(layers=range(at, len(names)), devices=["h/b"]),
            ]
            plans.append(make_plan(profile, parts, request=REQUEST))
            homes.append([0] * at + [1] * (len(names) - at))
        expected = {n for n, a, b in zip(names, *homes, strict=True) if a != b}
        told = [x for move in diff(*plans).moves for x in move.layers]
        assert set(expand(told, names)) == expected


def nested() -> ModelGraph:
    names = ["blocks.0", "blocks.0.attn", "blocks.1.attn", "blocks.1.mlp", "head"]
    return renamed(chain_graph(5), names)


def renamed(graph: ModelGraph, names: list[str]) -> ModelGraph:
    """A chain with other names for its layers."""
    text = graph.model_dump_json()
    data = json.loads(text)
    new = {f"l{i}": name for i, name in enumerate(names)}
    for layer in data["layers"]:
        layer["name"] = new[layer["name"]]
        layer["modules"] = [layer["name"]]
    for tensor in data["tensors"]:
        if tensor.get("producer"):
            tensor["producer"] = new[tensor["producer"]]
    return ModelGraph.model_validate_json(json.dumps(data))


def made_for(graph: ModelGraph) -> Profile:
    cluster = make_cluster({"a": GIB, "b": GIB})
    seconds = {d: [1.0] * len(graph.layers) for d in "ab"}
    return make_profile(graph, cluster, seconds=seconds)


class TestSettings:
    """What is not a layer's place."""

    def test_the_microbatch(self) -> None:
        request = PlanRequest(batch_size=8)
        parts = [Part(layers=range(4), devices=["h/a"])]
        one, other = (
            make_plan(CHAIN, parts, request=request, microbatch_size=size) for size in (2, 4)
        )
        found = diff(one, other)
        assert settings(found) == ["microbatch 2 -> 4"]
        assert moves(found) == []
        assert [x.what for x in found.transfers] == ["x", "t3"]

    def test_a_tensor_that_goes_another_way(self) -> None:
        found = diff(three_stages("relay"), three_stages("direct"))
        assert not found.same
        # t0 is passed on by l1 in one plan and goes past it in the other.
        (way,) = found.transfers
        assert (way.what, way.before, way.after) == (
            "t0",
            "h/b -> h/c, 2048 bytes",
            "h/a -> h/c, 2048 bytes",
        )
        assert headline(found) == "only transfers or ranks differ"


class TestCosts:
    """What a difference costs, and on what that rests."""

    def test_plans_from_one_profile_compare_as_they_are(self) -> None:
        found = diff(cut(range(2), range(2, 4)), cut(range(3), range(3, 4)))
        assert found.basis == "as both were planned"
        figures = {x.what: (x.before, x.after) for x in found.figures}
        # a takes 1 s a layer and item, b 2 s; microbatches of 2, four of them; messages take 0.5 of
        # 0.1 + 2048 / 1e4 s at either end: 8 + 0.1524 of b's two layers against its one.
        assert figures["time between batches"][0] == pytest.approx(4 * (8 + 0.5 * 2 * 0.3048))
        assert set(figures) >= {"memory of h/a", "memory of h/b"}

    def test_plans_from_two_profiles_do_not(self) -> None:
        other = edit(two_stages(), {"inputs.profile.fingerprint": "sha256:new"})
        assert diff(two_stages(), other).basis.endswith("they do not compare")

    def test_the_first_is_priced_on_what_the_second_was_made_from(self, tmp_path: Path) -> None:
        slower = twice_as_slow_on_b(CHAIN)
        before = stored(tmp_path / "old", cut(range(2), range(2, 4)), CHAIN)
        after = stored(tmp_path / "new", planned(slower, range(3), range(3, 4)), slower)
        found = compare(before, after)
        assert found.basis == "on the second plan's profile"
        figures = {x.what: (x.before, x.after) for x in found.figures}
        # b's two layers now take 4 s an item each: 16 s a microbatch.
        assert figures["time between batches"][0] == pytest.approx(4 * (16 + 0.3048), rel=1e-4)
        (why,) = found.because
        assert why == "layers on h/b take x2: l3 32.0 s -> 64.0 s for 16 items"
        assert "Because the profile changed" in render_diff(found)

    def test_links_that_changed_are_a_reason(self, tmp_path: Path) -> None:
        cluster = make_cluster(
            {"a": GIB, "b": GIB, "c": GIB, "d": GIB},
            latency_s=0.1, bytes_per_s=5e3, occupancy=0.5,
        )  # fmt: skip
        slower = CHAIN.model_copy(update={"cluster": cluster})
        before = stored(tmp_path / "old", cut(range(2), range(2, 4)), CHAIN)
        after = stored(tmp_path / "new", planned(slower, range(2), range(2, 4)), slower)
        found = compare(before, after)
        assert found.same
        assert found.because == (
            "h/a -> h/b moves 10.0 kB/s after 100 ms -> 5.00 kB/s after 100 ms",
        )

    def test_without_documents_the_estimates_stand(self, tmp_path: Path) -> None:
        before = (cut(range(2), range(2, 4)), tmp_path / "a.yaml")
        other = edit(two_stages(), {"inputs.profile.fingerprint": "sha256:new"})
        found = compare(before, (other, tmp_path / "b.yaml"))
        assert found.basis.endswith("they do not compare")

    def test_a_first_plan_that_does_not_fit_the_second_inputs(self, tmp_path: Path) -> None:
        smaller = without_b(CHAIN)
        before = stored(tmp_path / "old", cut(range(2), range(2, 4)), CHAIN)
        after = stored(tmp_path / "new", planned(smaller, range(4)), smaller)
        found = compare(before, after)
        assert "the first does not fit the second's inputs: " in found.basis
        assert "h/b" in found.basis

    def test_a_profile_that_is_not_the_second_plans(self, tmp_path: Path) -> None:
        before = (cut(range(4)), tmp_path / "a.yaml")
        with pytest.raises(StalePlanError, match="was not made from this profile"):
            compare(before, before, profile=twice_as_slow_on_b(CHAIN))


def stored(directory: Path, plan: Plan, profile: Profile) -> tuple[Plan, Path]:
    """The plan and its profile in a directory of their own."""
    directory.mkdir()
    profile.dump(directory / "profile.json")
    plan.dump(directory / "plan.yaml")
    return plan, directory / "plan.yaml"


def planned(profile: Profile, *layers: range) -> Plan:
    parts = [Part(layers=x, devices=[f"h/{d}"]) for x, d in zip(layers, "abc", strict=False)]
    return make_plan(profile, parts, request=REQUEST)


def twice_as_slow_on_b(profile: Profile) -> Profile:
    timings = tuple(
        one
        if one.measured_on != "h/b"
        else one.model_copy(
            update={
                "layers": {
                    twin: tuple(
                        row.model_copy(update={"median_s": 2 * row.median_s}) for row in rows
                    )
                    for twin, rows in one.layers.items()
                }
            }
        )
        for one in profile.timings
    )
    return profile.model_copy(update={"timings": timings})


def without_b(profile: Profile) -> Profile:
    cluster = make_cluster(
        {"a": GIB, "c": GIB, "d": GIB}, latency_s=0.1, bytes_per_s=1e4, occupancy=0.5
    )
    timings = tuple(one for one in profile.timings if one.measured_on != "h/b")
    return profile.model_copy(update={"cluster": cluster, "timings": timings})


class TestText:
    """For people."""

    def test_a_page(self, golden: Golden, tmp_path: Path) -> None:
        slower = twice_as_slow_on_b(CHAIN)
        before = stored(tmp_path / "old", two_stages(), CHAIN)
        after = stored(tmp_path / "new", planned(slower, range(3), range(3, 4)), slower)
        golden("diff.txt", render_diff(compare(before, after)) + "\n")

    def test_it_fits_the_page(self) -> None:
        plan = everyday_plan()
        other = edit(
            plan,
            {
                "spec.pipelines.0.stages.0.layers": ["model.embed", "model.blocks.0..7"],
                "spec.pipelines.0.stages.1.layers": ["model.blocks.8..11", "lm_head"],
                "spec.pipelines.0.stages.1.shares": [6, 2],
            },
        )
        text = render_diff(diff(plan, other))
        assert max(len(line) for line in text.splitlines()) <= 100
        assert "model.blocks.8, model.blocks.9.attn: node-a/cuda:0 -> " in text.replace(
            "\n      ", " "
        )

    def test_long_lists_are_cut_unless_asked(self) -> None:
        plan = two_stages()
        transfers = [
            plan.spec.transfers[1].model_copy(update={"tensor": f"t{i}"}) for i in range(40)
        ]
        spec = plan.spec.model_copy(update={"transfers": (*plan.spec.transfers, *transfers)})
        found = diff(plan, plan.model_copy(update={"spec": spec}))
        assert "... 28 more (--verbose)" in render_diff(found)
        assert "more (--verbose)" not in render_diff(found, verbose=True)
