"""What emulated hosts cost the work that runs on them: turns of a quota, and messages of a link.

    python benchmarks/emulation.py [--quick] [--json FILE]

Four hosts with a part of a core each (``examples/clusters/all_different.yaml``). Needs root, and
nothing else should run.

``step_alone``, ``step_beside``: processor time of one step of a ViT, and of a ResNet-50, on a host
whose neighbours rest, and while they compute, with cores kept warm and without: whether that helps
depends on who else uses the processor's caches at the time. The best is what a free core takes.
``alone_over_beside``: their ratio, the median over hosts. A profile that all hosts make at once is
as ``step_beside``; what one host computes while the others wait takes this part of it.
``lost_receiving``, ``lost_sending``: how long a host of 0.35 core computes less for each MiB that
comes or goes: at 5 MB/s in messages of 1 MiB, with the frames that are used, with 1,500 bytes at
most, and where the kernel chooses the processors of hosts (``kept`` false); and at 62.5 MB/s in
messages of 256 KiB and 2 MiB. A message whose packets cost nothing takes what copying it takes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.models import MODELS
from benchmarks.records import Record, parser, publish, record
from executor.emulate import EmulatedHosts, emulated, frames
from executor.emulate import hosts as host_making
from executor.emulate.processors import Share
from profiler.cluster import Cluster, Device, Host
from profiler.emulation import EmulatedHost, Emulation
from profiler.glooloop import threads_behind_computing
from profiler.sources import Example

ROOT = Path(__file__).resolve().parents[1]
STEPPED = ("vit", "resnet50")
RATE, FASTER = 5e6, 62.5e6
STEP_S, ALONE_S = 2.0, 1.0
STREAM_S, STREAMS = 1.5, 7
TURNS = 3
PORT = "29612"


def be_stepping(name: str) -> None:
    """Runs a model until the time that each line names; prints seconds of processor time a step."""
    torch.set_num_threads(1)
    model, inputs = MODELS[name]()
    with torch.inference_mode():
        call(model, inputs)
        print("ready", flush=True)
        for line in sys.stdin:
            until, count, began_s = float(line), 0, time.thread_time()
            while time.time() < until:
                call(model, inputs)
                count += 1
            print((time.thread_time() - began_s) / max(1, count), flush=True)


def call(model: nn.Module, inputs: Any) -> object:
    """One step, whatever form the example inputs have."""
    example = Example.of(inputs)
    return model(*example.args, **example.kwargs)


def be_messaging(rank: int, computes: bool, num_bytes: int, rate: float) -> None:
    """Sends (rank 0) or receives; whoever computes meanwhile prints the seconds lost a MiB."""
    torch.set_num_threads(1)
    with threads_behind_computing():  # as ranks join theirs
        dist.init_process_group("gloo", rank=rank, world_size=2)
    message = torch.zeros(num_bytes, dtype=torch.uint8)
    number = max(4, round(rate * STREAM_S / num_bytes))
    factor = torch.randn(256, 256)

    def computed(seconds: float) -> tuple[int, float]:
        count, began_s = 0, time.perf_counter()
        while time.perf_counter() - began_s < seconds:
            torch.mm(factor, factor)
            count += 1
        return count, time.perf_counter() - began_s

    move = dist.isend if rank == 0 else dist.irecv
    lost = []
    for _ in range(STREAMS):
        dist.barrier()
        count, took_s = computed(ALONE_S) if computes else (0, 1.0)
        dist.barrier()
        works = [work for _ in range(number) if (work := move(message, 1 - rank)) is not None]
        if computes:
            # All of the stream's cost is within this; nobody waits for messages meanwhile.
            beside, beside_s = computed(1.3 * number * num_bytes / rate)
            lost.append((beside_s - beside * took_s / count) / (number * num_bytes / 2**20))
        for work in works:
            work.wait()
    if computes:
        print(statistics.median(lost), flush=True)
    dist.barrier()


def cluster(cores: dict[str, float], *, keep_warm: bool = False, rate: float = RATE) -> Cluster:
    """Hosts with these parts of a core, ``rate`` between any two."""
    device = Device(name="cpu:0", type="board", memory_bytes=2**31)
    return Cluster(
        hosts=tuple(Host(name=name, devices=(device,)) for name in cores),
        emulate=Emulation(
            hosts=tuple(EmulatedHost(name=name, cores=part) for name, part in cores.items()),
            default_bytes_per_s=rate,
            keep_warm=keep_warm,
        ),
    )


def _steps(model: str, cores: dict[str, float], *, keep_warm: bool, turns: int) -> Iterator[Record]:
    argv = [sys.executable, __file__, "--stepping", model]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with emulated(cluster(cores, keep_warm=keep_warm)) as hosts:
        with hosts.unlimited():
            ranks = {name: hosts.popen(name, argv, **pipes) for name in cores}
            for rank in ranks.values():
                rank.stdout.readline()
        time.sleep(4.0)  # what keeps cores warm has to load, too
        found: dict[tuple[str, str], list[float]] = {}
        for _ in range(turns):
            for measure, groups in (
                ("step_alone", [[x] for x in cores]),
                ("step_beside", [[*cores]]),
            ):
                for group in groups:
                    until = time.time() + STEP_S
                    for name in group:
                        ranks[name].stdin.write(f"{until}\n")
                        ranks[name].stdin.flush()
                    for name in group:
                        took_s = float(ranks[name].stdout.readline())
                        found.setdefault((measure, name), []).append(took_s)
        for rank in ranks.values():
            rank.communicate()
    middle = {key: statistics.median(seconds) for key, seconds in found.items()}
    about = {"model": model, "keep_warm": keep_warm}
    for (measure, name), seconds in middle.items():
        yield record(measure, 1e3 * seconds, "ms", cores=cores[name], **about)
    ratios = [middle["step_alone", name] / middle["step_beside", name] for name in cores]
    yield record("alone_over_beside", statistics.median(ratios), "ratio", **about)


def _lost_s(hosts: EmulatedHosts, computing: int, num_bytes: int, rate: float) -> float:
    said = ""
    ranks = []
    for rank, name in enumerate(("a", "b")):
        told = (rank, int(rank == computing), num_bytes, rate)
        argv = [sys.executable, __file__, "--messaging", *map(str, told)]
        env = {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": hosts.address("a"),
            "MASTER_PORT": PORT,
        }
        ranks.append(hosts.popen(name, argv, env=env, stdout=subprocess.PIPE, text=True))
    for rank in ranks:
        said += rank.communicate()[0]
    return float(said)


def _messages(turns: int) -> Iterator[Record]:
    largest = frames.MAX_FRAME_BYTES
    kept_on = host_making.share_out
    found: dict[tuple[str, int, int, float, bool], list[float]] = {}
    tried = [
        (RATE, 2**20, largest, True),
        (RATE, 2**20, largest, False),
        (RATE, 2**20, frames.MIN_FRAME_BYTES, True),
        (FASTER, 2**18, largest, True),
        (FASTER, 2**21, largest, True),
    ]
    try:
        for _ in range(turns):
            for rate, num_bytes, limit, kept in tried:
                frames.MAX_FRAME_BYTES = limit
                host_making.share_out = kept_on if kept else _left_to_the_kernel
                used = frames.frame_bytes(rate)
                hosts_with = cluster({"a": 0.35, "b": 0.35}, keep_warm=True, rate=rate)
                with emulated(hosts_with) as hosts:
                    for computing, measure in enumerate(("lost_sending", "lost_receiving")):
                        lost_s = _lost_s(hosts, computing, num_bytes, rate)
                        key = measure, used, num_bytes, rate, kept
                        found.setdefault(key, []).append(lost_s)
    finally:
        host_making.share_out = kept_on
        frames.MAX_FRAME_BYTES = largest
    for (measure, used, num_bytes, rate, kept), seconds in found.items():
        about = {"frame": used, "message": num_bytes, "bytes_per_s": rate, "kept": kept}
        about["per"] = "MiB"
        yield record(measure, 1e3 * statistics.median(seconds), "ms", **about)


def _left_to_the_kernel(
    cores: Sequence[float | None], _free: Mapping[int, float]
) -> tuple[Share, ...]:
    return tuple(() for _ in cores)


def main() -> None:
    """Measure, show, write."""
    if sys.argv[1:2] == ["--stepping"]:
        be_stepping(sys.argv[2])
    elif sys.argv[1:2] == ["--messaging"]:
        be_messaging(int(sys.argv[2]), sys.argv[3] == "1", int(sys.argv[4]), float(sys.argv[5]))
    else:
        args = parser(__doc__).parse_args()
        turns = 1 if args.quick else TURNS
        asked = Cluster.load(ROOT / "examples" / "clusters" / "all_different.yaml").emulate
        assert asked is not None
        cores = {host.name: host.cores for host in asked.hosts if host.cores is not None}
        records = [
            one
            for model in STEPPED
            for warm in (True, False)
            for one in _steps(model, cores, keep_warm=warm, turns=turns)
        ]
        publish([*records, *_messages(turns)], args.json)


if __name__ == "__main__":
    main()
