"""The main job: a digit classifier measured, planned, explained, run on three processes, verified.

Trains a small convolutional network on scikit-learn's 1,797 handwritten digits (a few seconds),
saves its weights as safetensors, and then does what a user does: profile it on this machine's
processors, plan it over three processes, read the plan, classify the test images with the
distributed run, and compare with the single-process model. ``make demo`` runs this file; everything
it writes is in ``out/``.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

OUT = Path(__file__).resolve().parent.parent / "out"
WEIGHTS = OUT / "digits.safetensors"
BATCH = 48


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Same shape in and out."""
        inner = torch.relu(self.norm1(self.conv1(image)))
        return torch.relu(self.norm2(self.conv2(inner)) + image)


class DigitClassifier(nn.Module):
    """Images ``[batch, 1, 8, 8]`` to ten scores ``[batch, 10]``."""

    def __init__(self, channels: int = 64, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.blocks = nn.ModuleList([Block(channels) for _ in range(blocks)])
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * 64, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Scores of the ten digits."""
        value = torch.relu(self.stem(image))
        for block in self.blocks:
            value = block(value)
        return self.head(value)


def build() -> tuple[nn.Module, torch.Tensor]:
    """The trained model and example inputs: what ``examples.digits:build`` gives apportion."""
    model = DigitClassifier()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval(), torch.zeros(2, 1, 8, 8)


def images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training and test images and their digits; every fifth image is for testing."""
    data = load_digits()
    pictures = torch.from_numpy((data.images / 16.0).astype(np.float32)).unsqueeze(1)
    digits = torch.from_numpy(data.target.astype(np.int64))
    test = torch.arange(len(digits)) % 5 == 0
    return pictures[~test], digits[~test], pictures[test], digits[test]


def train() -> None:
    """Fit the classifier and save its weights."""
    torch.manual_seed(0)
    pictures, digits, _, _ = images()
    model = DigitClassifier()
    epochs, size = 4, 64
    steps = epochs * (len(digits) // size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(digits))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            loss = nn.functional.cross_entropy(model(pictures[chosen]), digits[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, WEIGHTS)


def main() -> None:
    """Train, profile, plan, explain, run, compare."""
    import executor
    import planner
    import profiler
    from planner.explain import explain
    from planner.render import render_text
    from profiler.discover import discover

    OUT.mkdir(exist_ok=True)
    begun = time.perf_counter()
    train()
    print(f"trained in {time.perf_counter() - begun:.1f} s; weights in {WEIGHTS.name}\n")

    # `apportion devices`, `apportion profile`, `apportion plan` do the same from the shell.
    cluster = discover(cpu_devices=3)
    cluster.dump(OUT / "cluster.yaml")
    profile = profiler.profile_model("examples.digits:build", cluster=cluster)
    profile.dump(OUT / "profile.json")
    plan = planner.plan(
        profile,
        batch_size=BATCH,
        profile_ref="profile.json",  # beside the plan
        cluster_ref="cluster.yaml",
    )
    plan.dump(OUT / "plan.yaml")
    print((OUT / "plan.yaml").read_text())
    print(render_text(explain(plan, name="out/plan.yaml")))

    _, _, pictures, digits = images()
    model, _ = build()
    with torch.inference_mode():
        alone = model(pictures)
    result = executor.run(OUT / "plan.yaml", pictures)
    result.report.dump(OUT / "run.json")
    check = executor.verify(OUT / "plan.yaml", pictures).outputs
    assert check is not None
    right = (result.outputs.argmax(1) == digits).float().mean().item()
    right_alone = (alone.argmax(1) == digits).float().mean().item()
    print(f"{len(digits)} test images on {len(plan.spec.ranks)} processes")
    print(f"  accuracy, distributed run     {100 * right:.2f} %")
    print(f"  accuracy, single process      {100 * right_alone:.2f} %")
    same = bool((result.outputs.argmax(1) == alone.argmax(1)).all())
    print(f"  every digit the same          {'yes' if same else 'NO'}")
    print(f"  largest difference of scores  {(result.outputs - alone).abs().max():.1e}")
    print(f"  equal to the undivided model  {'yes' if check.equal else 'NO'}")
    if not (same and check.equal):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
