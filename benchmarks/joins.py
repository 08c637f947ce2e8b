"""A join between two computing ranks: over its own sockets, and over the transport.

    python benchmarks/joins.py [--quick] [--json FILE]

Two processes on loopback, one core each: both multiply for some milliseconds, then each sends the
other a partial result and waits for it, as the ranks do that divide a stage. The two ways take
turns, block by block. Who comes first waits for the other; what a join itself takes is what the
rank that comes last waits.

``step_over_computing_*``: mean time of computing and joining, over the computing of the slower
rank. The limit is 1.
``last_waits_*``: the median wait of the rank that comes last.
``partial``: bytes of a partial result; ``computing``: median of the slower rank.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.records import Record, parser, publish, record
from executor.schedule import Message
from executor.sockets import Parcel, StageSockets
from executor.transport import Transport
from profiler.units import format_bytes

PARTIALS = (64 * 2**10, 384 * 2**10, 1536 * 2**10)
BLOCK = 20

Times = dict[str, dict[str, list[list[float]]]]
"""Seconds of computing and of joining of every step, by size of the partial result and way."""


def _message(source: int, target: int) -> Message:
    return Message(
        tag=7,
        tensor="partial",
        source=source,
        target=target,
        source_piece=-1,
        target_piece=-1,
        items=None,
    )


def be_rank(rank: int, store: str, blocks: int) -> None:
    """One of the two: prints seconds of computing and of joining by size and way."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    transport, other = Transport(rank=rank, timeout_s=60.0), 1 - rank
    sockets = StageSockets.connect(transport, (0, 1), rank)
    rows, weight = torch.randn(128, 768), torch.randn(768, 3072)
    found: Times = {}
    for size in PARTIALS:
        mine, theirs = torch.zeros(size // 4), torch.empty(size // 4)
        sent, received = _message(rank, other), _message(other, rank)
        for block in range(2 * blocks):
            way = ("sockets", "transport")[block % 2]
            for turn in range(BLOCK):
                begun = time.perf_counter()
                for _ in range(8):
                    rows @ weight
                computed = time.perf_counter()
                if way == "sockets":
                    sockets.exchange([Parcel(sent, mine)], [Parcel(received, theirs)])
                else:
                    coming = transport.receive(theirs, received)
                    leaving = transport.send(mine, sent)
                    transport.finish(coming)
                    transport.finish(leaving)
                joined = time.perf_counter()
                if block > 1 or turn > BLOCK // 2:
                    each = found.setdefault(str(size), {}).setdefault(way, [])
                    each.append([computed - begun, joined - computed])
    if rank == 1:
        transport.finish(transport.send(_packed(found), _message(1, 0)))
    else:
        size = torch.empty(2**22, dtype=torch.uint8)
        transport.finish(transport.receive(size, _message(1, 0)))
        theirs_found = json.loads(bytes(size.tolist()).rstrip(b"\0"))
        print(json.dumps([found, theirs_found]))
    dist.destroy_process_group()


def _packed(found: object) -> torch.Tensor:
    text = json.dumps(found).encode().ljust(2**22, b"\0")
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def figures(one: Times, other: Times) -> list[Record]:
    """The records of a measurement, from both ranks' times."""
    records = []
    for size in one:
        partial = format_bytes(int(size))
        for way in one[size]:
            pairs = list(zip(one[size][way], other[size][way], strict=True))
            steps = [sum(a) for a, _ in pairs]
            slower = max(
                statistics.mean(a[0] for a, _ in pairs), statistics.mean(b[0] for _, b in pairs)
            )
            last = statistics.median(min(a[1], b[1]) for a, b in pairs)
            about = {"partial": partial, "computing": f"{1e3 * slower:.2f} ms"}
            records.append(
                record(
                    f"step_over_computing_{way}", statistics.mean(steps) / slower, "ratio", **about
                )
            )
            records.append(record(f"last_waits_{way}", 1e3 * last, "ms", **about))
    return records


def main() -> None:
    """Measure and publish."""
    if sys.argv[1:2] == ["--rank"]:
        be_rank(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
        return
    args = parser(__doc__).parse_args()
    blocks = 2 if args.quick else 10
    with tempfile.TemporaryDirectory(prefix="apportion-joins-") as folder:
        command = [sys.executable, __file__, "--rank"]
        ranks = [
            subprocess.Popen(
                [*command, str(rank), f"{folder}/store", str(blocks)], stdout=subprocess.PIPE
            )
            for rank in (0, 1)
        ]
        said = [rank.communicate(timeout=600)[0] for rank in ranks]
    publish(figures(*json.loads(said[0].splitlines()[-1])), args.json)


if __name__ == "__main__":
    main()
