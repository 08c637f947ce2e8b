"""What a plan says, as numbers and reasons: from the plan file alone, for any way of showing it.

No markup and no rounding happens here (``planner.render`` draws), and nothing is judged
(``planner.check`` does). Beside a run's report, every figure stands next to what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from planner.actual import read_actuals
from planner.aggregation import reasons
from planner.planfile import INPUT, Pipeline, Plan, RankBinding, RankMemory, Stage, Transfer, place
from planner.searchrecord import SearchRecord
from planner.shown import (
    AlternativeShown,
    DevicesShown,
    ExplainReport,
    FallbackShown,
    HypotheticalShown,
    InputsShown,
    LayerShown,
    LimitShown,
    Notice,
    PipelineShown,
    ProofShown,
    RankShare,
    RankShown,
    ResultShown,
    Sending,
    SplitPriceShown,
    SplitShown,
    StageShown,
    WishShown,
)
from profiler.errors import InvalidInputError

_RANGE = re.compile(r"(?P<head>.*?)(?P<first>[0-9]{1,9})\.\.(?P<last>[0-9]{1,9})")
_MOST_NAMES = 10_000
_SAME = 1e-9  # relative difference of figures that are equal


def explain(
    plan: Plan, *, name: str, run_report: Mapping[str, object] | None = None
) -> ExplainReport:
    """The report on ``plan``; ``name`` is its file's name, ``run_report`` a RunReport as data.

    Raises:
        InvalidInputError: the run report is none, or is one of another plan.
    """
    binding = {x.rank: x for x in plan.spec.ranks}
    stage_of = {
        rank: place(p.index, s.index)
        for p in plan.spec.pipelines
        for s in p.stages
        for rank in s.ranks
    }
    model, search = plan.inputs.model, plan.search
    return ExplainReport(
        name=name,
        plan_id=plan.plan_id,
        created_by=plan.created_by,
        inputs=InputsShown(
            model=model.ref,
            source=model.source,
            dtype=model.dtype,
            num_layers=model.num_layers,
            weight_bytes=model.weight_bytes,
            cluster=plan.inputs.cluster.ref,
            profile=plan.inputs.profile.ref,
            error_fraction=plan.estimate.error_fraction,
        ),
        result=_result(plan, stage_of),
        proof=ProofShown(
            solver=search.solver,
            status=search.status,
            objective_s=search.objective_s,
            bound_s=search.bound_s,
            gap=search.gap,
            space=search.space,
            candidates=search.candidates,
            baseline=None if search.baseline is None else search.baseline.summary,
            devices=_devices(search),
        ),
        aggregation=plan.spec.aggregation.strategy,
        legal_because=reasons(plan),
        destination=plan.spec.aggregation.destination.value,
        root_rank=plan.spec.aggregation.root_rank,
        pipelines=_pipelines(plan, binding),
        ranks=tuple(_ranks(plan, binding, stage_of)),
        alternatives=tuple(
            AlternativeShown(
                plan=x.plan,
                objective_s=x.objective_s,
                worse_fraction=_worse(x.objective_s, search.objective_s),
                why_not=x.why_not,
            )
            for x in search.alternatives
        ),
        idle=tuple(Notice(code=x.device, message=x.reason) for x in search.idle),
        wishes=tuple(WishShown(**x.model_dump()) for x in search.wishes),
        splits=tuple(SplitPriceShown(**x.model_dump()) for x in search.splits),
        fallbacks=tuple(
            FallbackShown(
                devices=x.devices,
                objective_s=x.objective_s,
                slowdown=x.slowdown,
                plan=x.plan,
                note=x.note,
            )
            for x in search.fallbacks
        ),
        limits=tuple(
            LimitShown(limit=x.limit, allowed=x.allowed, actual=x.actual, without_s=x.without_s)
            for x in search.limits
        ),
        warnings=tuple(_warnings(plan)),
        actuals=() if run_report is None else read_actuals(plan, run_report),
        next_steps=_next_steps(
            name,
            has_run=run_report is not None,
            real=not any(x.hypothetical for x in plan.spec.ranks),
        ),
        hypothetical=_hypothetical(plan),
    )


def find_layers(plan: Plan, pattern: str) -> tuple[LayerShown, ...]:
    """Where the layers run whose names ``pattern`` (a regular expression) matches anywhere.

    The plan names whole modules, so a full name below one of them is found by its module.

    Raises:
        InvalidInputError: not a regular expression, or it matches no layer.
    """
    try:
        wanted = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidInputError(f"--layer {pattern!r} is not a regular expression: {error}") from (
            error
        )
    device = {x.rank: x.device for x in plan.spec.ranks}
    found = tuple(
        LayerShown(
            layer=layer,
            place=place(pipeline.index, stage.index),
            ranks=stage.ranks,
            devices=tuple(device.get(rank, "?") for rank in stage.ranks),
        )
        for pipeline in plan.spec.pipelines
        for stage in pipeline.stages
        for layer in _names(stage.layers)
        if wanted.search(layer) or pattern.startswith(layer + ".")
    )
    if not found:
        listed = [x for p in plan.spec.pipelines for s in p.stages for x in s.layers]
        raise InvalidInputError(
            f"no layer of the plan matches {pattern!r}; it names {', '.join(listed[:6])}"
        )
    return found


def _names(selectors: Sequence[str]) -> Iterator[str]:
    """What selectors name as far as the plan alone tells: ranges number by number."""
    for selector in selectors:
        match = None if selector.startswith("=") else _RANGE.fullmatch(selector[:1000])
        if match is None:
            yield selector.removeprefix("=")
            continue
        first, last = int(match["first"]), int(match["last"])
        for number in range(first, min(last + 1, first + _MOST_NAMES)):
            yield f"{match['head']}{number}"


def _result(plan: Plan, stage_of: Mapping[int, str]) -> ResultShown:
    batch, micro = plan.inputs.request.batch_size, plan.spec.schedule.microbatch_size
    estimate = plan.estimate
    return ResultShown(
        objective=plan.inputs.request.objective,
        batch_size=batch,
        microbatch_size=micro,
        num_microbatches=max((_runs(x, micro) for x in plan.spec.pipelines), default=0),
        period_s=estimate.period_s,
        latency_s=estimate.latency_s,
        items_per_s=estimate.items_per_s,
        bottleneck=estimate.bottleneck,
        bottleneck_ranks=tuple(
            rank
            for rank, stage in sorted(stage_of.items())
            if estimate.bottleneck == stage or estimate.bottleneck.startswith(stage + " ")
        ),
    )


def _devices(search: SearchRecord) -> DevicesShown | None:
    said = search.devices
    if said is None:
        return None
    proved = said.total <= said.bound * (1 + _SAME)
    return DevicesShown(what=said.what, total=said.total, bound=said.bound, proved=proved)


def _runs(pipeline: Pipeline, microbatch_size: int) -> int:
    return -(-pipeline.items // microbatch_size) if microbatch_size > 0 else 0


def _pipelines(plan: Plan, binding: Mapping[int, RankBinding]) -> tuple[PipelineShown, ...]:
    whole = {place(p.index, s.index): s.whole_batch for p in plan.spec.pipelines for s in p.stages}
    leaving: dict[str, list[Transfer]] = {}
    entering: dict[str, list[Transfer]] = {}
    for transfer in plan.spec.transfers:
        leaving.setdefault(transfer.source, []).append(transfer)
        entering.setdefault(transfer.target, []).append(transfer)
    micro = plan.spec.schedule.microbatch_size
    costs = {choice.stage: choice.costs for choice in plan.search.choices}

    def stage_shown(pipeline: Pipeline, stage: Stage) -> StageShown:
        here, runs = place(pipeline.index, stage.index), _runs(pipeline, micro)
        from_input = [x for x in entering.get(here, ()) if x.source == INPUT]
        return StageShown(
            place=here,
            index=stage.index,
            layers=stage.layers,
            split=stage.split,
            whole_batch=stage.whole_batch,
            ranks=tuple(
                RankShare(
                    rank=rank,
                    device=binding[rank].device if rank in binding else "?",
                    device_type=binding[rank].device_type if rank in binding else "?",
                    items=stage.shares[i] if i < len(stage.shares) else 0,
                    slices=stage.fractions(i),
                )
                for i, rank in enumerate(stage.ranks)
            ),
            receives=_sendings(from_input, whole, runs),
            sends=_sendings(leaving.get(here, ()), whole, runs),
            num_regions=len(stage.slices),
            costs=tuple(
                SplitShown(split=x.split, objective_s=x.objective_s, how=x.how)
                for x in costs.get(here, ())
            ),
        )

    return tuple(
        PipelineShown(
            index=pipeline.index,
            items=pipeline.items,
            stages=tuple(stage_shown(pipeline, stage) for stage in pipeline.stages),
        )
        for pipeline in plan.spec.pipelines
    )


def _sendings(
    transfers: Sequence[Transfer], whole: Mapping[str, bool], runs: int
) -> tuple[Sending, ...]:
    """Transfers from one place to another, together."""
    ways: dict[tuple[str, str], list[Transfer]] = {}
    for transfer in transfers:
        ways.setdefault((transfer.source, transfer.target), []).append(transfer)
    return tuple(
        Sending(
            source=source,
            target=target,
            tensors=tuple(x.tensor for x in found),
            shapes=tuple(f"[{', '.join(str(d) for d in x.shape)}] {x.dtype}" for x in found),
            num_bytes=sum(x.num_bytes for x in found),
            times=1 if all(whole.get(end, True) for end in (source, target)) else runs,
        )
        for (source, target), found in ways.items()
    )


def _ranks(
    plan: Plan, binding: Mapping[int, RankBinding], stage_of: Mapping[int, str]
) -> Iterator[RankShown]:
    for estimate in plan.estimate.ranks:
        bound, memory = binding.get(estimate.rank), estimate.memory
        yield RankShown(
            rank=estimate.rank,
            device=bound.device if bound else "?",
            device_type=bound.device_type if bound else "?",
            stage=stage_of.get(estimate.rank),
            compute_s=estimate.compute_s,
            join_s=estimate.join_s,
            receive_s=estimate.receive_s,
            send_s=estimate.send_s,
            busy_fraction=estimate.busy_fraction,
            memory={name: getattr(memory, name) for name in RankMemory.model_fields},
            used_bytes=memory.total_bytes,
            used_fraction=memory.total_bytes / memory.capacity_bytes
            if memory.capacity_bytes
            else 0.0,
        )


def _worse(objective_s: float | None, chosen_s: float) -> float | None:
    return objective_s / chosen_s - 1 if objective_s is not None and chosen_s > 0 else None


def _warnings(plan: Plan) -> Iterator[Notice]:
    if plan.plan_id != plan.expected_id():
        yield Notice(
            code="edited",
            message="inputs or spec were changed after planning; the figures are of the plan "
            "before: apportion check says what they are now",
        )
    for warning in plan.warnings:
        yield Notice(code=warning.code, message=warning.message)


def _hypothetical(plan: Plan) -> HypotheticalShown | None:
    found = plan.estimate.hypothetical
    if found is None:
        return None
    return HypotheticalShown(
        parts=tuple((x.where, x.basis) for x in found.parts),
        period_s=(found.period_low_s, found.period_high_s),
        latency_s=(found.latency_low_s, found.latency_high_s),
    )


def _next_steps(name: str, *, has_run: bool, real: bool) -> tuple[tuple[str, str], ...]:
    if not real:
        return (
            (f"apportion check    {name}", "every rule and figure, derived again"),
            (f"apportion rehearse {name}", "its ranks and messages, waiting in place of computing"),
            (
                "apportion profile  MODEL -c cluster.yaml",
                "once the devices are there: measure them",
            ),
        )
    if has_run:
        return (
            ("apportion refit profile.json REPORT -o new.json", "correct the profile by the run"),
            (f"apportion plan  new.json --baseline {name}", "is it still the best plan?"),
        )
    return (
        (f"apportion check  {name}", "every rule and figure, derived again"),
        (f"apportion verify {name}", "its answer beside the whole model's"),
        (f"apportion run    {name} --inputs FILE --outputs FILE", "run it"),
    )
