from __future__ import annotations

import re

import pytest

from planner import plan
from planner.request import Forbid, Pin
from profiler.cluster import Cluster
from profiler.errors import InfeasiblePlanError
from profiler.profile import Profile
from profiler.units import parse_bytes
from tests.support.builders import chain_graph, make_cluster, make_profile

MIB = 2**20


def world(
    memory: dict[str, int], *, weight: int = MIB, peak: int = 0, floats: int = 256
) -> Profile:
    graph = chain_graph(6, weight_bytes=weight, floats_per_item=floats)
    return make_profile(
        graph,
        make_cluster(memory),
        seconds={d: [1e-3] * 6 for d in memory},
        peak_bytes_per_item=peak,
    )


def refusal(profile: Profile, **wishes: object) -> InfeasiblePlanError:
    with pytest.raises(InfeasiblePlanError) as caught:
        plan(profile, **{"batch_size": 4, **wishes})  # type: ignore[arg-type]
    return caught.value


def remedies(error: InfeasiblePlanError) -> list[str]:
    return [changes[0].text for changes in error.remedies if len(changes) == 1]


def test_a_layer_that_fits_nowhere_is_named_with_both_figures() -> None:
    error = refusal(world({"a": 3 * MIB, "b": 2 * MIB}, weight=4 * MIB))
    text = str(error)
    assert re.match(r"no plan fits: l\d needs 4\.\d+ MiB, but no device allowed for it has", text)
    assert "more than 3.00 MiB" in text
    assert text.endswith("infeasibility is proved.")
    assert error.exit_code == 3


def test_weights_beyond_all_memory_are_summed_up() -> None:
    text = str(refusal(world({"a": 3 * MIB, "b": 2 * MIB})))
    assert "the model needs 6.00 MiB for its weights alone" in text
    assert "all 2 devices together have 5.00 MiB" in text


def test_more_memory_as_told_is_enough_and_less_is_not() -> None:
    profile = world({"a": 3 * MIB, "b": 2 * MIB})
    error = refusal(profile)
    match = next(
        m for r in remedies(error) if (m := re.search(r"give (\S+) another (\S+ \S+) \(", r))
    )
    device, extra = match[1], parse_bytes(match[2])

    def enlarged(num_bytes: int) -> Cluster:
        memory = {
            name.split("/")[1]: d.memory_bytes + (num_bytes if name == device else 0)
            for name, d in profile.cluster.device.items()
        }
        return make_cluster(memory)

    assert plan(profile, batch_size=4, cluster=enlarged(extra))
    with pytest.raises(InfeasiblePlanError):
        plan(profile, batch_size=4, cluster=enlarged(int(extra * 0.97)))


def test_a_smaller_batch_as_told_is_enough_and_a_larger_is_not() -> None:
    # 2^20 bytes of output an item: a batch of answers must fit beside the weights.
    profile = world({"a": 30 * MIB, "b": 30 * MIB}, floats=2**18)
    error = refusal(profile, batch_size=64)
    match = next(m for r in remedies(error) if (m := re.search(r"from 64 to (\d+) or less", r)))
    most = int(match[1])
    assert plan(profile, batch_size=most)
    refusal(profile, batch_size=most + 1)


def test_a_smaller_microbatch_is_offered_where_one_was_asked_for() -> None:
    profile = world({"a": 30 * MIB, "b": 30 * MIB}, peak=MIB)
    error = refusal(profile, batch_size=64, microbatch_size=64)
    match = re.search(r"lower microbatch_size from 64 to (\d+) or less", str(error))
    assert match
    assert plan(profile, batch_size=64, microbatch_size=int(match[1]))
    refusal(profile, batch_size=64, microbatch_size=int(match[1]) + 1)


def test_a_pin_that_stands_in_the_way_is_named() -> None:
    profile = world({"a": 8 * MIB, "b": 2 * MIB})
    harmless = Pin(layers="l5", device="h/a")
    harmful = Pin(layers="l0..3", device="h/b")
    found = remedies(refusal(profile, pins=(harmless, harmful)))
    assert "remove the pin of l0..3 to h/b" in found
    assert not any("l5" in remedy for remedy in found)


