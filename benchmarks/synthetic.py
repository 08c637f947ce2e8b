"""Made-up models, clusters and profiles of any size, for benchmarks of everything but measuring."""

from __future__ import annotations

from planner import Plan, PlanRequest, plan
from planner.request import Limits
from profiler.cluster import Cluster, DefaultLink, Device, Host
from profiler.graph import Layer, ModelGraph, Tensor, Weight
from profiler.profile import Conditions, DeviceTimings, Measurement, Profile

LAYERS_PER_BLOCK = 4
"""A block reads its first input again at its end, as residual networks do."""


def residual_chain(num_layers: int) -> ModelGraph:
    """A network of residual blocks whose layers all differ (nothing to measure only once)."""
    names = [
        f"blocks.{i // LAYERS_PER_BLOCK}.part{i % LAYERS_PER_BLOCK}" for i in range(num_layers)
    ]
    tensors = [Tensor(name="x", producer=None, shape=("batch", 64), dtype="float32", batch_dim=0)]
    layers = []
    for i, name in enumerate(names):
        reads = [tensors[-1].name]
        if i % LAYERS_PER_BLOCK == LAYERS_PER_BLOCK - 1:
            reads.append(tensors[-LAYERS_PER_BLOCK].name)
        out = Tensor(
            name=f"{name}.out", producer=name, shape=("batch", 64), dtype="float32", batch_dim=0
        )
        layers.append(
            Layer(
                name=name,
                module_type="torch.nn.modules.linear.Linear",
                modules=(name,),
                twin=f"sha256:{i:032x}",
                reads=tuple(reads),
                writes=(out.name,),
                weights=(f"{name}.weight",),
                flops_per_item=8192.0,
            )
        )
        tensors.append(out)
    return ModelGraph(
        name="synthetic",
        source="module",
        ref="benchmarks:synthetic",
        captured_by="synthetic",
        dtype="float32",
        fingerprint=f"sha256:{num_layers:032x}",
        inputs=("x",),
        outputs=(tensors[-1].name,),
        symbols={"batch": 2},
        layers=tuple(layers),
        tensors=tuple(tensors),
        weights=tuple(Weight(name=f"{name}.weight", num_bytes=16384) for name in names),
    )


def unequal_devices(num_devices: int) -> Cluster:
    """Hosts of one device each, all different, behind one kind of network."""
    return Cluster(
        hosts=tuple(
            Host(
                name=f"node{i}",
                devices=(Device(name="cpu", type=f"board-{i}", memory_bytes=2**30 + i * 2**20),),
            )
            for i in range(num_devices)
        ),
        default_link=DefaultLink(
            latency_s=1e-4, bytes_per_s=1e8, send_occupancy=0.5, receive_occupancy=0.5
        ),
    )


def invented_profile(
    graph: ModelGraph, cluster: Cluster, *, batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
) -> Profile:
    """Device ``i`` takes ``i + 1`` times as long as the first; every layer differs a little."""
    timings = []
    for d, name in enumerate(cluster.device):
        rows = {
            layer.twin: tuple(
                Measurement(
                    items=n,
                    median_s=(d + 1) * (1e-4 + 1e-8 * i) * (0.3 + 0.7 * n),
                    spread=0.0213,
                    samples=12,
                    peak_bytes=256 * n,
                )
                for n in batch_sizes
            )
            for i, layer in enumerate(graph.layers)
        }
        timings.append(
            DeviceTimings(
                measured_on=name, devices=(name,), baseline_bytes=200 * 2**20, layers=rows
            )
        )
    return Profile(
        model=graph,
        cluster=cluster,
        batch_sizes=batch_sizes,
        timings=tuple(timings),
        conditions=Conditions(
            torch="2.13.0", python="3.11", dtype="float32", processor="none", load_average=0.0
        ),
    )


def planned(profile: Profile, *, profile_ref: str) -> Plan:
    """A plan for ``profile`` by the planner itself: 32 items in microbatches of 8."""
    request = PlanRequest(batch_size=32, microbatch_size=8, limits=Limits(time_s=60.0))
    return plan(profile, request, profile_ref=profile_ref)
