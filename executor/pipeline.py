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
from functools import partial

import torch

from executor.aggregation import Collector, InPlace, KeptApart, combine_tensors, make_aggregator
from executor.delivery import Kept, receive_answer, send_answer
from executor.footprint import Footprint
from executor.late import LateInput, misaligned
from executor.schedule import Interval, Message, Piece, Schedule, StepWork
from executor.shapes import Shapes
from executor.stage import StageModule
from executor.transport import Pending, Transport
from planner.request import Destination
from profiler.errors import RankFailedError
from profiler.graph import Tensor

Recorder = Callable[[str, Interval | None, torch.Tensor], None]
"""Called with every tensor that a stage computes for others: name, items, value."""


@dataclass
class RankRecord:
    """What a rank measured: seconds of each of its pieces, and when each step ended.

    A piece's time is ``waited_s`` for its inputs, ``held_s`` until earlier results had left, and
    ``busy_s``; most of that is running its stage (``computed_s``), and putting values together with
    other ranks of the stage (``joined_s``). ``sent_s`` is the processor's time for handing on
    results, ``dispatched_s`` that for all else that the loop does: a clock would also count the
    time in which other processes have the processor. ``kept`` are the items
    of each output that stays with the rank.
    """

    items: list[int] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)
    computed_s: list[float] = field(default_factory=list)
    joined_s: list[float] = field(default_factory=list)
    sent_s: list[float] = field(default_factory=list)
    held_s: list[float] = field(default_factory=list)
    dispatched_s: list[float] = field(default_factory=list)
    step_ends_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    kept: dict[str, list[Interval]] = field(default_factory=dict)


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
        footprint: Footprint | None = None,
    ) -> None:
        self.schedule = schedule
        self.rank = rank
        self.stage = stage
        self.transport = transport
        self.footprint = footprint
        # How many pieces may come in, or leave, while another is computed: as the ledger counts.
        whole_batch = stage is not None and stage.role.whole_batch
        self.ahead = 1 if whole_batch else schedule.plan.spec.schedule.depth
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

        ``inputs`` are the model's inputs, on the root rank only. The returned outputs are those
        that the plan delivers to this rank.

        Raises:
            RankFailedError: a transfer or an operator failed; the message says which.
        """
        run = _Run(self, num_items, symbols, inputs, recorder)
        steps = [items for _ in range(repeats) for items in self.schedule.steps(num_items)]
        start = time.perf_counter()
        run.through(steps)
        answers = run.delivered()
        run.record.wall_s = time.perf_counter() - start
        run.record.kept = {} if run.kept is None else run.kept.items()
        return run.record, answers


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
        self.shapes = Shapes(loop.schedule.graph, symbols, num_items)
        self.inputs = inputs or {}
        self.recorder = recorder
        self.record = RankRecord()
        scattered = loop.schedule.plan.spec.aggregation.destination is Destination.SCATTERED
        self.kept = Kept() if scattered else None
        self.sinks = self._sinks() if loop.rank == self.schedule.root else {}
        # Under way, oldest first: answers and inputs by step, what pieces send on by piece. Kept
        # apart because they end at different times: waiting for a next step's inputs to leave
        # while this step's results are still owed would wait forever.
        self.collecting: deque[list[Pending]] = deque()
        self.feeding: deque[list[Pending]] = deque()
        self.sending: deque[list[Pending]] = deque()
        # Pieces: all that are still to be asked for, and those whose receives have started.
        self.coming: Iterator[_Arriving] = iter(())
        self.waiting: deque[_Arriving] = deque()
        self._blocked_s = 0.0  # waiting for others
        self._taking_s = self._taking_cpu_s = 0.0  # getting inputs, waiting included

    def _sinks(self) -> dict[str, Collector]:
        wanted = self.schedule.plan.spec.aggregation
        sinks: dict[str, Collector] = {}
        for name in self.schedule.outputs:
            tensor, way = self.loop.tensors[name], wanted.over_items(name)
            sinks[name] = (
                InPlace(
                    shape=self.shapes.of(tensor),
                    dtype=getattr(torch, tensor.dtype),
                    batch_dim=tensor.batch_dim,
                    rows=self.shapes.rows(tensor),
                )
                if way.strategy == "concat"
                else KeptApart(make_aggregator(way))
            )
        return sinks

    def delivered(self) -> dict[str, torch.Tensor]:
        """The answer's tensors, as far as this rank is to have them."""
        schedule, wanted = self.schedule, self.schedule.plan.spec.aggregation
        if self.kept is not None:
            return self.kept.joined({n: t.batch_dim for n, t in self.loop.tensors.items()})
        everywhere = wanted.destination is Destination.ALL
        if self.loop.rank == schedule.root:
            gathered = {name: sink.result() for name, sink in self.sinks.items()}
            answer = combine_tensors(schedule.graph.ensemble, wanted, gathered)
            if everywhere:
                send_answer(schedule, self.transport, answer)
            return answer
        if not everywhere:
            return {}
        outputs = {
            name: torch.empty(
                self.shapes.of(self.loop.tensors[name]),
                dtype=getattr(torch, self.loop.tensors[name].dtype),
                device="meta",
            )
            for name in schedule.outputs
        }
        return receive_answer(schedule, self.transport, outputs)

    def through(self, steps: list[Interval]) -> None:
        """All steps, with receives started ``ahead`` pieces ahead across their borders."""
        work = [self.schedule.step(self.loop.rank, items) for items in steps]
        self.coming = self._arrivals(work)
        steps_ahead = self.schedule.steps_ahead
        for index in range(steps_ahead):
            self._serve(work, index)
        for index, step in enumerate(work):
            self._serve(work, index + steps_ahead)
            for _ in step.pieces:
                begun = time.perf_counter(), time.thread_time()
                self._receive_ahead()
                self._piece(self.waiting.popleft(), begun)
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
                    buffer = self.shapes.buffer(message)
                pending.append(self.transport.receive(buffer, message))
        self.collecting.append(pending)

    def _input(self, message: Message) -> torch.Tensor:
        return self.shapes.cut(self.inputs[message.tensor], message, 0)

    # --- pieces ------------------------------------------------------------------------------

    def _arrivals(self, work: list[StepWork]) -> Iterator[_Arriving]:
        """Each piece in turn, its receives started when it is asked for."""
        for step in work:
            for piece in step.pieces:
                parts: dict[str, list[Pending | Message]] = {}
                for message in piece.receives:
                    local = message.source == self.loop.rank
                    part = (
                        message
                        if local
                        else self.transport.receive(self.shapes.buffer(message), message)
                    )
                    parts.setdefault(message.tensor, []).append(part)
                yield _Arriving(piece=piece, parts=parts)

    def _receive_ahead(self) -> None:
        with torch.inference_mode(False):  # buffers like any other, asked for while computing too
            while len(self.waiting) < self.loop.ahead and (arriving := next(self.coming, None)):
                self.waiting.append(arriving)

    def _piece(self, arriving: _Arriving, begun: tuple[float, float]) -> None:
        """Compute a piece, and send on what it gives; its turn ``begun`` at these clock times of
        the world and of the processor."""
        stage = self.loop.stage
        assert stage is not None
        piece = arriving.piece
        self._blocked_s = self._taking_s = self._taking_cpu_s = 0.0
        inputs = {
            name: LateInput(partial(self._joined, name, parts))
            for name, parts in arriving.parts.items()
        }
        for name, one in inputs.items():
            if name not in stage.awaited:
                one.wait()
        before_s, before_cpu_s = self._taking_s, self._taking_cpu_s
        received, received_cpu = time.perf_counter(), time.thread_time()
        produced = self._compute(stage, piece, inputs)
        values = {name: one.wait() for name, one in inputs.items()} | produced
        computed, computed_cpu = time.perf_counter(), time.thread_time()
        within_s, within_cpu_s = self._taking_s - before_s, self._taking_cpu_s - before_cpu_s
        waited_s, self._blocked_s = self._blocked_s, 0.0
        sent = [self._send(message, values, piece) for message in piece.sends]
        self.sending.append([one for one in sent if one is not None])
        sent_cpu = time.thread_time()
        # Bounded memory: what was sent more than so many pieces ago must have left.
        self._finish(self.sending, at_most=self.loop.ahead)
        if self.loop.footprint is not None:
            self.loop.footprint.keep()
        ended, ended_cpu = time.perf_counter(), time.thread_time()
        record = self.record
        record.items.append(piece.items[1] - piece.items[0])
        record.waited_s.append(waited_s)
        record.held_s.append(self._blocked_s)
        record.busy_s.append(ended - begun[0] - waited_s - self._blocked_s)
        joined_s = stage.joins.spent_s if stage.joins is not None else 0.0
        record.computed_s.append(computed - received - joined_s - within_s)
        record.joined_s.append(joined_s)
        record.sent_s.append(sent_cpu - computed_cpu)
        record.dispatched_s.append(
            (received_cpu - begun[1]) + within_cpu_s + (ended_cpu - sent_cpu)
        )

    def _joined(self, name: str, parts: list[Pending | Message]) -> torch.Tensor:
        """A whole input of a piece from its parts, in item order, on the rank's device."""
        begun, begun_cpu = time.perf_counter(), time.thread_time()
        stage = self.loop.stage
        assert stage is not None
        tensors = [
            self._input(part) if isinstance(part, Message) else self._end(part) for part in parts
        ]
        # A piece is there, and the wire free for the next: no earlier, they would have shared it.
        self._receive_ahead()
        dim = self.loop.tensors[name].batch_dim
        whole = tensors[0] if len(tensors) == 1 or dim is None else torch.cat(tensors, dim=dim)
        if isinstance(parts[0], Message) and (name in stage.changes or misaligned(whole)):
            whole = whole.clone()  # the caller's tensors stay as they were
        whole = whole.to(stage.device)
        self._taking_s += time.perf_counter() - begun
        self._taking_cpu_s += time.thread_time() - begun_cpu
        return whole

    def _compute(
        self, stage: StageModule, piece: Piece, inputs: Mapping[str, LateInput]
    ) -> dict[str, torch.Tensor]:
        """What the stage makes of a piece; it waits for what it reads."""
        sizes = self.shapes.sizes(stage.program, piece.items[1] - piece.items[0])
        if stage.joins is not None:
            stage.joins.begin(piece.items)
        given = (
            inputs[n] if n in stage.awaited else inputs[n].wait() for n in stage.program.inputs
        )
        try:
            with torch.inference_mode():
                results = stage.module(*given, *sizes)
            if stage.device.type == "cuda":
                torch.cuda.synchronize(stage.device)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise RankFailedError(
                f"rank {self.loop.rank} ({stage.role.place}) failed computing items "
                f"{piece.items[0]} to {piece.items[1] - 1}: {type(error).__name__}: {first[:300]}"
            ) from error
        produced = dict(zip(stage.program.outputs, results, strict=True))
        if self.recorder is not None and self.schedule.answers(self.loop.rank):
            for name, tensor in produced.items():
                shared = not self.schedule.in_parts(name)
                self.recorder(name, None if shared else piece.items, tensor)
        if self.kept is not None:
            for name in self.schedule.graph.outputs:
                if name in produced:
                    self.kept.add(name, piece.items, produced[name])
        return produced

    def _send(
        self, message: Message, values: Mapping[str, torch.Tensor], piece: Piece
    ) -> Pending | None:
        part = self.shapes.cut(values[message.tensor], message, piece.items[0])
        expected = self.shapes.of_message(message)
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
