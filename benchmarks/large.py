"""Made-up large clusters and models: racks and sites of data-sheet devices, deep transformers.

A cluster has 2 to 10,000 devices (or more) of 1 to 8 types in hosts of eight, hosts in racks, racks
in sites, and a head node where inputs enter; a model 12 to 1,000 blocks of the shape of
Llama-3.1-405B. Times are rooflines at half of the data sheet's peak: not measured.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from profiler.cluster import Cluster, DefaultLink, Device, Group, Host
from profiler.graph import (
    Join,
    Layer,
    ModelGraph,
    SlicedWeight,
    SliceRegion,
    Tensor,
    Weight,
)
from profiler.profile import Conditions, DeviceTimings, Measurement, Profile

EFFICIENCY = 0.5
LAUNCH_S = 50e-6
HOSTS_PER_RACK = 4
RACKS_PER_SITE = 64
HEAD_SIZE = 128
DEVICES_PER_HOST = 8


@dataclass(frozen=True, slots=True)
class Sheet:
    """A data sheet: dense 16-bit operations and bytes a second, memory, link inside a host."""

    name: str
    flops_per_s: float
    bytes_per_s: float
    memory_bytes: int
    inner_bytes_per_s: float


SHEETS = (
    Sheet("H100", 989e12, 3.35e12, 80 * 10**9, 450e9),
    Sheet("A100-80G", 312e12, 2.04e12, 80 * 10**9, 300e9),
    Sheet("L40S", 362e12, 0.86e12, 48 * 10**9, 32e9),
    Sheet("A100-40G", 312e12, 1.56e12, 40 * 10**9, 300e9),
    Sheet("V100", 125e12, 0.90e12, 32 * 10**9, 150e9),
    Sheet("A10", 125e12, 0.60e12, 24 * 10**9, 32e9),
    Sheet("RTX-4090", 165e12, 1.01e12, 24 * 10**9, 32e9),
    Sheet("T4", 65e12, 0.32e12, 16 * 10**9, 16e9),
)
"""Eight accelerators, by their makers' data sheets."""

