"""Does a plan's answer equal the undivided model's? Every architecture, every way to split it.

    python benchmarks/equality.py [--quick] [--json FILE]

Each model is split as a pipeline of three stages, by batch over three devices with unequal shares,
and as a mix of both, and runs as real processes of this machine. Through each plan go 1 item, an
odd number, more than a microbatch, and more than a batch (as many as a batch holds, where a layer
compares items). A case is one answer; it fails if its structure, a dtype or a shape differs, or a
number by more than its dtype's tolerance, relative to the largest value of its tensor.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils import _pytree as pytree

from benchmarks.records import Record, parser, publish, record
from executor.verification import TOLERANCE
from profiler.sources import Example
from tests.support import running, zoo
from tests.support.captures import captured, undivided
from tests.support.cutting import resized

MODELS = [*zoo.NETWORKS, *zoo.HUGGING_FACE]
SPLITS = {
    "pipeline": running.pipeline,
    "batch": running.batch_split,
    "mixed": running.mixed,
}
QUICK_MODELS = ["mlp", "resnet50", "transformer", "bert", "llama"]
BATCH = 8
ITEMS = (1, 3, 7, BATCH + 3)
WITHIN_A_BATCH = (1, 3, 5, BATCH)
QUICK_S = 40.0
"""With --quick no new plan is begun after this time."""


@dataclass(frozen=True)
class Case:
    """One answer: ``error`` is the worst one over the tolerance, ``relative`` that over the largest
    value; None for both if the answers cannot be compared at all."""

    model: str
    split: str
    items: int
    dtypes: frozenset[str]
    error: float | None
    relative: float | None
    identical: bool


def cases(name: str, split: str) -> Iterator[Case]:
    """Run one plan of one model on several numbers of items."""
    made = captured(name)
    assert made.source.module is not None
    profile = running.made_up_profile(made)
    plan = SPLITS[split](profile)
    whole = any(stage.whole_batch for p in plan.spec.pipelines for stage in p.stages)
    with running.session(plan, made, profile, timeout_s=120.0) as session:
        for items in WITHIN_A_BATCH if whole else ITEMS:
            args, kwargs = resized(made, items, seed=items)
            answer = session.run(Example(args=args, kwargs=kwargs)).outputs
            expected = undivided(made.source.module, args, kwargs)
            tensors = [x for x in pytree.tree_leaves(expected) if isinstance(x, torch.Tensor)]
            dtypes = frozenset(str(x.dtype).removeprefix("torch.") for x in tensors)
            try:
                error, identical = running.difference(expected, answer)
            except AssertionError:
                yield Case(name, split, items, dtypes, None, None, False)
                continue
            # All tensors of an answer here have one floating dtype, so one tolerance.
            limit = max(TOLERANCE.get(dtype, 0.0) for dtype in dtypes)
            yield Case(name, split, items, dtypes, error, error * limit, identical)


def measure(*, quick: bool) -> list[Record]:
    """Run all cases; the first records sum them up, then there is one per model and split."""
    torch.set_num_threads(1)  # as the ranks
    begun = time.monotonic()
    seen: dict[tuple[str, str], list[Case]] = {}
    for name in QUICK_MODELS if quick else MODELS:
        for split in SPLITS:
            if quick and time.monotonic() - begun > QUICK_S:
                continue
            seen[name, split] = list(cases(name, split))
            print(f"{name}, {split}: {_said(seen[name, split])}", file=sys.stderr)
    every = [case for found in seen.values() for case in found]
    failed = [c for c in every if c.error is None or c.error > 1]
    dtypes = sorted(set().union(*(c.dtypes for c in every)))
    common = {
        "models": len({name for name, _ in seen}),
        "splits": ", ".join(SPLITS),
        "items": f"{ITEMS} in batches of {BATCH}",
        "tolerance": {d: TOLERANCE.get(d, 0.0) for d in dtypes},
        "torch": torch.__version__,
    }
    worst = max(every, key=lambda c: float("inf") if c.relative is None else c.relative)
    return [
        record("equality_cases", len(every), "count", **common),
        record(
            "equality_failures",
            len(failed),
            "count",
            **common,
            failed=[f"{c.model} {c.split} {c.items}" for c in failed],
        ),
        record("equality_identical", sum(c.identical for c in every), "count", **common),
        record(
            "worst_relative_error",
            float("inf") if worst.relative is None else worst.relative,
            "ratio",
            **common,
            case=f"{worst.model} {worst.split} {worst.items}",
        ),
    ]


def _said(found: list[Case]) -> str:
    same = sum(case.identical for case in found)
    worst = max((c.relative for c in found if c.relative is not None), default=0.0)
    broken = sum(c.error is None or c.error > 1 for c in found)
    return f"{len(found)} cases, {broken} failed, {same} identical, worst error {worst:.1e}"


def main() -> None:
    """Measure and publish."""
    args = parser(__doc__).parse_args()
    publish(measure(quick=args.quick), args.json)


if __name__ == "__main__":
    main()
