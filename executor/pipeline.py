"""The loop of one rank: receive ahead, compute, send on, without waiting where it need not.

While a piece is computed, the next ones are being received and the last ones sent: transfers run in
the transport's own threads. The root rank also feeds the inputs and collects the answers; both are
started so many steps ahead that every stage can have a piece, so its own computing holds nobody up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from executor.aggregation import Aggregator, choose_aggregator
from executor.schedule import Interval, Message, Piece, Schedule, StageRole, StepWork
from executor.transport import Pending, Transport
from profiler.errors import RankFailedError
from profiler.expressions import BATCH, evaluate
from profiler.graph import Tensor
from profiler.program import StageProgram

Recorder = Callable[[str, Interval | None, torch.Tensor], None]
"""Called with every tensor that a stage computes for others: name, items, value."""


ALIGNMENT_BYTES = 64
"""Where torch's own allocations begin."""


@dataclass
class RankRecord:
    """What a rank measured: seconds of each of its pieces, and when each step ended.

    A piece's time is ``waited_s`` for its inputs, ``held_s`` until earlier results had left, and
    ``busy_s``; most of that is running its stage (``computed_s``). ``sent_s`` is the processor's
    time for handing on results, ``dispatched_s`` that for all else that the loop does: a clock
    would also count the time in which other processes have the processor.
    """

    items: list[int] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)
    computed_s: list[float] = field(default_factory=list)
    sent_s: list[float] = field(default_factory=list)
    held_s: list[float] = field(default_factory=list)
    dispatched_s: list[float] = field(default_factory=list)
    step_ends_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StageModule:
    """A stage ready to run on this rank; ``changes`` are inputs it may modify in place."""

    role: StageRole
    program: StageProgram
    module: nn.Module
    device: torch.device
    changes: frozenset[str] = frozenset()


@dataclass
class _Arriving:
    """A piece whose inputs are on their way."""

    piece: Piece
    parts: dict[str, list[Pending | Message]]


