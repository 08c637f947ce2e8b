"""``verify``: does the plan compute what the undivided model computes, and if not, from where?"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils import _pytree as pytree

from executor.aggregation import combine_answers, make_aggregator
from executor.inputs import RunInputs, prepare_inputs
from executor.outputs import make_answer
from executor.reference import Reference, reference
from executor.report import OutputCheck, RunReport, StageCheck
from executor.running import RunOptions, load_plan, open_session
from executor.schedule import Schedule
from executor.session import Scattered, Session
from planner.planfile import Plan
from profiler.bench import example_inputs
from profiler.capture import Captured
from profiler.expressions import BATCH

TOLERANCE: Mapping[str, float] = {
    "float64": 1e-12,
    "complex128": 1e-12,
    "float32": 1e-5,
    "complex64": 1e-5,
    "float16": 4e-3,
    "bfloat16": 3e-2,
}
"""Largest difference that rounding explains, relative to the largest value of the tensor.

Kernels add in another order when the batch has another size; anything else must be identical.
"""


def verify(
    plan: Plan | str | Path,
    inputs: Any = None,
    *,
    model: str | nn.Module | Captured | None = None,
    options: RunOptions | None = None,
) -> RunReport:
    """Run ``plan`` and the undivided model on the same inputs and compare every stage boundary.

    Without ``inputs``, one batch is made from the example inputs. The report's ``outputs`` holds
    the verdict and the first stage that diverges, if one does.

    Raises:
        StalePlanError: the plan was made for another model.
        InvalidInputError: the plan breaks a rule, or the inputs do not fit.
        RankFailedError: a rank failed.
    """
    options = options or RunOptions()
    loaded, path = load_plan(plan)
    with (
        open_session(loaded, path, model, inputs=inputs, options=options) as session,
        tempfile.TemporaryDirectory(prefix="apportion-verify-") as directory,
    ):
        captured = session.captured
        run = prepare_inputs(captured, inputs) if inputs is not None else _made_up(loaded, captured)
        result = session.run_prepared(run, boundaries=Path(directory))
        recorded, spans = _joined(Path(directory), captured, session.schedule)
    truth = reference(captured, run, needed=set(recorded))
    truth = replace(truth, tensors=_restricted(truth.tensors, spans, captured, run))
    wanted = loaded.spec.aggregation
    if captured.graph.ensemble is not None and truth.leaves is not None:
        combined = combine_answers(wanted, captured.member_leaves(truth.leaves))
        truth = replace(truth, leaves=pytree.tree_flatten(combined)[0])
    outputs = result.outputs
    if isinstance(outputs, Scattered):  # what the ranks kept they recorded too
        outputs = make_answer(captured, wanted, recorded, run)
    check = compare(outputs, recorded, truth, stages=_stages(session))
    return result.report.model_copy(update={"outputs": check})


def compare(
    outputs: Any,
    recorded: Mapping[str, torch.Tensor],
    truth: Reference,
    *,
    stages: Mapping[str, str],
) -> OutputCheck:
    """The verdict: each recorded tensor, then the answer, against the reference.

    ``stages`` says which stage computed each tensor. A stage diverges when one of its tensors is
    further from the reference than its dtype's tolerance; the first in order is named.
    """
    checks = []
    first: str | None = None
    for name, tensor in recorded.items():
        check = _stage_check(stages.get(name, "?"), name, truth.tensors[name], tensor)
        checks.append(check)
        if first is None and check.relative_error > tolerance(tensor.dtype):
            first = check.stage
    ours = list(pytree.tree_flatten(outputs)[0])
    theirs = truth.leaves if truth.leaves is not None else ours
    worst, identical, equal = 0.0, True, first is None and len(ours) == len(theirs)
    limit = 0.0
    for mine, other in zip(ours, theirs, strict=False):
        if isinstance(other, torch.Tensor):
            check = _stage_check("output", "answer", other, mine)
            worst = max(worst, check.relative_error)
            identical &= check.identical
            limit = max(limit, tolerance(other.dtype))
            equal &= check.relative_error <= tolerance(other.dtype)
        elif mine != other:
            equal = identical = False
    if not equal and first is None:
        # Every boundary agrees with the captured program: it is the capture that differs.
        first = "captured model"
    return OutputCheck(
        equal=equal,
        identical=identical,
        tolerance=limit,
        relative_error=worst,
        first_diverging_stage=first,
        stages=tuple(checks),
    )


def tolerance(dtype: torch.dtype) -> float:
    """The tolerance of a dtype; 0 for integers and booleans."""
    return TOLERANCE.get(str(dtype).removeprefix("torch."), 0.0)


def _stage_check(stage: str, name: str, expected: torch.Tensor, actual: torch.Tensor) -> StageCheck:
    identical = torch.equal(expected, actual)
    absolute = relative = 0.0
    if not identical:
        absolute, relative = _distance(expected, actual)
    return StageCheck(
        stage=stage,
        tensor=name,
        max_abs_error=absolute,
        relative_error=relative,
        identical=identical,
    )


_FAR = 1e30
"""Error of tensors that cannot be compared at all: other shape, or holes in other places."""


def _distance(expected: torch.Tensor, actual: torch.Tensor) -> tuple[float, float]:
    """Largest difference, absolute and relative to the largest expected value."""
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return _FAR, _FAR
    wide = torch.complex128 if expected.is_complex() else torch.float64
    a, b = expected.to(wide), actual.to(wide)
    finite_a, finite_b = torch.isfinite(a), torch.isfinite(b)
    if not torch.equal(finite_a, finite_b):
        return _FAR, _FAR
    odd_a, odd_b = a[~finite_a], b[~finite_b]
    if not torch.allclose(odd_a, odd_b, equal_nan=True):
        return _FAR, _FAR
    a, b = a[finite_a], b[finite_b]
    if not a.numel():
        return 0.0, 0.0
    absolute = float((a - b).abs().max())
    scale = float(a.abs().max())
    return absolute, absolute / scale if scale else (_FAR if absolute else 0.0)


def _stages(session: Session) -> dict[str, str]:
    """Which stage computes each tensor that leaves one."""
    schedule = session.schedule
    found: dict[str, str] = {}
    for rank, where in sorted(schedule.stage_of.items()):
        role = schedule.role(rank)
        assert role is not None
        for name in session.captured.cutter.leaving(role.layers):
            found.setdefault(name, where)
    return found


Spans = dict[str, list[tuple[int, int]]]
"""Items for which each recorded tensor was computed as a boundary, in order."""


def _joined(
    directory: Path, captured: Captured, schedule: Schedule
) -> tuple[dict[str, torch.Tensor], Spans]:
    """The recorded tensors of all ranks in the order of the model's layers, and their items."""
    parts: dict[str, list[tuple[int, int, torch.Tensor]]] = defaultdict(list)
    for file in sorted(directory.glob("rank-*.safetensors")):
        for key, tensor in load_file(file).items():
            name, low, high = key.split("|")
            parts[name].append((int(low), int(high), tensor))
    whole: dict[str, torch.Tensor] = {}
    spans: Spans = {}
    for name in [n for layer in captured.graph.layers for n in layer.writes if n in parts]:
        pieces = sorted(parts[name], key=lambda part: part[:2])
        dim = captured.graph.tensor[name].batch_dim
        tensors = [tensor for _, _, tensor in pieces]
        if dim is not None:
            spans[name] = [(low, high) for low, high, _ in pieces]
            whole[name] = torch.cat(tensors, dim=dim)
        elif schedule.in_parts(name):
            way = make_aggregator(schedule.plan.spec.aggregation.over_items(name))
            joined = way.join(tensors, [high - low for low, high, _ in pieces])
            assert isinstance(joined, torch.Tensor)
            whole[name] = joined
        else:
            whole[name] = tensors[0]
    return whole, spans


