"""Measuring between pairs of hosts as one of the ranks, in the rounds of a tournament.

Each direction of a pair on its own: the line of its times (:mod:`profiler.linkprobe`), then what it
takes from computing at each end (:mod:`profiler.occupancy`). Several links at once, to find what
they share.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from profiler.cluster import Host, Link
from profiler.environment import first_line
from profiler.errors import RankFailedError
from profiler.linkfit import LinkFit
from profiler.linkprobe import Wire, answer_probe, send_probe
from profiler.occupancy import (
    Flow,
    Stream,
    cuda_piece,
    flow_through,
    measure_occupancy,
    processor_piece,
    serve_occupancy,
)
from profiler.rounds import Pair
from profiler.wires import LinkKey, SharedWires, find_shared
from profiler.world import World

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction done."""

TOGETHER_S = 0.3
"""Seconds of one stream when several links are tried at once."""
MEASURED_TOO_LOW = 1.1
"""A link that alone gets this many times more through than its line says was measured while the
others of its wire were: it is measured again."""


def _no_progress(_what: str, _fraction: float) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """How links are measured.

    ``budget_s`` is for the line of one direction, and bounds what else is measured of it.
    ``sample``: of the links between hosts of equal kinds so many pairs are measured and stand for
    the rest; None measures all. ``at_once``: pairs that measure at the same time at most; None as
    many as there are. ``find_wires``: look for links that share a wire.
    """

    budget_s: float = 1.5
    sample: int | None = None
    at_once: int | None = None
    find_wires: bool = False
    progress: Progress = _no_progress


