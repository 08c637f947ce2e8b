"""What one pipeline of an assignment costs: its messages, stages and ranks (``planner.cost``)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from planner.figures import Figures
from planner.flows import Flow, find_flows
from planner.latency import BatchTimes, HopCost, InputFlow, StageCost, WireUse
from planner.memory import Holding, stage_rank_memory
from planner.planfile import RankMemory
from planner.problem import PlanningProblem
from planner.root_work import RootSeat, RootWork
from planner.slices import compute_times, exchanged
from planner.solvers.base import PipelineAssignment, StageAssignment


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCost:
    """One rank: its pipeline and stage (None: a root that only feeds and gathers), seconds a
    microbatch (a batch, if its stage waits for one), memory. Joins of partial results take all
    ranks of a stage equally long."""

    device: str
    pipeline: int | None
    stage: int | None
    share: int
    compute_s: float
    join_s: float
    receive_s: float
    send_s: float
    memory: RankMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineCost:
    """One pipeline: when its last item is answered, its stages, and what moves between them."""

    latency_s: float
    stages: tuple[StageCost, ...]
    hops: tuple[HopCost, ...]
    flows: tuple[Flow, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """What one device sends another, ``count`` times a batch."""

    source: str
    target: str
    seconds: float
    count: int


class PipelinePrice:
    """What the stages and transfers of one pipeline cost; others share wires and the root with it.

    Messages are there at once, the rest when :meth:`settle` has told how many microbatches there
    are in all.
    """

    def __init__(self, figures: Figures, number: int, pipeline: PipelineAssignment) -> None:
        self.figures, self.problem = figures, figures.problem
        self.number, self.pipeline, self.all_stages = number, pipeline, pipeline.stages
        self.num_microbatches = math.ceil(pipeline.items / self.problem.microbatch)
        self.flows = find_flows(
            self.problem.graph, [s.layers for s in pipeline.stages], pipeline.routing
        )
        self.hops: dict[tuple[int | None, int | None], list[Message]] = {}
        for flow in self.flows:
            hop = self.hops.setdefault((flow.source, flow.target), [])
            hop.extend(self._messages(flow))
        self._arriving: dict[int | None, list[Flow]] = {}
        self._departing: dict[int | None, list[Flow]] = {}
        for flow in self.flows:
            self._arriving.setdefault(flow.target, []).append(flow)
            self._departing.setdefault(flow.source, []).append(flow)

    def settle(
        self, num_microbatches: int, crowds: Mapping[tuple[int, int | None], tuple[float, float]]
    ) -> None:
        """Work out stages and times; all pipelines together take ``num_microbatches``, and
        ``crowds`` are those of :func:`planner.latency.crowded_inputs`."""
        self.stages, self.ranks = self._stages(num_microbatches - self.num_microbatches)
        alone = (0.0, 0.0)
        self._hops = {
            (source, target): HopCost(
                source=source,
                target=target,
                duration_s=_duration(messages, self.problem),
                rest_s=self._rest_s(source, target),
                runs=self._runs(source, target),
                crowd=crowds.get((self.number, target), alone) if source is None else alone,
            )
            for (source, target), messages in self.hops.items()
        }
        self._times = BatchTimes(self.stages, tuple(self._hops.values()))

    def messages(self) -> Iterator[Message]:
        """Everything that is sent, for joins too."""
        for messages in self.hops.values():
            yield from messages
        for stage in self.all_stages:
            for x in stage.slices:
                for message in exchanged(self.figures, x, stage.devices, stage.shares[0]):
                    yield Message(*message, self.num_microbatches)

    def input_flows(self) -> Iterator[InputFlow]:
        """What its stages are sent of the model's inputs, by wire."""
        for (source, target), messages in self.hops.items():
            if source is not None or target is None:
                continue
            by_wire: dict[str, list[Message]] = {}
            for message in messages:
                if message.source != message.target:
                    name = self.problem.wire(message.source, message.target)
                    by_wire.setdefault(name, []).append(message)
            for wire, together in by_wire.items():
                yield InputFlow(
                    pipeline=self.number,
                    stage=target,
                    wire=wire,
                    once_s=sum(message.seconds for message in together),
                    runs=self._runs(source, target),
                    connections=len({message.target for message in together}),
                )

    def cost(self) -> PipelineCost:
        """The pipeline's own figures."""
        return PipelineCost(
            latency_s=self._times.latency_s,
            stages=self.stages,
            hops=tuple(self._hops.values()),
            flows=self.flows,
        )

    def wire_uses(self) -> Iterator[tuple[int, str, WireUse]]:
        """What its hops do to wires, with the pipeline's number and the wire's name."""
        for ends, messages in self.hops.items():
            busy: dict[str, float] = {}
            for message in messages:
                if message.source != message.target:
                    name = self.problem.wire(message.source, message.target)
                    busy[name] = busy.get(name, 0.0) + message.count * message.seconds
            for name, seconds in busy.items():
                yield self.number, name, self._times.use(self._hops[ends], seconds)

    def _runs(self, source: int | None, target: int | None) -> int:
        """How many times a batch something moves: once when both ends handle whole batches."""
        ends = [self.all_stages[s] for s in (source, target) if s is not None]
        return 1 if all(s.whole_batch for s in ends) else self.num_microbatches

    def _messages(self, flow: Flow) -> list[Message]:
        stages = self.all_stages
        runs = self._runs(flow.source, flow.target)
        both_whole = all(stages[s].whole_batch for s in (flow.source, flow.target) if s is not None)
        items = self.pipeline.items if both_whole else self.problem.microbatch
        senders = self._ends(flow.source, items, sending=True)
        receivers = self._ends(flow.target, items, sending=False)
        cut = self.problem.graph.tensor[flow.tensor].in_parts
        found = []
        for source, start, stop in senders if cut else senders[:1]:
            for target, first, last in receivers:
                held = min(stop, last) - max(start, first) if cut else items
                if held > 0:
                    size = self.figures.tensor_bytes(flow.tensor, held)
                    seconds = self.figures.message_s(source, target, size)
                    found.append(Message(source, target, seconds, runs))
        return found

    def _ends(self, stage: int | None, items: int, *, sending: bool) -> list[tuple[str, int, int]]:
        """Devices with the interval of items each sends or gets, of ``items`` that move together.

        All ranks of a stage split by tensor have everything; the first of them sends.
        """
        if stage is None:
            return [(self.problem.cluster.root, 0, items)]
        here = self.all_stages[stage]
        if here.whole_batch:
            return [(here.devices[0], 0, items)]
        if here.slices:
            return [(device, 0, items) for device in here.devices[: 1 if sending else None]]
        ends, start = [], 0
        for device, share in zip(here.devices, here.shares, strict=True):
            ends.append((device, start, start + share))
            start += share
        return ends

    def _stages(self, of_others: int) -> tuple[tuple[StageCost, ...], tuple[RankCost, ...]]:
        costs, ranks = [], []
        into: dict[int | None, list[Message]] = {}
        out_of: dict[int | None, list[Message]] = {}
        for (source, target), messages in self.hops.items():
            out_of.setdefault(source, []).extend(messages)
            into.setdefault(target, []).extend(messages)
        for s, stage in enumerate(self.all_stages):
            arriving, departing = into.get(s, []), out_of.get(s, [])
            times = compute_times(
                self.figures, stage.layers, stage.devices, stage.shares, stage.slices
            )
            runs = 1 if stage.whole_batch else self.num_microbatches
            own = [
                RankCost(
                    device=device,
                    pipeline=self.number,
                    stage=s,
                    share=share,
                    compute_s=times.ranks_s[r],
                    join_s=times.join_s,
                    receive_s=self._occupied(arriving, stage, target=device)
                    + self._answer_s(device) / runs,
                    send_s=self._occupied(departing, stage, source=device),
                    memory=stage_rank_memory(self.figures, self._holding(s, r)),
                )
                for r, (device, share) in enumerate(zip(stage.devices, stage.shares, strict=True))
            ]
            receive_s, send_s = max(r.receive_s for r in own), max(r.send_s for r in own)
            root = self._root_work(stage, of_others).times(1 / runs)
            ranks += [self._with_root_work(r, root) for r in own]
            costs.append(
                StageCost(
                    compute_s=times.stage_s,
                    join_s=times.join_s,
                    receive_s=receive_s,
                    send_s=send_s,
                    root_s=root.total_s,
                    runs=runs,
                    whole_batch=stage.whole_batch,
                )
            )
        return tuple(costs), tuple(ranks)

    def _rest_s(self, source: int | None, target: int | None) -> float:
        """Seconds a stage still computes when it first reads a tensor that came from ``source``.

        All of its time for inputs of the model, which nothing holds up, and where it is split by
        tensor.
        """
        if target is None:
            return 0.0
        stage = self.all_stages[target]
        if source is None or stage.slices:
            return self.stages[target].run_s
        layers = self.problem.graph.layers
        names = {flow.tensor for flow in self._arriving[target] if flow.source == source}
        first = next(
            (at for at, i in enumerate(stage.layers) if not names.isdisjoint(layers[i].reads)), 0
        )
        if first == 0:
            return self.stages[target].run_s
        before = stage.layers[:first]
        return max(
            self.figures.compute_s(stage.layers, device, items)
            - sum(self.figures.time_s(i, device, items) for i in before)
            for device, items in zip(stage.devices, stage.shares, strict=True)
        )

    def _occupied(
        self,
        messages: Sequence[Message],
        stage: StageAssignment,
        *,
        source: str | None = None,
        target: str | None = None,
    ) -> float:
        """Seconds a microbatch (a batch) that messages from ``source`` or to ``target`` keep it
        from computing."""
        total = 0.0
        for message in messages:
            mine = message.source == source or message.target == target
            if mine and message.source != message.target:
                link = self.problem.links[message.source, message.target]
                times = message.count if stage.whole_batch else 1
                share = link.receive_occupancy if target is not None else link.send_occupancy
                total += times * share * message.seconds
        return total

    def _root_work(self, stage: StageAssignment, of_others: int) -> RootWork:
        """What feeding and collecting costs a stage a batch; other pipelines take ``of_others``
        microbatches of it."""
        root, rates = self.problem.cluster.root, self.figures.root_rates
        if root not in stage.devices or not rates.each.total_s:
            return RootWork()
        position = stage.devices.index(root)
        seat = RootSeat.at(position, stage.shares, divides=bool(stage.slices))
        own = rates.own(stage.layers, seat).times(self.num_microbatches)
        return own.plus(rates.each.times(of_others))

    def _with_root_work(self, rank: RankCost, root: RootWork) -> RankCost:
        if rank.device != self.problem.cluster.root:
            return rank
        return replace(
            rank, receive_s=rank.receive_s + root.receive_s, send_s=rank.send_s + root.send_s
        )

    def _answer_s(self, device: str) -> float:
        """Seconds a batch that receiving the whole answer keeps a device from computing."""
        if not self.problem.delivered(device):
            return 0.0
        link = self.problem.links[self.problem.cluster.root, device]
        return link.receive_occupancy * self.figures.answer_s(device)

    def _holding(self, s: int, r: int) -> Holding:
        stage, root = self.all_stages[s], self.problem.cluster.root
        device = stage.devices[r]
        arriving, departing = self._arriving.get(s, []), self._departing.get(s, [])
        graph, cut = self.problem.graph, not stage.slices
        return Holding(
            layers=stage.layers,
            device=device,
            items=stage.shares[r],
            whole_batch=stage.whole_batch,
            received=frozenset(f.tensor for f in arriving),
            leaving=frozenset(f.tensor for f in departing),
            incoming=frozenset(
                f.tensor for f in arriving if f.source is not None or device != root
            ),
            outgoing=frozenset(
                f.tensor
                for f in departing
                if (f.target is not None or device != root)
                and (r == 0 or (cut and graph.tensor[f.tensor].in_parts))
            ),
            slices=stage.slices,
            rank=r,
        )


def _duration(messages: Sequence[Message], problem: PlanningProblem) -> float:
    """The slowest receiver's messages, or all on the slowest wire, one after another."""
    total: dict[tuple[str, str], float] = {}
    for message in messages:
        ends = [("to", message.target)]
        if message.source != message.target:
            ends.append(("on", problem.wire(message.source, message.target)))
        for end in ends:
            total[end] = total.get(end, 0.0) + message.seconds
    return max(total.values(), default=0.0)
