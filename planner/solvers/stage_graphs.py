"""Stage graphs as an integer model: which layer is in which slot, and what moves between slots.

Variables, with the function that adds their constraints:

    x[l, s]       layer l is in slot s; every layer in exactly one               (_place)
    used[s]       some layer is in slot s; copies of a slot fill up in order
    divided[r, s] all layers of region r are in slot s, which divides it; a slot
                  that splits by tensor divides one region at least          (_divide)
    before[s, t]  slot s comes before slot t: a total order. Every edge of the
                  model graph between two slots agrees with it, so no two
                  stages wait for each other; copies of a slot are in order      (_order)
    reads[v, t]   some layer in slot t reads tensor v
    moves[v,s,t]  v is written in s and read in t: it moves once                 (_move)
    memory        weights (a tied one once), buffers, and the least that is
                  alive at any layer, within what is free                        (_remember)

The memory part leaves out what is alive between layers; whoever solves the model must check its
answers with the full ledger.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from planner.figures import Figures
from planner.memory import BUFFER_DEPTH, least_alive, on_heap, root_bytes, shard_of
from planner.problem import PlanningProblem
from planner.request import Split
from planner.slices import slices_within
from planner.solvers.base import Assignment
from planner.solvers.integer_model import IntegerModel, Literal, negated
from planner.solvers.slots import Slots, together_possible
from planner.targets import KEPT

MAX_UNITS = 2**30
"""Memory is counted in units such that a rank has no more of them."""

BUDGET_UNITS = 10**6
"""What a plan may come to is counted in so many units."""

Crossing = tuple[str, int | None, int | None, Literal]
"""A tensor that may move, from where, to where (None: input, output), and whether it does."""


class StageGraphs:
    """All stage graphs of a problem, without an objective."""

    def __init__(self, problem: PlanningProblem, figures: Figures, slots: Slots) -> None:
        self.problem, self.figures, self.slots = problem, figures, slots
        self.model = IntegerModel()
        self.layers = range(problem.num_layers)
        self.places = range(len(slots.slots))
        self.x: dict[tuple[int, int], Literal] = {}
        self.used: list[Literal] = []
        self.reads: dict[tuple[str, int], Literal] = {}
        self.moves: dict[tuple[str, int, int], Literal] = {}
        self.divided: dict[tuple[int, int], Literal] = {}
        self._before: dict[tuple[int, int], Literal] = {}
        self._place()
        self._divide()
        self._order()
        self._move()
        self._remember()

    def before(self, s: int, t: int) -> Literal:
        """Whether slot ``s`` comes before slot ``t``."""
        return self._before[s, t] if s < t else negated(self._before[t, s])

    def crossings(self) -> Iterator[Crossing]:
        """Everything that may move: between slots, from the input, to the output."""
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

    def hint(self, assignment: Assignment) -> None:
        """Suggest ``assignment`` as a start, if its stages have slots."""
        home: dict[int, int] = {}
        taken: set[int] = set()
        for stage in assignment.stages:
            wanted = [self.problem.class_of[device] for device in stage.devices]
            for s in self.places:
                option = self.slots.slots[s].option
                members = option.members
                if (
                    s not in taken
                    and [c for c, _ in members] == wanted
                    and (len(wanted) == 1 or tuple(n for _, n in members) == stage.shares)
                    and slices_within(self.problem, option.slicing, stage.layers) == stage.slices
                    and all((i, s) in self.x for i in stage.layers)
                ):
                    taken.add(s)
                    home.update(dict.fromkeys(stage.layers, s))
                    break
            else:
                return
        self.model.hints = {x: int(home[i] == s) for (i, s), x in self.x.items()}

    def _place(self) -> None:
        problem, model = self.problem, self.model
        num_classes = len(problem.classes)
        separate = problem.num_microbatches > 1
        for s, slot in enumerate(self.slots.slots):
            self.used.append(model.boolean())
            for i in self.layers:
                if self._may_hold(s, i):
                    self.x[i, s] = model.boolean()
                    model.implies(self.x[i, s], self.used[s])
            reasons = problem.whole_batch if slot.waits and separate else self.layers
            here = [self.x[i, s] for i in reasons if (i, s) in self.x]
            model.any_of(negated(self.used[s]), *here)
            if slot.copy:
                model.implies(self.used[s], self.used[s - 1])
        for i in self.layers:
            model.exactly_one([self.x[i, s] for s in self.places if (i, s) in self.x])
        for joined in problem.together:
            for one, other in pairwise(joined):
                for s in self.places:
                    self._equal(self.x.get((one, s)), self.x.get((other, s)))
        model.at_most([(1, used) for used in self.used], problem.max_stages)
        if problem.must_use is Split.LAYERS:
            model.at_most([(-1, used) for used in self.used], -2)
        elif problem.must_use is Split.BATCH:
            groups = [s for s in self.places if self.slots.slots[s].option.is_group]
            model.any_of(*(self.used[s] for s in groups))
        counts = [slot.option.counts(num_classes) for slot in self.slots.slots]
        for c, members in enumerate(problem.classes):
            taken = [(counts[s][c], self.used[s]) for s in self.places]
            model.at_most(taken, len(members))
            needed = sum(name in problem.required for name in members)
            if needed:
                model.at_most([(-n, used) for n, used in taken], -needed)
        self._afford(counts)

    def _afford(self, counts: Sequence[Sequence[int]]) -> None:
        """Every budget, in units rounded so that nothing that keeps it is cut off."""
        for budget in self.problem.targets.budgets:
            if budget.most == math.inf:
                continue
            # The root's device adds nothing: what it comes to is always there.
            each = [
                0.0 if budget.root in members else budget.each[members[0]]
                for members in self.problem.classes
            ]
            left = max(0.0, budget.most * (1 + KEPT) - budget.each[budget.root])
            scale = BUDGET_UNITS / max(budget.most, *each, 1e-300)
            taken = [
                (
                    math.floor(scale * sum(n * x for n, x in zip(counts[s], each, strict=True))),
                    self.used[s],
                )
                for s in self.places
            ]
            self.model.at_most(taken, math.floor(left * scale + 1e-6))

    def _may_hold(self, s: int, i: int) -> bool:
        problem, slot = self.problem, self.slots.slots[s]
        waits = i in problem.whole_batch
        if slot.option.is_group and (waits or i in problem.one_device):
            return False
        if waits and not slot.waits and problem.num_microbatches > 1:
            return False
        return all(problem.classes[c][0] in problem.allowed[i] for c, _ in slot.option.members)

    def _equal(self, one: Literal | None, other: Literal | None) -> None:
        if one is not None and other is not None:
            self.model.implies(one, other)
            self.model.implies(other, one)
        elif one is not None or other is not None:
            self.model.any_of(negated(one if one is not None else other or 0))

    def _divide(self) -> None:
        model = self.model
        for s, slot in enumerate(self.slots.slots):
            if not slot.option.is_tensor:
                continue
            for x in slot.option.slicing:
                layers = self.problem.region_layers[x.region]
                here = [self.x[i, s] for i in layers if (i, s) in self.x]
                if len(here) < len(layers):
                    continue
                whole = here[0] if len(here) == 1 else model.boolean()
                for held in here:
                    model.implies(whole, held)
                model.any_of(whole, *map(negated, here))
                self.divided[x.region, s] = whole
            some = [self.divided[key] for key in self.divided if key[1] == s]
            model.any_of(negated(self.used[s]), *some)

    def _order(self) -> None:
        model = self.model
        for s in self.places:
            for t in self.places[s + 1 :]:
                self._before[s, t] = model.boolean()
                if self.slots.slots[s].option == self.slots.slots[t].option:
                    model.any_of(self._before[s, t])
        for a in self.places:
            for b in self.places[a + 1 :]:
                for c in self.places[b + 1 :]:
                    ab, bc, ac = self.before(a, b), self.before(b, c), self.before(a, c)
                    model.any_of(negated(ab), negated(bc), ac)
                    model.any_of(ab, bc, negated(ac))
        for a, b in self.problem.graph.digraph.edges:
            for s in self.places:
                for t in self.places:
                    if s != t and (a, s) in self.x and (b, t) in self.x:
                        model.any_of(
                            negated(self.x[a, s]), negated(self.x[b, t]), self.before(s, t)
                        )

    def _move(self) -> None:
        model, graph = self.model, self.problem.graph
        inputs = set(graph.inputs)
        meet = {
            (s, t): together_possible(self.problem, self.slots.slots, s, t)
            for s in self.places
            for t in self.places
            if s != t
        }
        for tensor in graph.tensors:
            if tensor.producer is None and tensor.name not in inputs:
                continue
            for t in self.places:
                readers = [self.x[i, t] for i in graph.readers[tensor.name] if (i, t) in self.x]
                if not readers:
                    continue
                read = self.reads[tensor.name, t] = model.either(readers)
                if tensor.producer is None:
                    continue
                source = graph.layer_index[tensor.producer]
                arriving = []
                for s in self.places:
                    if s != t and (source, s) in self.x and meet[s, t]:
                        moved = self.moves[tensor.name, s, t] = model.boolean()
                        model.any_of(negated(self.x[source, s]), negated(read), moved)
                        model.implies(moved, self.x[source, s])
                        model.implies(moved, read)
                        arriving.append(moved)
                # Implied: what is read in t is written there or arrives.
                own = [self.x[source, t]] if (source, t) in self.x else []
                model.any_of(negated(read), *own, *arriving)

    def _remember(self) -> None:
        for s, slot in enumerate(self.slots.slots):
            for r, (c, share) in enumerate(slot.option.members):
                self._rank_memory(s, r, self.problem.classes[c][0], share)

    def _rank_memory(self, s: int, r: int, device: str, share: int) -> None:
        problem, figures, graph = self.problem, self.figures, self.problem.graph
        free = problem.capacity_bytes(device) - problem.reserve_bytes(device)
        free -= root_bytes(figures, device)
        here = [i for i in self.layers if (i, s) in self.x]
        if not here:
            return
        alive = {i: least_alive(figures, i, device, share) for i in here}
        size = {t.name: figures.tensor_bytes(t.name, share) for t in graph.tensors}
        most = sum(w.num_bytes for w in graph.weights) + max(alive.values())
        everything = (2 * BUFFER_DEPTH + 1) * sum(size.values())
        if most + on_heap(everything, figures.heap_permille(device, share)) <= free:
            return  # even everything at once fits
        may_wait = self.slots.slots[s].waits or (
            problem.num_microbatches == 1 and bool(problem.whole_batch)
        )
        depth = 1 if may_wait else BUFFER_DEPTH
        terms = []
        for weight in graph.weights:
            holders = [self.x[i, s] for i in here if weight.name in graph.layers[i].weights]
            if holders and weight.num_bytes:
                terms.append((weight.num_bytes, self.model.either(holders)))
        option = self.slots.slots[s].option
        for x in option.slicing:
            if (x.region, s) in self.divided:
                # At most: a weight that the stage also reads elsewhere is held whole.
                sizes = [graph.weight[w.weight].num_bytes for w in graph.regions[x.region].weights]
                saved = sum(size - shard_of(size, x, r) for size in sizes)
                terms.append((-saved, self.divided[x.region, s]))
        terms += [(depth * size[v], moved) for (v, _, t), moved in self.moves.items() if t == s]
        for name in size:
            leaving = [moved for (v, a, _), moved in self.moves.items() if (v, a) == (name, s)]
            if leaving and (r == 0 or (graph.tensor[name].in_parts and not option.is_tensor)):
                terms.append((depth * size[name], self.model.either(leaving)))
        # In units that keep sums small; rounded down, so that nothing that fits is cut off.
        unit = 1 + (sum(abs(c) for c, _ in terms) + max(alive.values())) // MAX_UNITS
        terms = [(c // unit, v) for c, v in terms]
        # One layer at a time is alive: the same inequality for each, with what it needs.
        for i, num_bytes in alive.items():
            self.model.at_most([*terms, (num_bytes // unit, self.x[i, s])], max(-1, free // unit))
