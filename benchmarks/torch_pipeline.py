"""``torch.distributed.pipelining`` on emulated hosts, for comparison: one stage a host, even cuts.

Each host runs this file as one rank (``--rank``): it splits the model at its repeated blocks,
builds its stage, says ``ready`` or why it cannot, then answers each line ``batches N`` or
``single N`` on its input with a line of seconds a batch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PORT = 29700


class TorchPipeline:
    """The ranks of one model on all hosts; ``why_not`` is set where it cannot run."""

    def __init__(self, ranks: Sequence[subprocess.Popen[str]]) -> None:
        self.ranks = ranks
        self.why_not = ""
        for rank in ranks:
            assert rank.stdout is not None
            line = rank.stdout.readline().strip()
            if line != "ready":
                self.why_not = self.why_not or line or "a rank ended"
        if self.why_not:
            self.close()

    def seconds(self, what: str, count: int) -> float:
        """Seconds a batch of ``count`` batches: ``batches`` in a row, or ``single`` ones."""
        for rank in self.ranks:
            assert rank.stdin is not None
            rank.stdin.write(f"{what} {count}\n")
            rank.stdin.flush()
        times = []
        for rank in self.ranks:
            assert rank.stdout is not None
            times.append(float(json.loads(rank.stdout.readline() or "0")))
        return max(times)

    def close(self) -> None:
        """End the ranks."""
        for rank in self.ranks:
            if rank.poll() is None:
                rank.kill()
            rank.wait()


@contextlib.contextmanager
def torch_pipeline(
    hosts: object, names: Sequence[str], model: str, *, batch_size: int, microbatches: int
) -> Iterator[TorchPipeline]:
    """The model's stages on the hosts of these names, loaded without quotas."""
    from executor.emulate import EmulatedHosts

    assert isinstance(hosts, EmulatedHosts)
    ranks: list[subprocess.Popen[str]] = []
    try:
        with hosts.unlimited():
            for rank, name in enumerate(names):
                argv = [
                    sys.executable, __file__, "--rank", str(rank), "--world", str(len(names)),
                    "--address", hosts.address(names[0]), "--model", model,
                    "--batch", str(batch_size), "--microbatches", str(microbatches),
                ]  # fmt: skip
                ranks.append(
                    hosts.popen(
                        name,
                        argv,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                        text=True,
                    )
                )
            made = TorchPipeline(ranks)
        yield made
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
            rank.wait()


def main() -> None:
    """Be one rank."""
    flags = argparse.ArgumentParser()
    for name in ("--rank", "--world", "--batch", "--microbatches"):
        flags.add_argument(name, type=int, required=True)
    flags.add_argument("--address", required=True)
    flags.add_argument("--model", required=True)
    args = flags.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        step = _stage(args)
    except Exception as error:
        answers.write(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}\n")
        os._exit(1)
    answers.write("ready\n")
    for line in sys.stdin:
        what, count = line.split()
        start = time.perf_counter()
        for _ in range(int(count)):
            step()
            if what == "single":
                _meet()
        _meet()
        answers.write(json.dumps((time.perf_counter() - start) / int(count)) + "\n")


def _meet() -> None:
    import torch.distributed as dist

    dist.barrier()


def _stage(args: argparse.Namespace) -> object:
    import torch
    import torch.distributed as dist
    from torch.distributed.pipelining import ScheduleGPipe, SplitPoint, pipeline

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    os.environ.update(MASTER_ADDR=args.address, MASTER_PORT=str(PORT))
    dist.init_process_group("gloo", rank=args.rank, world_size=args.world)
    module, name = args.model.split(":")
    model, example = getattr(import_module(module), name)()
    inputs = dict(example) if isinstance(example, dict) else {"input": example}
    tensors = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
    fixed = {k: v for k, v in inputs.items() if not isinstance(v, torch.Tensor)}
    size = args.batch // args.microbatches
    one = {k: _items(v, size) for k, v in tensors.items()}
    blocks = _blocks(model)
    cuts = [blocks[len(blocks) * i // args.world] for i in range(1, args.world)]
    positional = tuple(one.values()) if not isinstance(example, dict) else ()
    pipe = pipeline(
        model,
        mb_args=positional,
        mb_kwargs={**one, **fixed} if isinstance(example, dict) else {},
        split_spec=dict.fromkeys(cuts, SplitPoint.BEGINNING),
    )
    stage = pipe.build_stage(args.rank, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, args.microbatches)
    whole = {k: _items(v, args.batch) for k, v in tensors.items()}

    def step() -> None:
        if args.rank:
            schedule.eval()
        elif isinstance(example, dict):
            schedule.eval(**whole)
        else:
            schedule.eval(*whole.values())

    step()
    dist.barrier()
    return step


def _items(example: object, count: int) -> object:
    import torch

    assert isinstance(example, torch.Tensor)
    repeats = -(-count // example.shape[0])
    return torch.cat([example] * repeats)[:count].contiguous()


def _blocks(model: nn.Module) -> list[str]:
    """Names of the model's repeated blocks, in order: where people cut."""
    from torch import nn

    lists: dict[str, list[str]] = {}
    for name, child in model.named_modules():
        if isinstance(child, (nn.ModuleList, nn.Sequential)) and len(child) > 1:
            lists[name] = [f"{name}.{i}" for i in range(len(child))]
    longest = max(lists.values(), key=len)
    if longest[0].split(".")[0].startswith("layer") and len(lists) > 1:
        return [block for name in lists if "." not in name for block in lists[name]]
    return longest


if __name__ == "__main__":
    main()
