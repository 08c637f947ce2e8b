"""What a change of the machines would gain: the best plan with it, found and proved like any other.

Every answer is a search of its own by ``planner.api``, with the present plan beside it, so that a
change which can only help never shows a loss because the search ran out of time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from planner.api import plan
from planner.changes import Change, World
from planner.default_changes import Question, default_questions
from planner.planfile import Plan, plan_id
from planner.request import Objective, PlanRequest
from profiler.cluster import Cluster
from profiler.documents import Document
from profiler.errors import ApportionError, InfeasiblePlanError, InvalidInputError
from profiler.profile import Profile
from profiler.upgrades import on_cluster

LEAST_S = 0.5
"""Seconds that every search gets, however little is left of the time limit."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One change, and the best plan with it.

    ``plan`` is None where nothing fits (or nothing was found), and ``note`` says why.
    ``objective_s`` may turn out anywhere in ``range_s`` where the plan rests on figures that nobody
    measured. ``gain_s`` is what the objective loses to the present one, None without a present
    plan; ``same`` says that the present plan's decision stays the best. ``alike``: so many other
    changes would do the same.
    """

    change: str
    alike: int
    plan: Plan | None
    world: World
    gain_s: float | None = None
    gain_fraction: float | None = None
    same: bool = False
    note: str = ""

    @property
    def objective_s(self) -> float | None:
        """The objective with the change, as is likely."""
        return None if self.plan is None else self.plan.search.objective_s

    @property
    def range_s(self) -> tuple[float, float] | None:
        """The objective at both ends, if the plan rests on what nobody measured."""
        return None if self.plan is None else range_of(self.plan)

    @property
    def gain_range_s(self) -> tuple[float, float] | None:
        """The least and the most that is gained, if that is not known exactly."""
        found, gain_s, objective_s = self.range_s, self.gain_s, self.objective_s
        if found is None or gain_s is None or objective_s is None:
            return None
        now_s = gain_s + objective_s
        return now_s - found[1], now_s - found[0]

    @property
    def proved(self) -> bool:
        """Whether it is proved that there is no better plan, or none at all."""
        return (
            self.plan.search.status == "optimal"
            if self.plan
            else self.note.startswith("no plan fits")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """The present plan (None: nothing fits, and ``why_not``), and the changes, most gain first.

    ``skipped`` are changes that cannot be: what, and why.
    """

    present: Plan | None
    why_not: str
    objective: Objective
    answers: tuple[Answer, ...]
    skipped: tuple[tuple[str, str], ...]


def what_if(
    profile: Profile,
    request: PlanRequest,
    changes: Sequence[Change] | None = None,
    *,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> WhatIf:
    """The gain of each of ``changes``, one at a time; without any, of all that could matter.

    Changes that were asked for get the request's time limit each; else all of them share it.
    ``cluster`` is what there is now, if not the profile's. ``progress`` hears of every search.

    Raises:
        InvalidInputError: a change cannot be, is listed twice, or the inputs contradict each other;
            the objective counts devices or their price.
    """
    if request.objective in (Objective.DEVICES, Objective.PRICE):
        raise InvalidInputError(
            f"what-if ranks changes by throughput or latency, and the request's objective is "
            f"{request.objective}: ask with --objective throughput"
        )
    start = World(
        profile=profile if cluster is None else on_cluster(profile, cluster), request=request
    )
    questions = default_questions(start) if changes is None else _once(changes)
    worlds, skipped = _worlds(start, questions, refuse=changes is not None)
    tell = progress or (lambda _: None)
    tell("the present plan")
    present, why_not = _solved(start, None)
    end = None if changes is not None else time.monotonic() + request.limits.time_s
    answers = []
    for done, (question, world) in enumerate(worlds):
        tell(f"{done + 1} of {len(worlds)}: {question.change.text}")
        if end is not None:
            world = _limited(world, (end - time.monotonic()) / (len(worlds) - done))
        made, note = _solved(world, present)
        answers.append(_answer(question, world, present, made, note))
    return WhatIf(
        present=present,
        why_not=why_not,
        objective=request.objective,
        answers=tuple(sorted(answers, key=_rank)),
        skipped=tuple(skipped),
    )


def range_of(plan: Plan) -> tuple[float, float] | None:
    """The objective of a plan at both ends of its hypothetical times, if they differ."""
    found = plan.estimate.hypothetical
    if found is None:
        return None
    throughput = not plan.search.objective.counts_latency
    low, high = (
        (found.period_low_s, found.period_high_s)
        if throughput
        else (found.latency_low_s, found.latency_high_s)
    )
    return (low, high) if high > low * (1 + 1e-9) else None


def devices_text(plan: Plan) -> str:
    """Who computes: stages of a pipeline by ``->``, devices of one by ``+``, pipelines by ``|``."""
    named = {binding.rank: binding.device for binding in plan.spec.ranks}
    return " | ".join(
        " -> ".join(" + ".join(named[rank] for rank in stage.ranks) for stage in pipeline.stages)
        for pipeline in plan.spec.pipelines
    )


def filed(answer: Answer, *, stem: str) -> dict[str, Document]:
    """The documents of an answer with a plan, by file name: its profile, its plan, and its cluster
    if that is not the profile's own."""
    assert answer.plan is not None
    world, plan_ = answer.world, answer.plan
    names = {"profile": f"{stem}.profile.json", "cluster": f"{stem}.cluster.yaml"}
    found: dict[str, Document] = {names["profile"]: world.profile}
    if world.cluster is None:
        names["cluster"] = names["profile"]
    else:
        found[names["cluster"]] = world.cluster
    inputs = plan_.inputs.replaced(
        profile=plan_.inputs.profile.replaced(ref=names["profile"]),
        cluster=plan_.inputs.cluster.replaced(ref=names["cluster"]),
    )
    found[f"{stem}.plan.yaml"] = plan_.model_copy(
        update={"inputs": inputs, "plan_id": plan_id(inputs, plan_.spec)}
    )
    return found


