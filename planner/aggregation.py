"""Whether a plan's aggregation gives the model's answer, and if not, why and what would.

Whether a strategy is legal follows from how the work is divided. Dividing *items* (a batch split,
pipelines side by side, microbatches) leaves parts that answer for different items: they are joined
along the batch dim, or, where an output is a mean over items, averaged by weight. Dividing a
*contraction* (the summed axis of a product) leaves terms that are added:
``f(X, W) = sum_i f_i(X_i, W_i)`` holds there and for nothing else by accident. Asking several
*models* for the same items leaves opinions that are averaged or counted.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.layout import Reading
from planner.planfile import Aggregation, Combining, OutputCombining, Plan, Stage, place
from planner.request import Destination, PlanRequest
from planner.strategies import REDUCTIONS, Kind, Parts, find_strategy, legal_choices
from profiler.errors import InvalidInputError
from profiler.graph import ModelGraph, Tensor


def refusal(reading: Reading) -> str | None:
    """Why the plan's aggregation does not give the model's answer; ``None`` if it does."""
    wanted, graph = reading.plan.spec.aggregation, reading.graph
    strange = _strange(wanted, graph)
    if strange:
        return strange
    if wanted.strategy != "concat":
        halves = _halves(reading, wanted.strategy)
        if halves:
            return halves
    for name in dict.fromkeys(graph.outputs):
        parts = parts_over_items(reading, name)
        wrong = _judged(parts, wanted.over_items(name), reading)
        if wrong:
            return wrong
    if graph.ensemble is not None:
        apart = _unlike(graph, wanted)
        if apart:
            return apart
        for row in graph.ensemble.answers:
            wrong = _judged(_members(graph, row), wanted, reading)
            if wrong:
                return wrong
    return _destination(wanted)


def choose(graph: ModelGraph, request: PlanRequest) -> Aggregation:
    """The aggregation of plans for a model: the request's, the ensemble's own, else ``concat``.

    Raises:
        InvalidInputError: it is illegal for every plan of this model; with the legal choices.
    """
    outputs = tuple(
        OutputCombining(tensor=name, strategy=_OVER_ITEMS[graph.tensor[name].reduction or ""])
        for name in dict.fromkeys(graph.outputs)
        if graph.tensor[name].reduction is not None
    )
    ensemble = graph.ensemble
    wished = request.aggregation
    if ensemble is None:
        wanted = Aggregation(strategy=wished or "concat")
        if wished not in (None, "concat"):
            for name in graph.outputs:
                tensor = graph.tensor[name]
                kind = Kind.ITEMS if tensor.batch_dim is not None else Kind.BATCH
                _require(_parts(tensor, kind), wanted)
    else:
        own = wished in (None, ensemble.strategy)
        name = wished or ensemble.strategy
        takes = find_strategy(name).takes
        wanted = Aggregation(
            strategy=name,
            dim=ensemble.dim if own else None,
            weights=ensemble.weights if "weights" in takes or own else None,
            ties="smallest" if "ties" in takes else None,
            members=ensemble.members,
        )
        apart = _unlike(graph, wanted)
        if apart:
            raise InvalidInputError(apart)
        for row in ensemble.answers:
            _require(_members(graph, row), wanted)
    made = wanted.replaced(destination=request.destination, outputs=outputs or None)
    apart = _destination(made)
    if apart:
        raise InvalidInputError(apart)
    return made


def answer_names(graph: ModelGraph, request: PlanRequest) -> tuple[str, ...]:
    """Tensors as many and as large as those of the answer, once members are put together."""
    ensemble = graph.ensemble
    strategy = request.aggregation or (ensemble.strategy if ensemble else "concat")
    if ensemble is None or strategy in _KEEPING_ALL:
        return tuple(dict.fromkeys(graph.outputs))
    return tuple(row[0] for row in ensemble.answers)


_KEEPING_ALL = ("gather", "stack", "concat")
"""Strategies whose answer is as large as all that the members give."""

_OVER_ITEMS = {"mean": "weighted_mean", "sum": "sum", "max": "max"}
"""The strategy for an output that is a reduction over its items."""


def _require(parts: Parts, wanted: Combining) -> None:
    wrong = find_strategy(wanted.strategy).refuses(parts, wanted)
    if wrong:
        raise InvalidInputError(
            f"aggregation {wanted.strategy} of output {parts.output}: {wrong}. "
            f"Legal here: {_choices(parts)}"
        )


def _judged(parts: Parts, wanted: Combining, reading: Reading) -> str | None:
    """Why a strategy is wrong for these parts, how they came about, and what is legal."""
    try:
        strategy = find_strategy(wanted.strategy)
    except InvalidInputError as error:
        return str(error)
    wrong = strategy.refuses(parts, wanted)
    if wrong is None:
        return None
    parted = divisions(reading.plan)
    how = ""
    if parts.kind not in (Kind.ONE, Kind.MEMBERS) and parted:
        more = f" (and {len(parted) - 2} more)" if len(parted) > 2 else ""
        how = f"the plan parts the items: {'; '.join(parted[:2])}{more}; "
    inside = _joined_inside(reading, parts.output)
    return (
        f"{strategy.name} of output {parts.output}: {how}{wrong}. "
        f"{inside}Legal here: {_choices(parts)}"
    )


def _choices(parts: Parts) -> str:
    legal = legal_choices(parts)
    if parts.kind is Kind.BATCH:
        return "none; compute it in a whole_batch stage of a single pipeline"
    if legal == ["concat"]:
        return "concat, along the batch dim of each output"
    return ", ".join(legal)


def _strange(wanted: Aggregation, graph: ModelGraph) -> str | None:
    """Names that are not the model's."""
    members = None if graph.ensemble is None else graph.ensemble.members
    if wanted.members != members:
        ours = "is no ensemble" if members is None else f"has members {', '.join(members)}"
        theirs = "none" if wanted.members is None else ", ".join(wanted.members)
        return f"the model {ours}; the plan's aggregation names {theirs}: plan again"
    names = [own.tensor for own in wanted.outputs or ()]
    for name in names:
        if name not in graph.outputs:
            return f"aggregation.outputs names {name[:80]!r}; outputs are {_few(graph.outputs)}"
        if names.count(name) > 1:
            return f"aggregation.outputs names {name!r} {names.count(name)} times; keep one"
    return None


