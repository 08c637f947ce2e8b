"""Whether exactly the tensors that must move are moved, from where they are, at their size.

Independent of everything that makes plans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from planner.check_structure import find_circle, layer_edges
from planner.findings import Finding, error
from planner.layout import Layout, Reading, StageView
from planner.planfile import INPUT, OUTPUT, Transfer
from planner.request import Destination
from profiler.graph import ModelGraph


def transfer_findings(reading: Reading, layout: Layout) -> list[Finding]:
    """Everything wrong with the transfers of a plan whose structure is sound."""
    graph = reading.graph
    findings: list[Finding] = []
    scattered = reading.plan.spec.aggregation.destination is Destination.SCATTERED
    answers = () if scattered else graph.outputs
    sound: list[list[Transfer]] = [[] for _ in layout.pipelines]
    for transfer in reading.plan.spec.transfers:
        wrong = list(_ends(transfer, graph, layout))
        findings += wrong
        if not wrong:
            sound[pipeline_of(transfer, layout)].append(transfer)
            findings += _size(transfer, graph, layout)
    for pipeline, transfers in enumerate(sound):
        flow = _flow(pipeline, transfers, graph, layout, answers)
        for name in {**flow.readers, **flow.moves}:
            findings += _moved(flow, name)
        findings += _circle(flow, graph)
    return findings


def pipeline_of(transfer: Transfer, layout: Layout) -> int:
    """The pipeline that a transfer belongs to; one of its ends is a stage."""
    end = transfer.target if transfer.source == INPUT else transfer.source
    return layout.stages[end].pipeline


def sent_items(transfer: Transfer, layout: Layout) -> tuple[int, int]:
    """Items that one sending of a transfer carries, and how many sendings a batch takes.

    A microbatch at a time, unless both ends take the whole batch; ``input`` and ``output`` do as
    the other end does.
    """
    ends = [
        layout.stages[end] for end in (transfer.source, transfer.target) if end in layout.stages
    ]
    pipeline = ends[0].pipeline
    if all(end.whole_batch for end in ends):
        return layout.pipeline_items[pipeline], 1
    return layout.microbatch_size, layout.runs(pipeline)


def _ends(transfer: Transfer, graph: ModelGraph, layout: Layout) -> Iterator[Finding]:
    where = _name(transfer)
    for end, outside in ((transfer.source, INPUT), (transfer.target, OUTPUT)):
        if end != outside and end not in layout.stages:
            yield error("transfer-end", where, f"there is no {end!r}; write a stage or {outside!r}")
    if transfer.tensor not in graph.tensor:
        yield error(
            "transfer-tensor", where, f"the model has no tensor {transfer.tensor!r} between layers"
        )
    source, target = layout.stages.get(transfer.source), layout.stages.get(transfer.target)
    if source is None and target is None:
        yield error("transfer-end", where, "one end at least must be a stage")
    elif source is target:
        yield error("transfer-useless", where, "a stage needs no transfer to itself; remove it")
    elif source and target and source.pipeline != target.pipeline:
        yield error("transfer-end", where, "pipelines work on different items; none feeds another")


def _size(transfer: Transfer, graph: ModelGraph, layout: Layout) -> Iterator[Finding]:
    tensor, where = graph.tensor[transfer.tensor], _name(transfer)
    if transfer.shape != tensor.shape:
        yield error(
            "transfer-tensor",
            where,
            f"shape {list(transfer.shape)} is stated; the model says {list(tensor.shape)}",
        )
    if transfer.dtype != tensor.dtype:
        yield error(
            "transfer-tensor", where, f"dtype {transfer.dtype}; the model says {tensor.dtype}"
        )
    items, _ = sent_items(transfer, layout)
    expected = tensor.num_bytes(graph.symbols_at(items))
    if transfer.num_bytes != expected:
        yield error(
            "transfer-bytes",
            where,
            f"num_bytes is {transfer.num_bytes}; {items} items take {expected}",
        )


def _name(transfer: Transfer) -> str:
    return f"{transfer.source} -> {transfer.target} {transfer.tensor}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flow:
    """What moves inside one pipeline."""

    where: str
    stages: tuple[StageView, ...]
    home: Mapping[str, str]  # tensor -> stage that computes it, or input
    readers: Mapping[str, frozenset[str]]  # tensor -> stages that read it, and output
    moves: Mapping[str, tuple[Transfer, ...]]  # tensor -> its transfers


def _flow(
    pipeline: int,
    transfers: Sequence[Transfer],
    graph: ModelGraph,
    layout: Layout,
    answers: Sequence[str],
) -> _Flow:
    home = dict.fromkeys(graph.inputs, INPUT)
    readers: dict[str, set[str]] = {name: {OUTPUT} for name in answers}
    for stage in layout.pipelines[pipeline]:
        for i in stage.layers:
            home.update(dict.fromkeys(graph.layers[i].writes, stage.place))
            for name in graph.layers[i].reads:
                readers.setdefault(name, set()).add(stage.place)
    moves: dict[str, list[Transfer]] = {}
    for transfer in transfers:
        moves.setdefault(transfer.tensor, []).append(transfer)
    return _Flow(
        where=f"pipeline{pipeline}",
        stages=layout.pipelines[pipeline],
        home=home,
        readers={name: frozenset(places) for name, places in readers.items()},
        moves={name: tuple(found) for name, found in moves.items()},
    )


def _moved(flow: _Flow, name: str) -> Iterator[Finding]:
    """What is wrong with the way of one tensor."""
    home, moves = flow.home.get(name), flow.moves.get(name, ())
    readers = flow.readers.get(name, frozenset())
    if home is None:  # not of any layer and not an input: nothing sends it, nobody waits for it
        for move in moves:
            yield error("transfer-source", _name(move), "no stage computes this tensor")
        return
    reached = _closure({home}, {(move.source, move.target) for move in moves})
    needed = _closure(set(readers), {(move.target, move.source) for move in moves})
    arrived: dict[str, Transfer] = {}
    for move in moves:
        if home == INPUT and move.source != INPUT:
            yield error("transfer-source", _name(move), "it is a model input: send it from input")
        elif move.source not in reached:
            yield error(
                "transfer-source",
                _name(move),
                f"{move.source} does not have it; it is computed in {home}",
            )
        elif move.target == OUTPUT and move.source != home:
            yield error(
                "transfer-source", _name(move), f"answers go to output from where they are, {home}"
            )
        if move.target == home:
            yield error("transfer-useless", _name(move), f"{home} computes it itself; remove it")
        elif move.target in arrived:
            first = arrived[move.target].source
            yield error(
                "transfer-useless", _name(move), f"it arrives from {first} already; keep one"
            )
        elif move.target not in needed:
            yield error(
                "transfer-useless",
                _name(move),
                f"{move.target} neither reads it nor passes it on to one that does; remove it",
            )
        arrived.setdefault(move.target, move)
    for reader in sorted(readers - reached):
        if (home, reader) != (INPUT, OUTPUT):  # an input that is an answer never leaves the root
            yield error(
                "transfer-missing",
                flow.where if reader == OUTPUT else reader,
                f"{'output' if reader == OUTPUT else 'it'} needs {name} and does not get it: "
                f"add a transfer from {home}",
            )


def _closure(start: Set[str], edges: Set[tuple[str, str]]) -> set[str]:
    """Everything that can be reached from ``start``."""
    after: dict[str, list[str]] = {}
    for source, target in edges:
        after.setdefault(source, []).append(target)
    reached, front = set(start), list(start)
    while front:
        for target in after.get(front.pop(), ()):
            if target not in reached:
                reached.add(target)
                front.append(target)
    return reached


def _circle(flow: _Flow, graph: ModelGraph) -> Iterator[Finding]:
    number = {stage.place: i for i, stage in enumerate(flow.stages)}
    at = {i: number[stage.place] for stage in flow.stages for i in stage.layers}
    after: dict[int, set[int]] = {i: set() for i in range(len(flow.stages))}
    for source, target in layer_edges(graph):
        if at[source] != at[target]:
            after[at[source]].add(at[target])
    for moves in flow.moves.values():
        for move in moves:
            if move.source in number and move.target in number:
                after[number[move.source]].add(number[move.target])
    circle = find_circle(after)
    if circle:
        steps = " -> ".join(str(i) for i in (*circle, circle[0]))
        yield error("cycle", flow.where, f"stages {steps} wait for each other's tensors")
