"""Whether pipelines, stages, ranks and shares hang together, apart from all figures.

Each rule is a function from a :class:`Reading` to its findings. Independent of everything that
makes plans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from planner.findings import Finding, error
from planner.layout import Reading, needs_whole_batch
from planner.planfile import Stage, place
from profiler.graph import ModelGraph

MAX_ITEMS = 2**40
"""Larger batches are refused: no machine holds them, and sizes would overflow."""


def structure_findings(reading: Reading) -> list[Finding]:
    """Everything wrong with the structure; without errors here, the plan can be resolved."""
    rules = (_inputs, _counts, _numbers, _coverage, _order, _ranks, _devices, _stages, _state)
    return [finding for rule in rules for finding in rule(reading)]


def _inputs(reading: Reading) -> Iterator[Finding]:
    stated, graph = reading.plan.inputs.model, reading.graph
    for field, said, real in (
        ("dtype", stated.dtype, graph.dtype),
        ("num_layers", stated.num_layers, len(graph.layers)),
        ("weight_bytes", stated.weight_bytes, graph.total_weight_bytes),
    ):
        if said != real:
            yield error("inputs", f"inputs.model.{field}", f"it says {said}; the model has {real}")


def _counts(reading: Reading) -> Iterator[Finding]:
    request, spec = reading.plan.inputs.request, reading.plan.spec
    micro = spec.schedule.microbatch_size
    if request.batch_size > MAX_ITEMS:
        yield error(
            "batch-size", "inputs.request", f"batch_size {request.batch_size} is beyond {MAX_ITEMS}"
        )
    if not 1 <= micro <= request.batch_size:
        yield error(
            "batch-size",
            "spec.schedule",
            f"microbatch_size is {micro}; it must be from 1 to the batch size, "
            f"{request.batch_size}",
        )
    elif request.microbatch_size not in (None, micro):
        yield error(
            "batch-size",
            "spec.schedule",
            f"microbatch_size is {micro}; the request asks {request.microbatch_size}",
        )
    items = [pipeline.items for pipeline in spec.pipelines]
    for p, count in enumerate(items):
        if count < 1:
            yield error(
                "items", f"pipeline{p}", f"it has {count} items; give it one, or leave it out"
            )
    if items and sum(items) != request.batch_size:
        yield error(
            "items",
            "spec.pipelines",
            f"the pipelines have {_sum_text(items)} items; the batch has {request.batch_size}",
        )


def _numbers(reading: Reading) -> Iterator[Finding]:
    spec = reading.plan.spec
    lists = [("spec.pipelines", [pipeline.index for pipeline in spec.pipelines])]
    lists += [
        (f"pipeline{p}.stages", [stage.index for stage in pipeline.stages])
        for p, pipeline in enumerate(spec.pipelines)
    ]
    lists.append(("spec.ranks", [binding.rank for binding in spec.ranks]))
    for where, numbers in lists:
        if not numbers:
            yield error("index", where, "the list is empty; at least one entry is needed")
        wrong = next((i for i, number in enumerate(numbers) if number != i), None)
        if wrong is not None:
            yield error(
                "index", where, f"entry {wrong} has number {numbers[wrong]}; write {wrong} there"
            )


def _coverage(reading: Reading) -> Iterator[Finding]:
    for where, reason in reading.unknown:
        yield error("layers-unknown", where, reason)
    for p, stages in enumerate(reading.placed):
        for s, stage in enumerate(reading.plan.spec.pipelines[p].stages):
            if not stage.layers:
                yield error(
                    "layers-unknown", place(p, s), "it names no layer; give it some, or remove it"
                )
        missing = reading.missing(p)
        if missing:
            yield error(
                "layers-missing",
                f"pipeline{p}",
                f"it lacks {reading.layers_text(missing)}: a pipeline takes its items through the "
                "whole model; put them into one of its stages",
            )
        times = Counter(i for layers in stages for i in layers)
        doubled = sorted(i for i, count in times.items() if count > 1)
        if doubled:
            holders = [str(s) for s, layers in enumerate(stages) if set(layers) & set(doubled)]
            yield error(
                "layers-doubled",
                f"pipeline{p}",
                f"it holds {reading.layers_text(doubled)} more than once (stage "
                f"{', '.join(holders)}): keep each in one stage",
            )


def _order(reading: Reading) -> Iterator[Finding]:
    for p, stages in enumerate(reading.placed):
        stage_of = {i: s for s, layers in enumerate(stages) for i in layers}
        after: dict[int, set[int]] = {s: set() for s in range(len(stages))}
        for source, target in layer_edges(reading.graph):
            a, b = stage_of.get(source), stage_of.get(target)
            if a is not None and b is not None and a != b:
                after[a].add(b)
        circle = find_circle(after)
        if not circle:
            continue
        for s in circle:
            detour = _detour(reading.graph, set(stages[s]))
            if detour:
                left, through, back = (reading.names[i] for i in detour)
                yield error(
                    "convex",
                    place(p, s),
                    f"it holds {left} and {back}, but {back} waits for {through}, which is in "
                    f"stage {stage_of.get(detour[1], '?')} and waits for {left}: put the three "
                    "into one stage, or part them in that order",
                )
                break
        else:
            yield error(
                "cycle",
                f"pipeline{p}",
                f"stages {' -> '.join(str(s) for s in (*circle, circle[0]))} wait for each other",
            )


def layer_edges(graph: ModelGraph) -> Iterator[tuple[int, int]]:
    """Pairs of layers of which the second reads what the first writes."""
    for target, layer in enumerate(graph.layers):
        for name in layer.reads:
            producer = graph.tensor[name].producer
            if producer is not None:
                yield graph.layer_index[producer], target


def find_circle(after: Mapping[int, set[int]]) -> list[int]:
    """Nodes that follow each other in a circle, from the smallest on; empty if there is none."""
    waiting = Counter(target for targets in after.values() for target in targets)
    ready = [node for node in after if not waiting[node]]
    left = dict(after)
    while ready:
        for target in left.pop(ready.pop()):
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    if not left:
        return []
    # Every node left has a predecessor left: walking back must come round.
    before = {b: a for a in sorted(left, reverse=True) for b in left[a] if b in left}
    seen: list[int] = []
    node = min(before)
    while node not in seen:
        seen.append(node)
        node = before[node]
    circle = seen[seen.index(node) :][::-1]
    first = circle.index(min(circle))
    return circle[first:] + circle[:first]


def _detour(graph: ModelGraph, inside: set[int]) -> tuple[int, int, int] | None:
    """Layers a, b, c with a and c inside, b outside, b after a, and c after b; if there are."""
    origin: dict[int, int] = {}  # layers outside -> a layer inside that leads there
    for source, target in layer_edges(graph):  # targets ascend, so sources are settled
        start = source if source in inside else origin.get(source)
        if start is None:
            continue
        if target not in inside:
            origin.setdefault(target, start)
        elif source not in inside:
            return start, source, target
    return None


def _ranks(reading: Reading) -> Iterator[Finding]:
    spec = reading.plan.spec
    listed = {binding.rank for binding in spec.ranks}
    users: dict[int, list[str]] = {}
    for p, pipeline in enumerate(spec.pipelines):
        for s, stage in enumerate(pipeline.stages):
            for rank in stage.ranks:
                users.setdefault(rank, []).append(place(p, s))
    for rank, places in sorted(users.items()):
        if rank not in listed:
            yield error("rank", places[0], f"rank {rank} is not in spec.ranks; bind it to a device")
        if len(places) > 1:
            yield error(
                "rank", places[1], f"rank {rank} is already used by {places[0]}; take another"
            )
    for binding in spec.ranks:
        if binding.rank not in users and binding.rank != 0:
            yield error(
                "rank",
                f"rank {binding.rank}",
                "no stage uses it; remove it (only rank 0 may be without a stage)",
            )
    root = spec.aggregation.root_rank
    if root != 0:
        yield error("rank", "spec.aggregation", f"root_rank is {root}; answers gather on rank 0")


def _devices(reading: Reading) -> Iterator[Finding]:
    cluster = reading.cluster
    holder: dict[str, int] = {}
    for binding in reading.plan.spec.ranks:
        where = f"rank {binding.rank}"
        device = cluster.device.get(binding.device)
        if device is None:
            yield error(
                "device",
                where,
                f"there is no device {binding.device!r}; the cluster has {_few(cluster.device)}",
            )
            continue
        if device.type != binding.device_type:
            yield error(
                "device",
                where,
                f"{binding.device} is a {device.type}, not a {binding.device_type}",
            )
        if binding.device in holder:
            yield error(
                "device",
                where,
                f"{binding.device} is already the device of rank {holder[binding.device]}; "
                "one rank a device",
            )
        holder.setdefault(binding.device, binding.rank)
        if binding.rank == 0 and binding.device != cluster.root:
            yield error(
                "device",
                where,
                f"it is on {binding.device}, but inputs and answers are on {cluster.root}, the "
                "cluster's first device",
            )


def _stages(reading: Reading) -> Iterator[Finding]:
    micro, fixed = reading.plan.spec.schedule.microbatch_size, reading.graph.static_batch
    taken = [pipeline.items for pipeline in reading.plan.spec.pipelines]
    if fixed is not None and (len(taken) > 1 or sum(taken) % fixed):
        yield error(
            "static-batch",
            "spec.pipelines",
            f"the model was captured for exactly {fixed} items at a time: use one pipeline, with a "
            f"multiple of {fixed} items (it has {_sum_text(taken)})",
        )
    for p, pipeline in enumerate(reading.plan.spec.pipelines):
        for s, stage in enumerate(pipeline.stages):
            where = place(p, s)
            yield from _whole_batch(reading, stage, where, reading.placed[p][s])
            items = pipeline.items if stage.whole_batch else micro
            yield from _shares(stage, where, items)
            if fixed is not None and set(stage.shares) != {fixed}:
                yield error(
                    "static-batch",
                    where,
                    f"the model was captured for exactly {fixed} items; the shares are "
                    f"{_few(stage.shares)}",
                )


def _whole_batch(
    reading: Reading, stage: Stage, where: str, layers: Iterable[int]
) -> Iterator[Finding]:
    across = [i for i in sorted(set(layers)) if needs_whole_batch(reading.graph, i)]
    if across and not stage.whole_batch:
        yield error(
            "whole-batch",
            where,
            f"{reading.names[across[0]]} looks across the items of a batch, so its stage must be "
            "whole_batch: true, with one rank",
        )
    if stage.whole_batch and not across:
        yield error(
            "whole-batch",
            where,
            "no layer of it looks across items; remove whole_batch, which only delays",
        )
    if across and len(reading.plan.spec.pipelines) > 1:
        yield error(
            "whole-batch",
            where,
            f"{reading.names[across[0]]} looks across the items of a batch, and the batch is cut "
            f"over {len(reading.plan.spec.pipelines)} pipelines: use one pipeline",
        )


def _shares(stage: Stage, where: str, items: int) -> Iterator[Finding]:
    if stage.split == "none" and len(stage.ranks) != 1:
        yield error(
            "split", where, f"split none means one rank; it has {len(stage.ranks)}: use split batch"
        )
    if stage.split == "batch" and len(stage.ranks) < 2:
        yield error("split", where, "split batch needs two ranks or more; use split none")
    if stage.whole_batch and len(stage.ranks) > 1:
        yield error("split", where, "a whole_batch stage has one rank: its items cannot be parted")
    if len(stage.shares) != len(stage.ranks):
        yield error(
            "shares", where, f"{len(stage.ranks)} ranks have {len(stage.shares)} shares; one each"
        )
    if any(share < 1 for share in stage.shares):
        yield error(
            "shares", where, f"shares are {_few(stage.shares)}; each rank needs at least one item"
        )
    if stage.shares and sum(stage.shares) != items:
        what = "items of the pipeline" if stage.whole_batch else "items of a microbatch"
        yield error(
            "shares", where, f"the shares are {_sum_text(stage.shares)}; there are {items} {what}"
        )


def _state(reading: Reading) -> Iterator[Finding]:
    graph, pipelines = reading.graph, reading.plan.spec.pipelines
    changing = {weight.name for weight in graph.weights if weight.state}
    keepers = {i for i, layer in enumerate(graph.layers) if changing & set(layer.weights)}
    if not keepers:
        return
    if len(pipelines) > 1:
        yield error(
            "state",
            "spec.pipelines",
            f"{reading.layers_text(sorted(keepers))} keep state that changes, and {len(pipelines)} "
            "pipelines would each have their own: use one pipeline",
        )
    homes: dict[str, str] = {}
    for p, stages in enumerate(reading.placed):
        for s, layers in enumerate(stages):
            held = {name for i in layers for name in graph.layers[i].weights} & changing
            if held and len(pipelines[p].stages[s].ranks) > 1:
                yield error(
                    "state",
                    place(p, s),
                    f"its ranks would each have their own {min(held)}, which changes: use one rank",
                )
            for name in sorted(held):
                if homes.setdefault(name, place(p, s)) != place(p, s) and len(pipelines) == 1:
                    yield error(
                        "state",
                        place(p, s),
                        f"{name} changes and is also in {homes[name]}: put the layers that use it "
                        "into one stage",
                    )


def _sum_text(numbers: Iterable[int]) -> str:
    parts = list(numbers)
    if len(parts) == 1:
        return str(parts[0])
    return f"{_few(parts, ' + ')} = {sum(parts)}"


def _few(values: Iterable[object], joint: str = ", ") -> str:
    texts = [str(value) for value in values]
    return joint.join(texts[:8]) + (f"{joint}..." if len(texts) > 8 else "")