def _unlike(graph: ModelGraph, wanted: Aggregation) -> str | None:
    """Members whose answers have nothing in common can only be listed."""
    if wanted.strategy == "gather" or graph.ensemble is None or graph.ensemble.answers:
        return None
    return (
        f"{wanted.strategy} needs members that answer with equal structure, shapes and dtypes; "
        f"those of {graph.name} do not. Legal here: gather"
    )


def _destination(wanted: Aggregation) -> str | None:
    if wanted.destination is not Destination.SCATTERED:
        return None
    if wanted.members is not None:
        return (
            "destination scattered leaves every member's answer where it was computed, so that "
            f"{wanted.strategy} of the {len(wanted.members)} members cannot be formed. "
            "Legal here: root, all"
        )
    if wanted.outputs:
        return (
            "destination scattered leaves the parts of each output apart, and "
            f"{wanted.outputs[0].tensor} needs all of them ({wanted.outputs[0].strategy} over "
            "items). Legal here: root, all"
        )
    return None


def parts_over_items(reading: Reading, name: str) -> Parts:
    """The parts of an output that hold different items, and which items."""
    tensor, spec = reading.graph.tensor[name], reading.plan.spec
    stages = tuple(_stages_of(reading, tensor))
    items = tuple(
        share
        for items, stage in stages
        for share in (stage.shares if stage.split == "batch" else (items,))
    )
    micro = spec.schedule.microbatch_size
    several = len(items) > 1 or any(n > micro and not s.whole_batch for n, s in stages)
    if tensor.batch_dim is not None:
        return _parts(tensor, Kind.ITEMS if several else Kind.ONE, items)
    if not several or not tensor.per_batch:
        return _parts(tensor, Kind.ONE, items)
    # How many items the pieces hold: microbatches in full, and what is left of a pipeline's items.
    items = tuple(n for n, s in stages for n in _pieces(n, s, micro))
    return _parts(tensor, REDUCTIONS.get(tensor.reduction or "", Kind.BATCH), items)


def _pieces(items: int, stage: Stage, micro: int) -> Iterator[int]:
    """Items of a stage's pieces: of one full microbatch, and of the rest if there is one."""
    if stage.whole_batch:
        yield items
        return
    split = stage.split == "batch"
    if items >= micro:
        yield from stage.shares if split else (micro,)
    rest = items % micro
    if rest:
        fewest, more = divmod(rest, len(stage.ranks) if split else 1)
        yield from {n for n in (fewest, fewest + bool(more)) if n}


def _stages_of(reading: Reading, tensor: Tensor) -> Iterator[tuple[int, Stage]]:
    """Stages that compute a tensor, with the items of their pipelines."""
    for p, pipeline in enumerate(reading.plan.spec.pipelines):
        for s, stage in enumerate(pipeline.stages):
            if tensor.producer in {reading.names[i] for i in reading.placed[p][s]}:
                yield pipeline.items, stage


def _parts(tensor: Tensor, kind: Kind, items: tuple[int, ...] = ()) -> Parts:
    return Parts(
        output=tensor.name,
        kind=kind,
        dtype=tensor.dtype,
        shape=tensor.shape,
        batch_dim=tensor.batch_dim,
        items=items,
        reduction=tensor.reduction,
    )


