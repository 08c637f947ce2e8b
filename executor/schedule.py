"""Who computes which items, and which messages that takes: the plan worked out for a run.

Everything follows from intervals of items. A batch is cut into one run of items per pipeline, a
pipeline's items into microbatches, a microbatch into one run of items per rank of a stage. A stage
that needs whole batches has one piece per batch. Wherever the intervals of a sender and a receiver
overlap, that part of the tensor is sent: this one rule scatters inputs, passes tensors between
stages that are cut differently, and gathers answers in item order. Both ends compute the same
list, so messages need no headers. The ranks of a stage that is split by tensor all compute all
items: each receives what comes in, and the first sends what leaves.

Pure: knows nothing of torch or of processes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from planner.planfile import INPUT, OUTPUT, Plan, Stage, Transfer, place
from planner.selection import expand
from profiler.errors import InvalidInputError
from profiler.graph import ModelGraph

Interval = tuple[int, int]
"""Items from the first up to but not including the second."""

JOINED = "join of "
"""What the names of messages begin with that ranks of one stage send each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A tensor, or the part of it for ``items``, from one rank to another.

    ``items`` is None for a tensor that all items share. ``source_piece`` and ``target_piece`` are
    positions in the two ranks' lists of pieces of this step (-1: the root's own store).
    """

    tag: int
    tensor: str
    source: int
    target: int
    source_piece: int
    target_piece: int
    items: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One computation of one rank: its stage on ``items``."""

    stage: str
    items: Interval
    receives: tuple[Message, ...]
    sends: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What one rank does in one step.

    ``feeds`` (inputs to send) and ``collects`` (answers to receive) are empty except on the root.
    ``feeds`` and ``collects`` from the root to itself are listed too.
    """

    items: Interval
    pieces: tuple[Piece, ...]
    feeds: tuple[Message, ...]
    collects: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRole:
    """What a rank must be able to run: a stage's layers, and the tensors it takes and gives."""

    place: str
    layers: tuple[str, ...]
    receives: tuple[str, ...]
    sends: tuple[str, ...]
    whole_batch: bool


