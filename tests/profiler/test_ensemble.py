"""Several models as one source: modules, factories, files; and members that do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from executor.inputs import prepare_inputs
from executor.reference import reference
from profiler.capture import Captured, capture
from profiler.ensemble import Ensemble
from profiler.errors import InvalidInputError, UnsupportedModelError
from profiler.sources import load_model
from tests.support.checkpoints import checkpoint


class Net(nn.Module):
    def __init__(self, outputs: int = 3, *, named: bool = False) -> None:
        super().__init__()
        self.fc, self.named = nn.Linear(4, outputs), named

    def forward(self, x: torch.Tensor) -> Any:
        y = self.fc(torch.relu(x))
        return {"y": y} if self.named else y


class Other(nn.Module):
    def forward(self, image: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return image * scale


class Echo(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def captured(*members: nn.Module, **how: Any) -> Captured:
    return capture(load_model(Ensemble(members, **how), torch.randn(2, 4)))


def test_each_members_layers_carry_its_name() -> None:
    graph = captured(Net(), Net(), Net(), combine="weighted_mean", weights=[1, 2, 3]).graph
    together = graph.ensemble
    assert together is not None
    assert (together.members, together.refs) == (("member0", "member1", "member2"), ("Net",) * 3)
    assert (together.strategy, together.weights) == ("weighted_mean", (1.0, 2.0, 3.0))
    assert together.answers == (graph.outputs,)
    assert {layer.name.split(".")[0] for layer in graph.layers} == set(together.members)
    assert {weight.name for weight in graph.weights} >= {"member2.fc.weight"}


@pytest.mark.parametrize(
    ("members", "how", "why"),
    [
        ([Net(3), Net(5)], {}, r"member0 gives \[batch, 3\] float32, member1 gives \[batch, 5\]"),
        ([Net(), Net().double()], {}, "dtype|float64|failed|fails"),
        ([Net(), Net(named=True)], {}, "member0 gives one value, member1 gives dict of y"),
        ([Net(), Other()], {}, r"member1 \(Other\) does not take the inputs"),
        ([Net(2), Net(3), Net(2)], {"combine": "stack"}, "stack needs equal shapes"),
        ([Net()], {}, "needs two members or more; it has 1"),
        ([Net(), 3], {}, "member 1 of the ensemble is a int"),
    ],
)
def test_members_that_do_not_go_together(members: list[Any], how: Any, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        captured(*members, **how)


def test_a_member_must_compute_its_answer() -> None:
    with pytest.raises(UnsupportedModelError, match="member1 of the ensemble returns x"):
        captured(Net(4), Echo())


def test_unlike_members_can_be_listed_and_others_laid_end_to_end() -> None:
    unlike = captured(Net(3), Net(5), combine="gather").graph.ensemble
    assert unlike is not None
    assert unlike.answers == ()
    joined = captured(Net(3), Net(5), combine="concat", dim=1).graph.ensemble
    assert joined is not None
    assert len(joined.answers) == 1


MODELS = """
import torch
from torch import nn
import profiler

def one():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 4)

def other():
    torch.manual_seed(2)
    return nn.Linear(4, 3), torch.randn(2, 4)

def both():
    return profiler.Ensemble([one()[0], other()[0]], combine="max"), torch.randn(2, 4)
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "ensemble_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(directory: Path, *refs: str, **more: Any) -> Path:
    lines = ["kind: Ensemble", "format_version: '1.0'", "members:"]
    lines += [f"- {{ref: '{ref}'}}" for ref in refs]
    lines += [f"{key}: {value}" for key, value in more.items()]
    file = directory / "ensemble.yaml"
    file.write_text("\n".join(lines))
    return file


def test_a_factory_may_return_an_ensemble(models: Path) -> None:
    loaded = load_model("ensemble_models:both")
    assert (loaded.kind, loaded.ref) == ("factory", "ensemble_models:both")
    together = capture(loaded).graph.ensemble
    assert together is not None
    assert together.strategy == "max"


def test_a_file_of_factories(models: Path) -> None:
    file = write(models, "ensemble_models:one", "ensemble_models:other", combine="sum")
    by_file, by_directory = capture(load_model(str(file))), capture(load_model(str(models)))
    assert by_file.graph.fingerprint == by_directory.graph.fingerprint
    graph = by_file.graph
    assert (graph.source, graph.ref) == ("ensemble", str(file))
    assert graph.ensemble is not None
    assert graph.ensemble.refs == ("ensemble_models:one", "ensemble_models:other")


def test_a_file_of_model_directories_leaves_weights_unread(models: Path) -> None:
    """And beside them a factory cannot stand: their inputs are others."""
    directory = checkpoint("bert")
    (models / "a").symlink_to(directory)
    (models / "b").symlink_to(directory)
    loaded = load_model(str(write(models, "a", "b", combine="mean")))
    assert not loaded.has_weights
    made = capture(loaded)
    run = prepare_inputs(made, dict(made.traced.tensors))
    truth = reference(made, run, needed={name for name in made.graph.outputs})
    assert truth.leaves is not None, truth.why
    both = made.member_leaves(truth.leaves)
    own = [[t for t in leaves if isinstance(t, torch.Tensor)] for leaves in both]
    for name, leaf in zip(made.graph.outputs, own[0] + own[1], strict=True):
        torch.testing.assert_close(truth.tensors[name], leaf)


@pytest.mark.parametrize(
    ("refs", "why"),
    [
        (["ensemble_models:one"], "lists 1 members; an ensemble needs two or more"),
        (["ensemble_models:one", "ensemble_models:none"], "has no 'none'"),
        (["ensemble_models:one", "ensemble_models:both"], "is an ensemble; members are"),
        (["ensemble_models:one", "nowhere"], "is not a model"),
    ],
)
def test_files_that_list_no_ensemble(models: Path, refs: list[str], why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        load_model(str(write(models, *refs)))
