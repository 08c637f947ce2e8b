"""A plan run by processes that something else started, as torchrun does on several hosts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from profiler.capture import capture
from profiler.sources import load_model
from tests.support import running
from tests.support.hosts import hosts

pytestmark = pytest.mark.distributed

MODEL = """
import torch
from torch import nn

class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 3)
        # In no file: it travels with the plan's parts. 12 MB, more than a store takes at once.
        self.register_buffer("table", torch.arange(3_000_000.0).view(-1, 8), persistent=False)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)) + self.table[: x.shape[0]])

def build():
    torch.manual_seed(0)
    return Shifted().eval(), torch.randn(4, 8)
"""


def test_ranks_on_other_hosts_get_constants_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shifted_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = capture(load_model("shifted_model:build"))
    profile = running.made_up_profile(made)
    plan = running.pipeline(profile, batch_size=4, microbatch_size=4)
    plan.dump(tmp_path / "plan.yaml")
    num = len(plan.spec.ranks)
    assert num > 1
    x = torch.randn(4, 8)
    np.savez(tmp_path / "x.npz", x=x.numpy())
    command = ["run", "plan.yaml", "-i", "x.npz", "-o", "y.npz", "--timeout", "60"]
    with hosts(num, ["-m", "executor", *command], cwd=tmp_path, cold=True) as processes:
        ended = processes.wait_all()
    assert [one.code for one in ended] == [0] * num, ended
    module, _ = sys.modules["shifted_model"].build()
    (answer,) = np.load(tmp_path / "y.npz").values()
    torch.testing.assert_close(torch.from_numpy(answer), module(x).detach())
