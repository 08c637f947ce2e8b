"""The two objectives over stage graphs, as inequalities in whole ticks of time, rounded down.

    throughput  T >= runs * (compute + receive + send) of every slot
                T >= seconds a batch of every wire                            (limit_period)
    latency     first and last microbatch through every slot and hop, as in
                docs/cost-model.md; T >= last behind every hop to the output  (limit_latency)

The one of them that is not the objective is limited too, where the request asks for that.

As every figure is rounded down, the least ``T`` is a bound for the cost model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from planner.bounds import objective_bound_s
from planner.options import Option
from planner.root_work import RootSeat
from planner.solvers.integer_model import Literal, Terms
from planner.solvers.slots import ROOT
from planner.solvers.stage_graphs import StageGraphs
from planner.targets import KEPT

MAX_RATIO = 1000
"""A limit on the other time that is so many times the ceiling is left out: it is far away."""

Rests = list[tuple[Terms, list[Literal]]]
"""Sums, each with what must hold for it to count."""


class StageTimes:
    """Adds the objective of the request, and its limit on the other time, to ``graphs``.

    Plans above ``ceiling_s`` are cut off.
    """

    def __init__(self, graphs: StageGraphs, *, ceiling_s: float, ceiling_ticks: int) -> None:
        self.graphs, self.model = graphs, graphs.model
        self.problem, self.figures = graphs.problem, graphs.figures
        self.slots = graphs.slots
        self.scale = ceiling_ticks / ceiling_s if ceiling_s > 0 else 1.0
        self.ceiling = ceiling_ticks
        # The ceiling itself stays within reach when its figures are rounded.
        # The other time may be longer than the ceiling; so much longer is as good as no limit.
        other_s = self.problem.targets.other_than(self.problem.request.objective)
        other = min(other_s * (1 + 2 * KEPT) * self.scale, MAX_RATIO * ceiling_ticks)
        self.longest = max(ceiling_ticks, math.ceil(other) if other_s < math.inf else 0)
        self.top = self.model.objective = self.model.integer(self.ceiling + 15)
        least = self.ticks(objective_bound_s(self.problem, self.figures))
        self.model.at_most([(-1, self.top)], -min(least, ceiling_ticks))
        limit, limit_other = self._limit_period, self._limit_latency
        if self.problem.request.objective.counts_latency:
            limit, limit_other = limit_other, limit
        limit(self.top)
        if other < MAX_RATIO * ceiling_ticks:
            limit_other(self.model.integer(math.ceil(other)))

    def ticks(self, seconds: float) -> int:
        """Seconds in ticks, rounded down; everything above what any plan may take is the same."""
        return min(math.floor(seconds * self.scale), self.longest + 16)

    def _time(self) -> int:
        return self.model.integer(self.longest + 15)

    def _compute(self, s: int, r: int, times: int) -> Terms:
        """``times`` a rank's computing of what its stage does not divide."""
        option = self.slots.slots[s].option
        c, share = option.members[r]
        device, x = self.problem.classes[c][0], self.graphs.x
        each = {
            i: self.ticks(times * self.figures.time_s(i, device, share))
            for i in self.graphs.layers
            if (i, s) in x
        }
        terms = [(ticks, x[i, s]) for i, ticks in each.items()]
        for sliced in option.slicing:
            if (sliced.region, s) in self.graphs.divided:
                layers = self.problem.region_layers[sliced.region]
                divided = self.graphs.divided[sliced.region, s]
                terms.append((-sum(each[i] for i in layers), divided))
        return [*terms, *self._beside(s, r, times)]

    def _beside(self, s: int, r: int, times: int) -> Terms:
        """``times`` what a rank's computing costs beside its layers."""
        c, share = self.slots.slots[s].option.members[r]
        device, x, terms = self.problem.classes[c][0], self.graphs.x, []
        using = [
            x[i, s]
            for i, layer in enumerate(self.problem.graph.layers)
            if layer.uses_prelude and (i, s) in x
        ]
        if dispatch := self.ticks(times * self.figures.dispatch_s(device)):
            terms.append((dispatch, self.graphs.used[s]))
        prelude = self.ticks(times * self.figures.prelude_s(device, share))
        if using and prelude:
            terms.append((prelude, self.model.either(using)))
        return terms

    def _slowest(self, ranks: list[Terms]) -> Terms:
        """The largest of several sums."""
        if len(ranks) == 1:
            return ranks[0]
        if not any(c for terms in ranks for c, _ in terms):
            return []
        most = self._time()
        for terms in ranks:
            self.model.at_least(most, terms)
        return [(1, most)]

    def _computes(self, s: int, times: int) -> Terms:
        """``times`` the slowest rank's computing, with the joins of what the slot divides."""
        option, divided = self.slots.slots[s].option, self.graphs.divided
        ranks = range(len(option.members))
        joined = [
            (self.ticks(times * self.slots.divided_s(s, x)), divided[x.region, s])
            for x in option.slicing
            if (x.region, s) in divided
        ]
        return [*self._slowest([self._compute(s, r, times) for r in ranks]), *joined]

    def _busy(self, s: int, times: int) -> Terms:
        """``times`` one run of a slot: the slowest computing, receiving and sending."""
        ranks = range(len(self.slots.slots[s].option.members))
        receive: list[Terms] = [[] for _ in ranks]
        send: list[Terms] = [[] for _ in ranks]
        for name, a, b, moved in self.graphs.crossings():
            if s in (a, b):
                for message in self.slots.messages(name, a, b):
                    moves = times * self.slots.at_once(message, s)
                    if b == s:
                        held = self.ticks(moves * message.receive_s)
                        receive[message.target].append((held, moved))
                    else:
                        held = self.ticks(moves * message.send_s)
                        send[message.source].append((held, moved))
        return [*self._computes(s, times), *self._slowest(receive), *self._slowest(send)]

    def _root_work(self, s: int, position: int) -> Terms:
        """What feeding and collecting takes a batch from a slot whose rank there is on the root."""
        option, rates = self.slots.slots[s].option, self.figures.root_rates
        shares = [share for _, share in option.members]
        seat = RootSeat.at(position, shares, divides=option.is_tensor)
        graph, reads, x = self.problem.graph, self.graphs.reads, self.graphs.x
        terms: Terms = []

        def charge(times: float, seconds: float, when: Literal) -> None:
            terms.append((self.ticks(self.problem.num_microbatches * times * seconds), when))

        for name, seconds in rates.inputs.items():
            if (name, s) in reads:
                charge(seat.sent(in_parts=graph.tensor[name].in_parts), seconds, reads[name, s])
            outside = [reads[name, t] for t in self.graphs.places if t != s and (name, t) in reads]
            if outside and seconds:
                charge(1.0, seconds, self.model.either(outside))
        for name, seconds in rates.outputs.items():
            producer = graph.tensor[name].producer
            assert producer is not None
            inside = seat.received(in_parts=graph.tensor[name].in_parts)
            for t in self.graphs.places:
                if (at := (graph.layer_index[producer], t)) in x:
                    charge(inside if t == s else 1.0, seconds, x[at])
        return terms

    def _limit_period(self, top: int) -> None:
        """``top`` is at least the time between batches."""
        wires: dict[str, Terms] = {}
        for name, a, b, moved in self.graphs.crossings():
            for message in self.slots.messages(name, a, b):
                ticks = self.ticks(message.count * message.seconds)
                wires.setdefault(message.wire, []).append((ticks, moved))
        for s, slot in enumerate(self.slots.slots):
            for x in slot.option.slicing:
                if (x.region, s) in self.graphs.divided:
                    divided = self.graphs.divided[x.region, s]
                    for wire, seconds in self.slots.joining(s, x):
                        ticks = self.ticks(self.slots.runs(s) * seconds)
                        wires.setdefault(wire, []).append((ticks, divided))
        for terms in wires.values():
            self.model.at_least(top, terms)
        for s in self.graphs.places:
            busy, names = self._busy(s, self.slots.runs(s)), self.slots.names(s)
            if ROOT in names and self.figures.root_rates.each.total_s:
                busy = [*busy, *self._root_work(s, names.index(ROOT))]
                self.model.at_least(top, busy, when=[self.graphs.used[s]])
            else:
                self.model.at_least(top, busy)

    def _limit_latency(self, top: int) -> None:
        """``top`` is at least the time of one batch."""
        model, repeats = self.model, self.problem.num_microbatches - 1
        places, slots = self.graphs.places, self.slots.slots
        hops: dict[tuple[int | None, int | None], list[tuple[str, Literal]]] = {}
        for name, a, b, moved in self.graphs.crossings():
            hops.setdefault((a, b), []).append((name, moved))
        first = [self._time() for _ in places]
        last = [self._time() for _ in places]
        computes = [self._computes(s, 1) for s in places]
        after = {s: self._after(s) for s in places if not slots[s].option.slicing}
        for s in places:
            model.at_least(last[s], [(1, first[s])])
            model.at_least(first[s], computes[s])
            if repeats and not slots[s].waits:
                model.at_least(last[s], [(1, first[s]), *self._busy(s, repeats)])
        for (a, b), crossing in hops.items():
            whole = all(slots[s].waits for s in (a, b) if s is not None)
            duration = self._duration(a, b, crossing, 1)
            begin, end = self._time(), self._time()
            model.at_least(begin, duration)
            model.at_least(end, [(1, begin)])
            if repeats and not whole:
                again = self._duration(a, b, crossing, repeats)
                model.at_least(end, [(1, begin), *again])
            used = model.either([moved for _, moved in crossing])
            if a is not None:
                model.at_least(begin, [(1, first[a]), *duration], when=[used])
                model.at_least(end, [(1, last[a]), *duration], when=[used])
            if b is None:
                model.at_least(top, [(1, end)])
                continue
            arrived = end if slots[b].waits else begin
            rests: Rests = [(computes[b], [used])]
            if b in after and a is not None:
                rests = self._rests(b, crossing, after[b])
            for rest, when in rests:
                model.at_least(first[b], [(1, arrived), *rest], when=when)
                model.at_least(last[b], [(1, end), *rest], when=when)
        self._layer_times(top)

    def _rests(
        self, b: int, crossing: list[tuple[str, Literal]], after: Mapping[int, Sequence[Terms]]
    ) -> Rests:
        """What slot ``b`` has still to compute at each layer that reads one of these tensors, on
        each rank, and what must hold for that to be so."""
        return [
            (rest, [moved, self.graphs.x[i, b]])
            for name, moved in crossing
            for i in self.problem.graph.readers[name]
            if (i, b) in self.graphs.x
            for rest in after[i]
        ]

    def _after(self, s: int) -> dict[int, list[Terms]]:
        """Each rank's computing from a layer on, with what a run costs beside the layers."""
        found: dict[int, list[Terms]] = {}
        x, option = self.graphs.x, self.slots.slots[s].option
        for r, (c, share) in enumerate(option.members):
            device = self.problem.classes[c][0]
            beside = self._beside(s, r, 1)
            after: Terms = []
            for i in reversed(self.graphs.layers):
                if (i, s) in x:
                    spent = (self.ticks(self.figures.time_s(i, device, share)), x[i, s])
                    here = self._time()
                    self.model.at_least(here, [*after, spent])
                    after = [(1, here)]
                    found.setdefault(i, []).append([*beside, *after])
        return found

    def _duration(
        self,
        a: int | None,
        b: int | None,
        crossing: list[tuple[str, Literal]],
        times: int,
    ) -> Terms:
        """``times`` one move of all tensors between two slots, at the slowest receiver or on the
        slowest wire that several receivers share."""
        found: dict[int | str, Terms] = {}
        receivers: dict[str, set[int]] = {}
        for name, moved in crossing:
            for message in self.slots.messages(name, a, b):
                receivers.setdefault(message.wire, set()).add(message.target)
                for end in (message.target, message.wire):
                    spent = (self.ticks(times * message.seconds), moved)
                    found.setdefault(end, []).append(spent)
        for wire, ends in receivers.items():
            if len(ends) == 1:  # no longer than what that receiver gets
                del found[wire]
        return self._slowest(list(found.values())) if found else []

    def _layer_times(self, top: int) -> None:
        """Implied: no layer is done before those it reads from, and the way from them.

        One relaxation over all layers tells the solver early what a path costs.
        """
        graph, model, x = self.problem.graph, self.model, self.graphs.x
        done = [self._time() for _ in self.graphs.layers]
        for i, layer in enumerate(graph.layers):
            spent = [
                (self.ticks(self._least_s(i, slot.option)), x[i, s])
                for s, slot in enumerate(self.slots.slots)
                if (i, s) in x
            ]
            model.at_least(done[i], spent)
            for name in layer.reads:
                producer = graph.tensor[name].producer
                if producer is not None:
                    way = self._way(name) if len(graph.readers[name]) == 1 else []
                    before = done[graph.layer_index[producer]]
                    model.at_least(done[i], [(1, before), *way, *spent])
            # Where no answer leaves the ranks, a batch ends with whichever layer ends last.
            if not graph.outputs or any(name in graph.outputs for name in layer.writes):
                model.at_least(top, [(1, done[i])])

    def _least_s(self, layer: int, option: Option) -> float:
        """The least time of a layer on any rank of an option, divided if it can be."""
        units = {x.region: x.units for x in option.slicing}
        region = self.problem.graph.region_of.get(layer, -1)
        times = []
        for r, (c, share) in enumerate(option.members):
            device = self.problem.classes[c][0]
            whole_s = self.figures.time_s(layer, device, share)
            if region in units:
                whole_s *= self.figures.slice_part(region, device, share, units[region][r])
            times.append(whole_s)
        return min(times)

    def _way(self, name: str) -> Terms:
        """The least time of moving a tensor, wherever it moves."""
        terms = []
        for (v, s, t), moved in self.graphs.moves.items():
            if v == name:
                ticks = [self.ticks(m.seconds) for m in self.slots.messages(name, s, t)]
                terms.append((min(ticks, default=0), moved))
        return terms