def test_forbids_groups_and_limits_on_stages_are_named() -> None:
    profile = world({"a": 4 * MIB, "b": 4 * MIB})
    assert "allow everything on h/b" in str(refusal(profile, forbids=(Forbid(device="h/b"),)))
    assert "let l0..5 be split" in str(refusal(profile, keep_together=("l0..5",)))
    assert "raise max_stages from 1 to 2" in str(refusal(profile, max_stages=1))


def test_a_smaller_reserve_as_told_is_enough() -> None:
    profile = world({"a": 8 * MIB, "b": 8 * MIB})
    error = refusal(profile, reserve_bytes=6 * MIB)
    match = re.search(r"lower reserve_bytes from 6\.00 MiB to (\S+ \S+) or less", str(error))
    assert match
    assert plan(profile, batch_size=4, reserve_bytes=parse_bytes(match[1]))


def test_a_cap_is_raised_rather_than_hardware_bought() -> None:
    profile = world({"a": 20 * MIB, "b": 20 * MIB})
    text = str(refusal(profile, max_bytes={"h/a": 2 * MIB, "h/b": MIB}))
    assert "raise max_bytes of h/" in text


def test_the_limits_that_clash_are_named_and_none_that_does_not_matter() -> None:
    # Four layers of 1 MiB on 2 MiB: the pin and this memory clash, whatever else there is.
    profile = world({"a": 8 * MIB, "b": 2 * MIB})
    harmless, harmful = Pin(layers="l5", device="h/a"), Pin(layers="l0..3", device="h/b")
    error = refusal(profile, pins=(harmless, harmful), max_stages=3)
    assert [(c.limit, c.subject) for c in error.conflicts] == [("pin", "l0..3"), ("memory", "h/b")]
    assert error.smallest
    assert "these 2 limits clash; without any one of them a plan exists:" in str(error)
    assert [c.change and c.change.becomes is None for c in error.conflicts] == [True, False]


def test_where_no_single_change_is_enough_the_smallest_pair_is_given() -> None:
    profile = world({"a": 8 * MIB, "b": 2 * MIB, "c": 2 * MIB})
    pins = (Pin(layers="l0..2", device="h/b"), Pin(layers="l3..5", device="h/c"))
    error = refusal(profile, pins=pins)
    assert len(error.conflicts) == 2
    assert all(c.change is None for c in error.conflicts)
    ((one, other),) = error.remedies
    assert {one.subject, other.subject} == {"l0..2", "l3..5"}
    assert "no single change is enough; these 2 together would make it fit:" in str(error)
    assert plan(profile, batch_size=4)


def test_a_limit_that_does_not_help_alone_says_so() -> None:
    profile = world({"a": 8 * MIB, "b": 2 * MIB})
    error = refusal(profile, forbids=(Forbid(device="h/a"),), max_bytes={"h/a": MIB})
    assert "forbid of everything on h/a: without it alone there is still none" in str(error)


def test_equal_devices_are_one_limit_and_thousands_are_soon_explained() -> None:
    # Three layers of 3 MiB each on 1,000 devices of 2 MiB: no layer has a home.
    names = [f"d{i}" for i in range(1000)]
    cluster = make_cluster(dict.fromkeys(names, 2 * MIB), types=dict.fromkeys(names, "board"))
    graph = chain_graph(3, weight_bytes=3 * MIB)
    profile = make_profile(graph, cluster, seconds={name: [1e-3] * 3 for name in names})
    error = refusal(profile, limits={"time_s": 10.0})
    assert [c.text for c in error.conflicts] == [
        "memory of h/d0 (2.00 MiB)",
        "memory of h/d1 and 998 equal devices (2.00 MiB each)",
    ]
    assert error.smallest
    assert all(c.change for c in error.conflicts)