class Pairs:
    """Measuring between hosts, as one of the ranks.

    ``disturbed``: pairs of a round that took from each other.
    """

    def __init__(
        self,
        world: World,
        group: dist.ProcessGroup | None,
        hosts: Sequence[Host],
        options: LinkOptions,
    ) -> None:
        self.world = world
        self.group = group
        self.hosts = hosts
        self.options = options
        self.disturbed: list[Sequence[Pair]] = []
        device = hosts[world.rank].devices[0]
        self._threads = device.threads
        self._piece = (
            cuda_piece(torch.device(device.name)) if device.kind == "cuda" else processor_piece()
        )

    def measure(
        self, rounds: Sequence[Sequence[Pair]], what: str, *, check: bool = False
    ) -> list[Link]:
        """Links of both directions of all pairs; known to every rank.

        With ``check``, one link of each round is tried alone as well. If that is faster, the pairs
        of the round share a wire somewhere, and are measured again one after the other.
        """
        found: dict[LinkKey, dict[str, float]] = {}
        waiting = deque(rounds)
        for number in itertools.count():
            if not waiting:
                break
            pairs = waiting.popleft()
            total = number + 1 + len(waiting)
            shown = ", ".join(
                f"{self.world.hosts[a]} - {self.world.hosts[b]}" for a, b in pairs[:2]
            )
            more = f" and {len(pairs) - 2} more" if len(pairs) > 2 else ""
            self.options.progress(f"{what}: {shown}{more}", number / total)
            own = next((pair for pair in pairs if self.world.rank in pair), None)
            figures = [] if own is None else self._pair(own)
            step = f"round {number + 1} of {total} of {what}"
            gathered = self.world.gather(step, figures)
            for source, target, data in self.world.broadcast(step, _flat(gathered)):
                found.setdefault((source, target), {}).update(data)
            if check and len(pairs) > 1 and self._faster_alone(pairs[0], found[pairs[0]]):
                self.disturbed.append(pairs)
                waiting.extend([pair] for pair in pairs)
        if rounds:
            self.options.progress(what, 1.0)
        names = self.world.hosts
        return [_link(names[a], names[b], data) for (a, b), data in sorted(found.items())]

    def _faster_alone(self, link: LinkKey, figures: Mapping[str, float]) -> bool:
        """Whether a link gets more through now that no other is measured; the same on all ranks."""
        stream = Stream.for_link(_fit(figures), seconds=TOGETHER_S)
        rates = self._together([link], {link: stream})
        fast = bool(rates) and rates[link] > MEASURED_TOO_LOW * figures["bytes_per_s"]
        return bool(self.world.broadcast("one link alone", [fast])[0])

    def _pair(self, pair: Pair) -> list[tuple[int, int, dict[str, float]]]:
        """This end's figures of both directions."""
        a, b = pair
        found: list[tuple[int, int, dict[str, float]]] = []
        for source, target in ((a, b), (b, a)):
            names = f"{self.world.hosts[source]} -> {self.world.hosts[target]}"
            line = self.wire(source, target, f"measuring the link {names}")
            load = self.wire(
                source, target, f"measuring what the link {names} takes from computing"
            )
            if self.world.rank == source:
                fit = send_probe(line, budget_s=self.options.budget_s)
                occupancy = self._occupancy(load, Flow.OUT, fit)
                serve_occupancy(load, Flow.OUT, fit)
                found.append((source, target, {**asdict(fit), "send_occupancy": occupancy}))
            else:
                fit = answer_probe(line)
                serve_occupancy(load, Flow.IN, fit)
                occupancy = self._occupancy(load, Flow.IN, fit)
                found.append((source, target, {"receive_occupancy": occupancy}))
        return found

    def _occupancy(self, wire: Wire, flow: Flow, fit: LinkFit) -> float:
        return measure_occupancy(
            wire,
            flow,
            fit,
            piece=self._piece,
            threads=self._threads,
            budget_s=self.options.budget_s,
        )

    def wire(self, source: int, target: int, step: str) -> Wire:
        """Messages with the other end of a link that this rank is an end of."""
        world = self.world
        peer = target if world.rank == source else source
        return Wire(
            group=self.group,
            peer=peer,
            own=world.describe(world.rank),
            other=world.describe(peer),
            step=step,
            timeout_s=world.timeout_s,
        )

    # --- several links at once ------------------------------------------------------------------

    def lead_trials(self, streams: Mapping[LinkKey, Stream]) -> SharedWires:
        """On rank 0: find shared wires, the other ranks following."""

        def run(keys: Sequence[LinkKey]) -> Mapping[LinkKey, float]:
            self.world.broadcast("links at once", [list(key) for key in keys])
            return self._together(keys, streams)

        def tell(done: float) -> None:
            self.options.progress("looking for shared wires", done)

        found = find_shared(self.world.size, run, tell=tell)
        self.world.broadcast("links at once", [])
        return found

    def streams(self, links: Sequence[Link]) -> dict[LinkKey, Stream]:
        """What is sent over each link when several are tried at once."""
        ranks = {name: rank for rank, name in enumerate(self.world.hosts)}
        return {
            (ranks[link.source], ranks[link.target]): Stream.for_link(
                _fit({"latency_s": link.latency_s, "bytes_per_s": link.bytes_per_s}),
                seconds=TOGETHER_S,
            )
            for link in links
        }

    def follow_trials(self, streams: Mapping[LinkKey, Stream]) -> None:
        """On the other ranks: send and receive as rank 0 asks."""
        while keys := self.world.broadcast("links at once"):
            self._together([(source, target) for source, target in keys], streams)

    def _together(
        self, keys: Sequence[LinkKey], streams: Mapping[LinkKey, Stream]
    ) -> Mapping[LinkKey, float]:
        """Bytes per second of each link, on rank 0; timed at each target."""
        own = [key for key in keys if self.world.rank in key]
        rates: dict[LinkKey, float] = {}
        failures: list[BaseException] = []

        def flow(key: LinkKey) -> None:
            stream, (source, target) = streams[key], key
            names = f"{self.world.hosts[source]} -> {self.world.hosts[target]}"
            way = Flow.OUT if self.world.rank == source else Flow.IN
            try:
                wire = self.wire(*key, f"sending over {names} and other links at once")
                flow_through(wire, way, stream)
            except BaseException as error:
                failures.append(error)
            else:
                if way is Flow.IN:
                    num_bytes = stream.num_messages * stream.num_bytes
                    rates[key] = num_bytes / (time.perf_counter() - begun)

        threads = [threading.Thread(target=flow, args=(key,), daemon=True) for key in own]
        self._line_up()
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        told = [[*key, rate] for key, rate in rates.items()]
        gathered = self.world.gather("links at once", told)
        return {(int(a), int(b)): rate for a, b, rate in _flat(gathered)}

    def _line_up(self) -> None:
        try:
            dist.barrier(group=self.group)
        except (RuntimeError, dist.DistError) as error:
            world = self.world
            raise RankFailedError(
                f"{world.describe(world.rank)} waited in vain for all hosts to send at once "
                f"({', '.join(world.hosts)}): {first_line(error)}"
            ) from error


def _fit(figures: Mapping[str, float]) -> LinkFit:
    """A line to derive a stream from."""
    return LinkFit(
        latency_s=figures["latency_s"],
        bytes_per_s=figures["bytes_per_s"],
        error_fraction=0.0,
        samples=0,
    )


def _link(source: str, target: str, figures: Mapping[str, float]) -> Link:
    """A link with as many digits as were measured."""
    return Link(
        source=source,
        target=target,
        latency_s=_digits(figures["latency_s"]),
        bytes_per_s=_digits(figures["bytes_per_s"]),
        send_occupancy=round(figures["send_occupancy"], 3),
        receive_occupancy=round(figures["receive_occupancy"], 3),
        error_fraction=round(figures["error_fraction"], 4),
    )


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def _flat(parts: Sequence[Sequence[Any]] | None) -> list[Any]:
    return [one for part in parts or () for one in part]
