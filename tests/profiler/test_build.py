"""Modules built from programs ask for what comes late where they first read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from profiler.build import build_stage
from profiler.capture import Captured, capture
from profiler.sources import Example, load_model

_steps: list[str] = []
"""What happened, in order."""


@torch.library.custom_op("apportion_test::tell", mutates_args=())
def tell(x: torch.Tensor, step: str) -> torch.Tensor:
    """Note that a step is computed."""
    _steps.append(step)
    return x.clone()


@tell.register_fake
def _(x: torch.Tensor, step: str) -> torch.Tensor:
    return torch.empty_like(x)


class Tower(nn.Module):
    """Two layers that tell when they run."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The tower's features."""
        return tell(self.second(tell(self.first(x), f"{self.name} 1")), f"{self.name} 2")


class Head(nn.Module):
    """Joins two towers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Scores."""
        return tell(self.left(x) + self.right(y), "head")


class Towers(nn.Module):
    """Two towers and their head."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = Tower("left"), Tower("right"), Head()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Scores."""
        return self.head(self.left(x), self.right(y))


@dataclass
class Late:
    """A tensor that somebody asks for."""

    name: str
    tensor: torch.Tensor

    def wait(self) -> torch.Tensor:
        """The tensor."""
        _steps.append(f"wait for {self.name}")
        return self.tensor


def towers() -> Captured:
    return capture(
        load_model(Towers().eval(), Example(args=(torch.randn(2, 8), torch.randn(2, 8))))
    )


def test_an_input_is_asked_for_where_it_is_first_read() -> None:
    captured = towers()
    module = captured.source.module
    assert module is not None
    layers = [layer.name for layer in captured.graph.layers]
    right = captured.cutter.part([name for name in layers if name.startswith("right")])
    others = captured.cutter.part([name for name in layers if not name.startswith("right")])
    cpu = torch.device("cpu")
    x, y = torch.randn(2, 8), torch.randn(2, 8)
    (feature,) = build_stage(right, device=cpu, weight=captured.weight)(y)
    _steps.clear()
    stage = build_stage(
        others, device=cpu, weight=captured.weight, awaited=frozenset(others.inputs)
    )
    given = {"x": x, **dict.fromkeys(right.outputs, feature)}
    (score,) = stage(*(Late(name, given[name]) for name in others.inputs))
    late = right.outputs[0]
    assert _steps == ["wait for x", "left 1", "left 2", f"wait for {late}", "head"]
    assert torch.equal(score, module(x, y))
