"""What `check` says: one finding a broken rule, with a stable code.

``RULES`` is the list of codes; the reference of the plan file prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """``error``: the plan must not run. ``warning``: it may, and a reviewer should know."""

    ERROR = "error"
    WARNING = "warning"


RULES: Mapping[str, str] = {
    "edited": "`plan_id` is the digest of `inputs` and `spec`",
    "inputs": "what `inputs.model` says of the model is so",
    "batch-size": "item counts are sensible: 1 <= microbatch_size <= batch_size",
    "index": "pipelines, stages and ranks are numbered 0, 1, 2, ... in the order of the file",
    "items": "each pipeline has items; together they are `batch_size`",
    "layers-unknown": "stages name layers of the model",
    "layers-missing": "each pipeline holds every layer",
    "layers-doubled": "no pipeline holds a layer twice",
    "convex": "no path leaves a stage and comes back to it",
    "cycle": "no two stages wait for each other",
    "split": "`none` has one rank, `batch` and `tensor` have two or more; the request allows it",
    "shares": "one positive share a rank; together `microbatch_size` (all items if `whole_batch`); "
    "`microbatch_size` each if `tensor`",
    "slices": "`tensor` stages divide regions that lie wholly in them: at least one unit a rank, "
    "together all of the region's; no other stage divides any",
    "whole-batch": "a stage is `whole_batch` exactly when a layer of it looks across items",
    "state": "layers that share changing state are in one stage, on one rank, of one pipeline",
    "static-batch": "a model captured for a fixed batch gets exactly that many items",
    "rank": "stages use listed ranks, each once; only rank 0 may be without a stage",
    "device": "each rank has a device of the cluster for itself; rank 0 has the root device",
    "transfer-end": "transfers go from `input` or a stage to another stage or `output`",
    "transfer-tensor": "transfers name tensors of the model, with their shape and dtype",
    "transfer-source": "whatever sends a tensor has it",
    "transfer-missing": "every stage gets every tensor that it reads, `output` every answer",
    "transfer-useless": "nothing is sent that nobody reads, and nothing twice",
    "transfer-bytes": "`num_bytes` is the tensor's size for what is sent at a time",
    "aggregation": "the partial results that the split makes add up to the model's answer",
    "memory": "on each rank the ledger is within the capacity",
    "pin": "pinned layers run on their device, and nowhere else",
    "forbid": "forbidden devices stay without those layers",
    "max-stages": "no pipeline has more stages than the request allows",
    "max-latency": "one batch takes no longer than the request allows",
    "min-rate": "as many items a second are finished as the request wants",
    "max-devices": "no more devices have a rank than the request allows",
    "keep-together": "layers that the request keeps together are in one stage",
    "answer": "the answer is put together and delivered as the request asks",
    "request-layers": "the request's selectors name layers, its limits name devices",
    "extrapolated": "no rank gets more items at once than were measured",
    "hypothetical": "ranks on devices that nobody measured say so",
    "estimate": "`estimate` follows from `spec` and the profile by the cost model",
    "objective": "`search.objective_s` is the requested objective of this plan",
    "limits": "what `search.limits` says fits the request and this plan",
    "devices": "what `search.devices` says fits the objective and this plan",
    "bound": "`bound_s` is at most the objective, and `gap` is their distance",
    "status": "`optimal` only with a gap of at most 1e-9",
    "certificate": "the search's proof is about this `spec`",
    "baseline": "what `search.baseline` says fits the objective",
    "idle": "the devices called idle are exactly those that the plan does not use",
    "price": "what `search.wishes` and `search.splits` say fits the request and the objective",
    "fallback": "what `search.fallbacks` says is of devices in use and fits the objective",
}
"""Code -> the rule that was broken."""

EVIDENCE = frozenset(
    {
        "edited",
        "estimate",
        "objective",
        "limits",
        "devices",
        "bound",
        "status",
        "certificate",
        "baseline",
        "idle",
        "price",
        "fallback",
    }
)
"""Findings about what a plan says of itself: a reviewer's business, no danger to a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One broken rule: its code, where in the plan, and what to do about it."""

    code: str
    severity: Severity
    where: str
    message: str


def error(code: str, where: str, message: str) -> Finding:
    """A finding that keeps the plan from running."""
    return Finding(code=code, severity=Severity.ERROR, where=where, message=message)


def warning(code: str, where: str, message: str) -> Finding:
    """A finding that a reviewer should know."""
    return Finding(code=code, severity=Severity.WARNING, where=where, message=message)
