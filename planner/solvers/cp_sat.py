"""Any stage graph, by OR-Tools CP-SAT: the only file that touches OR-Tools.

Minimise ``T`` (seconds, scaled to integers and rounded down) over

    x[l, s]     layer l is in slot s: exactly one slot a layer                (_place)
    before[s,t] slot s comes before slot t: a total order; every layer edge
                between two slots agrees with it, so no two stages wait for
                each other; copies of one slot come in order                  (_order)
    z[v, s, t]  tensor v moves from s to t: once, if any layer in t reads it  (_move)
    weights and the known part of buffers and activations within capacity     (_remember)
    throughput: runs * (compute + receive + send) <= T per slot, messages of
                a batch <= T per wire                                         (_limit_period)
    latency:    first and last microbatch through every stage and hop, as in
                docs/cost-model.md; T >= last out                             (_limit_latency)

The memory part leaves out what is alive between layers; an answer that does not fit by the full
ledger is cut off and the search repeated. As every figure is rounded down, the solver's bound is a
bound for the cost model too.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from ortools.sat.python import cp_model

from planner.bounds import objective_bound_s
from planner.cost import CostModel
from planner.flows import Routing
from planner.memory import BUFFER_DEPTH, root_bytes
from planner.options import place
from planner.problem import PlanningProblem
from planner.request import Objective
from planner.solvers.base import (
    TOLERANCE,
    Assignment,
    SolveLimits,
    Solver,
    SolverResult,
    SolveStatus,
    StageAssignment,
)
from planner.solvers.chain import ChainSolver
from planner.solvers.greedy import GreedySolver
from planner.solvers.slots import Slots, together_possible

MAX_PLACES = 60_000
"""Layers times slots; beyond it the model takes too long to build."""

LARGEST = 10**12
"""The integer that the largest objective of interest becomes."""


class CpSatSolver:
    """The optimum over all stage graphs, or the best found and a bound."""

    name: ClassVar[str] = "cp_sat"

    def rejects(self, problem: PlanningProblem) -> str | None:
        """Why this solver cannot take ``problem``, or None."""
        places = problem.num_layers * len(problem.devices)
        if places > MAX_PLACES:
            return f"{places} places for layers are too many (at most {MAX_PLACES})"
        return None

    def solve(
        self, problem: PlanningProblem, *, cost: CostModel, limits: SolveLimits
    ) -> SolverResult:
        """The best stage graph, and a bound for those described in ``space``."""
        slots = Slots(problem, cost.figures)
        best = _warm_start(problem, cost, limits)
        cutoff = math.inf if limits.cutoff_s is None else limits.cutoff_s
        bound = objective_bound_s(problem, cost.figures)
        ceiling = min(best.objective_s, cutoff)
        model = _Model(problem, cost, slots, ceiling)
        if best.assignment is not None:
            model.hint(best.assignment)
        proved = False
        while not limits.expired and not proved:
            status, value, least = model.run(limits)
            bound = max(bound, least)
            if status is SolveStatus.INFEASIBLE:
                proved = True  # nothing below the ceiling, or nothing at all
                bound = max(bound, ceiling)
            elif value is None:
                break
            else:
                assignment = model.decode()
                price = cost.evaluate(assignment)
                objective = price.objective_s(problem.request.objective)
                if price.fits:
                    if objective < best.objective_s:
                        best = _Best(assignment, objective)
                    break
                model.exclude(r.stage for r in price.shortfalls())
        return _result(problem, slots, best, bound, cutoff)


@dataclass(frozen=True)
class _Best:
    assignment: Assignment | None = None
    objective_s: float = math.inf


def _warm_start(problem: PlanningProblem, cost: CostModel, limits: SolveLimits) -> _Best:
    """The better of a line of stages and of simple rules, with tensors sent directly."""
    best = _Best()
    chain = ChainSolver()
    part = replace(limits, deadline=limits.deadline - 0.7 * limits.remaining_s(), cutoff_s=None)
    solvers: list[Solver] = (
        [GreedySolver()] if chain.too_large(problem) else [GreedySolver(), chain]
    )
    for solver in solvers:
        found = solver.solve(problem, cost=cost, limits=part).assignment
        if found is not None:
            direct = Assignment(stages=found.stages, routing=Routing.DIRECT)
            price = cost.evaluate(direct)
            objective = price.objective_s(problem.request.objective)
            if price.fits and objective < best.objective_s:
                best = _Best(direct, objective)
    return best


def _result(
    problem: PlanningProblem, slots: Slots, best: _Best, bound: float, cutoff: float
) -> SolverResult:
    space = (
        f"one pipeline; any stages, {slots.describe()}; every tensor goes straight from the stage "
        "that computes it to each that reads it"
    )
    candidates = problem.num_layers * len(slots.slots)
    if best.assignment is None or best.objective_s > cutoff:
        nothing = bound == math.inf
        return SolverResult(
            status=SolveStatus.INFEASIBLE if nothing else SolveStatus.UNKNOWN,
            assignment=None,
            objective_s=None,
            bound_s=None if nothing else bound,
            space=space,
            candidates=candidates,
        )
    bound = min(bound, best.objective_s)
    close = best.objective_s - bound <= TOLERANCE * bound
    return SolverResult(
        status=SolveStatus.OPTIMAL if close else SolveStatus.FEASIBLE,
        assignment=best.assignment,
        objective_s=best.objective_s,
        bound_s=bound,
        space=space,
        candidates=candidates,
    )


class _Model:
    """The integer model of one problem."""

    def __init__(
        self, problem: PlanningProblem, cost: CostModel, slots: Slots, ceiling_s: float
    ) -> None:
        self.problem, self.figures, self.slots = problem, cost.figures, slots
        self.model = cp_model.CpModel()
        self.count = len(slots.slots)
        self.layers = range(problem.num_layers)
        self.places = range(self.count)
        self.ceiling_s = ceiling_s
        self.scale = self._scale()
        # The ceiling itself stays within reach when its figures are rounded.
        limit = LARGEST + 16 if ceiling_s < math.inf else 1000 * LARGEST
        self.top = self.model.new_int_var(0, limit, "T")
        self.x: dict[tuple[int, int], cp_model.IntVar] = {}
        self.used: list[cp_model.IntVar] = []
        self.before: dict[tuple[int, int], cp_model.IntVar] = {}
        self.moves: dict[tuple[str, int, int], cp_model.IntVar] = {}
        self.reads: dict[tuple[str, int], cp_model.IntVar] = {}
        self._place()
        self._order()
        self._move()
        self._remember()
        if problem.request.objective is Objective.THROUGHPUT:
            self._limit_period()
        else:
            self._limit_latency()
        self.model.minimize(self.top)
        self.solver = cp_model.CpSolver()

    def _scale(self) -> float:
        """Integers per second: the ceiling becomes ``LARGEST``; without one, a safe guess."""
        ceiling = self.ceiling_s
        if ceiling == math.inf:
            ceiling = sum(
                max(
                    self.figures.compute_s([i], members[0], items)
                    for members in self.problem.classes
                    for items in (self.problem.microbatch, self.problem.batch)
                )
                for i in self.layers
            )
        return LARGEST / ceiling if ceiling > 0 else 1.0

    def ticks(self, seconds: float) -> int:
        """Seconds as an integer, rounded down; nothing longer than the ceiling matters."""
        return min(math.floor(seconds * self.scale), 2 * LARGEST)

    # --- constraints ---------------------------------------------------------------------------

    def _place(self) -> None:
        problem, model = self.problem, self.model
        for s, slot in enumerate(self.slots.slots):
            group = slot.option.is_group
            classes = {c for c, _ in slot.option.members}
            self.used.append(model.new_bool_var(f"used{s}"))
            for i in self.layers:
                waits = i in problem.whole_batch
                if (
                    (waits and group)
                    or (waits and not slot.waits and problem.num_microbatches > 1)
                    or (group and i in problem.one_device)
                    or any(problem.classes[c][0] not in problem.allowed[i] for c in classes)
                ):
                    continue
                self.x[i, s] = model.new_bool_var(f"x{i}_{s}")
                model.add_implication(self.x[i, s], self.used[s])
            here = [self.x[i, s] for i in self.layers if (i, s) in self.x]
            if slot.waits and problem.num_microbatches > 1:
                here = [self.x[i, s] for i in problem.whole_batch if (i, s) in self.x]
            model.add_bool_or([*here, self.used[s].negated()])
            if slot.copy:
                model.add_implication(self.used[s], self.used[s - 1])
        for i in self.layers:
            model.add_exactly_one([self.x[i, s] for s in self.places if (i, s) in self.x])
        for joined in problem.together:
            for one, other in pairwise(joined):
                for s in self.places:
                    model.add(self._x(one, s) == self._x(other, s))
        model.add(sum(self.used) <= problem.max_stages)
        for c, members in enumerate(problem.classes):
            taken = sum(
                slot.option.counts(len(problem.classes))[c] * self.used[s]
                for s, slot in enumerate(self.slots.slots)
            )
            model.add(taken <= len(members))
            model.add(taken >= sum(name in problem.required for name in members))

    def _x(self, i: int, s: int) -> cp_model.LinearExprT:
        return self.x.get((i, s), 0)

    def _order(self) -> None:
        model = self.model
        for s in self.places:
            for t in range(s + 1, self.count):
                self.before[s, t] = model.new_bool_var(f"before{s}_{t}")
                same = self.slots.slots[s].option == self.slots.slots[t].option
                if same:
                    model.add(self.before[s, t] == 1)
        for a in self.places:
            for b in range(a + 1, self.count):
                for c in range(b + 1, self.count):
                    ab, bc, ac = self.before[a, b], self.before[b, c], self.before[a, c]
                    model.add_bool_or([ab.negated(), bc.negated(), ac])
                    model.add_bool_or([ab, bc, ac.negated()])
        for a, b in self.problem.graph.digraph.edges:
            for s in self.places:
                for t in self.places:
                    if s != t and (a, s) in self.x and (b, t) in self.x:
                        model.add_bool_or(
                            [self.x[a, s].negated(), self.x[b, t].negated(), self._before(s, t)]
                        )

    def _before(self, s: int, t: int) -> cp_model.IntVar:
        return self.before[s, t] if s < t else self.before[t, s].negated()

    def _move(self) -> None:
        model, graph = self.model, self.problem.graph
        inputs = set(graph.inputs)
        for tensor in graph.tensors:
            readers = graph.readers[tensor.name]
            if not readers or (tensor.producer is None and tensor.name not in inputs):
                continue
            for t in self.places:
                here = [self.x[i, t] for i in readers if (i, t) in self.x]
                if not here:
                    continue
                if len(here) == 1:
                    self.reads[tensor.name, t] = here[0]
                else:
                    self.reads[tensor.name, t] = model.new_bool_var(f"r{tensor.name}_{t}")
                    model.add_max_equality(self.reads[tensor.name, t], here)
            if tensor.producer is None:
                continue
            source = graph.layer_index[tensor.producer]
            for t in self.places:
                read = self.reads.get((tensor.name, t))
                if read is None:
                    continue
                arriving = []
                for s in self.places:
                    if s == t or (source, s) not in self.x or not self._can_meet(s, t):
                        continue
                    moved = model.new_bool_var(f"z{tensor.name}_{s}_{t}")
                    self.moves[tensor.name, s, t] = moved
                    written = self.x[source, s]
                    model.add_bool_or([written.negated(), read.negated(), moved])
                    model.add_implication(moved, written)
                    model.add_implication(moved, read)
                    arriving.append(moved)
                model.add(sum(arriving) >= read - self._x(source, t))

    def _can_meet(self, s: int, t: int) -> bool:
        return together_possible(self.problem, self.slots.slots, s, t)

    def _remember(self) -> None:
        """Per rank: weights, buffers, and the least that is alive, within what is free."""
        for s, slot in enumerate(self.slots.slots):
            for r, (c, share) in enumerate(slot.option.members):
                self._rank_memory(s, r, self.problem.classes[c][0], share)

    def _rank_memory(self, s: int, r: int, device: str, share: int) -> None:
        problem, figures, model = self.problem, self.figures, self.model
        graph = problem.graph
        free = problem.capacity_bytes(device) - problem.reserve_bytes(device)
        free -= root_bytes(figures, device)
        here = [i for i in self.layers if (i, s) in self.x]
        alive = {
            i: figures.peak_bytes(i, device, share)
            + sum(figures.tensor_bytes(name, share) for name in graph.layers[i].reads)
            for i in here
        }
        size = {t.name: figures.tensor_bytes(t.name, share) for t in graph.tensors}
        largest = sum(weight.num_bytes for weight in graph.weights) + max(alive.values(), default=0)
        if largest + (2 * BUFFER_DEPTH + 1) * sum(size.values()) <= free:
            return
        weights = []
        for weight in graph.weights:
            holders = [self.x[i, s] for i in here if weight.name in graph.layers[i].weights]
            if len(holders) > 1:
                held = model.new_bool_var(f"w{weight.name}_{s}")
                model.add_max_equality(held, holders)
                holders = [held]
            weights += [weight.num_bytes * held for held in holders]
        depth = 1 if slot_waits(problem, self.slots, s) else BUFFER_DEPTH
        buffers = [
            depth * size[name] * moved for (name, _, t), moved in self.moves.items() if t == s
        ]
        for name in size:
            leaving = [moved for (x, a, _), moved in self.moves.items() if (x, a) == (name, s)]
            if leaving and (r == 0 or graph.tensor[name].batch_dim is not None):
                sent = model.new_bool_var(f"o{name}_{s}")
                model.add_max_equality(sent, leaving)
                buffers.append(depth * size[name] * sent)
        most = model.new_int_var(0, max(0, *alive.values()) if alive else 0, f"a{s}_{r}")
        for i, num_bytes in alive.items():
            model.add(most >= num_bytes * self.x[i, s])
        model.add(sum(weights) + sum(buffers) + most <= max(-1, free))

    # --- objectives ----------------------------------------------------------------------------

    def _compute(self, s: int, r: int) -> list[cp_model.LinearExprT]:
        """Terms of a rank's computing."""
        c, share = self.slots.slots[s].option.members[r]
        device, graph = self.problem.classes[c][0], self.problem.graph
        terms: list[cp_model.LinearExprT] = []
        using = []
        for i in self.layers:
            if (i, s) in self.x:
                terms.append(self.ticks(self.figures.time_s(i, device, share)) * self.x[i, s])
                if graph.layers[i].uses_prelude:
                    using.append(self.x[i, s])
        if using:
            prelude = self.model.new_bool_var(f"p{s}_{r}")
            self.model.add_max_equality(prelude, using)
            terms.append(self.ticks(self.figures.prelude_s(device, share)) * prelude)
        return terms

    def _crossings(self) -> Iterable[tuple[str, int | None, int | None, cp_model.LinearExprT]]:
        """Every tensor that may move, from where, to where, and whether it does."""
        graph = self.problem.graph
        for (name, s, t), moved in self.moves.items():
            yield name, s, t, moved
        for (name, t), read in self.reads.items():
            if graph.tensor[name].producer is None:
                yield name, None, t, read
        for name in dict.fromkeys(graph.outputs):
            producer = graph.tensor[name].producer
            if producer is not None:
                for s in self.places:
                    if (graph.layer_index[producer], s) in self.x:
                        yield name, s, None, self.x[graph.layer_index[producer], s]

    def _busy(self, s: int) -> cp_model.LinearExprT:
        """Ticks of one run of a slot: the slowest computing, receiving and sending."""
        ranks = range(len(self.slots.slots[s].option.members))
        receive: list[list[cp_model.LinearExprT]] = [[] for _ in ranks]
        send: list[list[cp_model.LinearExprT]] = [[] for _ in ranks]
        for name, a, b, moved in self._crossings():
            if s in (a, b):
                for message in self.slots.messages(name, a, b):
                    held = self.ticks(self.slots.at_once(message, s) * message.occupied_s)
                    if held and b == s:
                        receive[message.target].append(held * moved)
                    elif held:
                        send[message.source].append(held * moved)
        parts = [[self._compute(s, r) for r in ranks], receive, send]
        return sum(self._slowest(f"{s}_{p}", part) for p, part in enumerate(parts))

    def _slowest(self, label: str, ranks: list[list[cp_model.LinearExprT]]) -> cp_model.LinearExprT:
        if len(ranks) == 1:
            return sum(ranks[0])
        if not any(ranks):
            return 0
        most = self.model.new_int_var(0, 1000 * LARGEST, f"m{label}")
        for terms in ranks:
            self.model.add(most >= sum(terms))
        return most

    def _limit_period(self) -> None:
        wires: dict[str, list[cp_model.LinearExprT]] = {}
        for name, a, b, moved in self._crossings():
            for message in self.slots.messages(name, a, b):
                ticks = self.ticks(message.count * message.seconds)
                if ticks:
                    wires.setdefault(message.wire, []).append(ticks * moved)
        for terms in wires.values():
            self.model.add(sum(terms) <= self.top)
        for s in self.places:
            self.model.add(self.slots.runs(s) * self._busy(s) <= self.top)
        least = objective_bound_s(self.problem, self.figures)
        self.model.add(self.top >= min(self.ticks(least), LARGEST))

    def _limit_latency(self) -> None:
        """First and last microbatch behind every slot and hop, as integers."""
        model, repeats = self.model, self.problem.num_microbatches - 1
        hops: dict[tuple[int | None, int | None], list[tuple[str, cp_model.LinearExprT]]] = {}
        for name, a, b, moved in self._crossings():
            hops.setdefault((a, b), []).append((name, moved))
        first = [self._time(f"first{s}") for s in self.places]
        last = [self._time(f"last{s}") for s in self.places]
        computes = []
        for s, slot in enumerate(self.slots.slots):
            ranks = range(len(slot.option.members))
            compute = self._slowest(f"c{s}", [self._compute(s, r) for r in ranks])
            computes.append(compute)
            model.add(last[s] >= first[s])
            model.add(first[s] >= compute)
            if repeats and not slot.waits:
                model.add(last[s] >= first[s] + repeats * self._busy(s))
        for (a, b), crossing in hops.items():
            duration = self._duration(a, b, crossing)
            moved = [x for _, x in crossing]
            runs = self._hop_repeats(a, b)
            begin, end = self._time(f"begin{a}_{b}"), self._time(f"end{a}_{b}")
            model.add(begin >= duration)
            model.add(end >= begin + runs * duration)
            if a is not None:
                used = self._any(f"hop{a}_{b}", moved)
                model.add(begin >= first[a] + duration).only_enforce_if(used)
                model.add(end >= last[a] + duration).only_enforce_if(used)
            if b is None:
                model.add(self.top >= end)
                continue
            used = self._any(f"use{a}_{b}", moved)
            waits = self.slots.slots[b].waits
            arrived = end if waits else begin
            model.add(first[b] >= arrived + computes[b]).only_enforce_if(used)
            model.add(last[b] >= end + computes[b]).only_enforce_if(used)
        self._layer_times()
        least = objective_bound_s(self.problem, self.figures)
        model.add(self.top >= min(self.ticks(least), LARGEST))

    def _time(self, label: str) -> cp_model.IntVar:
        return self.model.new_int_var(0, 1000 * LARGEST, label)

    def _any(self, label: str, literals: list[cp_model.LinearExprT]) -> cp_model.IntVar:
        if len(literals) == 1 and isinstance(literals[0], cp_model.IntVar):
            return literals[0]
        found = self.model.new_bool_var(label)
        self.model.add_max_equality(found, literals)
        return found

    def _hop_repeats(self, a: int | None, b: int | None) -> int:
        ends = [self.slots.slots[s] for s in (a, b) if s is not None]
        return 0 if all(slot.waits for slot in ends) else self.problem.num_microbatches - 1

    def _duration(
        self, a: int | None, b: int | None, crossing: list[tuple[str, cp_model.LinearExprT]]
    ) -> cp_model.LinearExprT:
        """Ticks of one move of all tensors between two slots, at the slowest receiver."""
        ranks = 1 if b is None else len(self.slots.slots[b].option.members)
        terms: list[list[cp_model.LinearExprT]] = [[] for _ in range(ranks)]
        for name, moved in crossing:
            for message in self.slots.messages(name, a, b):
                ticks = self.ticks(message.seconds)
                if ticks:
                    terms[message.target].append(ticks * moved)
        return self._slowest(f"d{a}_{b}", terms)

    def _layer_times(self) -> None:
        """Implied: no layer is done before those it reads from, and the way from them. One
        relaxation over all layers tells the solver early what a path costs."""
        graph, model = self.problem.graph, self.model
        done = [self._time(f"done{i}") for i in self.layers]
        spent = []
        for i in self.layers:
            terms = []
            for s in self.places:
                if (i, s) in self.x:
                    slot = self.slots.slots[s]
                    slowest = max(
                        self.ticks(self.figures.time_s(i, self.problem.classes[c][0], share))
                        for c, share in slot.option.members
                    )
                    if slot.option.is_group:
                        slowest = min(
                            self.ticks(self.figures.time_s(i, self.problem.classes[c][0], share))
                            for c, share in slot.option.members
                        )
                    terms.append(slowest * self.x[i, s])
            spent.append(sum(terms))
        for i in self.layers:
            model.add(done[i] >= spent[i])
            for name in graph.layers[i].reads:
                producer = graph.tensor[name].producer
                if producer is None:
                    continue
                way = []
                for s in self.places:
                    for t in self.places:
                        # What is read by several layers moves once, with whichever comes first.
                        moved = self.moves.get((name, s, t))
                        if moved is None or len(graph.readers[name]) > 1:
                            continue
                        ticks = [self.ticks(m.seconds) for m in self.slots.messages(name, s, t)]
                        if ticks:
                            way.append(min(ticks) * moved)
                model.add(done[i] >= done[graph.layer_index[producer]] + sum(way) + spent[i])
            if any(name in graph.outputs for name in graph.layers[i].writes):
                model.add(self.top >= done[i])

    # --- solving -------------------------------------------------------------------------------

    def hint(self, assignment: Assignment) -> None:
        """Start from ``assignment``, if its stages have slots."""
        taken: set[int] = set()
        home: dict[int, int] = {}
        for stage in assignment.stages:
            wanted = tuple(
                (self.problem.class_of[device], share)
                for device, share in zip(stage.devices, stage.shares, strict=True)
            )
            slot = next(
                (
                    s
                    for s in self.places
                    if s not in taken
                    and self.slots.slots[s].option.members == wanted
                    and all((i, s) in self.x for i in stage.layers)
                ),
                None,
            )
            if slot is None:
                return
            taken.add(slot)
            home.update(dict.fromkeys(stage.layers, slot))
        for (i, s), variable in self.x.items():
            self.model.add_hint(variable, home[i] == s)

    def run(self, limits: SolveLimits) -> tuple[SolveStatus, float | None, float]:
        """Status, value of the answer if there is one, and the bound, in seconds.

        An interrupt stops the search and reaches the caller.
        """
        solver = self.solver
        solver.parameters.num_workers = limits.workers
        solver.parameters.random_seed = limits.seed
        solver.parameters.max_time_in_seconds = max(0.01, limits.remaining_s())
        solver.parameters.catch_sigint_signal = False
        outcome: list[object] = []
        thread = threading.Thread(
            target=lambda: outcome.append(solver.solve(self.model)), daemon=True
        )
        thread.start()
        try:
            while thread.is_alive():
                thread.join(timeout=0.2)
        except BaseException:
            solver.stop_search()
            thread.join()
            raise
        status = outcome[0] if outcome else cp_model.UNKNOWN
        if status == cp_model.INFEASIBLE:
            return SolveStatus.INFEASIBLE, None, 0.0
        least = max(0.0, solver.best_objective_bound / self.scale) * (1 - 1e-15)
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            found = SolveStatus.OPTIMAL if status == cp_model.OPTIMAL else SolveStatus.FEASIBLE
            return found, solver.objective_value / self.scale, least
        return SolveStatus.UNKNOWN, None, least

    def decode(self) -> Assignment:
        """The answer of the last run."""
        problem = self.problem
        held: dict[int, list[int]] = {}
        for (i, s), variable in self.x.items():
            if self.solver.boolean_value(variable):
                held.setdefault(s, []).append(i)
        order = sorted(
            held,
            key=lambda s: sum(
                self.solver.boolean_value(self._before(t, s)) for t in held if t != s
            ),
        )
        self.decoded = order
        options = [self.slots.slots[s].option for s in order]
        stages = []
        for s, option, devices in zip(order, options, place(problem, options), strict=True):
            layers = tuple(sorted(held[s]))
            waits = not problem.whole_batch.isdisjoint(layers)
            shares = tuple(share for _, share in option.members)
            stages.append(
                StageAssignment(
                    layers=layers,
                    devices=devices,
                    shares=(problem.batch,) if waits else shares,
                    whole_batch=waits,
                )
            )
        return Assignment(stages=tuple(stages), routing=Routing.DIRECT)

    def exclude(self, stages: Iterable[int | None]) -> None:
        """Forbid the layer sets of these stages of the last answer on slots like theirs."""
        chosen = {i: s for (i, s), x in self.x.items() if self.solver.boolean_value(x)}
        for stage in sorted({stage for stage in stages if stage is not None}):
            slot = self.decoded[stage]
            for s in self.places:
                if self.slots.slots[s].option == self.slots.slots[slot].option:
                    self.model.add_bool_or(
                        [
                            self.x[i, s].negated() if chosen[i] == slot else self.x[i, s]
                            for i in self.layers
                            if (i, s) in self.x
                        ]
                    )


def slot_waits(problem: PlanningProblem, slots: Slots, s: int) -> bool:
    """Whether a stage in slot ``s`` may be one that waits for the whole batch."""
    single_run = problem.num_microbatches == 1 and bool(problem.whole_batch)
    return slots.slots[s].waits or single_run
