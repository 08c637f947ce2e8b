"""A process made like a rank, in which runs of layers show how much memory they really take.

``python -m profiler.rankprobe --threads N`` starts as a rank does. For each line on its standard
input, the path of a directory with ``graph.json`` (the model graph, as every rank holds it),
``program.json`` (a stage program and its sizes) and ``tensors.safetensors`` (its inputs and
constants), it forks a process that builds the run and runs it a few times, and writes one JSON
line: bytes of the process without the run's tensors, of the libraries' pages that were used, and by
how much the heap grew while the run computed.

Each run has a process of its own because a heap remembers what was in it before.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from profiler.program import WeightPort

RUNS = 4
"""The heap has found its size after two or three steps."""
DEPTH = 2
"""Inputs that are there before their run, and results that are there after it: as in a rank, which
receives ahead and sends behind."""


def main() -> None:
    """Measure a run for each line of standard input."""
    # What every rank loads; nothing is computed here, so that forked processes start clean.
    import psutil  # noqa: F401
    import torch
    import torch.distributed

    import profiler.build
    import profiler.weights  # noqa: F401
    from profiler.allocator import keep_freed_memory, release_library_pages

    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    keep_freed_memory()
    release_library_pages()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(threads)
            _answer(Path(line.strip()))
        _, status = os.waitpid(pid, 0)
        if status:
            sys.stdout.write(json.dumps({"failed": os.waitstatus_to_exitcode(status)}) + "\n")
            sys.stdout.flush()


def _answer(directory: Path) -> None:
    """Measure one run, write the answer and end the process."""
    code = 1
    try:
        sys.stdout.write(json.dumps(_measure(directory)) + "\n")
        sys.stdout.flush()
        code = 0
    finally:
        os._exit(code)


def _measure(directory: Path) -> dict[str, int]:
    import torch

    from profiler.graph import ModelGraph

    with tempfile.NamedTemporaryFile(prefix="apportion-store-") as store:
        # A group of one, as ranks have: its memory is part of their baseline.
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store.name}", rank=0, world_size=1
        )
    with torch.inference_mode():
        compute_a_little()
        graph = ModelGraph.model_validate_json((directory / "graph.json").read_text())
        module, tensors, sizes = _build(directory)
        gc.collect()
        held = _status("RssAnon")
        own = [*tensors, *module.parameters(), *module.buffers()]
        # From here on the kernel's record of the most resident memory is that of the run.
        Path("/proc/self/clear_refs").write_text("5")
        arriving: list[list[torch.Tensor]] = []
        leaving: list[Any] = []
        for _ in range(RUNS):
            while len(arriving) < DEPTH:
                arriving.append([tensor.clone() for tensor in tensors])
            inputs = arriving.pop(0)
            leaving.append(module(*inputs, *sizes))
            del leaving[:-DEPTH], inputs
    libraries = _status("RssFile")
    del graph
    return {
        "empty_bytes": held - sum(x.untyped_storage().nbytes() for x in own),
        "library_bytes": libraries,
        "grown_bytes": max(0, _status("VmHWM") - libraries - held),
    }


def compute_a_little() -> None:
    """The first operators of a process allocate for good: kernel code, scratch memory."""
    import torch

    torch.nn.functional.conv2d(torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3))
    torch.mm(torch.randn(64, 64), torch.randn(64, 64)).softmax(-1)


def _build(directory: Path) -> tuple[Any, list[torch.Tensor], list[int]]:
    import torch
    from safetensors.torch import load_file

    from profiler.build import build_stage
    from profiler.program import StageProgram

    data = json.loads((directory / "program.json").read_text())
    program = StageProgram.from_data(data["program"])
    # Copies: what is mapped from a file is not on the heap.
    given = {k: v.clone() for k, v in load_file(directory / "tensors.safetensors").items()}
    generator = torch.Generator().manual_seed(0)

    def weight(port: WeightPort) -> torch.Tensor:
        if port.constant:
            return given[f"constant {port.weight}"]
        value = torch.zeros(port.shape, dtype=getattr(torch, port.dtype))
        # In its own dtype: a float32 copy of a weight would widen the heap beforehand.
        return value.normal_(std=0.02, generator=generator) if value.is_floating_point() else value

    module = build_stage(program, device=torch.device("cpu"), weight=weight)
    return module, [given[f"input {name}"] for name in program.inputs], list(data["sizes"])


def _status(name: str) -> int:
    """Bytes of a line of this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"the system does not tell {name}")


if __name__ == "__main__":
    main()
