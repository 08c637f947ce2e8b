"""CLIP's two towers on two equal hosts: does a batch take as long as the slower one?

    python benchmarks/branches.py [--quick] [--json FILE]

Two emulated hosts (root needed) with a fast link, objective latency, no split but by layers. The
planner is to place the towers apart, and the executor to run them at the same time.

``towers_over_limit``: the plan's measured latency over the slower tower's, alone in plain torch,
and what joins both. ``one_device_over_towers``: the whole model in plain torch over the plan.
All are measured in turn; medians count.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.models import clip
from benchmarks.records import parser, publish, record
from benchmarks.tensor import EQUAL, hosts_of, profiled
from executor import Session
from executor.emulate import emulated
from executor.session import StartedRanks
from planner import Plan, PlanRequest, plan
from planner.inputs import Sources
from planner.request import Objective, Split
from profiler.bench import example_inputs
from profiler.capture import capture
from profiler.sources import load_model

RATE = "10Gbit/s"
ITEMS = 4


def pieces(inputs: Mapping[str, torch.Tensor]) -> dict[str, Callable[[], object]]:
    """The model's towers and the whole of it, in plain torch."""
    module, _ = clip()
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return {
        "image": lambda: module.get_image_features(pixel_values=inputs["pixel_values"]),
        "text": lambda: module.get_text_features(**words),
        "whole": lambda: module(**inputs),
    }


def towers_apart(made: Plan) -> bool:
    """Whether no device holds layers of both towers."""
    held: dict[str, set[str]] = {}
    for binding in made.spec.ranks:
        for stage in (s for p in made.spec.pipelines for s in p.stages if binding.rank in s.ranks):
            towers = {
                t for t in ("vision", "text") for name in stage.layers if f"{t}_model" in name
            }
            held.setdefault(binding.device, set()).update(towers)
    return all(len(towers) <= 1 for towers in held.values())


def main() -> None:
    """Measure and publish."""
    args = parser(__doc__).parse_args()
    if os.geteuid() != 0:
        sys.exit("emulated hosts need root")
    torch.set_num_threads(1)
    cluster = hosts_of(EQUAL, RATE)
    captured = capture(load_model("benchmarks.models:clip"))
    inputs = example_inputs(captured, ITEMS, varied=True)
    alone = pieces(inputs)
    seconds: dict[str, list[float]] = {name: [] for name in ("plan", *alone)}
    with emulated(cluster) as hosts:
        profile = profiled(hosts, cluster, "clip", quick=args.quick, batch_sizes=(1, ITEMS))
        made = plan(
            profile,
            PlanRequest(objective=Objective.LATENCY, batch_size=ITEMS, splits=(Split.LAYERS,)),
        )
        sources = Sources(profile=profile, cluster=profile.cluster)
        started = StartedRanks(made, hosts=hosts)
        with Session(made, captured, sources=sources, started=started) as session:
            for _ in range(2):
                session.run(inputs)
            for _ in range(9 if args.quick else 31):
                seconds["plan"].append(session.run(inputs).report.wall_s)
                for name, run in alone.items():
                    with torch.inference_mode():
                        begun = time.perf_counter()
                        run()
                        seconds[name].append(time.perf_counter() - begun)
    took = {name: statistics.median(each) for name, each in seconds.items()}
    joining_s = max(0.0, took["whole"] - took["image"] - took["text"])
    limit_s = max(took["image"], took["text"]) + joining_s
    shown = {name: f"{1e3 * each:.1f} ms" for name, each in took.items()}
    publish(
        [
            record("towers_over_limit", took["plan"] / limit_s, "ratio",
                   predicted=f"{1e3 * (made.estimate.latency_s or 0.0):.1f} ms", **shown),
            record("one_device_over_towers", took["whole"] / took["plan"], "ratio"),
            record("towers_apart", int(towers_apart(made)), "bool"),
        ],
        args.json,
    )  # fmt: skip


if __name__ == "__main__":
    main()
