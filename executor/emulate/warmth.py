"""Keeps the processor's caches filled with torch's code while emulated hosts wait for their turn.

A host with a fifth of a core computes for two milliseconds and is stopped for eight. Where others
use the processor, as on a virtual machine with busy neighbours, its caches can be empty by then,
and the next turn begins by fetching everything again: a step has been seen to take three to five
times the processor time that it takes while the other hosts compute too, since all of them run the
same library. A slow device never stops, and has no such times. So, if asked for, one process a core
computes a little of everything at the kernel's lowest priority (``SCHED_IDLE``, in a group of the
least weight): it runs when nobody else wants the core.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

KEEP_WARM = (sys.executable, "-m", "executor.emulate.warmth")
"""The command that keeps every core warm which it may use."""
TOKENS = (197, 64, 16)
"""Lengths of what is computed: kernels have other code for other remainders."""
LOOK_S = 0.2
"""How often the processes look whether who wanted them is still there."""
END_S = 1.0
"""How long is waited for a killed process. It may get no processor time to end in, where others
work on its core: it ends with the hosts then, or once the core is free."""


@contextmanager
def warm_cores(command: Sequence[str] = KEEP_WARM) -> Iterator[None]:
    """Every core that this process may use is kept warm inside the block, and no longer: not after
    this process has been killed either. ``command`` becomes :data:`KEEP_WARM` in the end."""
    keeper = subprocess.Popen(
        [*command, str(os.getpid())],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for who started this
    )
    try:
        yield
    finally:
        keeper.kill()
        with suppress(subprocess.TimeoutExpired):
            keeper.wait(END_S)


def main() -> None:
    """One process a core, until process number ``argv[1]``, which started this, ends."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    owner, this = int(sys.argv[1]), os.getpid()
    import torch

    torch.set_num_threads(1)
    for core in sorted(os.sched_getaffinity(0)):
        if os.fork() == 0:
            # Who reads what the command says shall not wait for these.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.sched_setaffinity(0, {core})
            _compute_while_child_of(this)
            os._exit(0)
    while os.getppid() == owner:
        time.sleep(LOOK_S)


def _compute_while_child_of(parent: int) -> None:
    """The usual kinds of layers in usual sizes: of small ones only half stays warm."""
    import torch
    from torch import nn

    transformer = nn.TransformerEncoderLayer(384, 6, 1536, batch_first=True, norm_first=True)
    convolution = nn.Sequential(
        nn.Conv2d(3, 64, 7, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 64, 3)
    )
    transformer.eval()
    convolution.eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        while os.getppid() == parent:
            for num_tokens in TOKENS:
                seen = transformer(torch.randn(1, num_tokens, 384))
                scale = (seen * seen).mean(-1, keepdim=True).add(1e-6).rsqrt()
                torch.cat([nn.functional.silu(seen * scale), nn.functional.gelu(seen)], dim=-1)
            convolution(image)


if __name__ == "__main__":
    main()
