"""Threads of groups that apportion makes are batch work; nothing else is."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from profiler.glooloop import threads_behind_computing
from profiler.stores import file_store, join_group

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a policy of Linux")


def policies() -> dict[int, int]:
    threads = [int(x.name) for x in Path("/proc/self/task").glob("*")]
    return {thread: os.sched_getscheduler(thread) for thread in threads}


def test_threads_of_a_group_are_batch_work_and_nothing_else_is(tmp_path: Path) -> None:
    store = file_store(str(tmp_path / "store"), 1)
    before = policies()
    join_group(store, rank=0, world_size=1, timeout_s=30.0)
    try:
        after = policies()
        made = {policy for thread, policy in after.items() if thread not in before}
        assert made == {os.SCHED_BATCH}
        assert {thread: after[thread] for thread in before if thread in after} == before
    finally:
        dist.destroy_process_group()


def test_the_policy_comes_back_after_an_error() -> None:
    def fail() -> None:
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
        raise ValueError("why")

    with pytest.raises(ValueError, match="why"), threads_behind_computing():
        fail()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_process_under_another_policy_is_left_alone() -> None:
    seen = []

    def under_idle() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with threads_behind_computing():
            seen.append(os.sched_getscheduler(0))
        seen.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=under_idle)
    thread.start()
    thread.join()
    assert seen == [os.SCHED_IDLE, os.SCHED_IDLE]
