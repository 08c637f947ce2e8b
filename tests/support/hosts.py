"""Processes as torchrun starts them, one for each of several made-up hosts of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from profiler.allocator import heap_environment
from tests.support.warm import WarmPopen

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    out: str
    err: str


class Processes:
    """Running processes, by rank."""

    def __init__(self, running: list[subprocess.Popen[str]]) -> None:
        self.running = running

    def wait(self, rank: int, *, timeout_s: float = 120.0) -> Ended:
        """Until the process of a rank has ended."""
        process = self.running[rank]
        out, err = process.communicate(timeout=timeout_s)
        return Ended(process.returncode, out, err)

    def wait_all(self, *, timeout_s: float = 120.0) -> list[Ended]:
        """Until all have ended."""
        return [self.wait(rank, timeout_s=timeout_s) for rank in range(len(self.running))]


def environment(
    rank: int, world_size: int, port: int, *, address: str = "127.0.0.1"
) -> dict[str, str]:
    """What torchrun would tell a rank; its host is called ``h`` and the rank."""
    return {
        **heap_environment(os.environ),  # as it would give itself, by starting anew
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "APPORTION_HOST": f"h{rank}",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


@contextmanager
def hosts(
    num: int,
    arguments: Sequence[str] | Sequence[Sequence[str]],
    *,
    cwd: Path,
    world_size: int | None = None,
    changed: dict[int, dict[str, str]] | None = None,
    cold: bool = False,
) -> Iterator[Processes]:
    """``python ARGUMENTS`` on so many made-up hosts; what still runs at the end is killed.

    ``arguments`` are those of all, or one list for each of them.
    ``changed`` are variables that differ for a rank. ``cold`` processes are started from nothing,
    each with its own hash seed; others are forked from one that has imported torch.
    """
    port = free_port()
    start = subprocess.Popen if cold else WarmPopen
    running = [
        start(
            [sys.executable, *_of(arguments, rank)],
            env={**environment(rank, world_size or num, port), **(changed or {}).get(rank, {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num)
    ]
    try:
        yield Processes(running)
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def _of(arguments: Sequence[str] | Sequence[Sequence[str]], rank: int) -> Sequence[str]:
    own = arguments[rank]
    return [str(one) for one in arguments] if isinstance(own, str) else own
