"""What the ranks of a stage split by tensor compute, exchange and hold, as `check` sees it.

Part of `check`: by ``docs/cost-model.md``, independent of everything that makes plans.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.layout import SliceView, StageView
from planner.prices import Prices
from profiler.graph import Join

WHOLE_UP_TO_BYTES = 32768
"""Terms of a sum up to this size are sent whole to every other rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A join. ``messages`` are wires with the seconds of each message on them; ``pieces`` gives for
    each rank the bytes that it gets at once from each of the others."""

    time_s: float
    messages: tuple[tuple[str, float], ...]
    pieces: tuple[tuple[int, ...], ...]


def exchanges(stage: StageView, part: SliceView, prices: Prices) -> Iterator[Exchange]:
    """The joins of one region that a stage divides."""
    for join in part.region.joins:
        yield _exchange(stage, part, join, prices)


def rank_times(stage: StageView, prices: Prices) -> tuple[tuple[float, ...], float]:
    """Seconds of each rank's own computing of one run, and of the stage's."""
    if not stage.slices:
        own = tuple(
            prices.compute_s(device, stage.layers, share)
            for device, share in zip(stage.devices, stage.shares, strict=True)
        )
        return own, max(own)
    items = stage.items
    shared = {i for part in stage.slices for i in part.layers}
    alone = tuple(i for i in stage.layers if i not in shared)
    rest = []
    for device in stage.devices:
        seconds = prices.layers_s(device, alone, items) + prices.timings(device).dispatch_s
        if prices.uses_prelude(stage.layers):
            seconds += prices.prelude_s(device, items)
        rest.append(seconds)
    total, slowest = list(rest), max(rest)
    for part in stage.slices:
        region = part.region
        slices = [
            prices.layers_s(device, part.layers, items)
            * (1 - divided + divided * units / region.units)
            for device, units in zip(stage.devices, part.units, strict=True)
            for divided in [prices.timings(device).divided(region, items)]
        ]
        slowest += max(slices)
        total = [a + b for a, b in zip(total, slices, strict=True)]
    return tuple(total), slowest


def weight_bytes(stage: StageView, position: int, prices: Prices) -> int:
    """Bytes of weights that a rank holds, state included.

    Of a sliced weight it holds its units, unless the stage also uses it outside of that region.
    """
    graph = prices.graph
    users: dict[str, set[int]] = {}
    for i in stage.layers:
        for name in graph.layers[i].weights:
            users.setdefault(name, set()).add(i)
    held = {name: graph.weight[name].num_bytes for name in users}
    for part in stage.slices:
        inside = set(part.layers)
        for sliced in part.region.weights:
            if users.get(sliced.weight, set()) <= inside and sliced.weight in held:
                whole = graph.weight[sliced.weight].num_bytes
                held[sliced.weight] = whole * part.units[position] // part.region.units
    return sum(held.values())


def _exchange(stage: StageView, part: SliceView, join: Join, prices: Prices) -> Exchange:
    size, width = prices.graph.join_bytes(join, stage.items), len(stage.devices)
    pieces = [size * units // part.region.units for units in part.units]
    sent: list[float] = list(pieces)
    rounds = 1
    if join.how == "sum":
        whole = width == 2 or size <= WHOLE_UP_TO_BYTES
        rounds = 1 if whole else 2
        sent = [float(size) if whole else size / width] * width
        pieces = [size if whole else -(-size // width)] * width
    messages: list[tuple[str, float]] = []
    longest = 0.0
    for a, source in enumerate(stage.devices):
        sending = 0.0
        for target in stage.devices[:a] + stage.devices[a + 1 :]:
            link = prices.link(source, target)
            seconds = link.transfer_time_s(sent[a])
            sending += seconds
            name = f"wire {link.shares}" if link.shares else f"wire {source} -> {target}"
            messages += [(name, seconds)] * rounds
        longest = max(longest, sending)
    return Exchange(
        time_s=rounds * longest,
        messages=tuple(messages),
        pieces=tuple(tuple(pieces[:r] + pieces[r + 1 :]) for r in range(width)),
    )
