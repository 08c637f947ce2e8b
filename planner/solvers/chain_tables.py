"""Everything the chain solver's programmes look up, computed once per problem."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from planner.figures import Figures
from planner.options import Option, OptionSet
from planner.problem import PlanningProblem
from planner.request import Split
from planner.solvers.arrays import Flags, Floats, Integers
from planner.solvers.base import Assignment
from planner.solvers.chain_hops import find_hops
from planner.solvers.chain_root import on_root, root_seconds
from planner.solvers.chain_segments import Segments
from planner.solvers.chain_states import enumerate_states

CALL_S, SUM_S = 5e-6, 1.2e-9
"""About what a few calls of numpy take, and one sum and comparison in them."""

NEAR = 100_000
"""Figures that are worked on together."""


@dataclass(frozen=True, slots=True)
class Step:
    """A stage: its option and its layers ``start .. end - 1``."""

    option: int
    start: int
    end: int


@dataclass
class Progress:
    """What a search has found so far.

    ``relaxed_s`` is the least value that the programme itself gave a plan; plans cost more where
    it leaves something out. ``priced`` counts partial plans.
    """

    assignment: Assignment | None = None
    objective_s: float = float("inf")
    relaxed_s: float = float("inf")
    bound_s: float = 0.0
    priced: int = 0


class Decode(Protocol):
    """Turns steps into a plan."""

    def keep(self, steps: list[Step], progress: Progress) -> float:
        """The plan's objective; the plan goes to ``progress`` if it is the best so far."""


