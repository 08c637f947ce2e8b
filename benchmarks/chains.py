"""Chains of layers with times of their own on each kind of device: made up, or published.

The published ones are files of their own, not part of this repository.
"""

from __future__ import annotations

import json
from pathlib import Path

from planner.request import PlanRequest, Split
from profiler.cluster import Cluster, DefaultLink, Device, Host, Link
from profiler.graph import Join, Layer, ModelGraph, SlicedWeight, SliceRegion, Tensor, Weight
from profiler.profile import Conditions, DeviceTimings, Measurement, Profile


def chain_profile(
    cluster: Cluster,
    seconds: dict[str, list[float]],
    *,
    widths: list[int],
    weights: list[int],
    items: int = 1,
    units: int = 0,
) -> Profile:
    """A chain: ``seconds[type][layer]`` for ``items`` items, ``widths`` floats between layers.

    With ``units`` every layer can be divided in so many, and its output is joined as a sum.
    """
    num_layers = len(weights)
    tensors = [
        Tensor(
            name=f"t{i}",
            producer=f"l{i - 1}" if i else None,
            shape=("batch", width),
            dtype="float32",
            batch_dim=0,
        )
        for i, width in enumerate(widths)
    ]
    graph = ModelGraph(
        name="chain",
        source="module",
        ref="benchmarks:chain",
        captured_by="benchmark",
        dtype="float32",
        fingerprint="sha256:chain",
        inputs=("t0",),
        outputs=(f"t{num_layers}",),
        symbols={"batch": 2},
        layers=tuple(
            Layer(
                name=f"l{i}",
                module_type="Linear",
                modules=(f"l{i}",),
                twin=f"twin{i}",
                reads=(f"t{i}",),
                writes=(f"t{i + 1}",),
                weights=(f"w{i}",),
            )
            for i in range(num_layers)
        ),
        tensors=tuple(tensors),
        weights=tuple(Weight(name=f"w{i}", num_bytes=w) for i, w in enumerate(weights)),
        regions=tuple(
            SliceRegion(
                name=f"r{i}",
                axis="heads",
                units=units,
                layers=(f"l{i}",),
                weights=(SlicedWeight(weight=f"w{i}", dim=0),),
                joins=(Join(tensor=f"t{i + 1}", how="sum"),),
                divided=0.95,
                twin=f"region{i}",
            )
            for i in range(num_layers if units else 0)
        ),
    )
    timings = []
    for kind in dict.fromkeys(device.type for device in cluster.device.values()):
        same = tuple(name for name, device in cluster.device.items() if device.type == kind)
        rows = {
            f"twin{i}": (Measurement(items=items, median_s=t, spread=0.0, samples=1, peak_bytes=0),)
            for i, t in enumerate(seconds[kind])
        }
        timings.append(DeviceTimings(measured_on=same[0], devices=same, layers=rows))
    return Profile(
        model=graph,
        cluster=cluster,
        batch_sizes=(items,),
        timings=tuple(timings),
        conditions=Conditions(
            torch="-", python="-", dtype="float32", processor="-", load_average=0.0
        ),
    )


def published_chain(path: Path, count: int, *, speed: float = 1.0) -> tuple[Profile, PlanRequest]:
    """A published chain with ``count`` boards of each kind, fully overlapped, and its question.

    ``path`` holds JSON with ``types``, ``elements_out``, ``elements_in``, ``memory_megabytes`` and
    ``batch``. Boards and links are ``speed`` times as fast as published.

    A root that only feeds and gathers stands apart from the boards, on links that cost nothing.
    """
    data = json.loads(path.read_text())
    kinds = list(data["types"])
    types = ["root", *(kind for kind in kinds for _ in range(count))]
    names = ["root", *(f"b{i}" for i in range(2 * count))]
    rate = data["types"][kinds[0]]["bandwidth_megabits"] * 1e6 / 8 * speed
    free = dict(latency_s=0.0, bytes_per_s=1e18)
    cluster = Cluster(
        hosts=tuple(
            Host(name=n, devices=(Device(name="cpu", type=kind, memory_bytes=2**40),))
            for n, kind in zip(names, types, strict=True)
        ),
        links=tuple(
            Link(source=a, target=b, **free)
            for n in names[1:]
            for a, b in (("root", n), (n, "root"))
        ),
        default_link=DefaultLink(latency_s=0.0, bytes_per_s=rate),
    )
    seconds = {kind: [t / speed for t in data["types"][kind]["seconds"]] for kind in kinds}
    seconds["root"] = [1e6] * len(seconds[kinds[0]])
    memory = [round(m * 1e6) for m in data["memory_megabytes"]]
    profile = chain_profile(
        cluster,
        seconds,
        widths=[data["elements_in"], *data["elements_out"]],
        weights=memory,
        items=data["batch"],
    )
    request = PlanRequest(
        batch_size=data["batch"],
        microbatch_size=data["batch"],
        splits=(Split.LAYERS,),
        max_bytes={
            f"{n}/cpu": round(data["types"][kind]["memory_megabytes"] * 1e6)
            for n, kind in zip(names[1:], types[1:], strict=True)
        },
    )
    return profile, request
