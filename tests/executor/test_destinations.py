"""Who has the answer: every rank, or each that of its own items; and strategies of one's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from executor.cli import app
from executor.running import run
from executor.session import Scattered, Session
from executor.verification import verify
from planner import strategies
from planner.planfile import Combining, Plan
from planner.strategies import Kind, Strategy
from profiler.capture import Captured, capture
from profiler.ensemble import Ensemble
from profiler.errors import InvalidInputError
from profiler.profile import Profile
from profiler.sources import load_model
from tests.support import running
from tests.support.hosts import hosts
from tests.support.plans import edit, make_plan

pytestmark = pytest.mark.distributed

MODEL = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return {"scores": self.b(h), "hidden": h}

def build():
    torch.manual_seed(0)
    return Two().eval(), torch.randn(2, 8)
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Captured, Profile]:
    (tmp_path / "two_outputs.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    captured = capture(load_model("two_outputs:build"))
    module, _ = sys.modules["two_outputs"].build()
    return module, captured, running.made_up_profile(captured)


def split(profile: Profile, destination: str) -> Plan:
    """The first layer on one device, the second on two with unequal shares."""
    first, *rest = range(len(profile.model.layers))
    asked = running.request(batch_size=4, microbatch_size=3)
    return make_plan(
        profile,
        [running.stage(profile, [first], 0), running.stage(profile, rest, 1, 2, shares=(2, 1))],
        request=type(asked).model_validate(
            {**asked.model_dump(), "destination": destination}, strict=False
        ),
    )


def test_every_rank_has_the_answer(made: tuple[nn.Module, Captured, Profile]) -> None:
    module, captured, profile = made
    plan = split(profile, "all")
    with running.session(plan, captured, profile) as session:
        for items in (1, 7):
            x = torch.randn(items, 8)
            with torch.no_grad():
                expected = module(x)
            assert running.difference(expected, session.run(x).outputs)[0] <= 1
            for rank in (1, 2):
                there = session.delivered(rank)
                found = {name: there[name] for name in expected}
                assert running.difference(expected, found)[0] <= 1


def whole(outputs: Scattered, name: str) -> torch.Tensor:
    rows: dict[int, torch.Tensor] = {}
    for part in outputs.parts:
        spans = part.items.get(name, [])
        items = [i for low, high in spans for i in range(low, high)]
        for item, row in zip(items, part.tensors.get(name, ()), strict=True):
            assert rows.setdefault(item, row) is row, f"item {item} is there twice"
    return torch.stack([rows[i] for i in range(outputs.num_items)])


def test_each_rank_keeps_the_answer_to_its_items(
    made: tuple[nn.Module, Captured, Profile],
) -> None:
    module, captured, profile = made
    plan = split(profile, "scattered")
    with running.session(plan, captured, profile) as session:
        for items in (1, 6, 9):
            x = torch.randn(items, 8)
            with torch.no_grad():
                expected = module(x)
            found = session.run(x).outputs
            assert isinstance(found, Scattered)
            assert {part.rank for part in found.parts if "hidden" in part.items} == {0}
            joined = {name: whole(found, name) for name in expected}
            assert running.difference(expected, joined)[0] <= 1
    check = verify(plan, model=captured, options=running.options(profile)).outputs
    assert check is not None
    assert check.equal


@pytest.mark.parametrize("launcher", ["here", "torchrun"])
@pytest.mark.parametrize("destination", ["all", "scattered"])
def test_files_of_the_answer(
    launcher: str,
    destination: str,
    made: tuple[nn.Module, Captured, Profile],
    tmp_path: Path,
) -> None:
    module, _, profile = made
    plan = split(profile, destination)
    plan.dump(tmp_path / "plan.yaml")
    profile.dump(tmp_path / plan.inputs.profile.ref)
    x = torch.randn(4, 8)
    np.savez(tmp_path / "x.npz", x=x.numpy())
    command = ["run", "plan.yaml", "-i", "x.npz", "-o", "y.npz", "--timeout", "60"]
    if launcher == "here":
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    else:
        with hosts(3, ["-m", "executor", *command], cwd=tmp_path) as processes:
            ended = processes.wait_all()
        assert [one.code for one in ended] == [0] * 3, ended
    with torch.no_grad():
        expected = module(x)
    if destination == "all":
        ranks = [0] if launcher == "here" else [0, 1, 2]
        for rank in ranks:
            found = dict(np.load(tmp_path / ("y.npz" if rank == 0 else f"y.rank{rank}.npz")))
            tensors = {name: torch.from_numpy(value) for name, value in found.items()}
            assert running.difference(expected, {n: tensors[n] for n in expected})[0] <= 1
        return
    assert not (tmp_path / "y.npz").exists()
    index = json.loads((tmp_path / "y.index.json").read_text())
    assert [part["file"] for part in index["parts"]] == [f"y.rank{r}.npz" for r in range(3)]
    for part in index["parts"]:
        held = np.load(tmp_path / part["file"])
        for name, spans in part["items"].items():
            items = [i for low, high in spans for i in range(low, high)]
            np.testing.assert_allclose(held[name], expected[name][items].numpy(), atol=1e-6)


def test_an_illegal_aggregation_starts_no_process(
    made: tuple[nn.Module, Captured, Profile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*given: object, **more: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("executor.running.StartedRanks", started)
    _, captured, profile = made
    plan = edit(split(profile, "root"), {"spec.aggregation.strategy": "sum"})
    with pytest.raises(InvalidInputError, match=r"mixes the answers.*Legal here: concat"):
        run(plan, torch.randn(4, 8), model=captured, options=running.options(profile))


# --- strategies of one's own ----------------------------------------------------------------------


class MedianRule(Strategy):
    name = "median"
    legal_for = "members of an ensemble"
    kinds = frozenset({Kind.MEMBERS})
    over_items = "the median of answers to different items answers none"


class Median:
    name: ClassVar[str] = "median"
    strategy: ClassVar[Strategy] = MedianRule()

    def __init__(self, wanted: Combining) -> None:
        pass

    def join(self, parts: Sequence[torch.Tensor], items: Sequence[int]) -> torch.Tensor:
        return torch.stack(list(parts)).median(dim=0).values


def test_a_strategy_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an entry point, as an installed package declares it; ranks find it as we do."""
    info = tmp_path / "median_strategy-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: median-strategy\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        f"[{strategies.ENTRY_POINTS}]\nmedian = tests.executor.test_destinations:Median\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    torch.manual_seed(0)
    models = [nn.Linear(8, 3).eval() for _ in range(3)]
    captured = capture(load_model(Ensemble(models, combine="median"), torch.randn(2, 8)))
    profile = running.made_up_profile(captured)
    plan = make_plan(
        profile,
        [running.stage(profile, [i], i) for i in range(3)],
        request=running.request(batch_size=4, microbatch_size=2),
        routing="direct",
    )
    x = torch.randn(5, 8)
    with torch.no_grad():
        expected = torch.stack([model(x) for model in models]).median(dim=0).values
    session: Session
    with running.session(plan, captured, profile) as session:
        assert running.difference(expected, session.run(x).outputs)[0] <= 1
