from __future__ import annotations

import pytest

from planner.problem import PlanningProblem, layers_named
from planner.request import Forbid, Pin, PlanRequest, Split
from profiler.cluster import Link
from profiler.errors import InvalidInputError
from profiler.graph import ModelGraph
from profiler.profile import Profile
from tests.support.builders import chain_graph, make_cluster, make_graph, make_profile

GIB = 2**30


def world(
    devices: dict[str, int], *, types: dict[str, str] | None = None, links: tuple[Link, ...] = ()
) -> Profile:
    graph = chain_graph(3)
    cluster = make_cluster(devices, types=types, links=links)
    seconds = {name: [0.1, 0.2, 0.3] for name in devices}
    return make_profile(graph, cluster, seconds=seconds)


def build(profile: Profile, microbatch: int = 4, **wishes: object) -> PlanningProblem:
    request = PlanRequest.model_validate({"batch_size": 8, **wishes}, strict=False)
    return PlanningProblem.build(profile, request, microbatch=microbatch)


def static(profile: Profile, items: int) -> Profile:
    model = profile.model.model_copy(update={"static_batch": items})
    return profile.model_copy(update={"model": model})


def test_equal_devices_form_a_class_and_the_root_stands_alone() -> None:
    profile = world({"a": GIB, "b": GIB, "c": GIB, "d": GIB}, types=dict.fromkeys("abcd", "t"))
    assert build(profile).classes == (("h/a",), ("h/b", "h/c", "h/d"))


@pytest.mark.parametrize("what", ["memory", "type", "timings", "link", "pin", "max_bytes"])
def test_whatever_tells_devices_apart_parts_their_class(what: str) -> None:
    devices = {"a": GIB, "b": GIB, "c": GIB // 2 if what == "memory" else GIB}
    types = {"a": "t", "b": "t", "c": "other" if what == "type" else "t"}
    link = Link(source="h/b", target="h/a", latency_s=0.5, bytes_per_s=1e9)
    profile = world(devices, types=types, links=(link,) if what == "link" else ())
    if what == "timings":
        first, *others, last = profile.timings
        faster = {
            twin: tuple(row.model_copy(update={"median_s": row.median_s / 2}) for row in rows)
            for twin, rows in last.layers.items()
        }
        last = last.model_copy(update={"layers": faster})
        profile = profile.model_copy(update={"timings": (first, *others, last)})
    wishes: dict[str, object] = {}
    if what == "pin":
        wishes["pins"] = (Pin(layers="l1", device="h/c"),)
    if what == "max_bytes":
        wishes["max_bytes"] = {"h/c": 1000}
    assert build(profile, **wishes).classes == (("h/a",), ("h/b",), ("h/c",))


def test_a_pin_leaves_one_device_and_a_forbid_takes_one_away() -> None:
    profile = world({"a": GIB, "b": GIB, "c": GIB})
    problem = build(
        profile,
        pins=(Pin(layers="l0", device="h/b"),),
        forbids=(Forbid(device="h/a", layers="l1..2"), Forbid(device="h/c")),
    )
    assert [sorted(here) for here in problem.allowed] == [["h/b"], ["h/b"], ["h/b"]]
    assert problem.devices == ("h/b",)


def test_a_selector_may_name_a_module_that_a_layer_holds() -> None:
    graph = chain_graph(2)
    data = graph.model_dump()
    data["layers"][1]["modules"] = ("block.attn", "block.norm")
    graph = ModelGraph.model_validate(data, strict=False)
    assert layers_named(graph, "block.norm") == (1,)
    assert layers_named(graph, "block") == (1,)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"pins": (Pin(layers="l9", device="h/a"),)}, "no layer is called 'l9'"),
        ({"pins": (Pin(layers="l0", device="a"),)}, "close names: h/a"),
        ({"forbids": (Forbid(device="h/z"),)}, "which the cluster lacks"),
        ({"max_bytes": {"h/z": 1}}, "which the cluster lacks"),
        (
            {"pins": (Pin(layers="l0", device="h/a"), Pin(layers="l0", device="h/b"))},
            "pinned to both h/a and h/b",
        ),
        (
            {
                "pins": (Pin(layers="l0", device="h/a"),),
                "forbids": (Forbid(device="h/a", layers="l0"),),
            },
            "is pinned to h/a and is forbidden",
        ),
        (
            {
                "pins": (Pin(layers="l0", device="h/a"), Pin(layers="l1", device="h/b")),
                "keep_together": ("l0..1",),
            },
            "must share a stage",
        ),
    ],
)
def test_contradictions_are_named(wishes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        build(world({"a": GIB, "b": GIB}), **wishes)


def test_a_microbatch_is_from_one_item_to_the_batch() -> None:
    with pytest.raises(InvalidInputError, match="microbatch_size is 9"):
        build(world({"a": GIB}), microbatch=9)


def test_a_static_model_takes_its_batch_whole() -> None:
    profile = static(world({"a": GIB, "b": GIB}), 8)
    assert not build(profile, microbatch=8).batch_splits
    with pytest.raises(InvalidInputError, match="captured for exactly 8 items"):
        build(profile, microbatch=4)
    with pytest.raises(InvalidInputError, match="captured for exactly 8 items"):
        build(profile, microbatch=8, batch_size=16)


def test_a_cluster_may_leave_devices_out_but_not_add_any() -> None:
    profile = world({"a": GIB, "b": GIB})
    request = PlanRequest(batch_size=1)
    smaller = make_cluster({"b": GIB})
    problem = PlanningProblem.build(profile, request, cluster=smaller, microbatch=1)
    assert problem.devices == ("h/b",)
    larger = make_cluster({"a": GIB, "b": GIB, "c": GIB})
    with pytest.raises(InvalidInputError, match="no timings for h/c"):
        PlanningProblem.build(profile, request, cluster=larger, microbatch=1)


def test_layers_that_change_the_same_state_stay_together_on_one_device() -> None:
    graph = make_graph([(0, 1), (1, 2)], 3, tied=[(0, 2)])
    data = graph.model_dump()
    data["weights"][0]["state"] = True
    graph = ModelGraph.model_validate(data, strict=False)
    cluster = make_cluster({"a": GIB})
    profile = make_profile(graph, cluster, seconds={"a": [1.0, 1.0, 1.0]})
    problem = build(profile)
    assert problem.together == ((0, 2),)
    assert problem.one_device == {0, 2}


def test_a_reader_of_a_per_batch_tensor_waits_for_the_batch() -> None:
    data = chain_graph(3).model_dump()
    data["tensors"][1]["per_batch"] = True  # t0, which l1 reads
    graph = ModelGraph.model_validate(data, strict=False)
    cluster = make_cluster({"a": GIB})
    profile = make_profile(graph, cluster, seconds={"a": [1.0, 1.0, 1.0]})
    assert build(profile).whole_batch == {1}


def test_stages_are_limited_by_devices_wishes_and_allowed_splits() -> None:
    profile = world({"a": GIB, "b": GIB, "c": GIB})
    assert build(profile).max_stages == 3
    assert build(profile, max_stages=2).max_stages == 2
    assert build(profile, splits=(Split.BATCH,)).max_stages == 1
