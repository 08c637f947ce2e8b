"""Which ways of putting partial results together are right for a plan, and why others are not.

Whether a strategy is legal follows from how the work is divided. Dividing *items* (a batch split,
pipelines side by side, microbatches) leaves parts that answer for different items: they are joined
along the batch dim. Dividing a *contraction* (the summed axis of a product) leaves terms that are
added: ``f(X, W) = sum_i f_i(X_i, W_i)`` holds there and for nothing else by accident. Asking
several *models* for the same items leaves opinions that are averaged or counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.layout import Reading
from planner.planfile import Plan, place

RUNNABLE = ("concat",)
"""Strategies that this release executes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A way to put parts together. ``legal_for`` names the division of work that it undoes.

    ``over_items`` says why it is wrong when parts hold different items; empty if it is right.
    """

    name: str
    legal_for: str
    over_items: str = ""


STRATEGIES: tuple[Strategy, ...] = (
    Strategy(
        name="concat",
        legal_for="parts that answer for different items, joined along the batch dim in item order",
    ),
    Strategy(
        name="sum",
        legal_for="a contraction split: each part holds a slice of the summed axis, "
        "f(X, W) = sum_i f_i(X_i, W_i)",
        over_items="adding them mixes the answers of different items",
    ),
    Strategy(
        name="mean",
        legal_for="several models that answer for the same items",
        over_items="averaging them mixes the answers of different items",
    ),
    Strategy(
        name="weighted_mean",
        legal_for="several models that answer for the same items, with a weight each",
        over_items="averaging them, with whatever weights, mixes the answers of different items",
    ),
    Strategy(
        name="max",
        legal_for="a split over an axis that the model takes the maximum of",
        over_items="the larger of two answers to different items answers neither",
    ),
    Strategy(
        name="vote",
        legal_for="several models that answer for the same items",
        over_items="answers to different items cannot outvote each other",
    ),
    Strategy(
        name="gather",
        legal_for="callers that want the parts as they are, one a rank",
        over_items="a list of parts is not the model's answer",
    ),
    Strategy(
        name="stack",
        legal_for="several models that answer for the same items, kept side by side in a new dim",
        over_items="a new dim is not in the model's answer, and unequal shares do not stack",
    ),
)
"""Every strategy that a plan can name, in the order of messages."""

_BY_NAME = {strategy.name: strategy for strategy in STRATEGIES}


def refusal(reading: Reading) -> str | None:
    """Why the plan's aggregation does not give the model's answer; ``None`` if it does."""
    name = reading.plan.spec.aggregation.strategy
    if name not in _BY_NAME:
        return f"there is no aggregation {name[:40]!r}; there are {', '.join(_BY_NAME)}"
    if name == "concat":
        return _cannot_join(reading)
    return _halves(reading, name) or _other_than_concat(reading.plan, _BY_NAME[name])


def divisions(plan: Plan) -> tuple[str, ...]:
    """Every way in which the plan parts the items of a batch, for messages."""
    spec, found = plan.spec, []
    if len(spec.pipelines) > 1:
        items = " + ".join(str(pipeline.items) for pipeline in spec.pipelines[:8])
        found.append(f"{len(spec.pipelines)} pipelines take {items} items")
    for p, pipeline in enumerate(spec.pipelines):
        for s, stage in enumerate(pipeline.stages):
            if len(stage.ranks) > 1:
                shares = " + ".join(str(share) for share in stage.shares[:8])
                found.append(f"{place(p, s)} is split over {len(stage.ranks)} ranks ({shares})")
    micro = spec.schedule.microbatch_size
    if any(pipeline.items > micro for pipeline in spec.pipelines):
        found.append(f"microbatches of {micro} follow each other")
    return tuple(found)


def _other_than_concat(plan: Plan, strategy: Strategy) -> str:
    parted = divisions(plan)
    legal = f"{strategy.name} is for {strategy.legal_for}"
    if not parted:
        return f"the plan makes one answer in one piece; {legal}. Legal here: concat"
    more = f" (and {len(parted) - 2} more)" if len(parted) > 2 else ""
    return (
        f"the plan parts the items: {'; '.join(parted[:2])}{more}; {strategy.over_items}. "
        f"{legal[0].upper()}{legal[1:]}. Legal here: concat, along the batch dim of each output"
    )


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


def _cannot_join(reading: Reading) -> str | None:
    graph, spec = reading.graph, reading.plan.spec
    for name in graph.outputs:
        tensor = graph.tensor[name]
        if tensor.batch_dim is not None or not tensor.per_batch:
            continue  # cut into items, or the same for all of them
        stages = [
            stage
            for p, pipeline in enumerate(spec.pipelines)
            for s, stage in enumerate(pipeline.stages)
            if tensor.producer in {reading.names[i] for i in reading.placed[p][s]}
        ]
        if len(stages) > 1 or any(not stage.whole_batch for stage in stages):
            parted = "; ".join(divisions(reading.plan)[:2])
            if parted:
                return (
                    f"output {name} is one value for a whole batch and has no batch dim along "
                    f"which parts could be joined, but {parted}: compute it in a whole_batch stage "
                    "of a single pipeline"
                )
    return None
