"""How much memory ranks take: beside their weights, and against what the plan says.

    python benchmarks/memory.py [--quick] [--json FILE]

``rank_memory_over_weights``: a Llama of more than 1 GB, stored as safetensors, runs on four ranks;
(peak resident - baseline - activations) / own weights of the worst rank. The baseline is what the
rank itself had before it loaded anything, activations and buffers are the plan's.

``peak_memory_error_worst``: models of other kinds are profiled, split as a pipeline, by batch with
unequal shares and as a mix, and run; the worst relative error of the plan's memory of a rank
against the most resident memory its process had. ``peak_memory_under_worst`` is the worst of those
where the rank took more than the plan said.

``within_prediction_and_a_tenth``: as root, a model is profiled by three emulated hosts; each host's
memory is then limited to what the plan says of its rank and a tenth, and the plan runs: the part of
the runs that complete with every rank's resident memory within it. The kernel kills what exceeds a
limit, but does not count what a rank shares with the process it was forked from.

``page_taken_again_ms_per_mib``: what it takes to write to memory that was given back to the system
over what it takes to write to it once more, as after ``executor.footprint`` gave pages back.
"""

from __future__ import annotations

import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from benchmarks.cells import profile_inside
from benchmarks.records import Record, parser, publish, record
from executor.emulate import emulated
from executor.report import RankReport
from executor.session import Session, StartedRanks
from planner import plan
from planner.inputs import Sources
from planner.planfile import Plan, RankMemory
from planner.request import Pin, PlanRequest
from planner.rules import in_proportion
from profiler.bench import example_inputs
from profiler.capture import Captured, capture
from profiler.cluster import Cluster, Device, Host
from profiler.discover import discover
from profiler.emulation import EmulatedHost, Emulation
from profiler.errors import RankFailedError
from profiler.measure import Effort
from profiler.profile import Profile
from profiler.session import ProfileOptions, profile_captured
from profiler.sources import load_model
from profiler.units import format_bytes
from tests.support import running, zoo
from tests.support.plans import make_plan

NUM_RANKS = 4
REPEATS = 6
"""Batches in a row: a rank's heap has its size after the first few."""
LARGE = {
    "vocab_size": 16000,
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 512,
}
"""A Llama of 1.1 GB in float32."""


def bert(layers: int) -> tuple[nn.Module, Any]:
    """BERT-base's width on 128 tokens, with its head over 30,522 words."""
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(num_hidden_layers=layers)), _text(128)


def llama(layers: int) -> tuple[nn.Module, Any]:
    """A small Llama on 256 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 8000}
    return LlamaForCausalLM(LlamaConfig(**shape, **heads)), {**_text(256), "use_cache": False}


def vit(layers: int) -> tuple[nn.Module, Any]:
    """ViT-base's width on images of 224 x 224."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(num_hidden_layers=layers, num_labels=1000)
    return ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 224, 224)}


def resnet50(_: int) -> tuple[nn.Module, Any]:
    """The published network."""
    return zoo.resnet50(width=64, size=224, classes=1000)


