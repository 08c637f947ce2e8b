"""The planner and the checker price plans by the same page, in two programs without shared code.

On random problems every plan that is found must satisfy the checker: every rule, and every figure
to 1e-9. One of the two is wrong wherever they differ.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from planner.api import plan
from planner.check import check_plan, rederive
from planner.cost import CostModel
from planner.findings import Severity
from planner.flows import Routing
from planner.lower import estimate, lower
from planner.planfile import FileInput, ModelInput, Plan, PlanInputs
from planner.problem import PlanningProblem
from planner.request import Destination, Forbid, Limits, Objective, Pin, PlanRequest, Split
from planner.searchrecord import IdleDevice
from planner.solvers.base import Assignment, PipelineAssignment, StageAssignment
from profiler.cluster import Cluster, Link
from profiler.errors import InfeasiblePlanError, InvalidInputError
from profiler.graph import Members, ModelGraph
from profiler.profile import PRELUDE, Measurement, Profile
from tests.support.builders import GIB, chain_graph, make_cluster, make_graph, make_profile
from tests.support.plans import Part, make_plan, with_evidence

PROBLEMS_A_SEED = 30


def random_graph(chance: random.Random) -> ModelGraph:
    n = chance.randrange(2, 8)
    chain = {(i, i + 1) for i in range(n - 1)}
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    match chance.choice(["chain", "skips", "branches"]):
        case "chain":
            edges = chain
        case "skips":
            edges = chain | {x for x in pairs if chance.random() < 0.2}
        case _:
            edges = {x for x in pairs if chance.random() < 0.4}
    graph = make_graph(
        sorted(edges),
        n,
        floats_per_item=chance.choice([8, 256]),
        weight_bytes=chance.choice([1000, 50_000]),
        tied=[(0, n - 1)] if chance.random() < 0.2 else [],
        whole_batch=[chance.randrange(n)] if chance.random() < 0.2 else [],
    )
    return graph.model_copy(update=odd_tensors(graph, chance))


def odd_tensors(graph: ModelGraph, chance: random.Random) -> dict[str, object]:
    """Tensors without batch dim or of a whole batch, changing state, work that stages repeat."""
    tensors = list(graph.tensors)
    for i, layer in enumerate(graph.layers):
        if not layer.itemwise:
            update = {"batch_dim": None, "per_batch": True, "shape": ("batch", "batch")}
        elif chance.random() < 0.1:
            update = {"batch_dim": None, "shape": (100,)}
        else:
            continue
        tensors[i + 1] = tensors[i + 1].model_copy(update=update)
    prelude = chance.random() < 0.3
    layers = [
        x.model_copy(update={"uses_prelude": prelude and chance.random() < 0.5})
        for x in graph.layers
    ]
    stateful = chance.random() < 0.15
    weights = [
        x.model_copy(update={"state": stateful and chance.random() < 0.4}) for x in graph.weights
    ]
    return {"tensors": tuple(tensors), "layers": tuple(layers), "weights": tuple(weights)}


def random_cluster(chance: random.Random) -> Cluster:
    names = "abcd"[: chance.randrange(1, 5)]
    links = [
        Link(
            source=f"h/{a}",
            target=f"h/{b}",
            latency_s=chance.choice([0, 0.01, 0.1]),
            bytes_per_s=chance.choice([1e4, 1e5, 1e7]),
            send_occupancy=chance.choice([0, 0.3, 1.0]),
            receive_occupancy=chance.choice([0, 0.3, 1.0]),
            shares=chance.choice([None, None, "lan"]),
        )
        for a in names
        for b in names
        if a != b and chance.random() < 0.4
    ]
    return make_cluster(
        {name: chance.choice([100_000, 300_000, GIB]) for name in names},
        links=links,
        latency_s=chance.choice([0, 0.05]),
        bytes_per_s=chance.choice([1e3, 1e4, 1e6]),
        occupancy=chance.choice([0, 0.5, 1]),
    )


def random_profile(chance: random.Random) -> Profile:
    graph, cluster = random_graph(chance), random_cluster(chance)
    profile = make_profile(
        graph,
        cluster,
        seconds={
            name.split("/")[1]: [chance.uniform(0.1, 4.0) for _ in graph.layers]
            for name in cluster.device
        },
        batch_sizes=chance.choice([(1, 2, 4, 8), (1, 4, 16), (2,)]),
        fixed_fraction=chance.choice([0, 0.3, 0.9]),
        peak_bytes_per_item=chance.choice([0, 2000, 7777]),
        dispatch_s=chance.choice([0.0, 0.01]),
        heap_permille=chance.choice([0, 1234]),
        mapped_fraction=chance.choice([0.0, 0.4]),
    )
    rows = tuple(
        Measurement(items=n, median_s=0.2 + 0.01 * n, spread=0.1, samples=3, peak_bytes=500 * n)
        for n in (1, 8)
    )
    return profile.model_copy(
        update={
            "timings": tuple(
                x.model_copy(update={"layers": {**x.layers, PRELUDE: rows}, "baseline_bytes": 1000})
                for x in profile.timings
            )
        }
    )


def random_pins(chance: random.Random, profile: Profile) -> tuple[Pin, ...]:
    """None; one; or the first and the last layer, which may force a slow link into the plan."""
    devices, last = list(profile.cluster.device), len(profile.model.layers) - 1
    kind = chance.random()
    if kind < 0.5:
        return ()
    if kind < 0.7:
        return (Pin(layers=f"l{chance.randint(0, last)}", device=chance.choice(devices)),)
    return (Pin(layers="l0", device=devices[0]), Pin(layers=f"l{last}", device=devices[-1]))


def random_request(chance: random.Random, profile: Profile) -> PlanRequest:
    batch = chance.choice([1, 2, 5, 8, 12])
    device = chance.choice(list(profile.cluster.device))
    return PlanRequest(
        objective=chance.choice([Objective.THROUGHPUT, Objective.LATENCY]),
        batch_size=batch,
        microbatch_size=chance.choice([None, None, 1, min(2, batch), min(3, batch), batch]),
        splits=chance.choice(
            [tuple(Split), tuple(Split), (Split.LAYERS, Split.PIPELINES), (Split.LAYERS,)]
        ),
        max_stages=chance.choice([None, None, 2]),
        reserve_bytes=chance.choice([None, 5000]),
        max_bytes={device: 200_000} if chance.random() < 0.2 else {},
        pins=random_pins(chance, profile),
        forbids=(Forbid(device=device, layers=chance.choice([None, "l0"])),)
        if chance.random() < 0.1
        else (),
        keep_together=("l0..1",) if chance.random() < 0.2 else (),
        limits=Limits(time_s=3.0),
    )


def reduced(profile: Profile, chance: random.Random) -> Profile:
    """The same with some outputs of a reduction over items instead of values for each."""
    graph = profile.model
    tensors = tuple(
        t.model_copy(
            update={"shape": (64,), "batch_dim": None, "per_batch": True, "reduction": "mean"}
        )
        if t.name in graph.outputs and t.batch_dim is not None and chance.random() < 0.4
        else t
        for t in graph.tensors
    )
    return profile.replaced(model=graph.replaced(tensors=tensors))


def ensemble_of(profile: Profile) -> Profile:
    """The same with all outputs those of members, if there are several and they are alike."""
    graph = profile.model
    alike = {(t.shape, t.batch_dim) for t in map(graph.tensor.__getitem__, graph.outputs)}
    if len(graph.outputs) < 2 or len(alike) > 1:
        return profile
    names = tuple(f"member{i}" for i in range(len(graph.outputs)))
    together = Members(members=names, refs=names, answers=(graph.outputs,), strategy="stack")
    return profile.replaced(model=graph.replaced(ensemble=together))


@pytest.mark.parametrize(
    ("seed", "destination"),
    [*((seed, Destination.ROOT) for seed in range(6)), (7, Destination.ALL), (8, "scattered")],
)
def test_every_plan_that_is_found_satisfies_the_checker(seed: int, destination: str) -> None:
    chance = random.Random(seed)
    seen: Counter[str] = Counter()
    for number in range(PROBLEMS_A_SEED):
        profile = random_profile(chance)
        request = random_request(chance, profile)
        if seed > 4:
            request = request.replaced(destination=Destination(destination))
            if destination != "scattered":
                profile = ensemble_of(reduced(profile, chance))
        try:
            made = plan(profile, request)
        except (InfeasiblePlanError, InvalidInputError) as error:
            seen[type(error).__name__] += 1
            continue
        seen["planned"] += 1
        found = [x for x in check_plan(made, profile) if x.severity is Severity.ERROR]
        assert not found, f"seed {seed}, problem {number}: {found}"
        figures = rederive(made, profile)
        assert made.estimate.period_s == pytest.approx(figures.period_s, rel=1e-9)
        assert made.estimate.latency_s == pytest.approx(figures.latency_s, rel=1e-9)
        for stated, derived in zip(made.estimate.ranks, figures.ranks, strict=True):
            assert stated.memory == derived.memory
            for name in ("compute_s", "receive_s", "send_s", "busy_fraction"):
                assert getattr(stated, name) == pytest.approx(getattr(derived, name), rel=1e-9)
    assert seen["planned"] > PROBLEMS_A_SEED / 2


def random_pipelines(chance: random.Random, problem: PlanningProblem) -> Assignment | None:
    """Two pipelines or more of random stages, devices, shares and items, if there is room for."""
    devices = list(problem.devices)
    chance.shuffle(devices)
    pipelines: list[PipelineAssignment] = []
    left = problem.batch
    while devices and left and (len(pipelines) < 2 or chance.random() < 0.5):
        hand = [devices.pop() for _ in range(chance.randint(1, max(1, len(devices) - 1)))]
        edges = [0, problem.num_layers]
        if problem.graph.is_chain and problem.num_layers > 1 and chance.random() < 0.7:
            cut = chance.randrange(1, problem.num_layers)
            edges = [0, cut, problem.num_layers]
        stages = []
        for at, (start, end) in enumerate(pairwise(edges)):
            if not hand:
                return None
            last = at == len(edges) - 2
            most = min(len(hand) if last else max(1, len(hand) - 1), problem.microbatch)
            width = chance.randint(1, most)
            marks = sorted(chance.sample(range(1, problem.microbatch), k=width - 1))
            stages.append(
                StageAssignment(
                    layers=tuple(range(start, end)),
                    devices=tuple(hand.pop() for _ in range(width)),
                    shares=tuple(b - a for a, b in pairwise((0, *marks, problem.microbatch))),
                )
            )
        items = chance.randint(1, left)
        left -= items
        routing = chance.choice(list(Routing))
        pipelines.append(PipelineAssignment(items=items, stages=tuple(stages), routing=routing))
    if len(pipelines) < 2 or any(len(p.stages) > problem.max_stages for p in pipelines):
        return None
    pipelines[-1] = replace(pipelines[-1], items=pipelines[-1].items + left)
    return Assignment(pipelines=tuple(pipelines))


def written(profile: Profile, problem: PlanningProblem, assignment: Assignment) -> Plan:
    """The plan file of an assignment, whatever it costs."""
    price = CostModel(problem).evaluate(assignment)
    model, machines = profile.model, problem.cluster
    inputs = PlanInputs(
        model=ModelInput(
            ref=model.ref,
            source=model.source,
            dtype=model.dtype,
            graph=model.fingerprint,
            num_layers=len(model.layers),
            weight_bytes=model.total_weight_bytes,
        ),
        cluster=FileInput(ref="cluster.yaml", fingerprint=machines.content_digest()),
        profile=FileInput(ref="profile.json", fingerprint=profile.content_digest()),
        request=problem.request,
    )
    spec = lower(problem, assignment, price)
    idle = [
        IdleDevice(device=device, reason="not drawn")
        for device in machines.device
        if device not in assignment.devices
    ]
    return with_evidence(inputs, spec, idle, profile, machines).model_copy(
        update={"estimate": estimate(problem, assignment, price)}
    )


def test_random_pipelines_side_by_side_cost_the_same_in_both_programs() -> None:
    chance, priced = random.Random(1), Counter[str]()
    while priced["plans"] < 150:
        profile = random_profile(chance)
        request = random_request(chance, profile)
        request = request.model_copy(update={"splits": tuple(Split), "pins": (), "forbids": ()})
        size = request.microbatch_size or chance.randint(1, request.batch_size)
        request = request.model_copy(update={"keep_together": (), "microbatch_size": size})
        problem = PlanningProblem.build(profile, request, microbatch=size)
        assignment = None if problem.one_pipeline() else random_pipelines(chance, problem)
        if assignment is None:
            continue
        made = written(profile, problem, assignment)
        wrong = [x for x in check_plan(made, profile) if x.severity is Severity.ERROR]
        assert {x.code for x in wrong} <= {"memory"}, wrong
        figures, price = rederive(made, profile), CostModel(problem).evaluate(assignment)
        assert price.period_s == pytest.approx(figures.period_s, rel=1e-9)
        assert price.latency_s == pytest.approx(figures.latency_s, rel=1e-9)
        assert price.fits == (not wrong)
        assert [r.memory for r in made.estimate.ranks] == [r.memory for r in figures.ranks]
        priced["plans"] += 1
        priced["short last microbatch"] += any(p.items % size for p in assignment.pipelines)
        wires = [link.shares for link in profile.cluster.links]
        priced["wire of several links"] += wires.count("lan") > 1
        priced["split by batch"] += any(len(s.devices) > 1 for s in assignment.stages)
    assert min(priced.values()) > 10, priced


@pytest.mark.parametrize("what", ["whole-batch", "state", "static-batch", "split"])
def test_what_allows_one_pipeline_only_is_the_same_in_both_programs(what: str) -> None:
    graph = chain_graph(3, whole_batch=(1,) if what == "whole-batch" else ())
    if what == "static-batch":
        graph = graph.model_copy(update={"static_batch": 4})
    if what == "state":
        first, *rest = graph.weights
        state = first.model_copy(update={"state": True})
        graph = graph.model_copy(update={"weights": (state, *rest)})
    cluster = make_cluster({"a": GIB, "b": GIB})
    profile = make_profile(graph, cluster, seconds={d: [1.0] * 3 for d in "ab"})
    splits = (Split.LAYERS, Split.BATCH) if what == "split" else tuple(Split)
    items = 4 if what == "static-batch" else 8
    request = PlanRequest(batch_size=items, microbatch_size=4, splits=splits)
    problem = PlanningProblem.build(profile, request, microbatch=4)
    assert problem.one_pipeline() is not None
    whole = Part(layers=range(3), devices=["h/a"], whole_batch=what == "whole-batch")
    other = Part(layers=range(3), devices=["h/b"], whole_batch=what == "whole-batch")
    by_hand = make_plan(
        profile, [whole], [other], items=[items // 2] * 2, request=request, microbatch_size=4
    )
    assert what in {x.code for x in check_plan(by_hand, profile) if x.severity is Severity.ERROR}
    assert len(plan(profile, request).spec.pipelines) == 1