def split_items(total: int, shares: Sequence[int]) -> tuple[int, ...]:
    """``total`` items in proportion to ``shares``, whole, by largest remainder (ties: first).

    >>> split_items(8, (5, 3)), split_items(3, (5, 3)), split_items(1, (1, 1))
    ((5, 3), (2, 1), (1, 0))
    """
    whole = sum(shares)
    if whole <= 0:
        raise InvalidInputError(f"shares {tuple(shares)} do not add up to a positive number")
    exact = [total * share / whole for share in shares]
    given = [total * share // whole for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (given[i] - exact[i], i))
    for i in by_remainder[: total - sum(given)]:
        given[i] += 1
    return tuple(given)


class Schedule:
    """A plan's pieces and messages, step by step."""

    def __init__(self, plan: Plan, graph: ModelGraph) -> None:
        self.plan = plan
        self.graph = graph
        self.batch_size = plan.inputs.request.batch_size
        self.microbatch_size = plan.spec.schedule.microbatch_size
        self.root = plan.spec.aggregation.root_rank
        self.stages: dict[str, Stage] = {
            place(pipeline.index, stage.index): stage
            for pipeline in plan.spec.pipelines
            for stage in pipeline.stages
        }
        self.stage_of: dict[int, str] = {
            rank: where for where, stage in self.stages.items() for rank in stage.ranks
        }
        self.outgoing: dict[str, list[tuple[int, Transfer]]] = defaultdict(list)
        for tag, transfer in enumerate(plan.spec.transfers):
            self.outgoing[transfer.source].append((tag, transfer))
        self._templates: dict[int, dict[int, StepWork]] = {}

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Tensors that are sent to the output, in the order of the plan's transfers."""
        sent = (t.tensor for t in self.plan.spec.transfers if t.target == OUTPUT)
        return tuple(dict.fromkeys(sent))

    def in_parts(self, tensor: str) -> bool:
        """Whether ranks that hold different items each have a part of it, not all of it."""
        if self.graph.tensor[tensor].batch_dim is not None:
            return True
        # The plan says so, not the graph: what an output is over its items is measured, and the
        # graph here comes straight from capture.
        wanted = self.plan.spec.aggregation
        return tensor in self.outputs and wanted.over_items(tensor).strategy != "concat"

    @cached_property
    def whole_batches(self) -> bool:
        """Whether some stage must see a whole batch at once."""
        return any(stage.whole_batch for stage in self.stages.values())

    @cached_property
    def steps_ahead(self) -> int:
        """How many steps ahead the root feeds and collects, so that no stage lacks a piece.

        As many as give the longest pipeline a piece for every stage and one on its way to each end.
        """
        needed = 1
        for pipeline in self.plan.spec.pipelines:
            pieces = 1
            if not any(stage.whole_batch for stage in pipeline.stages):
                pieces = -(-pipeline.items // self.microbatch_size)
            needed = max(needed, -(-(len(pipeline.stages) + 2) // max(1, pieces)))
        return needed

    def role(self, rank: int) -> StageRole | None:
        """What a rank runs; None for a rank that only feeds and gathers."""
        where = self.stage_of.get(rank)
        if where is None:
            return None
        transfers = self.plan.spec.transfers
        names = [layer.name for layer in self.graph.layers]
        return StageRole(
            place=where,
            layers=expand(self.stages[where].layers, names),
            receives=tuple(dict.fromkeys(t.tensor for t in transfers if t.target == where)),
            sends=tuple(dict.fromkeys(t.tensor for t in transfers if t.source == where)),
            whole_batch=self.stages[where].whole_batch,
        )

    def answers(self, rank: int) -> bool:
        """Whether a rank sends what its stage computes: of a tensor split only the first does."""
        stage = self.stages[self.stage_of[rank]]
        return stage.split != "tensor" or rank == stage.ranks[0]

    def steps(self, num_items: int) -> Iterator[Interval]:
        """The batches of a run, in order; the last may be short.

        Raises:
            InvalidInputError: no items, or more than one batch for a model that compares items.
        """
        if num_items < 1:
            raise InvalidInputError("there are no items to run: the batch is empty")
        if self.whole_batches and num_items > self.batch_size:
            raise InvalidInputError(
                f"{num_items} items were given, the plan's batch is {self.batch_size}, and this "
                "model looks across the items of a batch: run one batch at a time, or plan for "
                f"batch_size {num_items}"
            )
        static = self.graph.static_batch
        if static is not None and num_items % static:
            raise InvalidInputError(
                f"{num_items} items were given; the model was captured for batches of exactly "
                f"{static}: give a multiple of {static}"
            )
        self._require_equal_parts(num_items)
        for start in range(0, num_items, self.batch_size):
            yield start, min(start + self.batch_size, num_items)

    def _require_equal_parts(self, num_items: int) -> None:
        """A plain mean over items is right for equal shares only: those of whole batches."""
        plain = [
            own.tensor
            for own in self.plan.spec.aggregation.outputs or ()
            if own.strategy == "mean" and num_items % self.batch_size
        ]
        if plain:
            raise InvalidInputError(
                f"{num_items} items were given, the plan's batch is {self.batch_size}: the last "
                f"batch would be cut into unequal shares, of which output {plain[0]} is not the "
                "plain mean. Give a multiple of the batch, or use weighted_mean"
            )

    def step(self, rank: int, items: Interval) -> StepWork:
        """The work of one rank in the step that holds these items."""
        length = items[1] - items[0]
        if length not in self._templates:
            self._templates[length] = _work(self, length)
        return _shift(self._templates[length][rank], items[0])


def _work(schedule: Schedule, length: int) -> dict[int, StepWork]:
    """The work of every rank in a step of ``length`` items that starts at item 0."""
    intervals = _intervals(schedule, length)
    sends: dict[tuple[int, int], list[Message]] = defaultdict(list)
    receives: dict[tuple[int, int], list[Message]] = defaultdict(list)
    feeds: list[Message] = []
    collects: list[Message] = []
    for tag, transfer in enumerate(schedule.plan.spec.transfers):
        for message in _messages(schedule, intervals, tag, transfer, length):
            if transfer.source == INPUT:
                feeds.append(message)
            else:
                sends[message.source, message.source_piece].append(message)
            if transfer.target == OUTPUT:
                collects.append(message)
            else:
                receives[message.target, message.target_piece].append(message)
    feeds.sort(key=lambda m: (m.target_piece, m.tag))
    collects.sort(key=lambda m: (m.items or (0, 0), m.tag))
    work = {}
    for rank in [binding.rank for binding in schedule.plan.spec.ranks]:
        where = schedule.stage_of.get(rank)
        pieces = tuple(
            Piece(
                stage=where,
                items=items,
                receives=tuple(receives[rank, index]),
                sends=tuple(sends[rank, index]),
            )
            for index, items in enumerate(intervals.get(rank, ()))
            if where is not None
        )
        is_root = rank == schedule.root
        work[rank] = StepWork(
            items=(0, length),
            pieces=pieces,
            feeds=tuple(feeds) if is_root else (),
            collects=tuple(collects) if is_root else (),
        )
    return work


def _intervals(schedule: Schedule, length: int) -> dict[int, list[Interval]]:
    """For each rank, the items of each of its pieces; pieces without items are left out."""
    found: dict[int, list[Interval]] = defaultdict(list)
    start = 0
    pipelines = schedule.plan.spec.pipelines
    counts = split_items(length, [p.items for p in pipelines])
    for pipeline, count in zip(pipelines, counts, strict=True):
        for stage in pipeline.stages:
            size = count if stage.whole_batch else schedule.microbatch_size
            for low in range(start, start + count, max(size, 1)):
                here = min(size, start + count - low)
                offset = low
                if stage.split == "tensor":
                    for rank in stage.ranks if here else ():
                        found[rank].append((low, low + here))
                    continue
                for rank, share in zip(stage.ranks, split_items(here, stage.shares), strict=True):
                    if share:
                        found[rank].append((offset, offset + share))
                    offset += share
        start += count
    return found


def _messages(
    schedule: Schedule,
    intervals: Mapping[int, Sequence[Interval]],
    tag: int,
    transfer: Transfer,
    length: int,
) -> Iterator[Message]:
    root = schedule.root
    sources: list[tuple[int, int, Interval]]
    targets: list[tuple[int, int, Interval]]
    if transfer.source == INPUT:
        sources = [(root, -1, (0, length))]
    else:
        sources = _pieces(schedule, intervals, transfer.source, sending=True)
    if transfer.target == OUTPUT:
        targets = [(root, -1, (0, length))]
    else:
        targets = _pieces(schedule, intervals, transfer.target)
    shared = not schedule.in_parts(transfer.tensor)
    first = 0
    for target, target_piece, (low, high) in targets:
        # Both lists ascend: what ended before this target began cannot meet a later one.
        while first < len(sources) and sources[first][2][1] <= low:
            first += 1
        for source, source_piece, (start, stop) in sources[first:]:
            if start >= high:
                break
            both = (max(start, low), min(stop, high))
            yield Message(
                tag=tag,
                tensor=transfer.tensor,
                source=source,
                target=target,
                source_piece=source_piece,
                target_piece=target_piece,
                items=None if shared else both,
            )
            if shared:
                break


def _pieces(
    schedule: Schedule,
    intervals: Mapping[int, Sequence[Interval]],
    where: str,
    *,
    sending: bool = False,
) -> list[tuple[int, int, Interval]]:
    found = [
        (rank, index, items)
        for rank in schedule.stages[where].ranks
        if schedule.answers(rank) or not sending
        for index, items in enumerate(intervals.get(rank, ()))
    ]
    return sorted(found, key=lambda piece: piece[2])


def _shift(work: StepWork, by: int) -> StepWork:
    if by == 0:
        return work

    def moved(items: Interval) -> Interval:
        return items[0] + by, items[1] + by

    def sent(messages: tuple[Message, ...]) -> tuple[Message, ...]:
        return tuple(
            Message(
                tag=m.tag,
                tensor=m.tensor,
                source=m.source,
                target=m.target,
                source_piece=m.source_piece,
                target_piece=m.target_piece,
                items=m.items and moved(m.items),
            )
            for m in messages
        )

    return StepWork(
        items=moved(work.items),
        pieces=tuple(
            Piece(
                stage=p.stage,
                items=moved(p.items),
                receives=sent(p.receives),
                sends=sent(p.sends),
            )
            for p in work.pieces
        ),
        feeds=sent(work.feeds),
        collects=sent(work.collects),
    )