def _once(changes: Sequence[Change]) -> tuple[Question, ...]:
    for position, change in enumerate(changes):
        if change in changes[:position]:
            raise InvalidInputError(f"{change.text!r} is asked twice; ask once")
    return tuple(Question(change=change) for change in changes)


def _worlds(
    start: World, questions: Sequence[Question], *, refuse: bool
) -> tuple[list[tuple[Question, World]], list[tuple[str, str]]]:
    """Every change made, before anything is searched; those that cannot be, with the reason."""
    worlds, skipped = [], []
    for question in questions:
        try:
            worlds.append((question, question.change.applied(start)))
        except InvalidInputError as error:
            if refuse and not getattr(question.change, "one_of_many", False):
                raise
            skipped.append((question.change.text, str(error).splitlines()[0]))
    return worlds, skipped


def _limited(world: World, part_s: float) -> World:
    limits = world.request.limits
    time_s = min(limits.time_s, max(LEAST_S, part_s))
    return replace(world, request=world.request.replaced(limits=limits.replaced(time_s=time_s)))


def _solved(world: World, present: Plan | None) -> tuple[Plan | None, str]:
    """The best plan of a world, or none and why."""
    try:
        return plan(world.profile, world.request, cluster=world.cluster, baseline=present), ""
    except InfeasiblePlanError as error:
        return None, str(error).splitlines()[0]
    except InvalidInputError:
        raise
    except ApportionError as error:  # time ran out with neither plan nor proof
        return None, f"open: {str(error).splitlines()[0]}"


def _answer(
    question: Question, world: World, present: Plan | None, made: Plan | None, note: str
) -> Answer:
    gain_s = fraction = None
    same, notes = False, [note] if note else []
    if made is not None and present is not None:
        now_s = present.search.objective_s
        gain_s = now_s - made.search.objective_s
        fraction = gain_s / now_s if now_s > 0 else 0.0
        same = _decision(made) == _decision(present)
    if world.cluster is not None and world.machines.root != world.profile.cluster.root:
        notes.append(f"inputs enter at {world.machines.root} then")
    return Answer(
        change=question.change.text,
        alike=question.alike,
        plan=made,
        world=world,
        gain_s=gain_s,
        gain_fraction=fraction,
        same=same,
        note="; ".join(notes),
    )


def _decision(made: Plan) -> object:
    """What a plan decides, whatever is known of its devices."""
    ranks = tuple(x.replaced(hypothetical=None) for x in made.spec.ranks)
    return made.spec.replaced(ranks=ranks)


def _rank(answer: Answer) -> tuple[bool, float, str]:
    """Plans first, those with the least objective first."""
    return answer.plan is None, answer.objective_s or 0.0, answer.change


def summaries(found: WhatIf) -> Iterator[dict[str, object]]:
    """Every answer as plain data, for programs."""
    for x in found.answers:
        yield {
            "change": x.change,
            "alike": x.alike,
            "objective_s": x.objective_s,
            "range_s": x.range_s,
            "gain_s": x.gain_s,
            "gain_fraction": x.gain_fraction,
            "gain_range_s": x.gain_range_s,
            "proved": x.proved,
            "gap": None if x.plan is None else x.plan.search.gap,
            "hypothetical": x.plan is not None and x.plan.estimate.hypothetical is not None,
            "devices": None if x.plan is None else devices_text(x.plan),
            "same_decision": x.same,
            "note": x.note,
        }
