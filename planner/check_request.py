"""Whether a plan keeps what its request asked: pins, forbidden places, splits, stages together.

Independent of everything that makes plans.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.findings import Finding, error
from planner.layout import Layout, Reading, StageView
from planner.request import Split
from planner.selection import LayerIndex
from profiler.errors import InvalidInputError


def request_findings(reading: Reading, layout: Layout) -> list[Finding]:
    """Everything in which the plan does not do as asked."""
    rules = (_names, _pins, _forbids, _together, _splits)
    return [finding for rule in rules for finding in rule(reading, layout)]


def _names(reading: Reading, layout: Layout) -> Iterator[Finding]:  # noqa: ARG001
    request, cluster = reading.plan.inputs.request, reading.cluster
    selectors = [*(pin.layers for pin in request.pins), *request.keep_together]
    selectors += [forbid.layers for forbid in request.forbids if forbid.layers]
    for selector in selectors:
        if not _selected(reading, selector):
            yield error("request-layers", "inputs.request", f"no layer is called {selector[:80]!r}")
    devices = [*request.max_bytes, *(pin.device for pin in request.pins)]
    for device in (*devices, *(forbid.device for forbid in request.forbids)):
        if device not in cluster.device:
            yield error("request-layers", "inputs.request", f"there is no device {device!r}")


def _pins(reading: Reading, layout: Layout) -> Iterator[Finding]:
    for pin in reading.plan.inputs.request.pins:
        pinned = _selected(reading, pin.layers)
        for stage in layout.stages.values():
            if pinned & set(stage.layers) and set(stage.devices) != {pin.device}:
                yield error(
                    "pin",
                    stage.place,
                    f"{pin.layers} is pinned to {pin.device}; here it runs on "
                    f"{', '.join(stage.devices[:4])}",
                )


def _forbids(reading: Reading, layout: Layout) -> Iterator[Finding]:
    for forbid in reading.plan.inputs.request.forbids:
        barred = None if forbid.layers is None else _selected(reading, forbid.layers)
        for stage in layout.stages.values():
            if forbid.device in stage.devices and (barred is None or barred & set(stage.layers)):
                what = "anything" if forbid.layers is None else forbid.layers
                yield error("forbid", stage.place, f"the request forbids {what} on {forbid.device}")


def _together(reading: Reading, layout: Layout) -> Iterator[Finding]:
    for selector in reading.plan.inputs.request.keep_together:
        wanted = _selected(reading, selector)
        for stages in layout.pipelines:
            holders = [stage.place for stage in stages if wanted & set(stage.layers)]
            if len(holders) > 1:
                yield error(
                    "keep-together",
                    holders[0],
                    f"the request keeps {selector} together; it is in {', '.join(holders[:4])}",
                )


def _splits(reading: Reading, layout: Layout) -> Iterator[Finding]:
    request = reading.plan.inputs.request
    for p, stages in enumerate(layout.pipelines):
        where = f"pipeline{p}"
        if Split.LAYERS not in request.splits and len(stages) > 1:
            yield error("split", where, f"{len(stages)} stages; the request allows no layer split")
        if request.max_stages is not None and len(stages) > request.max_stages:
            yield error(
                "max-stages",
                where,
                f"{len(stages)} stages; the request allows {request.max_stages}",
            )
        yield from _batch_splits(stages, Split.BATCH in request.splits)
    if Split.PIPELINES not in request.splits and len(layout.pipelines) > 1:
        yield error(
            "split",
            "spec.pipelines",
            f"{len(layout.pipelines)} pipelines; the request allows none side by side",
        )


def _batch_splits(stages: tuple[StageView, ...], allowed: bool) -> Iterator[Finding]:
    for stage in stages:
        if len(stage.ranks) > 1 and not allowed:
            yield error(
                "split",
                stage.place,
                f"{len(stage.ranks)} ranks share it; the request allows no batch split",
            )


def _selected(reading: Reading, selector: str) -> set[int]:
    """Layers that a selector of the request names: by their names, else by modules they hold."""
    try:
        return set(LayerIndex(reading.names).positions([selector]))
    except InvalidInputError:
        pass
    holders: dict[str, set[int]] = {}
    for i, layer in enumerate(reading.graph.layers):
        for module in layer.modules:
            holders.setdefault(module, set()).add(i)
    index = LayerIndex(tuple(holders))
    try:
        return {i for at in index.positions([selector]) for i in holders[index.names[at]]}
    except InvalidInputError:
        return set()  # reported by _names
