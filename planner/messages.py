"""What the transfers of a plan send: message by message, from rank to rank, with bytes and seconds.

Part of `check`: by ``docs/cost-model.md``, independent of everything that makes plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from planner.aggregation import answer_names
from planner.check_transfers import sent_items
from planner.layout import Layout, StageView
from planner.planfile import Plan, Transfer
from planner.prices import Prices
from planner.request import Destination


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One tensor's piece from one rank to another, by their positions in their stages (outside: 0).

    ``send_s`` and ``receive_s`` are the parts of ``time_s`` during which its source and its target
    cannot compute. ``wire`` is what it travels on, ``None`` if it stays on its device.
    """

    source: int
    target: int
    time_s: float
    send_s: float
    receive_s: float
    wire: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A transfer with its messages, which are sent ``count`` times a batch."""

    transfer: Transfer
    count: int
    messages: tuple[Message, ...]


@dataclass(slots=True, kw_only=True)
class Occupied:
    """Seconds that messages keep a rank from computing during one run of its stage, or those of the
    model's inputs and outputs the root in a batch."""

    receive_s: float = 0.0
    send_s: float = 0.0


def moves(transfers: Iterable[Transfer], layout: Layout, prices: Prices) -> Iterator[Move]:
    """Every transfer with the messages that it takes."""
    for transfer in transfers:
        items, count = sent_items(transfer, layout)
        target = layout.stages.get(transfer.target)
        sources = _holders(layout.stages.get(transfer.source), items, layout.root)
        targets = _holders(target, items, layout.root)
        if target and target.slices:  # each rank gets all items, from whoever has them
            targets = tuple(_Holder(device, items) for device in target.devices)
        if not prices.graph.tensor[transfer.tensor].in_parts:
            pairs: Iterable[tuple[int, int, int]] = ((0, b, items) for b in range(len(targets)))
        elif target and target.slices:
            parts = list(_overlaps([x.stop for x in sources], [items]))
            pairs = [(a, b, n) for b in range(len(targets)) for a, _, n in parts]
        else:
            pairs = _overlaps([x.stop for x in sources], [x.stop for x in targets])
        yield Move(
            transfer=transfer,
            count=count,
            messages=tuple(
                _message(
                    (a, sources[a].device),
                    (b, targets[b].device),
                    prices.size(transfer.tensor, length),
                    prices,
                )
                for a, b, length in pairs
            ),
        )


def occupied(found: Iterable[Move], layout: Layout) -> dict[str, tuple[Occupied, ...]]:
    """What receiving and sending costs each rank of each stage; by place, in rank order."""
    total = {
        place: tuple(Occupied() for _ in stage.ranks) for place, stage in layout.stages.items()
    }
    for move in found:
        source = layout.stages.get(move.transfer.source)
        target = layout.stages.get(move.transfer.target)
        for message in move.messages:
            if target:
                times = move.count // target.runs
                total[target.place][message.target].receive_s += times * message.receive_s
            if source:
                times = move.count // source.runs
                total[source.place][message.source].send_s += times * message.send_s
    return total