HEAD = Sheet("head", 2e12, 0.2e12, 512 * 10**9, 32e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder-only transformer; an item is a sequence of ``tokens``, answered by one token."""

    num_blocks: int = 126
    hidden: int = 16384
    inner: int = 53248
    key_value: int = 1024
    vocabulary: int = 128256
    tokens: int = 1024

    @property
    def block_parameters(self) -> int:
        """Weights of one block."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.key_value
        return attention + 3 * self.hidden * self.inner

    @property
    def block_flops(self) -> float:
        """Operations of one block for one sequence, causal attention included."""
        return 2.0 * self.block_parameters * self.tokens + 2.0 * self.tokens**2 * self.hidden


def transformer(shape: Shape, *, sliced: bool = False) -> ModelGraph:
    """Embedding, blocks that are all twins, head: a chain.

    If ``sliced``, ranks can divide each block by its key and value heads, and both tables by words.
    """
    names = ["embed", *(f"blocks.{i}" for i in range(shape.num_blocks)), "head"]
    width = ("batch", shape.tokens, shape.hidden)
    tensors = [
        Tensor(name="ids", producer=None, shape=("batch", shape.tokens), dtype="int64", batch_dim=0)
    ]
    tensors += [
        Tensor(name=f"{name}.out", producer=name, shape=width, dtype="bfloat16", batch_dim=0)
        for name in names[:-1]
    ]
    tensors.append(
        Tensor(
            name="logits",
            producer="head",
            shape=("batch", shape.vocabulary),
            dtype="bfloat16",
            batch_dim=0,
        )
    )
    layers = tuple(
        Layer(
            name=name,
            module_type="torch.nn.Module",
            modules=(name,),
            twin="sha256:" + {"embed": "e", "head": "a"}.get(name, "b") * 32,
            reads=(tensors[i].name,),
            writes=(tensors[i + 1].name,),
            weights=(f"{name}.weight",),
        )
        for i, name in enumerate(names)
    )
    table = 2 * shape.vocabulary * shape.hidden
    return ModelGraph(
        name=f"transformer-{shape.num_blocks}",
        source="module",
        ref="benchmarks.large:transformer",
        captured_by="invented",
        dtype="bfloat16",
        fingerprint=f"sha256:{shape.num_blocks:032x}",
        inputs=("ids",),
        outputs=("logits",),
        symbols={"batch": 2},
        layers=layers,
        tensors=tuple(tensors),
        weights=tuple(
            Weight(
                name=f"{name}.weight",
                num_bytes=table if name in ("embed", "head") else 2 * shape.block_parameters,
            )
            for name in names
        ),
        regions=tuple(_region(shape, layer) for layer in layers) if sliced else (),
    )


def _region(shape: Shape, layer: Layer) -> SliceRegion:
    """A layer that ranks can divide, with the joins of Megatron-LM: two a block, one a table."""
    block = layer.name not in ("embed", "head")
    whole = Join(
        tensor=f"{layer.name}.part",
        how="concat" if layer.name == "head" else "sum",
        dim=1 if layer.name == "head" else None,
        shape=("batch", shape.vocabulary)
        if layer.name == "head"
        else ("batch", shape.tokens, shape.hidden),
        dtype="bfloat16",
    )
    return SliceRegion(
        name=layer.name,
        axis="heads" if block else "vocabulary",
        units=shape.key_value // HEAD_SIZE if block else shape.vocabulary,
        layers=(layer.name,),
        weights=tuple(SlicedWeight(weight=name, dim=0) for name in layer.weights),
        joins=(whole, whole) if block else (whole,),
        divided=0.98 if block else 1.0,
        twin=f"region {layer.twin}",
    )


def hierarchical_cluster(num_devices: int, num_types: int, *, seed: int = 0) -> Cluster:
    """Hosts of one type each, racks of such hosts, sites of racks, behind a head node.

    Types get shares of the devices at random, every type at least one. Links grow slower with
    every level: inside a host by its data sheet, 50 GB/s in a rack, 25 GB/s in a site, 5 GB/s and
    2 ms between sites.
    """
    rng = random.Random(seed)
    sheets = SHEETS[:num_types]
    weights = [rng.uniform(0.5, 2.0) for _ in sheets]
    counts = [max(1, int(num_devices * w / sum(weights))) for w in weights]
    counts[0] += num_devices - sum(counts)
    hosts = [
        Host(
            name="head",
            devices=(Device(name="cpu", type=HEAD.name, memory_bytes=HEAD.memory_bytes),),
        )
    ]
    racks: list[tuple[str, ...]] = []
    for sheet, count in zip(sheets, counts, strict=True):
        own = []
        for first in range(0, count, DEVICES_PER_HOST):
            name = f"{sheet.name.lower()}-{len(own)}"
            devices = tuple(
                Device(
                    name=f"cuda:{i}", type=sheet.name, kind="cuda", memory_bytes=sheet.memory_bytes
                )
                for i in range(min(DEVICES_PER_HOST, count - first))
            )
            inner = DefaultLink(latency_s=5e-6, bytes_per_s=sheet.inner_bytes_per_s)
            own.append(name)
            hosts.append(Host(name=name, devices=devices, inner_link=inner))
        racks += [tuple(own[at : at + HOSTS_PER_RACK]) for at in range(0, len(own), HOSTS_PER_RACK)]
    rng.shuffle(racks)
    groups = [
        Group(
            name=f"rack{r}",
            members=members,
            inner_link=DefaultLink(latency_s=10e-6, bytes_per_s=50e9),
        )
        for r, members in enumerate(racks)
    ]
    for s, first in enumerate(range(0, len(racks), RACKS_PER_SITE)):
        members = tuple(f"rack{r}" for r in range(first, min(len(racks), first + RACKS_PER_SITE)))
        groups.append(
            Group(
                name=f"site{s}",
                members=members,
                inner_link=DefaultLink(latency_s=30e-6, bytes_per_s=25e9),
            )
        )
    return Cluster(
        hosts=tuple(hosts),
        groups=tuple(groups),
        default_link=DefaultLink(latency_s=2e-3, bytes_per_s=5e9),
    )


def roofline_profile(
    shape: Shape,
    cluster: Cluster,
    *,
    batch_sizes: tuple[int, ...] = (1, 2, 4),
    sliced: bool = False,
) -> Profile:
    """Each kind of layer on each type of device, by the slower of computing and reading weights."""
    graph = transformer(shape, sliced=sliced)
    by_type: dict[str, list[str]] = {}
    for name, device in cluster.device.items():
        by_type.setdefault(device.type, []).append(name)
    sheets = {sheet.name: sheet for sheet in (*SHEETS, HEAD)}
    table_flops = 2.0 * shape.vocabulary * shape.hidden
    flops = {"embed": 0.0, "head": table_flops, "blocks": shape.block_flops}
    # What a layer holds at once beside its weights and inputs: the widest it gets, and its output.
    width = 2 * shape.tokens * shape.hidden
    peaks = {
        "embed": width,
        "head": 2 * shape.vocabulary,
        "blocks": 3 * width + 4 * shape.tokens * shape.inner,
    }
    timings = []
    for kind, names in by_type.items():
        sheet = sheets[kind]
        rows = {}
        for layer in graph.layers[:2] + graph.layers[-1:]:
            part = layer.name.split(".")[0]
            read = 0 if part == "embed" else graph.weight[layer.weights[0]].num_bytes
            rows[layer.twin] = tuple(
                Measurement(
                    items=n,
                    median_s=LAUNCH_S
                    + max(
                        n * flops[part] / sheet.flops_per_s,
                        (read + n * peaks[part]) / sheet.bytes_per_s,
                    )
                    / EFFICIENCY,
                    spread=0.0,
                    samples=1,
                    peak_bytes=n * peaks[part],
                )
                for n in batch_sizes
            )
        timings.append(
            DeviceTimings(
                measured_on=names[0], devices=tuple(names), baseline_bytes=10**9, layers=rows
            )
        )
    return Profile(
        model=graph,
        cluster=cluster,
        batch_sizes=batch_sizes,
        timings=tuple(timings),
        conditions=Conditions(
            torch="-", python="-", dtype="bfloat16", processor="-", load_average=0.0
        ),
    )
