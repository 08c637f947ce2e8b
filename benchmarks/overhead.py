"""One rank against plain PyTorch: what running a plan costs beside the model's own work.

    python benchmarks/overhead.py [--quick] [--json FILE]

``single_rank_over_torch`` is the time of a step through a one-rank plan (feeding, computing and
gathering included) over the time of ``model(x)`` in a process of its own with as many threads; the
two alternate, and the median of the pairs' ratios counts. ``torch_over_torch`` is plain PyTorch
against itself in the same way: what the machine's noise alone makes of a ratio of 1.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import planner
from benchmarks.records import Record, parser, publish, record
from executor import Session
from planner.inputs import Sources
from profiler.capture import capture
from profiler.discover import discover
from profiler.measure import Effort
from profiler.session import ProfileOptions, profile_captured
from profiler.sources import load_model

BATCH, LENGTH, WIDTH, LAYERS = 4, 64, 512, 8


def build() -> tuple[nn.Module, torch.Tensor]:
    """A transformer encoder of BERT's shape, and a batch for it."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 8, 4 * WIDTH, batch_first=True)
    model = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).eval()
    return model, torch.randn(BATCH, LENGTH, WIDTH)


class Plain:
    """``model(x)`` in a process of its own, on demand."""

    def __init__(self, threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.step_s(1)

    def step_s(self, steps: int) -> float:
        """Seconds of one of ``steps`` steps in a row."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return float(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(threads: int) -> None:
    """Be the process behind :class:`Plain`."""
    import time

    torch.set_num_threads(threads)
    model, inputs = build()
    with torch.inference_mode():
        for line in sys.stdin:
            steps = int(line)
            start = time.perf_counter()
            for _ in range(steps):
                model(inputs)
            print(json.dumps((time.perf_counter() - start) / steps), flush=True)


def measure(*, repeats: int, steps: int) -> list[Record]:
    """Alternate the plan, plain PyTorch, and plain PyTorch again."""
    model, inputs = build()
    captured = capture(load_model(model, inputs))
    cluster = discover(cpu_devices=2)  # one thread each; the plan uses one of them
    profile = profile_captured(
        captured,
        cluster=cluster,
        batch_sizes=[BATCH],
        effort=Effort(budget_s=5.0),
        options=ProfileOptions(),
    )
    other = list(cluster.device)[1]
    plan = planner.plan(
        profile, batch_size=BATCH, microbatch_size=BATCH, forbids=[{"device": other}]
    )
    plain, again = Plain(1), Plain(1)
    ratios, same, steps_s = [], [], []
    sources = Sources(profile=profile, cluster=cluster)
    with Session(plan, captured, sources=sources) as session:
        session.run(inputs, repeats=3)
        for _ in range(repeats):
            ours = session.run(inputs, repeats=steps).report.wall_s / steps
            theirs = plain.step_s(steps)
            ratios.append(ours / theirs)
            same.append(again.step_s(steps) / theirs)
            steps_s.append(theirs)
    plain.close()
    again.close()
    conditions = {
        "model": f"TransformerEncoder {LAYERS} x {WIDTH}, batch {BATCH} x {LENGTH}",
        "threads": 1,
        "torch": torch.__version__,
        "repeats": repeats,
        "steps": steps,
        "plain_step_ms": round(1e3 * statistics.median(steps_s), 1),
    }
    return [
        _ratio("single_rank_over_torch", ratios, conditions),
        _ratio("torch_over_torch", same, conditions),
    ]


def _ratio(name: str, ratios: list[float], conditions: dict[str, object]) -> Record:
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    return record(name, statistics.median(ratios), "ratio", **conditions, spread=spread)


def main() -> None:
    """Measure and publish."""
    flags = parser(__doc__)
    flags.add_argument("--serve", type=int, help="for the script's own use")
    args = flags.parse_args()
    if args.serve:
        serve(args.serve)
        return
    publish(measure(repeats=7 if args.quick else 15, steps=5 if args.quick else 10), args.json)


if __name__ == "__main__":
    main()