def root_occupied(
    transfers: Sequence[Transfer], layout: Layout, prices: Prices
) -> Iterator[tuple[str, int, Occupied]]:
    """What feeding and collecting takes a batch from each stage on the root: its place, the rank's
    position, and the seconds, every item of a tensor counted once at the root's least cost."""
    items, graph = layout.microbatch_size, prices.graph
    others = [name for name in prices.cluster.device if name != layout.root]
    fed_s: dict[str, float] = {}
    collected_s: dict[str, float] = {}
    for transfer in transfers:
        if transfer.source not in layout.stages and transfer.tensor not in fed_s:
            size = prices.size(transfer.tensor, items)
            ways = [_message((0, layout.root), (0, x), size, prices).send_s for x in others]
            fed_s[transfer.tensor] = min(ways, default=0.0)
        if transfer.target not in layout.stages and transfer.tensor not in collected_s:
            size = prices.size(transfer.tensor, items)
            ways = [_message((0, x), (0, layout.root), size, prices).receive_s for x in others]
            collected_s[transfer.tensor] = min(ways, default=0.0)
    total = sum(layout.runs(p) for p in range(len(layout.pipelines)))
    for stage in layout.stages.values():
        if layout.root not in stage.devices:
            continue
        position, k = stage.devices.index(layout.root), layout.runs(stage.pipeline)
        whole = [1.0] * len(stage.devices)
        parts = whole if stage.slices else [x / sum(stage.shares) for x in stage.shares]
        taken = Occupied()
        for name, seconds in fed_s.items():
            held = parts if graph.tensor[name].in_parts else whole
            readers = set(graph.readers[name])
            copies = sum(held) - held[position] if readers & set(stage.layers) else 0.0
            copies += bool(readers - set(stage.layers))
            taken.send_s += seconds * (k * copies + total - k)
        for name, seconds in collected_s.items():
            producer = graph.tensor[name].producer
            assert producer is not None
            copies = 1.0
            if graph.layer_index[producer] in stage.layers:
                by_all = graph.tensor[name].in_parts and not stage.slices
                copies = 1.0 - parts[position] if by_all else float(position > 0)
            taken.receive_s += seconds * (k * copies + total - k)
        yield stage.place, position, taken


def answer_messages(
    plan: Plan, layout: Layout, prices: Prices
) -> Iterator[tuple[str, int, Message]]:
    """What the root sends once a batch if every rank is to have the answer: to which stage and
    position, as one message for all tensors."""
    if plan.spec.aggregation.destination is not Destination.ALL:
        return
    names = answer_names(prices.graph, plan.inputs.request)
    for stage in layout.stages.values():
        for position, device in enumerate(stage.devices):
            parts = [
                _message(
                    (0, layout.root), (position, device), prices.size(x, layout.batch_size), prices
                )
                for x in names
            ]
            if device != layout.root and parts:
                yield (
                    stage.place,
                    position,
                    replace(
                        parts[0],
                        time_s=sum(part.time_s for part in parts),
                        send_s=sum(part.send_s for part in parts),
                        receive_s=sum(part.receive_s for part in parts),
                    ),
                )


@dataclass(frozen=True, slots=True)
class _Holder:
    """A rank that holds the items up to ``stop``, from where the one before it ends."""

    device: str
    stop: int


def _holders(stage: StageView | None, items: int, root: str) -> Sequence[_Holder]:
    if stage is None:
        return (_Holder(root, items),)
    if stage.items != items:  # a whole-batch stage beside a microbatched one: one rank, all of it
        return (_Holder(stage.devices[0], items),)
    if stage.slices:
        return (_Holder(stage.devices[0], items),)
    return tuple(map(_Holder, stage.devices, accumulate(stage.shares)))


def _overlaps(first: Sequence[int], second: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Positions and common length of the runs that two ways of cutting the same items share.

    >>> list(_overlaps([2, 4], [3, 4]))
    [(0, 0, 2), (1, 0, 1), (1, 1, 1)]
    """
    a = b = done = 0
    while a < len(first) and b < len(second):
        stop = min(first[a], second[b])
        if stop > done:
            yield a, b, stop - done
        done = stop
        a, b = a + (first[a] == stop), b + (second[b] == stop)


def _message(
    source: tuple[int, str], target: tuple[int, str], num_bytes: int, prices: Prices
) -> Message:
    wire, time_s, send_s, receive_s = None, 0.0, 0.0, 0.0
    if source[1] != target[1]:
        link = prices.link(source[1], target[1])
        wire = f"wire {link.shares}" if link.shares else f"wire {source[1]} -> {target[1]}"
        time_s = link.transfer_time_s(num_bytes)
        send_s = link.send_occupancy * time_s
        receive_s = link.receive_occupancy * time_s
    return Message(
        source=source[0],
        target=target[0],
        time_s=time_s,
        send_s=send_s,
        receive_s=receive_s,
        wire=wire,
    )
