"""Hostile hand edits: whatever a plan file says, check answers with findings or our own errors."""

from __future__ import annotations

import copy
import json
import random

import pytest
import yaml

from planner.check import check_plan
from planner.explain import explain
from planner.markdown import render_markdown
from planner.planfile import Plan
from planner.render import render_json, render_text
from profiler.errors import ApportionError
from tests.support.builders import make_graph
from tests.support.small_plans import CHAIN, profile_of, three_stages, two_pipelines, two_stages

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

ODD: tuple[Json, ...] = (
    None, True, -1, 0, 1, 2, 3, 2**40, 2**63 - 1, 2**200, -(2**70), 0.5, -0.0, 1e308, 5e-324,
    "", "l0", "l0..3", "l3..0", "l0..999999999", "=l1", "input", "output", "pipeline0.stage0",
    "pipeline1.stage0", "t0", "x", "h/a", "h/b", "h/z", "batch", "none", "batch**9", "sum",
    "\x00", "\u202e[bold]", [], ["l0"], [1], [0, 1, 2], {}, {"rank": 0},
)  # fmt: skip


def places(data: Json, way: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    found = [way] if way else []
    if isinstance(data, dict):
        found += [x for key, value in data.items() for x in places(value, (*way, key))]
    elif isinstance(data, list):
        found += [x for i, value in enumerate(data) for x in places(value, (*way, i))]
    return found


def mutated(data: Json, chance: random.Random) -> Json:
    data = copy.deepcopy(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
        spots = places(data)
        way = chance.choice(spots)
        if chance.random() < 0.5:  # edits of the spec are the interesting ones
            way = chance.choice([x for x in spots if x[0] == "spec"] or spots)
        at = data
        for step in way[:-1]:
            at = at[step]  # type: ignore[index,call-overload]
        last = way[-1]
        old = at[last]  # type: ignore[index,call-overload]
        match chance.randrange(5):
            case 0:
                del at[last]  # type: ignore[union-attr,arg-type]
            case 1 if isinstance(at, list):
                at.append(copy.deepcopy(chance.choice(at)))
            case 2 if isinstance(old, list):
                chance.shuffle(old)
            case 3:
                other = chance.choice(spots)
                value = data
                for step in other:
                    try:
                        value = value[step]  # type: ignore[index,call-overload]
                    except (KeyError, IndexError, TypeError):
                        break
                at[last] = copy.deepcopy(value)  # type: ignore[index,call-overload]
            case _:
                if isinstance(old, int) and chance.random() < 0.5:
                    at[last] = old + chance.choice((-1, 1))  # type: ignore[index,call-overload]
                else:
                    at[last] = copy.deepcopy(chance.choice(ODD))  # type: ignore[index,call-overload]
    return data


@pytest.mark.parametrize("seed", range(4))
def test_every_edit_gives_findings_or_our_own_error(seed: int) -> None:
    chance = random.Random(seed)
    bases = [
        (yaml.safe_load(plan.to_text(as_json=False)), profile)
        for plan, profile in (
            (two_stages(), CHAIN),
            (two_pipelines(), CHAIN),
            (three_stages(), profile_of(make_graph([(0, 1), (1, 2), (0, 2)], 3))),
        )
    ]
    parsed = 0
    for _ in range(120):
        base, profile = chance.choice(bases)
        data = mutated(base, chance)
        try:
            plan = Plan.parse(yaml.safe_dump(data), name="plan.yaml")
        except ApportionError:
            continue
        parsed += 1
        try:
            findings = check_plan(plan, profile)
            json.dumps([x.message for x in findings])
        except ApportionError:
            pass
        report = explain(plan, name="plan.yaml")
        for line in render_text(report).splitlines():
            assert len(line) <= 100
        render_markdown(report)
        json.loads(render_json(report))
    assert parsed > 10


@pytest.mark.parametrize("seed", range(4))
def test_every_broken_text_is_refused(seed: int) -> None:
    chance = random.Random(seed)
    text = two_stages().to_text(as_json=False)
    for _ in range(60):
        cut = list(text)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(cut))
            cut[at : at + chance.randrange(3)] = chance.choice(
                [
                    "",
                    "\t",
                    "{",
                    "]",
                    ":",
                    "- ",
                    "&a ",
                    "*a",
                    "!!python/object:os.system ",
                    "%",
                    "\x07",
                ]
            )
        broken = "".join(cut)
        broken = broken[: chance.randrange(len(broken))] if chance.random() < 0.3 else broken
        try:
            check_plan(Plan.parse(broken, name="plan.yaml"), CHAIN)
        except ApportionError:
            continue
