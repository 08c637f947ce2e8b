from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from profiler.allocator import heap_environment, release_library_pages

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "glibc.malloc.tcache_count=0"),
        ({"GLIBC_TUNABLES": "a.b=1"}, "a.b=1:glibc.malloc.tcache_count=0"),
        (
            {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7:a.b=1"},
            "a.b=1:glibc.malloc.tcache_count=0",
        ),
    ],
)
def test_other_tunables_are_kept(before: dict[str, str], after: str) -> None:
    found = heap_environment({**before, "HOME": "/h"})
    assert found == {"GLIBC_TUNABLES": after, "HOME": "/h"}


@LINUX
def test_library_pages_are_given_up_and_come_back() -> None:
    script = """
import json, math, psutil, sys
import numpy as np
from profiler.allocator import release_library_pages
def resident(): return psutil.Process().memory_info().rss
before = resident()
released = release_library_pages()
after = resident()
works = float(np.linalg.norm(np.ones((30, 30)) @ np.ones((30, 30))))
print(json.dumps([before, released, after, works]))
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    before, released, after, works = json.loads(run.stdout)
    assert released > 2**20
    assert after < before - released / 2
    assert works == 900.0


def test_it_is_safe_in_a_process_that_goes_on() -> None:
    release_library_pages()
    assert sum(range(10)) == 45
