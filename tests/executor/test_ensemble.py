"""An ensemble's answer is the combination of what its undivided members answer, however placed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from executor.running import run
from executor.verification import verify
from planner.planfile import Plan
from planner.request import PlanRequest
from profiler.capture import Captured, capture
from profiler.ensemble import Ensemble
from profiler.huggingface import load_whole
from profiler.profile import Profile
from profiler.sources import load_model
from tests.support import running
from tests.support.checkpoints import checkpoint
from tests.support.plans import make_plan

pytestmark = pytest.mark.distributed


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks
    yield
    torch.set_num_threads(before)


class Scorer(nn.Module):
    """Scores of five classes; as classes if asked."""

    def __init__(self, width: int, classes: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 5)
        self.classes = classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.c(torch.tanh(self.b(torch.relu(self.a(x)))))
        return scores.argmax(1) if self.classes else scores


def members(*, classes: bool = False) -> list[Scorer]:
    torch.manual_seed(0)
    return [Scorer(width, classes).eval() for width in (16, 24, 12)]


def made(models: Sequence[nn.Module], **how: Any) -> tuple[Captured, Profile]:
    captured = capture(load_model(Ensemble(models, **how), torch.randn(2, 8)))
    return captured, running.made_up_profile(captured)


def layers_of(profile: Profile, member: int) -> list[int]:
    prefix = f"member{member}."
    return [i for i, x in enumerate(profile.model.layers) if x.name.startswith(prefix)]


def apart(profile: Profile, **wishes: Any) -> Plan:
    """A pipeline of two and a batch split in the first member, the others on devices of their own
    or with one of its stages."""
    first, second, third = (layers_of(profile, member) for member in range(3))
    parts = [
        running.stage(profile, [*first[:1], *third], 1),
        running.stage(profile, first[1:], 0, 2, shares=(3, 1)),
        running.stage(profile, second, 3),
    ]
    request = PlanRequest(batch_size=8, microbatch_size=4, **wishes)
    return make_plan(profile, parts, request=request, routing="direct")


WEIGHTS = (0.5, 2.0, 1.0)
Answers = list[torch.Tensor]
FLOATS: dict[str, tuple[dict[str, Any], Callable[[Answers], Any]]] = {
    "mean": ({}, lambda a: torch.stack(a).mean(0)),
    "weighted_mean": (
        {"weights": WEIGHTS},
        lambda a: sum(w * x for w, x in zip(WEIGHTS, a, strict=True)) / sum(WEIGHTS),
    ),
    "sum": ({}, sum),
    "max": ({}, lambda a: torch.stack(a).amax(0)),
    "gather": ({}, list),
    "stack": ({"dim": 1}, lambda a: torch.stack(a, dim=1)),
    "concat": ({"dim": 1}, lambda a: torch.cat(a, dim=1)),
}


@pytest.mark.parametrize("strategy", FLOATS)
def test_members_on_several_devices_and_one_of_them_split(strategy: str) -> None:
    how, combined = FLOATS[strategy]
    models = members()
    captured, profile = made(models, combine=strategy, **how)
    plan = apart(profile)
    assert plan.spec.aggregation.members == ("member0", "member1", "member2")
    with running.session(plan, captured, profile) as session:
        for items in (1, 7, 19):
            x = torch.randn(items, 8)
            with torch.no_grad():
                expected = combined([model(x) for model in models])
            assert running.difference(expected, session.run(x).outputs)[0] <= 1


def majority(answers: Answers) -> torch.Tensor:
    """By counting in Python, the smallest of those that are said most often."""
    said = torch.stack(answers).tolist()
    items = [[one[i] for one in said] for i in range(len(said[0]))]
    return torch.tensor([min(x, key=lambda c: (-x.count(c), c)) for x in items])


def test_a_vote_of_classes() -> None:
    models = members(classes=True)
    captured, profile = made(models, combine="vote")
    plan = apart(profile)
    assert plan.spec.aggregation.ties == "smallest"
    x = torch.randn(40, 8)
    with torch.no_grad():
        expected = majority([model(x) for model in models])
    assert len(set(expected.tolist())) > 1
    with running.session(plan, captured, profile) as session:
        assert torch.equal(expected, session.run(x).outputs)


def test_verify_compares_members_and_their_combination() -> None:
    models = members()
    for strategy in ("mean", "gather"):
        captured, profile = made(models, combine=strategy)
        check = verify(apart(profile), model=captured, options=running.options(profile)).outputs
        assert check is not None
        assert check.equal
        assert {one.stage for one in check.stages} == {f"pipeline0.stage{i}" for i in range(3)}


def test_pipelines_side_by_side_each_hold_every_member() -> None:
    models = members()
    captured, profile = made(models, combine="mean")
    order = [layer for member in range(3) for layer in layers_of(profile, member)]
    assert order == sorted(order)
    plan = make_plan(
        profile,
        [running.stage(profile, order[:4], 0), running.stage(profile, order[4:], 1)],
        [running.stage(profile, order, 2)],
        request=PlanRequest(batch_size=8, microbatch_size=2),
        items=(5, 3),
        routing="direct",
    )
    x = torch.randn(8, 8)
    with torch.no_grad():
        expected = torch.stack([model(x) for model in models]).mean(0)
    with running.session(plan, captured, profile) as session:
        assert running.difference(expected, session.run(x).outputs)[0] <= 1


class Named(nn.Module):
    """An answer with names, one of them a number."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        y = self.a(x)
        return {"scores": y, "size": 3, "norm": y.square().sum(1)}


