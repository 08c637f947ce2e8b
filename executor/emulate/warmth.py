"""Keeps the processor's caches filled with torch's code while emulated hosts wait for their turn.

A host with a fifth of a core computes for two milliseconds and is stopped for eight. Meanwhile a
core with nothing to do loses what its caches held, and the next turn begins by fetching it again:
on one machine a step then took up to three times the processor time that it took while the other
hosts computed too, since all of them run the same library. A slow device never stops, and has no
such times. So one process a core computes a little of everything at the kernel's lowest priority
(``SCHED_IDLE``): it runs when nobody else wants the core.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOOK_S = 0.2
"""How often the processes look whether who wanted them is still there."""


@contextmanager
def warm_cores() -> Iterator[None]:
    """Every core that this process may use is kept warm inside the block, and no longer: not after
    this process has been killed either."""
    argv = [sys.executable, "-m", "executor.emulate.warmth", str(os.getpid())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    keeper = subprocess.Popen(
        argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        keeper.kill()
        keeper.wait()


def main() -> None:
    """One process a core, until process number ``argv[1]``, which started this, ends."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    owner, this = int(sys.argv[1]), os.getpid()
    import torch

    torch.set_num_threads(1)
    for core in sorted(os.sched_getaffinity(0)):
        if os.fork() == 0:
            os.sched_setaffinity(0, {core})
            _compute_while_child_of(this)
            os._exit(0)
    while os.getppid() == owner:
        time.sleep(LOOK_S)


def _compute_while_child_of(parent: int) -> None:
    """The usual kinds of layers, so small that their figures take no room in caches."""
    import torch
    from torch import nn

    transformer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True).eval()
    convolution = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
    ).eval()
    tokens, image = torch.randn(1, 8, 32), torch.randn(1, 3, 10, 10)
    with torch.inference_mode():
        while os.getppid() == parent:
            transformer(tokens)
            convolution(image)
            torch.cat([nn.functional.silu(tokens), nn.functional.gelu(tokens)], dim=-1)


if __name__ == "__main__":
    main()
