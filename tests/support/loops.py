"""Plans run in threads of one process: the real loops of ranks, arithmetic instead of layers.

Messages pass through a board on which a transfer is done once both ends have asked for it, as with
gloo. A loop that waits for what will never come fails after ``PATIENCE_S``.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from executor.footprint import Footprint
from executor.pipeline import RankLoop, RankRecord
from executor.schedule import Message, Schedule
from executor.stage import StageModule
from planner.planfile import Plan
from profiler.graph import Layer, ModelGraph
from profiler.program import StageProgram

PATIENCE_S = 3.0
MODULUS = 997  # keeps every value exact in float32

Pause = Callable[[int], float]
"""Seconds that a rank pretends to compute each piece."""


class Stuck(AssertionError):
    """A transfer that never ended."""


@dataclass(eq=False)
class Waiting:
    """One end of a transfer."""

    message: Message
    tensor: torch.Tensor
    sending: bool
    done: threading.Event = field(default_factory=threading.Event)


class Board:
    """Where senders and receivers meet: per pair of ranks and tag in the order of asking."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sends: dict[tuple[int, int, int], list[Waiting]] = defaultdict(list)
        self.receives: dict[tuple[int, int, int], list[Waiting]] = defaultdict(list)
        self.moved = 0
        self.asked: Counter[int] = Counter()  # receives by rank

    def awaited(self, one: Waiting) -> None:
        """Told of each end before its rank waits for it."""

    def ask(self, one: Waiting) -> Waiting:
        """Put up one end; if the other is there, the tensor moves."""
        key = (one.message.source, one.message.target, one.message.tag)
        with self.lock:
            (self.sends if one.sending else self.receives)[key].append(one)
            self.asked[one.message.target] += not one.sending
            while self.sends[key] and self.receives[key]:
                sent, received = self.sends[key].pop(0), self.receives[key].pop(0)
                assert sent.message == received.message
                assert sent.tensor.shape == received.tensor.shape
                received.tensor.copy_(sent.tensor)
                self.moved += 1
                sent.done.set()
                received.done.set()
        return one


@dataclass
class BoardTransport:
    """What a loop sees of the board."""

    board: Board

    def send(self, tensor: torch.Tensor, message: Message) -> Waiting:
        return self.board.ask(Waiting(message, tensor, sending=True))

    def receive(self, buffer: torch.Tensor, message: Message) -> Waiting:
        return self.board.ask(Waiting(message, buffer, sending=False))

    def finish(self, pending: Waiting) -> torch.Tensor:
        self.board.awaited(pending)
        if not pending.done.wait(PATIENCE_S):
            raise Stuck(f"{pending.message} never ended")
        return pending.tensor


def arithmetic(layer: Layer, values: Mapping[str, torch.Tensor], position: int) -> torch.Tensor:
    """What a layer computes: numbers of each item; of all items if it looks across them."""
    total = torch.full_like(values[layer.reads[0]][:, :1], float(position + 1))
    for k, name in enumerate(layer.reads):
        total = total + (k + 2) * values[name][:, :1]
    if not layer.itemwise:
        total = total + total.sum()
    return total % MODULUS


def undivided(graph: ModelGraph, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs of the whole graph on one batch."""
    values = {"x": x}
    for position, layer in enumerate(graph.layers):
        values[layer.writes[0]] = arithmetic(layer, values, position)
    return {name: values[name] for name in graph.outputs}


def run(
    plan: Plan,
    graph: ModelGraph,
    x: torch.Tensor,
    *,
    repeats: int = 1,
    pause: Pause | None = None,
    board: Board | None = None,
    footprint: Callable[[int], Footprint] | None = None,
) -> tuple[dict[str, torch.Tensor], dict[int, RankRecord], Board]:
    """Run a plan for a graph of :func:`tests.support.builders.make_graph` on inputs ``x``."""
    schedule, board = Schedule(plan, graph), board or Board()
    records: dict[int, RankRecord] = {}
    answers: dict[str, torch.Tensor] = {}
    failures: list[BaseException] = []

    def be(rank: int) -> None:
        try:
            loop = RankLoop(
                schedule,
                rank=rank,
                stage=_stage(schedule, graph, rank, pause),
                transport=BoardTransport(board),  # type: ignore[arg-type]
                footprint=None if footprint is None else footprint(rank),
            )
            inputs = {"x": x} if rank == schedule.root else None
            records[rank], outputs = loop.run(len(x), symbols={}, inputs=inputs, repeats=repeats)
            answers.update(outputs)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=be, args=(b.rank,), daemon=True) for b in plan.spec.ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * PATIENCE_S)
    if failures:
        raise failures[0]
    left = [w for asked in (board.sends, board.receives) for ws in asked.values() for w in ws]
    assert not left, f"asked for and never met: {left}"
    return answers, records, board


def _stage(
    schedule: Schedule, graph: ModelGraph, rank: int, pause: Pause | None
) -> StageModule | None:
    role = schedule.role(rank)
    if role is None:
        return None
    layers = [(i, x) for i, x in enumerate(graph.layers) if x.name in role.layers]
    written = {name for _, layer in layers for name in layer.writes}
    inputs = dict.fromkeys(n for _, layer in layers for n in layer.reads if n not in written)
    wanted = {n for x in graph.layers if x.name not in role.layers for n in x.reads}
    outputs = [name for name in written if name in wanted or name in graph.outputs]

    # A stage that pauses has its inputs first, one that does not asks for each where it reads it.
    awaited = frozenset(inputs if pause is None else ())

    def compute(*given: Any) -> tuple[torch.Tensor, ...]:
        if pause is not None:
            time.sleep(pause(rank))
        coming = dict(zip(inputs, given, strict=True))
        values: dict[str, torch.Tensor] = {}
        for position, layer in layers:
            for name in layer.reads:
                if name in coming:
                    one = coming.pop(name)
                    values[name] = one.wait() if name in awaited else one
            values[layer.writes[0]] = arithmetic(layer, values, position)
        return tuple(values[name] for name in outputs)

    program = StageProgram(
        inputs=tuple(inputs), sizes=(), weights=(), nodes=(), outputs=tuple(outputs), graphs={}
    )
    return StageModule(
        role=role,
        program=program,
        module=compute,  # type: ignore[arg-type]
        device=torch.device("cpu"),
        awaited=awaited,
    )
