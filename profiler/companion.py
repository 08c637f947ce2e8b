"""A process that keeps one device of this machine busy while another is measured.

Ranks on one machine share its cores and memory bus. A layer timed alone is faster than the same
layer timed while the neighbours work, and the second is what a plan will see. So while one device
is measured, each of its neighbours has a companion that computes on it.

Run as ``python -m profiler.companion --threads N [--idle]``: writes one JSON line with its resident
memory when ready (the baseline of a rank), then computes until its input closes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from subprocess import PIPE, Popen, TimeoutExpired

from profiler.allocator import heap_environment


def main() -> None:
    """Report, then work until standard input closes."""
    import psutil
    import torch
    import torch.distributed as dist

    # What every rank loads besides torch: part of its baseline.
    import profiler.build
    import profiler.weights  # noqa: F401
    from profiler.allocator import keep_freed_memory, release_library_pages

    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--idle", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    release_library_pages()
    torch.set_num_threads(options.threads)
    with tempfile.NamedTemporaryFile(prefix="apportion-store-") as store:
        # A group of one, as ranks have: its memory is part of their baseline.
        dist.init_process_group("gloo", init_method=f"file://{store.name}", rank=0, world_size=1)
    # The first operators of a process allocate for good (kernel code, thread pools).
    with torch.inference_mode():
        torch.nn.functional.conv2d(torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3))
        torch.mm(torch.randn(64, 64), torch.randn(64, 64)).softmax(-1)
    sys.stdout.write(json.dumps({"resident_bytes": psutil.Process().memory_info().rss}) + "\n")
    sys.stdout.flush()
    ended = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    if options.idle:
        ended.wait()
        return
    # Half arithmetic, half memory traffic, as layers are.
    square, wide = torch.randn(384, 384), torch.randn(2**20)
    with torch.inference_mode():
        while not ended.is_set():
            torch.mm(square, square)
            torch.add(wide, 1.0)


@contextlib.contextmanager
def companions(num: int, *, threads: int) -> Iterator[None]:
    """Keep ``num`` processes busy inside the block."""
    started: list[Popen[str]] = []
    try:
        while len(started) < num:
            started.append(_start("--threads", str(threads)))
        for process in started:
            _resident_bytes(process)
        yield
    finally:
        _end(started)


def empty_rank_bytes(*, threads: int) -> int:
    """Resident bytes of a rank without a stage: a process is started, asked, and ended."""
    process = _start("--threads", str(threads), "--idle")
    try:
        return _resident_bytes(process)
    finally:
        _end([process])


def _start(*arguments: str) -> Popen[str]:
    return Popen(
        [sys.executable, "-m", "profiler.companion", *arguments],
        stdin=PIPE,
        stdout=PIPE,
        text=True,
        env=heap_environment(os.environ),
        start_new_session=True,  # Ctrl-C is for the caller, which then ends them
    )


def _resident_bytes(process: Popen[str]) -> int:
    """What a process says when it is ready; 0 if it ended instead."""
    assert process.stdout is not None
    line = process.stdout.readline()
    return int(json.loads(line)["resident_bytes"]) if line else 0


def _end(started: list[Popen[str]]) -> None:
    for process in started:
        for stream in (process.stdin, process.stdout):
            if stream is not None and not stream.closed:
                stream.close()
    for process in started:
        try:
            process.wait(timeout=5)
        except TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
