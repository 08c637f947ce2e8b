"""Refusing a plan that does not fit what is at hand, before any rank starts."""

from __future__ import annotations

from collections import defaultdict

import torch

from executor.inputs import RunInputs
from planner.aggregation import refusal
from planner.check import check_plan, check_spec
from planner.findings import EVIDENCE, Finding, Severity, error
from planner.inputs import Sources
from planner.layout import read
from planner.planfile import Plan
from profiler.capture import Captured
from profiler.errors import InvalidInputError, StalePlanError
from profiler.expressions import BATCH
from profiler.graph import ModelGraph
from profiler.limits import memory_limits
from profiler.units import format_bytes


def preflight(
    plan: Plan, captured: Captured, *, sources: Sources | None, here_only: bool = True
) -> None:
    """Refuse ``plan`` if it is stale, breaks a rule, or does not fit this machine.

    ``here_only``: all ranks run on this machine, so its devices and memory must do for them.

    ``sources`` are the documents that the plan names; without them the rules that need
    measurements are not applied.

    Raises:
        StalePlanError: made for another model, cluster or profile.
        InvalidInputError: it breaks a rule, or a device or memory is missing here.
    """
    require_real(plan)
    now = captured.graph.fingerprint
    if plan.inputs.model.graph != now:
        raise StalePlanError(
            f"the plan is stale: it was made for a model with fingerprint "
            f"{plan.inputs.model.graph}, the model at hand has {now}. If the code, its library or "
            f"torch changed (here: torch {torch.__version__}), profile and plan again"
        )
    if sources is None:
        refuse(check_spec(plan, captured.graph))
    else:
        refuse(check_plan(plan, sources.profile, cluster=sources.cluster))
    if here_only:
        _devices(plan)
        _memory(plan)


def require_real(plan: Plan) -> None:
    """Refuse a plan for devices that are not there.

    Raises:
        InvalidInputError: a rank's device is hypothetical.
    """
    ranks = [x for x in plan.spec.ranks if x.hypothetical]
    if ranks:
        named = ", ".join(f"rank {x.rank} on {x.device} ({x.device_type})" for x in ranks[:4])
        raise InvalidInputError(
            f"the plan is hypothetical and cannot be run: {named} is known by figures that nobody "
            "measured. Once the device is there: apportion profile on all devices, then "
            "apportion plan; to try the plan's ranks and messages now: apportion rehearse"
        )


def require_legal(plan: Plan, sources: Sources | None) -> None:
    """Refuse an illegal aggregation, before any process starts: :func:`preflight` for the rest.

    Raises:
        InvalidInputError: it does not give the answer of the profile's model.
    """
    if sources is None or plan.inputs.model.graph != sources.profile.model.fingerprint:
        return
    why_not = refusal(read(plan, sources.profile.model, sources.cluster))
    if why_not:
        refuse((error("aggregation", "spec.aggregation", why_not),))


def refuse(findings: tuple[Finding, ...]) -> None:
    """Raise for findings that keep a plan from running.

    Raises:
        InvalidInputError: there is at least one.
    """
    errors = [f for f in findings if f.severity is Severity.ERROR and f.code not in EVIDENCE]
    if errors:
        shown = "\n".join(f"  {f.code}: {f.where}: {f.message}" for f in errors[:6])
        more = f"\n  and {len(errors) - 6} more" if len(errors) > 6 else ""
        raise InvalidInputError(f"the plan cannot be run:\n{shown}{more}")


def require_room(plan: Plan, graph: ModelGraph, inputs: RunInputs) -> None:
    """Refuse more items than the root's host has memory for: of inputs and outputs it holds those
    of all items, and the plan counts one batch.

    Raises:
        InvalidInputError: with what they take and what is free now.
    """
    batch = plan.inputs.request.batch_size
    needed = sum(
        graph.tensor[name].num_bytes({**graph.symbols, **inputs.symbols, BATCH: items}) * sign
        for items, sign in ((inputs.num_items, 1), (batch, -1))
        for name in dict.fromkeys((*graph.inputs, *graph.outputs))
    )
    _, free = memory_limits()
    if needed > free:
        raise InvalidInputError(
            f"rank 0 holds inputs and outputs of all {inputs.num_items} items: "
            f"{format_bytes(needed)} more than those of the plan's batch of {batch}, and "
            f"{format_bytes(free)} are free now: run fewer items at a time"
        )


def _devices(plan: Plan) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for binding in plan.spec.ranks:
        name = binding.device.rpartition("/")[2]
        if name.startswith("cuda"):
            index = name.partition(":")[2] or "0"
            if not index.isdigit() or int(index) >= count:
                raise InvalidInputError(
                    f"rank {binding.rank} needs {binding.device}; this machine has {count} CUDA "
                    "devices: run the plan where they are, with torchrun"
                )


def _memory(plan: Plan) -> None:
    """Host memory that is free now against what the plan's ranks here will take."""
    needed: dict[str, int] = defaultdict(int)
    for estimate in plan.estimate.ranks:
        binding = next((b for b in plan.spec.ranks if b.rank == estimate.rank), None)
        if binding is not None and not binding.device.rpartition("/")[2].startswith("cuda"):
            needed["host"] += estimate.memory.total_bytes
    _, free = memory_limits()
    if needed["host"] > free:
        raise InvalidInputError(
            f"the plan's ranks need {format_bytes(needed['host'])} of host memory and "
            f"{format_bytes(free)} are free now: free some, or plan again on a new profile"
        )