def _restricted(
    tensors: Mapping[str, torch.Tensor], spans: Spans, captured: Captured, run: RunInputs
) -> dict[str, torch.Tensor]:
    """The reference on the items for which a tensor left a stage: not all, if pipelines differ."""
    symbols = {**captured.graph.symbols, **run.symbols, BATCH: run.num_items}
    found = dict(tensors)
    for name, items in spans.items():
        if sum(high - low for low, high in items) == run.num_items:
            continue
        tensor = captured.graph.tensor[name]
        dim, rows = tensor.batch_dim or 0, tensor.rows_per_item(symbols)
        parts = [found[name].narrow(dim, a * rows, (b - a) * rows) for a, b in items]
        found[name] = torch.cat(parts, dim=dim)
    return found


def _made_up(plan: Plan, captured: Captured) -> RunInputs:
    """One batch of inputs like the example's, every item different."""
    items = captured.graph.static_batch or plan.inputs.request.batch_size
    tensors = example_inputs(captured, items, varied=True)
    symbols = {k: v for k, v in captured.graph.symbols.items() if k != BATCH}
    return RunInputs(tensors=tensors, num_items=items, symbols=symbols)


def lines(check: OutputCheck) -> Iterator[str]:
    """The verdict for people, one line a stage and one for the answer."""
    worst: dict[str, StageCheck] = {}
    for one in check.stages:
        if one.stage not in worst or one.relative_error > worst[one.stage].relative_error:
            worst[one.stage] = one
    for stage, one in worst.items():
        said = "identical" if one.identical else f"relative error {one.relative_error:.1e}"
        mark = "   <- diverges first" if stage == check.first_diverging_stage else ""
        yield f"  {stage:<24} {said}{mark}"
    verdict = "equal" if check.equal else "DIFFERENT"
    exact = "bit for bit" if check.identical else f"relative error {check.relative_error:.1e}"
    yield f"  {'answer':<24} {verdict}: {exact} (tolerance {check.tolerance:.0e})"
    if check.first_diverging_stage == "captured model":
        yield "  the captured program itself differs from the model: this is not the plan's doing"