class RankLoop:
    """Runs one rank's part of a plan."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        rank: int,
        stage: StageModule | None,
        transport: Transport,
    ) -> None:
        self.schedule = schedule
        self.rank = rank
        self.stage = stage
        self.transport = transport
        self.depth = schedule.plan.spec.schedule.depth
        self.tensors: Mapping[str, Tensor] = schedule.graph.tensor

    def run(
        self,
        num_items: int,
        *,
        symbols: Mapping[str, int],
        inputs: Mapping[str, torch.Tensor] | None = None,
        repeats: int = 1,
        recorder: Recorder | None = None,
    ) -> tuple[RankRecord, dict[str, torch.Tensor]]:
        """Run ``num_items`` items (``repeats`` times over) and return what was measured.

        ``inputs`` are the model's inputs, on the root rank only; so are the returned outputs.

        Raises:
            RankFailedError: a transfer or an operator failed; the message says which.
        """
        run = _Run(self, num_items, symbols, inputs, recorder)
        steps = [items for _ in range(repeats) for items in self.schedule.steps(num_items)]
        start = time.perf_counter()
        run.through(steps)
        run.record.wall_s = time.perf_counter() - start
        return run.record, run.answers()


class _Run:
    """The state of one :meth:`RankLoop.run`."""

    def __init__(
        self,
        loop: RankLoop,
        num_items: int,
        symbols: Mapping[str, int],
        inputs: Mapping[str, torch.Tensor] | None,
        recorder: Recorder | None,
    ) -> None:
        self.loop = loop
        self.schedule = loop.schedule
        self.transport = loop.transport
        # A tensor of the whole batch has the run's items in its shape: such runs have one step.
        self.symbols = {**loop.schedule.graph.symbols, **symbols, BATCH: num_items}
        self.inputs = inputs or {}
        self._shapes: dict[tuple[str, int], tuple[int, ...]] = {}
        self._sizes: dict[int, list[int]] = {}
        self._rows_of: dict[str, int] = {}
        self.recorder = recorder
        self.record = RankRecord()
        self.sinks = self._sinks(num_items) if loop.rank == self.schedule.root else {}
        # Under way, oldest first: answers and inputs by step, what pieces send on by piece. Kept
        # apart because they end at different times: waiting for a next step's inputs to leave
        # while this step's results are still owed would wait forever.
        self.collecting: deque[list[Pending]] = deque()
        self.feeding: deque[list[Pending]] = deque()
        self.sending: deque[list[Pending]] = deque()
        self._blocked_s = 0.0

    def _sinks(self, num_items: int) -> dict[str, Aggregator]:
        chosen = choose_aggregator(self.schedule.plan.spec.aggregation.strategy)
        sinks = {}
        for transfer in self.schedule.plan.spec.transfers:
            if transfer.target == "output":
                tensor = self.loop.tensors[transfer.tensor]
                sinks[transfer.tensor] = chosen(
                    shape=self._shape(tensor, num_items),
                    dtype=getattr(torch, tensor.dtype),
                    batch_dim=tensor.batch_dim,
                    rows=self._rows(tensor),
                )
        return sinks

    def answers(self) -> dict[str, torch.Tensor]:
        """The outputs gathered on the root."""
        return {name: sink.result() for name, sink in self.sinks.items()}

    def through(self, steps: list[Interval]) -> None:
        """All steps, with receives started ``depth`` pieces ahead across their borders."""
        work = [self.schedule.step(self.loop.rank, items) for items in steps]
        ahead = self._arrivals(work)
        waiting: deque[_Arriving] = deque()
        steps_ahead = self.schedule.steps_ahead
        for index in range(steps_ahead):
            self._serve(work, index)
        for index, step in enumerate(work):
            self._serve(work, index + steps_ahead)
            for _ in step.pieces:
                begun = time.perf_counter(), time.thread_time()
                while len(waiting) < self.loop.depth and (arriving := next(ahead, None)):
                    waiting.append(arriving)
                self._piece(waiting.popleft(), begun)
            self.record.step_ends_s.append(time.perf_counter())
            # As many may be under way behind this step as ahead of it, and no more.
            self._settle(at_most=2 * steps_ahead)
        self._settle(at_most=0)
        self._finish(self.sending, at_most=0)

    def _settle(self, *, at_most: int) -> None:
        """Wait until inputs and answers of no more than ``at_most`` steps are under way."""
        self._finish(self.feeding, at_most=at_most)
        while len(self.collecting) > at_most:
            for one in self.collecting.popleft():
                part = self._end(one)
                low, high = one.message.items or (0, 0)
                self.sinks[one.message.tensor].place(part, low, high)

    def _finish(self, queue: deque[list[Pending]], *, at_most: int) -> None:
        while len(queue) > at_most:
            for one in queue.popleft():
                self._end(one)

    def _end(self, one: Pending) -> torch.Tensor:
        """Wait for a transfer, and count the time."""
        begun = time.perf_counter()
        tensor = self.transport.finish(one)
        self._blocked_s += time.perf_counter() - begun
        return tensor

    # --- the root's own duties ---------------------------------------------------------------

    def _serve(self, work: list[StepWork], index: int) -> None:
        """Start feeding and collecting a step; only the root has any of that."""
        if index >= len(work):
            return
        step = work[index]
        self.feeding.append(
            [
                self.transport.send(self._input(message), message)
                for message in step.feeds
                if message.target != self.loop.rank
            ]
        )
        pending = []
        for message in step.collects:
            if message.source != self.loop.rank:
                low, high = message.items or (0, 0)
                buffer = self.sinks[message.tensor].buffer(low, high)
                if buffer is None:
                    buffer = self._buffer(message)
                pending.append(self.transport.receive(buffer, message))
        self.collecting.append(pending)

    def _input(self, message: Message) -> torch.Tensor:
        return self._cut(self.inputs[message.tensor], message, 0)

    # --- pieces ------------------------------------------------------------------------------

    def _arrivals(self, work: list[StepWork]) -> Iterator[_Arriving]:
        """Each piece in turn, its receives started when it is asked for."""
        for step in work:
            for piece in step.pieces:
                parts: dict[str, list[Pending | Message]] = {}
                for message in piece.receives:
                    local = message.source == self.loop.rank
                    part = (
                        message if local else self.transport.receive(self._buffer(message), message)
                    )
                    parts.setdefault(message.tensor, []).append(part)
                yield _Arriving(piece=piece, parts=parts)

    def _piece(self, arriving: _Arriving, begun: tuple[float, float]) -> None:
        """Compute a piece, and send on what it gives; its turn ``begun`` at these clock times of
        the world and of the processor."""
        stage = self.loop.stage
        assert stage is not None
        piece = arriving.piece
        self._blocked_s = 0.0
        values = {name: self._joined(name, parts) for name, parts in arriving.parts.items()}
        waited_s, self._blocked_s = self._blocked_s, 0.0
        received, received_cpu = time.perf_counter(), time.thread_time()
        self._compute(stage, piece, values)
        computed, computed_cpu = time.perf_counter(), time.thread_time()
        sent = [self._send(message, values, piece) for message in piece.sends]
        self.sending.append([one for one in sent if one is not None])
        sent_cpu = time.thread_time()
        # Bounded memory: what was sent more than ``depth`` pieces ago must have left.
        self._finish(self.sending, at_most=self.loop.depth)
        ended, ended_cpu = time.perf_counter(), time.thread_time()
        record = self.record
        record.items.append(piece.items[1] - piece.items[0])
        record.waited_s.append(waited_s)
        record.held_s.append(self._blocked_s)
        record.busy_s.append(ended - begun[0] - waited_s - self._blocked_s)
        record.computed_s.append(computed - received)
        record.sent_s.append(sent_cpu - computed_cpu)
        record.dispatched_s.append((received_cpu - begun[1]) + (ended_cpu - sent_cpu))

    def _joined(self, name: str, parts: list[Pending | Message]) -> torch.Tensor:
        """A whole input of a piece from its parts, in item order, on the rank's device."""
        stage = self.loop.stage
        assert stage is not None
        tensors = [
            self._input(part) if isinstance(part, Message) else self._end(part) for part in parts
        ]
        dim = self.loop.tensors[name].batch_dim
        whole = tensors[0] if len(tensors) == 1 or dim is None else torch.cat(tensors, dim=dim)
        if isinstance(parts[0], Message) and (name in stage.changes or _misaligned(whole)):
            whole = whole.clone()  # the caller's tensors stay as they were
        return whole.to(stage.device)

    def _compute(self, stage: StageModule, piece: Piece, values: dict[str, torch.Tensor]) -> None:
        sizes = self._sizes_of(stage.program, piece.items[1] - piece.items[0])
        try:
            with torch.inference_mode():
                results = stage.module(*(values[n] for n in stage.program.inputs), *sizes)
            if stage.device.type == "cuda":
                torch.cuda.synchronize(stage.device)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise RankFailedError(
                f"rank {self.loop.rank} ({stage.role.place}) failed computing items "
                f"{piece.items[0]} to {piece.items[1] - 1}: {type(error).__name__}: {first[:300]}"
            ) from error
        produced = dict(zip(stage.program.outputs, results, strict=True))
        if self.recorder is not None:
            for name, tensor in produced.items():
                shared = self.loop.tensors[name].batch_dim is None
                self.recorder(name, None if shared else piece.items, tensor)
        values.update(produced)

    def _send(
        self, message: Message, values: Mapping[str, torch.Tensor], piece: Piece
    ) -> Pending | None:
        part = self._cut(values[message.tensor], message, piece.items[0])
        expected = self._shape_of(message)
        if tuple(part.shape) != expected:
            raise RankFailedError(
                f"rank {self.loop.rank} computed {message.tensor} of shape {tuple(part.shape)}; "
                f"the captured model says {expected}: its shape depends on data"
            )
        if message.target == self.loop.rank:
            low, high = message.items or (0, 0)
            self.sinks[message.tensor].place(part.to("cpu"), low, high)
            return None
        return self.transport.send(part, message)

    # --- shapes ------------------------------------------------------------------------------

    def _cut(self, whole: torch.Tensor, message: Message, first_item: int) -> torch.Tensor:
        tensor = self.loop.tensors[message.tensor]
        if message.items is None or tensor.batch_dim is None:
            return whole
        rows = self._rows(tensor)
        low, high = message.items
        return whole.narrow(tensor.batch_dim, (low - first_item) * rows, (high - low) * rows)

    def _rows(self, tensor: Tensor) -> int:
        if tensor.batch_dim is None:
            return 1
        if tensor.name not in self._rows_of:
            self._rows_of[tensor.name] = tensor.rows_per_item(self.symbols)
        return self._rows_of[tensor.name]

    def _shape(self, tensor: Tensor, items: int) -> tuple[int, ...]:
        key = (tensor.name, items)
        if key not in self._shapes:
            symbols = {**self.symbols, BATCH: items}
            self._shapes[key] = tuple(evaluate(size, symbols) for size in tensor.shape)
        return self._shapes[key]

    def _sizes_of(self, program: StageProgram, items: int) -> list[int]:
        if items not in self._sizes:
            symbols = {**self.symbols, BATCH: items}
            self._sizes[items] = [evaluate(size, symbols) for _, size in program.sizes]
        return self._sizes[items]

    def _shape_of(self, message: Message) -> tuple[int, ...]:
        tensor = self.loop.tensors[message.tensor]
        low, high = message.items or (0, self.symbols[BATCH])
        return self._shape(tensor, high - low)

    def _buffer(self, message: Message) -> torch.Tensor:
        tensor = self.loop.tensors[message.tensor]
        return torch.empty(self._shape_of(message), dtype=getattr(torch, tensor.dtype))


def _misaligned(tensor: torch.Tensor) -> bool:
    """Whether kernels would add in another order than on memory of its own.

    Answers to the last bit must not depend on where in a file or a batch an item lies.
    """
    return tensor.data_ptr() % ALIGNMENT_BYTES != 0
