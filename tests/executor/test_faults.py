"""What goes wrong while ranks run ends with a named rank, in time, and with no process left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from executor.session import Session, temporary_prefix
from planner.inputs import Sources
from planner.planfile import Plan
from profiler.capture import Captured, capture
from profiler.errors import ApportionError, InvalidInputError, RankFailedError, StalePlanError
from profiler.profile import Profile
from profiler.sources import load_model
from tests.support import running, zoo
from tests.support.captures import captured
from tests.support.checkpoints import checkpoint
from tests.support.plans import edit, resigned
from tests.support.warm import server_pids

pytestmark = pytest.mark.distributed

SOON_S = 8.0
"""A failure must be reported within this; the machine that runs tests is busy."""


def below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def temporary(pid: int | None = None) -> set[Path]:
    """What a process, this one by default, has made for ranks and not removed yet.

    Other runs on this machine make and remove their own meanwhile.
    """
    places = (Path("/dev/shm"), Path(tempfile.gettempdir()))
    prefix = temporary_prefix(os.getpid() if pid is None else pid)
    return {found for place in places for found in place.glob(f"{prefix}*")}


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = {p.pid for p in below(psutil.Process())}
    files = temporary()
    yield
    left = [p for p in below(psutil.Process()) if p.pid not in before]
    assert not left, f"processes left behind: {left}"
    assert not temporary() - files


@pytest.fixture(autouse=True)
def _started_as_users_start_them(cold_ranks: None) -> None:
    """Starting and ending processes is what is tested here."""


def gone(pids: list[int]) -> bool:
    """Whether none of these processes runs any more, after waiting a little."""
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        alive = [p for p in pids if psutil.pid_exists(p) and not _is_zombie(p)]
        if not alive:
            return True
        time.sleep(0.05)
    return False


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def starter_of(process: psutil.Process) -> psutil.Process:
    """The process that ranks are forked from; not what other tests have forked theirs from."""
    (starter,) = (one for one in process.children() if one.pid not in server_pids())
    return starter


def ranks_of(process: psutil.Process) -> list[int]:
    """Process ids of the ranks, by rank: they are forked in that order."""
    return sorted(child.pid for child in starter_of(process).children())


@pytest.fixture(scope="module")
def world() -> tuple[Plan, Captured, Profile]:
    made = captured("resnet50")
    profile = running.made_up_profile(made)
    return running.pipeline(profile), made, profile


def open_session(world: tuple[Plan, Captured, Profile], *, timeout_s: float) -> Session:
    plan, made, profile = world
    return running.session(plan, made, profile, timeout_s=timeout_s)


IMAGES = torch.zeros(8, 3, 32, 32)


def run_long(session: Session) -> tuple[threading.Thread, list[BaseException]]:
    """Start a run that would take minutes."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            session.run(IMAGES, repeats=20_000)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, failures


def after_signal(
    world: tuple[Plan, Captured, Profile], rank: int, number: int, *, timeout_s: float
) -> tuple[BaseException, float, Session]:
    """The error of a run in whose middle a rank got a signal, and how long it took to come."""
    session = open_session(world, timeout_s=timeout_s)
    try:
        pid = ranks_of(psutil.Process())[rank]
        thread, failures = run_long(session)
        time.sleep(0.5)
        assert thread.is_alive()
        begun = time.monotonic()
        os.kill(pid, number)
        thread.join(timeout_s + SOON_S)
        took = time.monotonic() - begun
        assert not thread.is_alive(), "the run went on"
        (error,) = failures
        return error, took, session
    finally:
        session.close()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_killed_rank_is_named_within_seconds(
    rank: int, world: tuple[Plan, Captured, Profile]
) -> None:
    error, took, session = after_signal(world, rank, signal.SIGKILL, timeout_s=60)
    assert isinstance(error, RankFailedError)
    assert f"rank {rank} (h/cpu:{rank}, pipeline 0 stage {rank})" in str(error)
    assert "SIGKILL" in str(error)
    assert took < SOON_S
    with pytest.raises(InvalidInputError, match="the session is closed"):
        session.run(IMAGES)


def test_a_stopped_rank_is_noticed_after_the_time_limit(
    world: tuple[Plan, Captured, Profile],
) -> None:
    error, took, _ = after_signal(world, 1, signal.SIGSTOP, timeout_s=2)
    assert isinstance(error, RankFailedError)
    assert "rank 1" in str(error)
    assert "nothing came through in 2 s" in str(error)
    assert 1.5 < took < 2 + SOON_S


