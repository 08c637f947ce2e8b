"""What gloo's threads take from a rank that computes, as the kernel schedules them or behind it.

    python benchmarks/gloo_loop.py [--quick] [--json FILE]

Two ranks, each with a processor of its own for all of its threads. In turn: gloo's loops scheduled
as they come (``loop`` normal) and as batch work (``loop`` batch; ``profiler/glooloop.py``).

``step``: of a ring in which each rank computes for some milliseconds, hands a message on, and has
asked for the next one before: over computing alone. ``spun``: processor time of a loop in each of
these steps.
``arrival``: how long a stream of messages takes into a rank that only computes meanwhile, over how
long it takes where it waits. ``lost``: how much a MiB of them takes from its computing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.records import Record, parser, publish, record
from profiler.glooloop import threads_behind_computing

LOOPS = {"normal": contextlib.nullcontext, "batch": threads_behind_computing}
LOOP = "gloo_tcp_loop"
"""What gloo calls its threads."""
TURNS = 7
END_S = 10.0
"""How long ranks may take to end once the figures are there."""
STEPS = 100
COMPUTE_S = 0.005
RING_BYTES = (4 * 2**10, 96 * 2**10, 2**20)
STREAM_BYTES, STREAM = 2**20, 64


class Work:
    """A computation that takes about ``COMPUTE_S``."""

    def __init__(self) -> None:
        self.factor = torch.randn(256, 256)
        for _ in range(20):
            torch.mm(self.factor, self.factor)
        began_s, count = time.perf_counter(), 0
        while time.perf_counter() - began_s < 0.3:
            torch.mm(self.factor, self.factor)
            count += 1
        self.count = max(1, round(count * COMPUTE_S / 0.3))

    def __call__(self) -> None:
        """Compute."""
        for _ in range(self.count):
            torch.mm(self.factor, self.factor)


def loops_s() -> float:
    """Processor time that gloo's loops of this process have taken."""
    taken = 0
    for thread in Path("/proc/self/task").glob("*"):
        if (thread / "comm").read_text().strip() == LOOP:
            taken += int((thread / "schedstat").read_text().split()[0])
    return taken / 1e9


def ring(work: Work, rank: int, num_bytes: int) -> tuple[float, float]:
    """Seconds a step over computing alone, and seconds of the loop in it."""
    came, goes = (torch.zeros(num_bytes, dtype=torch.uint8) for _ in range(2))
    dist.barrier()
    began_s = time.perf_counter()
    for _ in range(STEPS):
        work()
    alone_s = time.perf_counter() - began_s
    dist.barrier()
    before_s, began_s = loops_s(), time.perf_counter()
    for _ in range(STEPS):
        asked = dist.irecv(came, 1 - rank)
        work()
        sent = dist.isend(goes, 1 - rank)
        for one in (asked, sent):
            assert one is not None
            one.wait()
    return (time.perf_counter() - began_s) / alone_s, (loops_s() - before_s) / STEPS


def stream(work: Work, rank: int, *, compute_s: float) -> tuple[float, float]:
    """Seconds until rank 0 has sent all of a stream, and seconds that it took from rank 1, which
    computes for ``compute_s`` before it looks."""
    parts = [torch.zeros(STREAM_BYTES, dtype=torch.uint8) for _ in range(STREAM)]
    began_s, steps = time.perf_counter(), 0
    while rank and time.perf_counter() - began_s < compute_s:
        work()
        steps += 1
    step_s = (time.perf_counter() - began_s) / max(1, steps)
    dist.barrier()
    began_s = time.perf_counter()
    move = dist.isend if rank == 0 else dist.irecv
    under_way = [one for part in parts if (one := move(part, 1 - rank)) is not None]
    steps = 0
    while rank and time.perf_counter() - began_s < compute_s:
        work()
        steps += 1
    lost_s = time.perf_counter() - began_s - steps * step_s
    for one in under_way:
        one.wait()
    return time.perf_counter() - began_s, lost_s


def be_rank(rank: int, store: str, loop: str, answers: Connection) -> None:
    """One rank; rank 1 answers."""
    processors = sorted(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    with LOOPS[loop]():
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for thread in Path("/proc/self/task").glob("*"):
        os.sched_setaffinity(int(thread.name), {processors[rank]})
    work = Work()
    found: dict[str, float] = {}
    for num_bytes in RING_BYTES:
        found[f"step {num_bytes}"], found[f"spun {num_bytes}"] = ring(work, rank, num_bytes)
    # As rank 0 sees it: what rank 1 does not take in, it cannot send.
    told = torch.zeros(2, dtype=torch.float64)
    told[0], _ = stream(work, rank, compute_s=0.0)
    dist.broadcast(told, 0)
    taken_s, lost_s = stream(work, rank, compute_s=8 * float(told[0]))
    if rank == 0:
        told[1] = taken_s
    dist.broadcast(told, 0)
    found |= {"arrival": float(told[1] / told[0]), "lost": lost_s / (STREAM * STREAM_BYTES / 2**20)}
    dist.barrier()
    if rank == 1:
        answers.send(found)
    dist.destroy_process_group()


def turn(loop: str) -> dict[str, float]:
    """Both ranks, once."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="apportion-loop-") as folder:
        ranks = [
            context.Process(target=be_rank, args=(rank, f"{folder}/store", loop, theirs))
            for rank in range(2)
        ]
        for rank in ranks:
            rank.start()
        theirs.close()
        try:
            answer: dict[str, float] = ours.recv()
        finally:
            for rank in ranks:
                rank.join(END_S)
                rank.kill()  # one whose other has failed would wait for it
    return answer


def measure(turns: int) -> Iterator[Record]:
    """All figures of both, in turn."""
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(turns):
        for loop in LOOPS:
            for what, value in turn(loop).items():
                found.setdefault((what, loop), []).append(value)
    for (what, loop), values in found.items():
        name, _, num_bytes = what.partition(" ")
        about = {"loop": loop} | ({"message": int(num_bytes)} if num_bytes else {})
        value, unit = statistics.median(values), "ratio"
        if name in ("spun", "lost"):
            value, unit = 1e3 * value, "ms"
        yield record(name, value, unit, **about)


def main() -> None:
    """Measure, show, write."""
    args = parser(__doc__).parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two processors are needed: each rank has one of its own")
    publish(list(measure(2 if args.quick else TURNS)), args.json)


if __name__ == "__main__":
    main()
