"""Random small planning problems for property tests, made from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from planner.request import Objective, Pin, PlanRequest, Split
from profiler.cluster import Link
from profiler.graph import Join, ModelGraph, SlicedWeight, SliceRegion, Tensor, Weight
from profiler.profile import Profile
from tests.support.builders import make_cluster, make_graph, make_profile

World = tuple[Profile, PlanRequest, int]


def random_chain(rng: random.Random, *, max_layers: int = 6, max_devices: int = 4) -> World:
    """A chain, sometimes with skips, tied weights, whole-batch layers, several outputs."""
    num_layers = rng.randint(1, max_layers)
    edges = [(i, i + 1) for i in range(num_layers - 1)]
    if num_layers > 2 and rng.random() < 0.4:
        a = rng.randrange(num_layers - 2)
        edges.append((a, rng.randrange(a + 2, num_layers)))
    return _world(rng, edges, num_layers, rng.randint(1, max_devices))


def random_branching(rng: random.Random, *, max_layers: int = 5, max_devices: int = 3) -> World:
    """Any graph in which a layer reads one or two earlier ones."""
    num_layers = rng.randint(3, max_layers)
    edges = sorted(
        {
            (rng.randrange(b), b)
            for b in range(1, num_layers)
            for _ in range(rng.choice((1, 1, 2)))
            if rng.random() < 0.9
        }
    )
    return _world(rng, edges, num_layers, rng.randint(1, max_devices))


def random_sliced(rng: random.Random, *, max_layers: int = 6, max_devices: int = 4) -> World:
    """A world of ``random_chain`` with regions that can be sliced, on quicker links."""
    profile, request, microbatch = random_chain(rng, max_layers=max_layers, max_devices=max_devices)
    graph = with_regions(rng, profile.model)
    splits = rng.choice(
        (
            (Split.LAYERS, Split.TENSOR),
            (Split.LAYERS, Split.BATCH, Split.TENSOR),
            (Split.LAYERS, Split.BATCH, Split.TENSOR),
            (Split.TENSOR,),
        )
    )
    return (
        profile.model_copy(update={"model": graph}),
        request.model_copy(update={"splits": splits}),
        microbatch,
    )


def with_regions(rng: random.Random, graph: ModelGraph) -> ModelGraph:
    """Runs of layers, sometimes with gaps, become regions; some of their weights are sliced."""
    regions: list[SliceRegion] = []
    at, layers = 0, graph.layers
    while at < len(layers):
        if rng.random() < 0.3:
            at += 1
            continue
        end = min(len(layers), at + rng.choice((1, 1, 2, 3)))
        chosen = [i for i in range(at, end) if i in (at, end - 1) or rng.random() < 0.8]
        weights = dict.fromkeys(name for i in chosen for name in layers[i].weights)
        joined = [layers[end - 1].writes[0]] if rng.random() < 0.9 else []
        if rng.random() < 0.2:
            joined.append(layers[at].writes[0])
        regions.append(
            SliceRegion(
                name=f"r{at}",
                axis="heads",
                units=rng.choice((1, 2, 3, 5, 12)),
                layers=tuple(layers[i].name for i in chosen),
                weights=tuple(SlicedWeight(weight=w, dim=0) for w in weights if rng.random() < 0.8),
                joins=tuple(
                    Join(tensor=name, how=how, dim=1 if how == "concat" else None)
                    for name in dict.fromkeys(joined)
                    for how in [rng.choice(("sum", "concat"))]
                ),
                divided=rng.choice((1.0, 0.9, 0.4)),
                twin=f"region{at}",
            )
        )
        at = end
    return ModelGraph.model_validate(
        {**graph.model_dump(), "regions": [x.model_dump() for x in regions]}, strict=False
    )


def _world(
    rng: random.Random, edges: Sequence[tuple[int, int]], num_layers: int, num_devices: int
) -> World:
    tied = []
    if num_layers > 1 and rng.random() < 0.3:
        tied = [tuple(sorted(rng.sample(range(num_layers), 2)))]
    whole = [rng.randrange(num_layers)] if rng.random() < 0.25 else []
    graph = make_graph(
        edges,
        num_layers,
        floats_per_item=rng.choice((16, 64, 256)),
        weight_bytes=1000,
        tied=tied,  # type: ignore[arg-type]
        whole_batch=whole,
    )
    graph = _vary(rng, graph)
    names = [f"d{i}" for i in range(num_devices)]
    memory = rng.choice((10**9, 10**9, 40_000, 15_000))
    kinds = {name: rng.choice("ab") for name in names}
    sizes = {"a": memory, "b": max(4000, int(memory * rng.choice((0.4, 1.0))))}
    cluster = make_cluster(
        {name: sizes[kinds[name]] for name in names},
        types=kinds,
        links=_links(rng, names),
        latency_s=rng.choice((0.0, 1e-4, 1e-2)),
        bytes_per_s=rng.choice((1e4, 1e6, 1e9)),
        occupancy=rng.choice((0.0, 0.0, 0.5, 1.0)),
    )
    base = [
        rng.choice((0.001, 0.01, 0.02, 0.05)) * rng.uniform(0.8, 1.2) for _ in range(num_layers)
    ]
    times = {
        "a": base,
        "b": [t * rng.uniform(0.3, 3.0) for t in base],
    }
    seconds = {name: times[kinds[name]] for name in names}
    profile = make_profile(
        graph,
        cluster,
        seconds=seconds,
        fixed_fraction=rng.choice((0.0, 0.3, 0.9)),
        peak_bytes_per_item=rng.choice((0, 50, 400)),
        dispatch_s=rng.choice((0.0, 0.0, 0.004)),
        heap_permille=rng.choice((0, 900)),
        mapped_fraction=rng.choice((0.0, 0.6)),
    )
    batch = rng.choice((1, 2, 4, 6, 8))
    microbatch = rng.choice([m for m in (1, 2, 3, 4, 8) if m <= batch])
    pins = []
    if rng.random() < 0.25:
        pins.append(Pin(layers=f"l{rng.randrange(num_layers)}", device=f"h/{rng.choice(names)}"))
    request = PlanRequest(
        objective=rng.choice((Objective.THROUGHPUT, Objective.LATENCY)),
        batch_size=batch,
        microbatch_size=microbatch,
        splits=rng.choice(((Split.LAYERS,), (Split.LAYERS, Split.BATCH), (Split.BATCH,))),
        max_stages=rng.choice((None, None, None, 2)),
        reserve_bytes=rng.choice((0, 1000)),
        pins=tuple(pins),
        keep_together=("l0..1",) if num_layers > 1 and rng.random() < 0.15 else (),
    )
    own = random.Random(repr(base))  # so that all else stays as it was before there was this
    if own.random() < 0.3:
        profile = _with_other_kernels(own, profile)
    return profile, request, microbatch


def _with_other_kernels(rng: random.Random, profile: Profile) -> Profile:
    """The profile where more items may take less time: at each size another kernel."""
    return profile.model_copy(
        update={
            "timings": tuple(
                timings.model_copy(
                    update={
                        "layers": {
                            twin: tuple(
                                row.model_copy(
                                    update={"median_s": row.median_s * rng.choice((0.3, 1.0, 3.0))}
                                )
                                for row in rows
                            )
                            for twin, rows in timings.layers.items()
                        }
                    }
                )
                for timings in profile.timings
            )
        }
    )


def _links(rng: random.Random, names: Sequence[str]) -> list[Link]:
    """Some links of their own; one time in ten, all on one wire."""
    if rng.random() < 0.1:
        shape = {
            "latency_s": 1e-3,
            "bytes_per_s": rng.choice((3e4, 1e6)),
            "send_occupancy": 0.3,
            "receive_occupancy": 0.1,
        }
        return [
            Link(source=f"h/{a}", target=f"h/{b}", shares="air", **shape)
            for a in names
            for b in names
            if a != b
        ]
    return [
        Link(
            source=f"h/{a}",
            target=f"h/{b}",
            latency_s=rng.choice((0.0, 1e-3)),
            bytes_per_s=rng.choice((3e4, 1e7)),
            send_occupancy=rng.choice((0.0, 0.7)),
            receive_occupancy=rng.choice((0.0, 0.4)),
        )
        for a in names
        for b in names
        if a != b and rng.random() < 0.3
    ]


def _vary(rng: random.Random, graph: ModelGraph) -> ModelGraph:
    """Tensors and weights of different sizes; inputs read again; further outputs; uncut tensors."""
    tensors: list[Tensor] = []
    for tensor in graph.tensors:
        width = rng.choice((4, 16, 64, 200))
        shape = ("batch", width) if tensor.batch_dim == 0 else tensor.shape
        tensors.append(tensor.model_copy(update={"shape": shape}))
    weights = tuple(
        Weight(name=w.name, num_bytes=rng.choice((0, 500, 2000, 8000))) for w in graph.weights
    )
    layers = list(graph.layers)
    outputs = list(graph.outputs)
    if rng.random() < 0.3:
        at = rng.randrange(len(layers))
        layer = layers[at]
        layers[at] = layer.model_copy(update={"reads": tuple(dict.fromkeys((*layer.reads, "x")))})
    if rng.random() < 0.25:
        outputs = list(dict.fromkeys([*outputs, rng.choice(layers).writes[0]]))
    if rng.random() < 0.2:
        at = rng.randrange(len(tensors))
        tensors[at] = tensors[at].model_copy(update={"shape": (50,), "batch_dim": None})
    if rng.random() < 0.3:
        at = rng.randrange(len(layers))
        layers[at] = layers[at].model_copy(update={"uses_prelude": True})
    return ModelGraph.model_validate(
        {
            **graph.model_dump(),
            "tensors": [t.model_dump() for t in tensors],
            "weights": [w.model_dump() for w in weights],
            "layers": [x.model_dump() for x in layers],
            "outputs": outputs,
        },
        strict=False,
    )