def _members(graph: ModelGraph, row: tuple[str, ...]) -> Parts:
    assert graph.ensemble is not None
    first = graph.tensor[row[0]]
    return Parts(
        output=first.name,
        kind=Kind.MEMBERS,
        dtype=first.dtype,
        shape=first.shape,
        batch_dim=first.batch_dim,
        members=graph.ensemble.members,
    )


def divisions(plan: Plan) -> tuple[str, ...]:
    """Every way in which the plan parts the items of a batch, for messages."""
    spec, found = plan.spec, []
    if len(spec.pipelines) > 1:
        items = " + ".join(str(pipeline.items) for pipeline in spec.pipelines[:8])
        found.append(f"{len(spec.pipelines)} pipelines take {items} items")
    for p, pipeline in enumerate(spec.pipelines):
        for s, stage in enumerate(pipeline.stages):
            if stage.split != "tensor" and len(stage.ranks) > 1:
                shares = " + ".join(str(share) for share in stage.shares[:8])
                found.append(f"{place(p, s)} is split over {len(stage.ranks)} ranks ({shares})")
    micro = spec.schedule.microbatch_size
    if any(pipeline.items > micro for pipeline in spec.pipelines):
        found.append(f"microbatches of {micro} follow each other")
    return tuple(found)


def reasons(plan: Plan) -> tuple[str, ...]:
    """Why a checked plan's aggregation gives the model's answer: lines, from the plan alone."""
    wanted = plan.spec.aggregation
    lines: list[str] = []
    if wanted.members is not None:
        how = _FORMULAS.get(wanted.strategy, f"{wanted.strategy} of all f_i(X)")
        if wanted.weights is not None:
            how += f", w = {', '.join(f'{w:g}' for w in wanted.weights[:8])}"
        if wanted.dim is not None:
            how += f" (dim {wanted.dim})"
        lines.append(f"{len(wanted.members)} models answer for the same items: {how}")
    parted = divisions(plan)
    if parted:
        more = f" and {len(parted) - 1} more" if len(parted) > 1 else ""
        lines.append(
            f"parts hold different items ({parted[0]}{more}): joined by item, in their order"
        )
    lines += (
        f"{own.tensor} is a reduction over items, as measured: {own.strategy} of parts"
        for own in wanted.outputs or ()
    )
    for p, pipeline in enumerate(plan.spec.pipelines):
        for s, stage in enumerate(pipeline.stages):
            if stage.slices:
                lines.append(
                    f"{place(p, s)} joins the parts of its tensor split itself: terms of a "
                    "contraction by sum, columns by concat"
                )
    return tuple(lines)


_FORMULAS = {
    "sum": "f(X) = sum_i f_i(X)",
    "mean": "f(X) = sum_i f_i(X) / n",
    "weighted_mean": "f(X) = sum_i w_i f_i(X) / sum_i w_i",
    "max": "the largest f_i(X)",
    "vote": "what most f_i(X) are; of several, the smallest",
    "gather": "all f_i(X), in a list",
    "stack": "all f_i(X), side by side in a new dim",
    "concat": "all f_i(X), one after another",
}


def _joined_inside(reading: Reading, name: str) -> str:
    """That a tensor split's own parts of an output are put together before they leave the stage."""
    joins = {j.tensor: (r, j) for r in reading.graph.regions for j in r.joins}
    if name not in joins:
        return ""
    region, join = joins[name]
    for p, pipeline in enumerate(reading.plan.spec.pipelines):
        for s, stage in enumerate(pipeline.stages):
            if any(sliced.region == region.name for sliced in stage.slices):
                return (
                    f"{place(p, s)} splits {region.name} by {region.axis} and joins its own parts "
                    f"({join.how}): what leaves it is whole. "
                )
    return ""


def _halves(reading: Reading, name: str) -> str | None:
    """The textbook mistake: parts of the network side by side, their outputs put together."""
    lacking = [(p, reading.missing(p)) for p in range(len(reading.placed))]
    lacking = [(p, layers) for p, layers in lacking if layers]
    if len(reading.placed) < 2 or not lacking:
        return None
    which = "; ".join(f"pipeline {p} lacks {reading.layers_text(x)}" for p, x in lacking[:3])
    more = f"; and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    return (
        f"{name} of the outputs of parts of a network is not the network's output: {which}{more}. "
        "A network is a composition: f2(f1(X)) is not f1(X_a) + f2(X_b), whatever the items X_a "
        "and X_b. sum is legal only for a contraction split, where every part computes the same "
        "layer on its slice of the summed axis: f(X, W) = sum_i f_i(X_i, W_i). Legal here: one "
        "pipeline whose stages run the parts in sequence, each on all items; or pipelines that "
        "each hold every layer; both with aggregation concat, over items"
    )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