class ChainTables:
    """Options, states, and the figures of every run of layers and every hop."""

    def __init__(self, problem: PlanningProblem, figures: Figures, found: OptionSet) -> None:
        self.problem, self.figures, self.found = problem, figures, found
        marked = _marked(problem, found.options)
        self.options = options = (*found.options, *marked)
        self.num_marked = len(marked)
        self.num_layers = problem.num_layers
        segments = Segments(problem, figures, options)
        self.crossing = segments.crossing
        self.num_input_sets = self.crossing.num_inner_inputs
        self.num_output_sets = self.crossing.num_inner_outputs
        self.root_can_stay_empty = segments.root_can_stay_empty
        self.compute = np.stack([segments.compute_s(option) for option in options])
        self.hops = find_hops(problem, figures, options, self.crossing)
        # A run of a stage on the root is so much busier, beside computing and its own messages.
        self.root_s = root_seconds(problem, figures.root_rates, options)
        self.on_root = on_root(problem, options)
        self.states = enumerate_states(problem, options, marked=self.num_marked)
        size = self.num_layers + 1
        # Which runs have which sets, by length and start, for sliding along the layers.
        self._pairs = [
            (u, o, self._mask(u, o))
            for u in range(self.num_input_sets)
            for o in range(self.num_output_sets)
        ]
        self._pairs = [(u, o, mask) for u, o, mask in self._pairs if mask.any()]
        self._diagonal = [
            (np.arange(size - length), np.arange(length, size)) for length in range(size)
        ]

    def of(self, problem: PlanningProblem) -> ChainTables:
        """These tables for a problem that differs in what devices may and must be used."""
        if problem is self.problem:
            return self
        assert problem.must_use is self.problem.must_use, "other options"
        other = copy(self)
        other.problem = problem
        other.states = enumerate_states(problem, self.options, marked=self.num_marked)
        return other

    @property
    def one_stage(self) -> bool:
        """Whether the whole model may be in one stage."""
        return self.problem.must_use is not Split.LAYERS

    def runs(self, option: Option) -> int:
        """How often a batch a stage on ``option`` runs."""
        return 1 if option.whole_batch else self.problem.num_microbatches

    def shortest(self, compute: Floats) -> Floats:
        """Least seconds of a run by option and length."""
        return np.stack(
            [compute[:, rows, ends].min(axis=1) for rows, ends in self._diagonal], axis=1
        )

    def windows(self, shortest: Floats, period_s: float) -> Integers:
        """The longest run on each option that can be within ``period_s``."""
        can = shortest <= period_s
        lengths = np.arange(can.shape[1])
        return np.asarray((can * lengths).max(axis=1))

    def extend(
        self, n: int, arriving: Floats, longest: int, compute: Floats, cuts: slice | None = None
    ) -> Floats:
        """``min over j of arriving[s, u(j, e), j] + compute[n, j, e]`` as ``[s, o, e]``.

        ``arriving`` may be given for some of the ``cuts`` only; nothing arrives at the others.
        """
        num_layers = self.num_layers
        start, stop = (0, num_layers) if cuts is None else (cuts.start, cuts.stop)
        rows, last = len(arriving), min(num_layers - 1, stop - 1 + int(longest))
        loads = np.full((rows, self.num_output_sets, num_layers), np.inf)
        if last <= start:
            return loads
        width, lengths = stop - start, min(int(longest), num_layers - 1 - start)
        at_once = CALL_S + SUM_S * rows * width * (last - start)
        if at_once < lengths * (CALL_S + 2 * SUM_S * rows * width):
            self._all_at_once(loads, arriving, compute[n], slice(start, stop), last)
        else:
            self._by_length(loads, arriving, compute[n], slice(start, stop), lengths)
        return loads

    def _all_at_once(
        self, loads: Floats, arriving: Floats, seconds: Floats, cuts: slice, last: int
    ) -> None:
        """Every start with every end, a few states at a time; infinite where there is no run."""
        ends = slice(cuts.start + 1, last + 1)
        step = max(1, NEAR // ((cuts.stop - cuts.start) * (last - cuts.start)))
        for u, o, mask in self._pairs:
            own = seconds[cuts, ends]
            if len(self._pairs) > 1:
                own = np.where(mask[cuts, ends], own, np.inf)
            for at in range(0, len(arriving), step):
                some = slice(at, at + step)
                least = (arriving[some, u, :, None] + own[None]).min(axis=1)
                np.minimum(loads[some, o, ends], least, out=loads[some, o, ends])

    def _by_length(
        self, loads: Floats, arriving: Floats, seconds: Floats, cuts: slice, longest: int
    ) -> None:
        """Runs of one length after the other: less to add up where they are short."""
        for length in range(1, longest + 1):
            here = np.arange(cuts.start, min(cuts.stop, self.num_layers - length))
            each = seconds[here, here + length]
            ends = slice(cuts.start + length, cuts.start + length + len(here))
            for u, o, mask in self._pairs:
                own = each
                if len(self._pairs) > 1:
                    own = np.where(mask[here, here + length], each, np.inf)
                np.minimum(
                    loads[:, o, ends],
                    arriving[:, u, : len(here)] + own,
                    out=loads[:, o, ends],
                )

    def input_sets_to(self, end: int) -> Integers:
        """Input sets of the runs that start behind a cut and end at ``end``, by start."""
        sets = self.crossing.input_set[:end, end].copy()
        sets[0] = 0  # no cut is before the first layer; nothing arrives there
        return sets

    def _mask(self, u: int, o: int) -> Flags:
        """Runs between two cuts with these sets."""
        crossing = self.crossing
        size = self.num_layers
        inside = np.triu(np.ones((size + 1, size + 1), dtype=np.bool_), 1)
        inside[:, size] = False
        inside[0, :] = False
        return np.asarray((crossing.input_set == u) & (crossing.output_set == o) & inside)


def _marked(problem: PlanningProblem, options: Sequence[Option]) -> list[Option]:
    """The options of which a plan must have one, once more: the one that it has."""
    match problem.must_use:
        case Split.BATCH:
            return [o for o in options if o.is_group and not o.is_tensor]
        case Split.TENSOR:
            return [o for o in options if o.is_tensor]
    return []
