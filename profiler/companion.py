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
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator

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
def companions(num: int, *, threads: int) -> Iterator[int]:
    """Keep ``num`` processes busy inside the block; yields the resident bytes of an empty rank.

    With ``num`` 0 one process is started, asked for its memory, and ended at once.
    """
    arguments = [sys.executable, "-m", "profiler.companion", "--threads", str(threads)]
    if num == 0:
        arguments.append("--idle")
    started: list[subprocess.Popen[str]] = []
    try:
        while len(started) < max(1, num):
            started.append(
                subprocess.Popen(
                    arguments,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=heap_environment(os.environ),
                    start_new_session=True,  # Ctrl-C is for the caller, which then ends them
                )
            )
        resident = []
        for process in started:
            assert process.stdout is not None
            line = process.stdout.readline()
            resident.append(int(json.loads(line)["resident_bytes"]) if line else 0)
        if num == 0:
            _end(started)
        yield max(resident)
    finally:
        _end(started)


def _end(started: list[subprocess.Popen[str]]) -> None:
    for process in started:
        for stream in (process.stdin, process.stdout):
            if stream is not None and not stream.closed:
                stream.close()
    for process in started:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
