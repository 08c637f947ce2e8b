"""Plans of a few layers whose figures fit in a comment, for tests of what reads plans."""

from __future__ import annotations

from collections.abc import Mapping

from planner.planfile import Plan
from planner.request import PlanRequest
from profiler.cluster import Cluster
from profiler.graph import ModelGraph
from profiler.profile import Profile
from tests.support.builders import GIB, chain_graph, make_cluster, make_graph, make_profile
from tests.support.plans import Part, make_plan

CLUSTER = make_cluster(
    {"a": GIB, "b": GIB, "c": GIB, "d": GIB}, latency_s=0.1, bytes_per_s=1e4, occupancy=0.5
)
REQUEST = PlanRequest(batch_size=8, microbatch_size=2)
Edits = Mapping[str, object]


def profile_of(graph: ModelGraph, cluster: Cluster = CLUSTER) -> Profile:
    seconds = {
        name.split("/")[1]: [float(i + 1)] * len(graph.layers)
        for i, name in enumerate(cluster.device)
    }
    return make_profile(graph, cluster, seconds=seconds, peak_bytes_per_item=2000)


CHAIN = profile_of(chain_graph(4))


def two_stages(profile: Profile = CHAIN, request: PlanRequest = REQUEST) -> Plan:
    """l0, l1 on a; l2, l3 split over b and c, one item each of every microbatch."""
    return make_plan(
        profile,
        [
            Part(layers=[0, 1], devices=["h/a"]),
            Part(layers=[2, 3], devices=["h/b", "h/c"], shares=[1, 1]),
        ],
        request=request,
    )


def two_pipelines() -> Plan:
    """Whole copies on a (6 items) and on b, c (2 items)."""
    return make_plan(
        CHAIN,
        [Part(layers=range(4), devices=["h/a"])],
        [Part(layers=[0, 1], devices=["h/b"]), Part(layers=[2, 3], devices=["h/c"])],
        items=[6, 2],
        request=REQUEST,
    )


def three_stages(routing: str = "relay") -> Plan:
    """A skip from l0 over l1 to l2, on three devices."""
    graph = make_graph([(0, 1), (1, 2), (0, 2)], 3)
    return make_plan(
        profile_of(graph),
        [Part(layers=[i], devices=[f"h/{name}"]) for i, name in enumerate("abc")],
        request=REQUEST,
        routing=routing,
    )


ACROSS_ITEMS = profile_of(make_graph([(0, 1), (1, 2)], 3, whole_batch=[1]))


def whole_batch_stage() -> Plan:
    """l1 looks across items: its stage, on b, takes the whole batch on one rank."""
    return make_plan(
        ACROSS_ITEMS,
        [
            Part(layers=[0], devices=["h/a"]),
            Part(layers=[1], devices=["h/b"], whole_batch=True),
            Part(layers=[2], devices=["h/c"]),
        ],
        request=REQUEST,
    )


LEGAL_EDIT: Edits = {
    "spec.pipelines.0.stages.0.layers": ["l0..2"],
    "spec.pipelines.0.stages.1.layers": ["l3"],
    "spec.transfers.1.tensor": "t2",
}
"""Of two_stages(): one layer more on a (4 -> 6 s), one less on b and c (6 -> 3 s)."""