def test_a_stopped_rank_that_nobody_waits_for_is_noticed_too() -> None:
    made = captured("mlp")
    profile = running.made_up_profile(made)
    layers = range(len(profile.model.layers))
    plan = running.make_plan(
        profile,
        [running.stage(profile, layers, 0)],
        request=running.request(batch_size=8, microbatch_size=8),
    )
    with running.session(plan, made, profile, timeout_s=2) as session:
        os.kill(ranks_of(psutil.Process())[0], signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(RankFailedError, match="rank 0"):
            session.run(torch.zeros(8, 8))
        assert time.monotonic() - begun < 2 + SOON_S


def test_a_killed_starter_of_ranks_is_no_hang(world: tuple[Plan, Captured, Profile]) -> None:
    session = open_session(world, timeout_s=60)
    pids = ranks_of(psutil.Process())
    zygote = starter_of(psutil.Process())
    thread, failures = run_long(session)
    time.sleep(0.3)
    zygote.kill()
    thread.join(SOON_S)
    assert not thread.is_alive()
    assert isinstance(failures[0], RankFailedError)
    session.close()
    assert gone(pids)


def test_a_stage_that_raises_names_rank_stage_and_items() -> None:
    made = captured("tied_weights")
    profile = running.made_up_profile(made)
    ids = torch.zeros(8, 5, dtype=torch.long)
    ids[4] = 1000  # there are 40 words
    with running.session(running.pipeline(profile), made, profile) as session:
        with pytest.raises(RankFailedError) as caught:
            session.run(ids)
        assert "rank 0 (pipeline0.stage0) failed computing items 3 to 5" in str(caught.value)
        assert "IndexError" in str(caught.value)
        with pytest.raises(InvalidInputError, match="closed"):
            session.run(ids)


SCRIPT = """
import sys, torch
from tests.support import running
from tests.support.captures import captured
made = captured("resnet50")
profile = running.made_up_profile(made)
with running.session(running.pipeline(profile), made, profile) as session:
    print("ready", flush=True)
    session.run(torch.zeros(8, 3, 32, 32), repeats=20_000)
"""


@pytest.fixture
def running_script() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    yield process
    process.kill()
    process.wait()
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()


def test_ranks_end_when_their_caller_is_killed(running_script: subprocess.Popen[str]) -> None:
    files = temporary(running_script.pid)
    assert files
    pids = [p.pid for p in below(psutil.Process(running_script.pid))]
    assert len(pids) == 4  # three ranks and the process they are forked from
    running_script.kill()
    assert gone(pids)
    assert running_script.stderr is not None
    assert running_script.stderr.read() == ""  # which of them ends first is chance
    for left in files:  # nobody was there to remove them
        shutil.rmtree(left, ignore_errors=True)


@pytest.mark.parametrize("whole_group", [False, True], ids=["caller", "terminal"])
def test_ctrl_c_ends_the_ranks(running_script: subprocess.Popen[str], whole_group: bool) -> None:
    pids = [p.pid for p in below(psutil.Process(running_script.pid))]
    if whole_group:
        os.killpg(running_script.pid, signal.SIGINT)
    else:
        running_script.send_signal(signal.SIGINT)
    _, errors = running_script.communicate(timeout=SOON_S)
    assert gone(pids)
    assert "KeyboardInterrupt" in errors  # of the script, which does not catch it
    assert errors.count("Traceback") == 1, errors


# --- refused before any process starts -------------------------------------------------------


@pytest.fixture
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("executor.local.Popen", refuse)


def refused(plan: Plan, made: Captured, profile: Profile | None, kind: type[ApportionError]) -> str:
    sources = None if profile is None else Sources(profile=profile, cluster=profile.cluster)
    with pytest.raises(kind) as caught:
        Session(plan, made, sources=sources)
    return str(caught.value)


@pytest.mark.usefixtures("_no_process")
def test_a_plan_for_another_model_is_stale(world: tuple[Plan, Captured, Profile]) -> None:
    plan, _, profile = world
    message = refused(plan, captured("mlp"), profile, StalePlanError)
    assert "the plan is stale" in message
    assert refused(plan, captured("mlp"), None, StalePlanError)


@pytest.mark.usefixtures("_no_process")
def test_a_plan_for_another_profile_is_stale(world: tuple[Plan, Captured, Profile]) -> None:
    plan, made, profile = world
    other = profile.model_copy(
        update={"conditions": profile.conditions.model_copy(update={"torch": "1.0"})}
    )
    assert "profile" in refused(plan, made, other, StalePlanError)


EDITS: dict[str, dict[str, object]] = {
    "a layer is lost": {"spec.pipelines.0.stages.2.layers": ["fc"]},
    "a share too many": {"spec.pipelines.0.stages.0.shares": [4]},
    "an unknown device": {"spec.ranks.1.device": "h/cpu:9"},
    "two ranks on one device": {"spec.ranks.1.device": "h/cpu:0"},
    "a transfer is lost": {"spec.transfers": []},
    "another aggregation": {"spec.aggregation.strategy": "mean"},
    "another batch": {"spec.pipelines.0.items": 9},
    "a device without a name": {"spec.ranks.1.device": "h/cpu 1"},
}


@pytest.mark.usefixtures("_no_process")
@pytest.mark.parametrize("change", EDITS)
def test_a_plan_edited_by_hand_into_nonsense_is_refused(
    change: str, world: tuple[Plan, Captured, Profile]
) -> None:
    plan, made, profile = world
    for edited in (edit(plan, EDITS[change]), resigned(edit(plan, EDITS[change]))):
        assert "the plan cannot be run" in refused(edited, made, profile, InvalidInputError)


@pytest.mark.usefixtures("_no_process")
@pytest.mark.parametrize("change", EDITS)
def test_a_plan_edited_into_nonsense_is_no_crash_without_its_profile(
    change: str, world: tuple[Plan, Captured, Profile]
) -> None:
    # Nothing to check it against: what the ranks' schedule cannot do must still be an error.
    if change == "an unknown device":
        pytest.skip("runs: devices of this machine are all its processors")
    plan, made, _ = world
    assert refused(edit(plan, EDITS[change]), made, None, InvalidInputError)


@pytest.mark.usefixtures("_no_process")
def test_devices_that_this_machine_lacks_are_named(world: tuple[Plan, Captured, Profile]) -> None:
    plan, made, _ = world
    moved = edit(plan, {"spec.ranks.1.device": "h/cuda:7"})
    assert "rank 1 needs h/cuda:7" in refused(moved, made, None, InvalidInputError)


@pytest.mark.usefixtures("_no_process")
def test_more_memory_than_there_is_is_refused(world: tuple[Plan, Captured, Profile]) -> None:
    plan, made, _ = world
    hungry = edit(plan, {"estimate.ranks.0.memory.weights_bytes": 10**15})
    assert "are free now" in refused(hungry, made, None, InvalidInputError)


def test_a_time_limit_must_be_one(world: tuple[Plan, Captured, Profile]) -> None:
    with pytest.raises(InvalidInputError, match="timeout_s"):
        open_session(world, timeout_s=0)


# --- files that go away ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda file: file.write_bytes(b"not tensors"),
        lambda file: file.write_bytes(file.read_bytes()[:-5000]),
    ],
    ids=["deleted", "overwritten", "cut short"],
)
def test_weights_that_are_gone_when_ranks_start(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    directory = shutil.copytree(checkpoint("llama"), tmp_path / "model")
    made = capture(load_model(str(directory)))
    profile = running.made_up_profile(made)
    plan = running.pipeline(profile)
    (file,) = directory.glob("*.safetensors")
    damage(file)
    with pytest.raises(InvalidInputError, match=r"model\.safetensors"):
        running.session(plan, made, profile)


def test_one_session_after_another_in_one_process(world: tuple[Plan, Captured, Profile]) -> None:
    for _ in range(2):
        with open_session(world, timeout_s=20) as session:
            assert session.run(IMAGES).outputs.shape == (8, 10)


def test_two_sessions_at_once(world: tuple[Plan, Captured, Profile]) -> None:
    module, _ = zoo.resnet50()
    with open_session(world, timeout_s=20) as one, open_session(world, timeout_s=20) as other:
        with torch.no_grad():
            expected = module(IMAGES)
        for session in (one, other, one):
            assert running.difference(expected, session.run(IMAGES).outputs)[0] <= 1
