"""A plan run by processes that something else started, as torchrun does on several hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from executor.preparation import LEAVING
from executor.report import RunReport
from executor.torchrun import World
from profiler.capture import capture
from profiler.environment import Environment
from profiler.errors import RankFailedError
from profiler.sources import load_model
from tests.support import running
from tests.support.captures import captured
from tests.support.cutting import named_inputs
from tests.support.hosts import ROOT, hosts

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


def planned(
    folder: Path,
    name: str,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    microbatch_size: int = 2,
) -> int:
    """A plan of a model module in ``folder``, its inputs beside it; how many ranks it has."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    profile = running.made_up_profile(capture(load_model(f"{name}:build")))
    plan = running.pipeline(profile, batch_size=4, microbatch_size=microbatch_size)
    plan.dump(folder / "plan.yaml")
    np.savez(folder / "x.npz", x=torch.randn(4, 8).numpy())
    return len(plan.spec.ranks)


RUN = ["-m", "executor", "run", "plan.yaml", "-i", "x.npz", "--timeout", "60"]


def test_ranks_on_other_hosts_get_constants_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num = planned(tmp_path, "shifted_model", MODEL, monkeypatch, microbatch_size=4)
    assert num > 1
    with hosts(num, [*RUN, "-o", "y.npz"], cwd=tmp_path, cold=True) as processes:
        ended = processes.wait_all()
    assert [one.code for one in ended] == [0] * num, ended
    module, _ = sys.modules["shifted_model"].build()
    (answer,) = np.load(tmp_path / "y.npz").values()
    x = torch.from_numpy(np.load(tmp_path / "x.npz")["x"])
    torch.testing.assert_close(torch.from_numpy(answer), module(x).detach())


ECHOING = """
import torch
from torch import nn

class Echoing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 3)

    def forward(self, x):
        scores = self.second(torch.relu(self.first(x)))
        return {"scores": scores, "bias": self.second.bias, "given": x, "width": 8}

def build():
    torch.manual_seed(0)
    return Echoing().eval(), torch.randn(4, 8)
"""


def test_weights_and_inputs_in_the_answer_are_written_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num = planned(tmp_path, "echoing_model", ECHOING, monkeypatch)
    with hosts(num, [*RUN, "-o", "y.npz"], cwd=tmp_path) as processes:
        ended = processes.wait_all()
    assert [one.code for one in ended] == [0] * num, ended
    module, _ = sys.modules["echoing_model"].build()
    x = torch.from_numpy(np.load(tmp_path / "x.npz")["x"])
    expected = module(x)
    answer = np.load(tmp_path / "y.npz")
    assert answer.files == ["scores", "bias", "given"]
    for name in answer.files:
        torch.testing.assert_close(torch.from_numpy(answer[name]), expected[name].detach())


def test_no_rank_holds_what_capturing_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num = planned(tmp_path, "echoing_model", ECHOING, monkeypatch)
    with hosts(num, [*RUN, "--report", "run.json"], cwd=tmp_path, cold=True) as processes:
        ended = processes.wait_all()
    assert [one.code for one in ended] == [0] * num, ended
    report = RunReport.load(tmp_path / "run.json")
    for rank in report.ranks:
        assert rank.memory_bytes.measured is not None
        assert rank.memory_bytes.measured < rank.baseline_bytes + 24 * 2**20


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("os.kill(os.getpid(), 9)", 7, "captures the model ended with signal 9"),
        ("raise ValueError('no such weights')", 2, "no such weights"),
    ],
)
def test_all_hear_why_a_model_was_not_captured(
    what: str, code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num = planned(tmp_path, "echoing_model", ECHOING, monkeypatch)
    (tmp_path / "echoing_model.py").write_text(f"import os\n\ndef build():\n    {what}\n")
    with hosts(num, RUN, cwd=tmp_path) as processes:
        ended = processes.wait_all()
    assert [one.code for one in ended] == [code] * num, ended
    assert all(words in one.err for one in ended)
    assert all("rank 0 could not prepare the run" in one.err for one in ended[1:])


def test_preparing_ends_when_its_starter_is_gone(tmp_path: Path) -> None:
    (tmp_path / "slow_model.py").write_text(
        "import time\n\ndef build():\n    print('building', flush=True)\n    time.sleep(600)\n"
    )
    made = captured("mlp")
    running.pipeline(running.profile_of("mlp")).dump(tmp_path / "plan.yaml")
    tensors = named_inputs(made, made.source.example.args, made.source.example.kwargs)
    np.savez(tmp_path / "x.npz", **{name: t.numpy() for name, t in tensors.items()})
    request = {
        "directory": str(tmp_path),
        "plan": "plan.yaml",
        "inputs": "x.npz",
        "model": "slow_model:build",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "executor.preparation"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "building\n"
    process.stdin.close()
    assert process.wait(timeout=20) == LEAVING
    process.stdout.close()


KEEPER = """
import sys
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True)
print(store.port, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("ends", "timeout_s", "words"),
    [
        (True, 60.0, r"rank 1 waited \d+ of 60 s for rank 0 when the rendezvous store was lost"),
        (False, 1.0, r"rank 1 heard nothing from rank 0 in 1 s: is it running"),
    ],
)
def test_a_lost_store_is_not_taken_for_silence(ends: bool, timeout_s: float, words: str) -> None:
    plan = running.pipeline(running.made_up_profile(captured("mlp")))
    with subprocess.Popen(
        [sys.executable, "-c", KEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdout is not None
        environment = Environment(
            rank=1,
            world_size=len(plan.spec.ranks),
            master_addr="127.0.0.1",
            master_port=int(keeper.stdout.readline()),
            agent_store=True,
        )
        timer = threading.Timer(1.0, keeper.kill)
        try:
            if ends:
                timer.start()
            with pytest.raises(RankFailedError, match=words):
                World(plan, environment, timeout_s=timeout_s)
        finally:
            timer.cancel()
            keeper.kill()
