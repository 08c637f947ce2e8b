"""Plans by hand: what runs where is given, the rest of the file follows from the profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import yaml

from planner.aggregation import choose
from planner.check import rederive
from planner.planfile import (
    INPUT,
    OUTPUT,
    Estimate,
    FileInput,
    ModelInput,
    Pipeline,
    Plan,
    PlanInputs,
    PlanSpec,
    RankBinding,
    RankEstimate,
    Schedule,
    Slices,
    Stage,
    Transfer,
    place,
    plan_id,
)
from planner.request import Destination, PlanRequest
from planner.searchrecord import IdleDevice, SearchRecord
from planner.selection import fold
from profiler.cluster import Cluster
from profiler.graph import ModelGraph
from profiler.profile import Profile

DELETE = object()
"""As a value of an edit: take the entry out."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stage by positions of layers; one device, or several with their shares, or with slices of
    regions by name."""

    layers: Sequence[int]
    devices: Sequence[str]
    shares: Sequence[int] = ()
    whole_batch: bool = False
    slices: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def split(self) -> Literal["none", "batch", "tensor"]:
        """How the devices divide the work."""
        return "tensor" if self.slices else "batch" if len(self.devices) > 1 else "none"


def make_plan(
    profile: Profile,
    *pipelines: Sequence[Part],
    request: PlanRequest,
    items: Sequence[int] = (),
    microbatch_size: int | None = None,
    routing: str = "relay",
    cluster: Cluster | None = None,
) -> Plan:
    """A plan that keeps every rule, its estimate derived, its bound its own objective."""
    machines = cluster or profile.cluster
    micro = microbatch_size or request.microbatch_size or request.batch_size
    items = items or [request.batch_size]
    used = [d for parts in pipelines for part in parts for d in part.devices]
    order = list(dict.fromkeys([machines.root, *used]))
    rank = {device: i for i, device in enumerate(order)}
    names = [layer.name for layer in profile.model.layers]
    spec = PlanSpec(
        schedule=Schedule(microbatch_size=micro),
        aggregation=choose(profile.model, request),
        pipelines=tuple(
            Pipeline(
                index=p,
                items=items[p],
                stages=tuple(
                    Stage(
                        index=s,
                        layers=fold([names[i] for i in part.layers], names),
                        split=part.split,
                        ranks=tuple(rank[d] for d in part.devices),
                        shares=tuple(part.shares)
                        or (items[p] if part.whole_batch else micro,)
                        * (len(part.devices) if part.slices else 1),
                        slices=tuple(
                            Slices(region=region, units=tuple(units))
                            for region, units in part.slices.items()
                        ),
                        whole_batch=part.whole_batch,
                    )
                    for s, part in enumerate(parts)
                ),
            )
            for p, parts in enumerate(pipelines)
        ),
        ranks=tuple(
            RankBinding(rank=i, device=d, device_type=machines.device[d].type)
            for d, i in rank.items()
        ),
        transfers=tuple(
            transfer
            for p, parts in enumerate(pipelines)
            for transfer in _transfers(profile.model, p, parts, (micro, items[p]), routing)
            if transfer.target != OUTPUT or request.destination is not Destination.SCATTERED
        ),
    )
    model = profile.model
    inputs = PlanInputs(
        model=ModelInput(
            ref=model.ref,
            source=model.source,
            dtype=model.dtype,
            graph=model.fingerprint,
            num_layers=len(model.layers),
            weight_bytes=model.total_weight_bytes,
        ),
        cluster=FileInput(ref="cluster.yaml", fingerprint=machines.content_digest()),
        profile=FileInput(ref="profile.json", fingerprint=profile.content_digest()),
        request=request,
    )
    idle = [
        IdleDevice(device=d, reason="not needed") for d in machines.device if d not in set(used)
    ]
    return with_evidence(inputs, spec, idle, profile, machines)


def with_evidence(
    inputs: PlanInputs,
    spec: PlanSpec,
    idle: Sequence[IdleDevice],
    profile: Profile,
    cluster: Cluster,
) -> Plan:
    """The plan with an estimate derived from its spec."""
    draft = Plan(
        plan_id=plan_id(inputs, spec),
        created_by="apportion 0.1.0",
        inputs=inputs,
        spec=spec,
        estimate=Estimate(
            period_s=0.0,
            latency_s=0.0,
            items_per_s=0.0,
            error_fraction=0.0,
            bottleneck="",
            ranks=(),
        ),
        search=SearchRecord(
            solver="by_hand",
            status="optimal",
            objective=inputs.request.objective,
            objective_s=0.0,
            bound_s=0.0,
            gap=0.0,
            space="this plan",
            candidates=1,
        ),
    )
    derived = rederive(draft, profile, cluster=cluster)
    objective_s = derived.objective_s(inputs.request.objective)
    return draft.model_copy(
        update={
            "estimate": Estimate(
                period_s=derived.period_s,
                latency_s=derived.latency_s,
                items_per_s=derived.items_per_s,
                error_fraction=profile.error_fraction,
                bottleneck=max(derived.busy_s, key=lambda x: derived.busy_s[x]),
                ranks=tuple(
                    RankEstimate(
                        rank=load.rank,
                        compute_s=load.compute_s,
                        join_s=load.join_s,
                        receive_s=load.receive_s,
                        send_s=load.send_s,
                        busy_fraction=load.busy_fraction,
                        memory=load.memory,
                    )
                    for load in derived.ranks
                ),
            ),
            "search": draft.search.model_copy(
                update={"objective_s": objective_s, "bound_s": objective_s, "idle": tuple(idle)}
            ),
        }
    )


def edit(plan: Plan, changes: Mapping[str, object]) -> Plan:
    """The plan after an edit of its file; keys are paths in it (``spec.ranks.1.device``).

    The plan is written, changed as data, and read again, as when a person edits it. ``DELETE``
    as a value takes the entry out; a path that ends in ``+`` adds an entry to a list.
    """
    data = yaml.safe_load(plan.to_text(as_json=False))
    for path, value in changes.items():
        *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
        at = data
        for step in way:
            at = at[step]
        if last == "+":
            at.append(value)
        elif value is DELETE:
            del at[last]
        else:
            at[last] = value
    return Plan.parse(yaml.safe_dump(data), name="plan.yaml")


def resigned(plan: Plan) -> Plan:
    """The plan with the id that belongs to it, as a forger would write it."""
    return plan.model_copy(update={"plan_id": plan.expected_id()})


def _transfers(
    graph: ModelGraph, p: int, parts: Sequence[Part], counts: tuple[int, int], routing: str
) -> list[Transfer]:
    home = {i: s for s, part in enumerate(parts) for i in part.layers}
    found = []

    def add(source: int | None, target: int | None, name: str) -> None:
        ends = [parts[s] for s in (source, target) if s is not None]
        items = counts[1] if all(part.whole_batch for part in ends) else counts[0]
        tensor = graph.tensor[name]
        found.append(
            Transfer(
                source=INPUT if source is None else place(p, source),
                target=OUTPUT if target is None else place(p, target),
                tensor=name,
                shape=tensor.shape,
                dtype=tensor.dtype,
                num_bytes=tensor.num_bytes(graph.symbols_at(items)),
            )
        )

    for tensor in graph.tensors:
        reading = sorted({home[i] for i in graph.readers[tensor.name] if i in home})
        if tensor.producer is None:
            for s in reading:
                add(None, s, tensor.name)
            continue
        source = home.get(graph.layer_index[tensor.producer])
        if source is None:
            continue
        later = [s for s in reading if s != source]
        if routing == "relay" and later:
            for s in range(source, max(later)):
                add(s, s + 1, tensor.name)
        elif routing == "direct":
            for s in later:
                add(source, s, tensor.name)
        if tensor.name in graph.outputs:
            add(source, None, tensor.name)
    return found