def test_answers_keep_the_structure_of_a_member() -> None:
    torch.manual_seed(0)
    models = [Named().eval(), Named().eval()]
    captured, profile = made(models, combine="mean")
    plan = make_plan(
        profile,
        [running.stage(profile, layers_of(profile, i), i) for i in range(2)],
        request=PlanRequest(batch_size=4),
        routing="direct",
    )
    x = torch.randn(4, 8)
    with torch.no_grad():
        a, b = (model(x) for model in models)
    expected = {
        "scores": (a["scores"] + b["scores"]) / 2,
        "size": 3,
        "norm": (a["norm"] + b["norm"]) / 2,
    }
    with running.session(plan, captured, profile) as session:
        assert running.difference(expected, session.run(x).outputs)[0] <= 1


def test_model_directories_listed_in_a_file(tmp_path: Path) -> None:
    """By their file, from a plan's own reference; each rank reads only its members' weights."""
    shutil.copytree(checkpoint("bert"), tmp_path / "a")
    shutil.copytree(checkpoint("bert"), tmp_path / "b")
    (weights,) = (tmp_path / "b").glob("*.safetensors")
    changed = {name: 1.5 * value for name, value in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    (tmp_path / "ensemble.yaml").write_text(
        "kind: Ensemble\nformat_version: '1.0'\nmembers:\n- {ref: a}\n- {ref: b}\n"
        "combine: weighted_mean\nweights: [1.0, 3.0]\n"
    )
    captured = capture(load_model(str(tmp_path)))
    profile = running.made_up_profile(captured)
    first, second = (layers_of(profile, member) for member in range(2))
    half = len(first) // 2
    plan = make_plan(
        profile,
        [
            running.stage(profile, first[:half], 0),
            running.stage(profile, first[half:], 1),
            running.stage(profile, second, 2),
        ],
        request=PlanRequest(batch_size=4, microbatch_size=2),
        routing="direct",
    )
    ids = torch.randint(0, 99, (5, 12))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        a, b = (load_whole(tmp_path / name)(**inputs).logits for name in "ab")
    assert (a - b).abs().max() > 0.1
    answer = run(plan, inputs, options=running.options(profile)).outputs
    assert type(answer).__name__ == "MaskedLMOutput"
    assert running.difference((a + 3 * b) / 4, answer.logits)[0] <= 1
