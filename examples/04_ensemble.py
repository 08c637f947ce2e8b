"""Three unlike classifiers of handwritten digits, on three processes, vote on every image.

A linear model, a multilayer perceptron and a small convolutional network are trained on
scikit-learn's digits. As an ensemble they are one model: profiled together, placed by one plan
(each member on its own process, here), and their answers are put together by the plan's
aggregation, a vote. A vote on scores instead of classes is refused before any process starts.

    python examples/04_ensemble.py
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import executor
import planner
import profiler
from planner.explain import explain
from planner.render import render_text
from profiler.discover import discover
from profiler.errors import InvalidInputError

BATCH = 60
EPOCHS = {"linear": 25, "perceptron": 15, "convolutional": 5}


class Classifier(nn.Module):
    """A network for scores, and the class with the largest: images ``[batch, 1, 8, 8]``."""

    def __init__(self, scores: nn.Module) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The digit, ``[batch]``."""
        return self.scores(image).argmax(1)


def networks() -> dict[str, nn.Module]:
    """Three of different kinds, untrained."""
    torch.manual_seed(0)
    return {
        "linear": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        "perceptron": nn.Sequential(
            nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(),
            nn.Linear(48, 10),
        ),
        "convolutional": nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 10),
        ),
    }  # fmt: skip


def images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training and test images and their digits; every third image is for testing."""
    data = load_digits()
    pictures = torch.from_numpy((data.images / 16.0).astype(np.float32)).unsqueeze(1)
    digits = torch.from_numpy(data.target.astype(np.int64))
    test = torch.arange(len(digits)) % 3 == 0
    return pictures[~test], digits[~test], pictures[test], digits[test]


def train(model: nn.Module, pictures: torch.Tensor, digits: torch.Tensor, *, epochs: int) -> None:
    """Fit by Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(digits)).split(64):
            loss = nn.functional.cross_entropy(model(pictures[chosen]), digits[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main() -> None:
    """Train, plan, vote; then try to vote on scores."""
    pictures, digits, test, truth = images()
    scorers = networks()
    for name, model in scorers.items():
        train(model, pictures, digits, epochs=EPOCHS[name])
    members = [Classifier(model).eval() for model in scorers.values()]
    ensemble = profiler.Ensemble(members, combine="vote")

    profile = profiler.profile_model(
        ensemble, test[:2], cluster=discover(cpu_devices=3), batch_sizes=[BATCH // 2, BATCH]
    )
    # Each member on a device of its own, whatever that costs: this is what pins are for.
    devices = list(profile.cluster.device)
    pins = [{"layers": f"member{i}", "device": devices[i]} for i in range(3)]
    plan = planner.plan(profile, batch_size=BATCH, pins=pins)
    print(render_text(explain(plan, name="plan")))

    options = executor.RunOptions(profile=profile)
    votes = executor.run(plan, test, model=ensemble, options=options).outputs
    with torch.inference_mode():
        alone = torch.stack([member(test) for member in members])
    expected = torch.stack([torch.bincount(column, minlength=10) for column in alone.T]).argmax(1)
    for name, answers in zip(scorers, alone, strict=True):
        print(f"  {name:<14} {100 * (answers == truth).float().mean():5.1f} % right")
    print(f"  {'vote':<14} {100 * (votes == truth).float().mean():5.1f} % right, on "
          f"{len(plan.spec.ranks)} processes")  # fmt: skip
    if not torch.equal(votes, expected):
        sys.exit("the vote is not what counting the members' answers gives: that is a bug")

    try:
        scores = profiler.Ensemble(scorers.values(), combine="vote")
        planner.plan(profiler.profile_model(scores, test[:2], batch_sizes=[2]), batch_size=2)
    except InvalidInputError as error:
        print(f"\na vote on scores is refused: {error}")
    else:
        sys.exit("a vote on scores was planned: that is a bug")


if __name__ == "__main__":
    main()
