"""Tiny worlds for planner tests: graphs, clusters and profiles whose numbers fit in a comment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from profiler.cluster import Cluster, DefaultLink, Device, Host, Link
from profiler.graph import Join, Layer, ModelGraph, SlicedWeight, SliceRegion, Tensor, Weight
from profiler.profile import Conditions, DeviceTimings, HeapMeasurement, Measurement, Profile

GIB = 2**30


def make_graph(
    edges: Sequence[tuple[int, int]],
    num_layers: int,
    *,
    floats_per_item: int = 256,
    weight_bytes: int = 1000,
    tied: Sequence[tuple[int, int]] = (),
    whole_batch: Sequence[int] = (),
    regions: Sequence[SliceRegion] = (),
) -> ModelGraph:
    """Layers ``l0, l1, ...`` with one output each (``floats_per_item`` float32 an item).

    Layers without an incoming edge read the model's input ``x``; those without an outgoing edge
    write its outputs. ``tied`` pairs share one weight; ``whole_batch`` layers look across items;
    ``regions`` can be sliced (``make_region``).
    """
    fed = {target for _, target in edges}
    feeding = {source for source, _ in edges}
    same = {b: a for a, b in tied}
    tensors = [Tensor(name="x", producer=None, shape=("batch", 8), dtype="float32", batch_dim=0)]
    layers = []
    for i in range(num_layers):
        reads = [f"t{a}" for a, b in sorted(edges) if b == i] or ["x"]
        layers.append(
            Layer(
                name=f"l{i}",
                module_type="Linear",
                modules=(f"l{i}",),
                twin=f"twin{i}",
                reads=tuple(reads if i in fed else ["x"]),
                writes=(f"t{i}",),
                weights=(f"w{same.get(i, i)}",),
                itemwise=i not in whole_batch,
            )
        )
        tensors.append(
            Tensor(
                name=f"t{i}",
                producer=f"l{i}",
                shape=("batch", floats_per_item),
                dtype="float32",
                batch_dim=0,
            )
        )
    return ModelGraph(
        name="toy",
        source="module",
        ref="tests:toy",
        captured_by="test",
        dtype="float32",
        fingerprint="sha256:toy",
        inputs=("x",),
        outputs=tuple(f"t{i}" for i in range(num_layers) if i not in feeding),
        symbols={"batch": 2},
        layers=tuple(layers),
        tensors=tuple(tensors),
        weights=tuple(
            Weight(name=f"w{i}", num_bytes=weight_bytes) for i in range(num_layers) if i not in same
        ),
        regions=tuple(regions),
    )


def make_region(
    layers: Sequence[int],
    *,
    units: int = 4,
    divided: float = 1.0,
    how: Literal["sum", "concat"] = "sum",
    weights: Sequence[int] | None = None,
    twin: str = "",
) -> SliceRegion:
    """Layers of ``make_graph`` that ranks can divide; the output of the last of them is joined.

    Their weights are sliced, or those of the layers ``weights``.
    """
    first, last = layers[0], layers[-1]
    return SliceRegion(
        name=f"r{first}",
        axis="features",
        units=units,
        layers=tuple(f"l{i}" for i in layers),
        weights=tuple(
            SlicedWeight(weight=f"w{i}", dim=0) for i in (layers if weights is None else weights)
        ),
        joins=(Join(tensor=f"t{last}", how=how, dim=1 if how == "concat" else None),),
        divided=divided,
        twin=twin or f"region{first}",
    )


def chain_graph(num_layers: int, **options: int) -> ModelGraph:
    """``l0 -> l1 -> ...``."""
    return make_graph([(i, i + 1) for i in range(num_layers - 1)], num_layers, **options)  # type: ignore[arg-type]


def make_cluster(
    devices: Mapping[str, int],
    *,
    types: Mapping[str, str] | None = None,
    links: Sequence[Link] = (),
    latency_s: float = 0.0,
    bytes_per_s: float = 1e12,
    occupancy: float = 0.0,
) -> Cluster:
    """One host ``h`` per device group; ``devices`` maps device name to memory in bytes."""
    return Cluster(
        hosts=(
            Host(
                name="h",
                devices=tuple(
                    Device(name=name, type=(types or {}).get(name, name), memory_bytes=memory)
                    for name, memory in devices.items()
                ),
            ),
        ),
        links=tuple(links),
        default_link=DefaultLink(
            latency_s=latency_s,
            bytes_per_s=bytes_per_s,
            send_occupancy=occupancy,
            receive_occupancy=occupancy,
        ),
    )


def make_profile(
    graph: ModelGraph,
    cluster: Cluster,
    *,
    seconds: Mapping[str, Sequence[float]],
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16),
    fixed_fraction: float = 0.0,
    peak_bytes_per_item: int = 0,
    spread: float = 0.02,
    dispatch_s: float = 0.0,
    heap_permille: int = 0,
    mapped_fraction: float = 0.0,
) -> Profile:
    """``seconds[device][layer]`` is the time of one item; more items take proportionally longer.
    Devices by their full name, or by the part behind the host.

    ``fixed_fraction`` of the one-item time does not grow with items. ``heap_permille`` is for one
    item and falls with items; ``mapped_fraction`` of every other layer's peak is in large blocks.
    """
    timings = []
    for name in cluster.device:
        per_layer = seconds[name if name in seconds else name.split("/")[1]]
        rows = {
            layer.twin: tuple(
                Measurement(
                    items=n,
                    median_s=one * (fixed_fraction + (1 - fixed_fraction) * n),
                    spread=spread,
                    samples=5,
                    peak_bytes=peak_bytes_per_item * n,
                    mapped_bytes=int(peak_bytes_per_item * n * mapped_fraction) * (i % 2),
                )
                for n in batch_sizes
            )
            for i, (layer, one) in enumerate(zip(graph.layers, per_layer, strict=True))
        }
        heap = [HeapMeasurement(items=n, permille=heap_permille // n) for n in batch_sizes]
        timings.append(
            DeviceTimings(
                measured_on=name,
                devices=(name,),
                dispatch_s=dispatch_s,
                heap=tuple(heap) if heap_permille else (),
                layers=rows,
            )
        )
    return Profile(
        model=graph,
        cluster=cluster,
        batch_sizes=tuple(batch_sizes),
        timings=tuple(timings),
        conditions=Conditions(
            torch="2.13.0", python="3.11", dtype="float32", processor="test", load_average=0.0
        ),
    )


def inputs_on_one_wire(*, two_s: float, one_s: float) -> Profile:
    """One layer, ``a`` the root; ``b`` and ``c`` compute an item in ``two_s``, ``d`` in ``one_s``.

    An item's input takes 0.032 s on the one wire to all three, its answer 0.0001 s on wires apart.
    """
    out = [
        Link(source="h/a", target=f"h/{d}", latency_s=0.0, bytes_per_s=1000.0, shares="out")
        for d in "bcd"
    ]
    back = [
        Link(source=f"h/{d}", target="h/a", latency_s=0.0, bytes_per_s=1e6, shares=f"from {d}")
        for d in "bcd"
    ]
    return make_profile(
        make_graph([], 1, floats_per_item=25),
        make_cluster(dict.fromkeys("abcd", GIB), links=(*out, *back)),
        seconds={"a": [9.0], "b": [two_s], "c": [two_s], "d": [one_s]},
    )
