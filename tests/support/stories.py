"""Plans with the names and sizes of real life, for tests of what people read."""

from __future__ import annotations

from planner.planfile import Plan, PlanWarning
from planner.request import PlanRequest
from planner.searchrecord import Alternative
from profiler.cluster import Cluster, DefaultLink, Device, Host, Link
from profiler.graph import Layer, ModelGraph, Tensor, Weight
from profiler.profile import Profile
from tests.support.builders import GIB, make_profile
from tests.support.plans import Part, make_plan

MIB = 2**20


def transformer(num_blocks: int) -> ModelGraph:
    """embed, blocks of attention and mlp with a skip each, head; 128 tokens of 512 floats."""
    names = ["model.embed"]
    names += [f"model.blocks.{i}.{part}" for i in range(num_blocks) for part in ("attn", "mlp")]
    names.append("lm_head")
    tensors = [
        Tensor(name="input_ids", shape=("batch", 128), dtype="int64", batch_dim=0),
        *(
            Tensor(
                name=f"hidden_{i}" if i < len(names) - 1 else "logits",
                producer=name,
                shape=("batch", 128, 512 if i < len(names) - 1 else 8000),
                dtype="float32",
                batch_dim=0,
            )
            for i, name in enumerate(names)
        ),
    ]
    layers = [
        Layer(
            name=name,
            module_type="Embedding" if i == 0 else "Linear",
            modules=(name,),
            twin=name.rpartition(".")[2],
            reads=(tensors[i].name,),
            writes=(tensors[i + 1].name,),
            weights=(f"{name}.weight",),
        )
        for i, name in enumerate(names)
    ]
    return ModelGraph(
        name="small-lm",
        source="factory",
        ref="models.small_lm:build",
        captured_by="export",
        dtype="float32",
        fingerprint="sha256:b8a13c7707c34fe1a9d2",
        inputs=("input_ids",),
        outputs=("logits",),
        symbols={"batch": 2},
        layers=tuple(layers),
        tensors=tuple(tensors),
        weights=tuple(Weight(name=f"{name}.weight", num_bytes=16 * MIB) for name in names),
    )


def laboratory(num_boards: int = 2) -> Cluster:
    """A workstation with two devices and small boards behind a slow network."""
    boards = tuple(
        Host(name=f"board-{i}", devices=(Device(name="arm", type="ARM A76", memory_bytes=2 * GIB),))
        for i in range(num_boards)
    )
    workstation = Host(
        name="node-a",
        cores=16,
        devices=(
            Device(name="cuda:0", type="RTX 3060", kind="cuda", memory_bytes=12 * GIB),
            Device(name="cpu", type="Ryzen 9", memory_bytes=64 * GIB, threads=16),
        ),
    )
    return Cluster(
        hosts=(workstation, *boards),
        links=(
            Link(source="node-a/cuda:0", target="node-a/cpu", latency_s=2e-5, bytes_per_s=1.2e10),
            Link(source="node-a/cpu", target="node-a/cuda:0", latency_s=2e-5, bytes_per_s=1.2e10),
        ),
        default_link=DefaultLink(
            latency_s=3e-4, bytes_per_s=1.17e8, send_occupancy=0.2, receive_occupancy=0.2
        ),
    )


def timed(graph: ModelGraph, cluster: Cluster) -> Profile:
    """2 ms a layer and item on the card, 6 ms on the processor, 40 ms on a board."""
    speed = {"cuda:0": 0.002, "cpu": 0.006, "arm": 0.04}
    seconds = {name: [one] * len(graph.layers) for name, one in speed.items()}
    return make_profile(graph, cluster, seconds=seconds, peak_bytes_per_item=MIB, spread=0.06)


def everyday_plan() -> Plan:
    """Most of a small language model on a card, the rest split over a processor and a board."""
    profile = timed(transformer(12), laboratory())
    plan = make_plan(
        profile,
        [
            Part(layers=range(20), devices=["node-a/cuda:0"]),
            Part(layers=range(20, 26), devices=["node-a/cpu", "board-0/arm"], shares=[7, 1]),
        ],
        request=PlanRequest(batch_size=32, microbatch_size=8, reserve_bytes=512 * MIB),
    )
    chosen_s = plan.search.objective_s
    search = plan.search.model_copy(
        update={
            "solver": "chain",
            "space": "lines of stages, each on one device or split by batch, of microbatches of 8",
            "candidates": 412,
            "alternatives": (
                Alternative(
                    plan="single node-a/cuda:0", objective_s=chosen_s * 1.31, why_not="one busy"
                ),
                Alternative(
                    plan="by speed",
                    objective_s=chosen_s * 1.041,
                    why_not="board-1/arm gets a share that waits for its link; the card idles",
                ),
                Alternative(plan="replicate everywhere", why_not="board-0/arm needs 2.9 GiB of 2"),
            ),
            "idle": (
                plan.search.idle[0].model_copy(
                    update={"reason": "with it the period is 3.1 % longer: its link takes 90 ms"}
                ),
            ),
        }
    )
    warnings = (
        PlanWarning(
            code="close-call",
            message="the runner-up (by speed) is 4.1 % slower, within the profile's error of "
            "6.0 %: profile again to be sure",
        ),
    )
    return plan.model_copy(update={"search": search, "warnings": warnings})


def wide_plan(num_boards: int) -> Plan:
    """A card, a processor and very many boards, each with a whole copy of the model."""
    profile = timed(transformer(4), laboratory(num_boards))
    devices = list(profile.cluster.device)
    items = [4] * len(devices)
    return make_plan(
        profile,
        *([Part(layers=range(10), devices=[name])] for name in devices),
        items=items,
        request=PlanRequest(batch_size=sum(items), microbatch_size=4),
    )


def run_report(plan: Plan) -> dict[str, object]:
    """A run of ``plan`` as data: rank 1 computed twice as long, a link took five times as long."""
    period_s = plan.estimate.period_s
    return {
        "kind": "RunReport",
        "plan_id": plan.plan_id,
        "period_s": {"predicted": period_s, "measured": period_s * 1.02, "ratio": 9.0},
        "latency_s": {"predicted": 1.5},
        "items_per_s": {"predicted": 25.0, "measured": 24.5},
        "ranks": [
            {
                "rank": 1,
                "stage": "pipeline0.stage1",
                "compute_s": {"predicted": 0.252, "measured": 0.5},
                "memory_bytes": {"predicted": 7.0e8, "measured": 6.9e8},
            },
            {"rank": 2, "compute_s": None},
            "nonsense",
        ],
        "stages": [
            {
                "stage": "pipeline0.stage0",
                "ranks": [0],
                "slowest_rank": 0,
                "busy_s": {"predicted": 0.32, "measured": 0.33},
            },
            {
                "stage": "pipeline0.stage1",
                "ranks": [1, 2],
                "slowest_rank": 1,
                "busy_s": {"predicted": 0.26, "measured": 0.51},
            },
        ],
        "links": [
            {
                "source": 0,
                "target": 1,
                "tensor": "hidden_19",
                "num_bytes": 1835008,
                "state": "measured",
                "time_s": {"predicted": 0.0002, "measured": 0.0011},
            },
            {
                "source": 0,
                "target": 2,
                "tensor": "hidden_19",
                "num_bytes": 262144,
                "state": "hidden",
                "time_s": {"predicted": 0.0026},
            },
        ],
    }