def _text(length: int) -> dict[str, Any]:
    ids = torch.randint(5, 1000, (2, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


MODELS: dict[str, tuple[Callable[[int], tuple[nn.Module, Any]], int]] = {
    "resnet50": (resnet50, 0),
    "bert": (bert, 6),
    "vit": (vit, 8),
    "llama": (llama, 8),
}
QUICK_MODELS: dict[str, tuple[Callable[[int], tuple[nn.Module, Any]], int]] = {"vit": (vit, 3)}


def peak_bytes(rank: RankReport) -> float:
    """The most resident memory of a rank that ran."""
    assert rank.memory_bytes.measured is not None
    return rank.memory_bytes.measured


@dataclass(frozen=True)
class Rank:
    """A rank of a plan that ran: what the plan says of it and what was measured."""

    model: str
    split: str
    planned: RankMemory
    report: RankReport

    @property
    def error(self) -> float:
        """(planned - measured) / measured."""
        return self.planned.total_bytes / self.measured - 1

    @property
    def measured(self) -> float:
        """The most resident memory."""
        return peak_bytes(self.report)

    @property
    def beside_weights(self) -> float:
        """(peak resident - baseline - activations) / own weights."""
        used = self.measured - self.report.baseline_bytes
        used -= self.planned.activations_bytes + self.planned.buffers_bytes
        return used / self.report.weights_bytes

    def said(self) -> str:
        """The rank in one line."""
        return (
            f"{self.model}, {self.split}, rank {self.report.rank}: planned "
            f"{format_bytes(self.planned.total_bytes)}, took {format_bytes(self.measured)} "
            f"({self.error:+.1%})"
        )


def profiled(captured: Captured, batch_sizes: list[int], *, quick: bool) -> Profile:
    """Times do not matter here: as few repeats as there can be."""
    return profile_captured(
        captured,
        cluster=discover(cpu_devices=NUM_RANKS, host=running.HOST),
        batch_sizes=batch_sizes,
        effort=Effort(min_samples=1, max_samples=1 if quick else 3, budget_s=1.0),
        options=ProfileOptions(),
    )


def ran(name: str, split: str, plan: Plan, captured: Captured, profile: Profile) -> Iterator[Rank]:
    """The ranks of a plan after several batches."""
    items = plan.inputs.request.batch_size
    inputs = example_inputs(captured, items, varied=True)
    sources = Sources(profile=profile, cluster=profile.cluster)
    with Session(plan, captured, sources=sources, timeout_s=300.0) as session:
        report = session.run(inputs, repeats=REPEATS).report
    for estimate, rank in zip(plan.estimate.ranks, report.ranks, strict=True):
        made = Rank(name, split, estimate.memory, rank)
        print(made.said(), file=sys.stderr)
        yield made


def over_weights(directory: Path, *, quick: bool) -> Record:
    """The large model on four ranks, its weights read from safetensors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**LARGE)).save_pretrained(directory)
    captured = capture(load_model(str(directory), length=64))
    profile = profiled(captured, [1], quick=quick)
    layers = running.runs(range(len(profile.model.layers)), NUM_RANKS)
    parts = [running.stage(profile, part, rank) for rank, part in enumerate(layers)]
    plan = make_plan(profile, parts, request=running.request(batch_size=4, microbatch_size=1))
    ranks = list(ran("llama", "pipeline of four", plan, captured, profile))
    worst = max(ranks, key=lambda rank: rank.beside_weights)
    return record(
        "rank_memory_over_weights",
        worst.beside_weights,
        "ratio",
        model_bytes=profile.model.total_weight_bytes,
        ranks=NUM_RANKS,
        rank_weights_bytes=[rank.report.weights_bytes for rank in ranks],
        rank_peak_bytes=[round(rank.measured) for rank in ranks],
        rank_baseline_bytes=[rank.report.baseline_bytes for rank in ranks],
        prediction_error=[round(rank.error, 4) for rank in ranks],
        torch=torch.__version__,
    )


def errors(*, quick: bool) -> list[Record]:
    """Prediction against measurement over models and splits."""
    ranks: list[Rank] = []
    for name, (make, layers) in (QUICK_MODELS if quick else MODELS).items():
        module, example = make(layers)
        captured = capture(load_model(module.eval(), example))
        profile = profiled(captured, [1, 4] if quick else [1, 2, 4, 8], quick=quick)
        plans = {
            "pipeline": running.pipeline(profile, batch_size=8, microbatch_size=4),
            "batch": running.batch_split(profile, batch_size=12, microbatch_size=6),
            "mixed": running.mixed(profile, batch_size=8, microbatch_size=4),
        }
        for split, made in plans.items():
            if not quick or split == "pipeline":
                ranks += ran(name, split, made, captured, profile)
    conditions = {
        "ranks": len(ranks),
        "models": ", ".join(dict.fromkeys(rank.model for rank in ranks)),
        "splits": ", ".join(dict.fromkeys(rank.split for rank in ranks)),
        "smallest_peak": format_bytes(min(rank.measured for rank in ranks)),
        "largest_peak": format_bytes(max(rank.measured for rank in ranks)),
        "torch": torch.__version__,
    }
    worst = max(ranks, key=lambda rank: abs(rank.error))
    under = min(ranks, key=lambda rank: rank.error)
    return [
        record(
            "peak_memory_error_worst", abs(worst.error), "ratio", **conditions, worst=worst.said()
        ),
        record(
            "peak_memory_under_worst",
            max(0.0, -under.error),
            "ratio",
            **conditions,
            worst=under.said(),
        ),
    ]


def within_limits(*, quick: bool) -> Record:
    """Plans on hosts that have what the plan says they need, and a tenth more."""
    names = ("a", "b", "c")
    device = Device(name="cpu:0", type="board", memory_bytes=4 * 2**30)
    cluster = Cluster(
        hosts=tuple(Host(name=name, devices=(device,)) for name in names), emulate=Emulation()
    )
    completed, headroom = [], []
    for ref in ("benchmarks.models:llama", "benchmarks.models:bert")[: 1 if quick else 2]:
        with emulated(cluster) as hosts, tempfile.TemporaryDirectory() as folder:
            profile = profile_inside(
                hosts, cluster, ref, folder=Path(folder), batch_sizes=(1, 4, 8), budget_s=2.0
            )
        captured = capture(load_model(ref))
        for items in (8,) if quick else (4, 8):
            made = _even(profile, items)
            limits = {
                binding.device.split("/")[0]: estimate.memory.total_bytes * 11 // 10
                for binding, estimate in zip(made.spec.ranks, made.estimate.ranks, strict=True)
            }
            limited = cluster.model_copy(
                update={
                    "emulate": Emulation(
                        hosts=tuple(
                            EmulatedHost(name=name, memory_bytes=limits[name]) for name in names
                        )
                    )
                }
            )
            with emulated(limited) as hosts:
                try:
                    with Session(
                        made,
                        captured,
                        sources=Sources(profile=profile, cluster=profile.cluster),
                        started=StartedRanks(made, hosts=hosts),
                    ) as session:
                        inputs = example_inputs(captured, items, varied=True)
                        ranks = session.run(inputs, repeats=REPEATS).report.ranks
                        # The kernel charges what ranks share with the process they were forked
                        # from to that: so their whole resident memory must keep within, too.
                        left = min(
                            1 - peak_bytes(rank) / limits[binding.device.split("/")[0]]
                            for rank, binding in zip(ranks, made.spec.ranks, strict=True)
                        )
                        headroom.append(left)
                        completed.append(int(left >= 0))
                except RankFailedError as error:
                    print(f"{ref}, {items} items: {error}", file=sys.stderr)
                    completed.append(0)
    return record(
        "within_prediction_and_a_tenth",
        sum(completed) / len(completed),
        "fraction",
        runs=len(completed),
        least_headroom=round(min(headroom, default=0.0), 3),
    )


def _even(profile: Profile, items: int) -> Plan:
    """Layers in equal numbers on all devices."""
    devices, layers = list(profile.cluster.device), profile.model.layers
    pins, first = [], 0
    for name, count in zip(devices, in_proportion(len(layers), [1.0] * len(devices)), strict=True):
        pins += [Pin(layers=f"={one.name}", device=name) for one in layers[first : first + count]]
        first += count
    return plan(profile, PlanRequest(batch_size=items, pins=tuple(pins)))


def taken_again(*, quick: bool) -> Record:
    """Writing to pages that were given back, and to the same pages right after."""
    size, found = 64 * 2**20, []
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        for _ in range(3 if quick else 15):
            pages.madvise(mmap.MADV_DONTNEED)
            seconds = []
            for _ in range(2):
                start = time.perf_counter()
                for place in range(0, size, mmap.PAGESIZE):
                    pages[place] = 1
                seconds.append(time.perf_counter() - start)
            found.append(1e3 * (seconds[0] - seconds[1]) / (size / 2**20))
    return record("page_taken_again_ms_per_mib", statistics.median(found), "ms", rounds=len(found))


def main() -> None:
    """Measure and publish."""
    args = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="apportion-bench-") as directory:
        records = [over_weights(Path(directory), quick=args.quick)]
    records += errors(quick=args.quick)
    records.append(taken_again(quick=args.quick))
    if os.geteuid() == 0:
        records.append(within_limits(quick=args.quick))
    else:
        print("within_prediction_and_a_tenth needs root: emulated hosts", file=sys.stderr)
    publish(records, args.json)


if __name__ == "__main__":
    main()
