"""Moving tensors between two ranks: beside bare gloo, beside raw TCP, beside computing.

    python benchmarks/transport.py [--quick] [--json FILE]

Two processes on loopback; every comparison alternates its sides, medians count. Streams keep
``WINDOW`` messages under way, the same buffers and windows on every side. As root, the
two processes are also put on emulated hosts with a shaped wire between them.

``bandwidth_over_raw_gloo_min``: the worst over message sizes from 1 MiB on. The limit is 1.
``bandwidth_over_raw_tcp_1mib``: beside a plain socket that streams as fast as it can.
``hop_over_bare_gloo``: one tiny message to the other rank and back, over bare ``isend``/``irecv``;
on both sides the receive has been asked for when the message leaves, as in the runtime loop.
Otherwise gloo makes three trips or one, as chance has it, and the ratio is that of their numbers.
``bandwidth_over_wire_min``: beside a plain socket on the same wire, the worst over rates. The limit
is 1.
``overlap_fraction``: how much of the shorter of sending over a wire and computing, both about as
long, is hidden behind the other; 1 is all of it. (On loopback both ranks' cores are busy moving
bytes as fast as they can: nothing is there to hide computing behind.)
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.records import Record, parser, publish, record
from executor.emulate import emulated
from executor.schedule import Message
from executor.transport import Pending, Transport
from profiler.cluster import Cluster, Device, Host
from profiler.emulation import Emulation
from profiler.stores import file_store, join_group
from profiler.units import parse_bytes_per_s

WINDOW = 8
SIZES = (2**20, 4 * 2**20, 16 * 2**20)
TINY_BYTES = 4
WIRES = ("10Mbit/s", "100Mbit/s", "1Gbit/s")
OVERLAP_WIRE = "1Gbit/s"


class Pair:
    """One of the two ranks, with every way of moving bytes to the other."""

    def __init__(self, rank: int, store: str, address: str, port: int) -> None:
        torch.set_num_threads(1)
        self.rank, self.other = rank, 1 - rank
        join_group(file_store(store, 2), rank=rank, world_size=2, timeout_s=60.0)
        self.transport = Transport(rank=rank, timeout_s=60.0)
        self.bare = dist.new_group(backend="gloo")
        if rank == 0:
            server = socket.create_server((address, port))
            dist.barrier()
            self.wire, _ = server.accept()
        else:
            dist.barrier()
            self.wire = socket.create_connection((address, port))
        self.wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def message(self, tag: int) -> Message:
        """A message from rank 0 to rank 1."""
        return self._message(tag, 0)

    def _message(self, tag: int, source: int) -> Message:
        return Message(
            tag=tag,
            tensor="x",
            source=source,
            target=1 - source,
            source_piece=0,
            target_piece=0,
            items=None,
        )

    def timed(self, work: Callable[[], None]) -> float:
        """Seconds of ``work`` on both ranks together."""
        dist.barrier()
        start = time.perf_counter()
        work()
        dist.barrier()
        return time.perf_counter() - start

    def stream_ours(self, buffers: list[torch.Tensor], count: int) -> None:
        """``count`` messages through the transport."""
        under_way, message = [], self.message(0)
        for i in range(count):
            if len(under_way) == WINDOW:
                self.transport.finish(under_way.pop(0))
            start = self.transport.send if self.rank == 0 else self.transport.receive
            under_way.append(start(buffers[i % WINDOW], message))
        for one in under_way:
            self.transport.finish(one)

    def stream_gloo(self, buffers: list[torch.Tensor], count: int) -> None:
        """``count`` messages through bare gloo."""
        under_way = []
        for i in range(count):
            if len(under_way) == WINDOW:
                under_way.pop(0).wait()
            start = dist.isend if self.rank == 0 else dist.irecv
            work = start(buffers[i % WINDOW], self.other, group=self.bare, tag=0)
            assert work is not None
            under_way.append(work)
        for one in under_way:
            one.wait()

    def stream_tcp(self, buffers: list[torch.Tensor], count: int) -> None:
        """``count`` messages through a plain socket."""
        for i in range(count):
            view = memoryview(buffers[i % WINDOW].numpy())
            if self.rank == 0:
                self.wire.sendall(view)
            else:
                got = 0
                while got < len(view):
                    got += self.wire.recv_into(view[got:])

    def hops(
        self,
        count: int,
        *,
        send: Callable[[], Callable[[], object]],
        receive: Callable[[], Callable[[], object]],
    ) -> None:
        """``count`` round trips of a tiny message; a start gives what waits for its end."""
        come = receive()
        for i in range(count):
            if self.rank == 0:
                gone = send()
            come()
            if i < count - 1:
                come = receive()
            if self.rank == 1:
                gone = send()
            gone()

    def hops_ours(self, count: int) -> None:
        """``count`` round trips through the transport."""
        leaving, coming = torch.zeros(2, TINY_BYTES, dtype=torch.uint8)
        there, back = self._message(0, self.rank), self._message(0, self.other)
        self.hops(
            count,
            send=lambda: partial(self.transport.finish, self.transport.send(leaving, there)),
            receive=lambda: partial(self.transport.finish, self.transport.receive(coming, back)),
        )

    def hops_gloo(self, count: int) -> None:
        """``count`` round trips through bare gloo."""
        leaving, coming = torch.zeros(2, TINY_BYTES, dtype=torch.uint8)

        def started(work: dist.Work | None) -> Callable[[], object]:
            assert work is not None
            return work.wait

        self.hops(
            count,
            send=lambda: started(dist.isend(leaving, self.other, group=self.bare, tag=0)),
            receive=lambda: started(dist.irecv(coming, self.other, group=self.bare, tag=0)),
        )


def serve(rank: int, store: str, port: int, quick: bool) -> dict[str, dict[str, list[float]]]:
    """Be one rank; the seconds of every side of every comparison."""
    pair = Pair(rank, store, "127.0.0.1", port)
    repeats = 5 if quick else 15
    found: dict[str, dict[str, list[float]]] = {}

    def compare(name: str, sides: dict[str, Callable[[], None]]) -> None:
        found[name] = alternated(pair, sides, repeats=repeats)

    for size in SIZES:
        buffers = [torch.zeros(size, dtype=torch.uint8) for _ in range(WINDOW)]
        count = max(4, (128 if quick else 512) * 2**20 // size)
        compare(
            str(size),
            {
                "ours": partial(pair.stream_ours, buffers, count),
                "gloo": partial(pair.stream_gloo, buffers, count),
                "tcp": partial(pair.stream_tcp, buffers, count),
            },
        )
        found[str(size)]["bytes"] = [float(size * count)]
    compare("hop", {"ours": lambda: pair.hops_ours(200), "gloo": lambda: pair.hops_gloo(200)})
    return found


def alternated(
    pair: Pair, sides: dict[str, Callable[[], None]], *, repeats: int
) -> dict[str, list[float]]:
    """Seconds of every side, in turn, after one round that does not count."""
    for work in sides.values():
        pair.timed(work)
    found: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, work in sides.items():
            found[side].append(pair.timed(work))
    return found


def serve_wire(
    rank: int, store: str, port: int, address: str, bytes_per_s: float, *, quick: bool
) -> dict[str, list[float]]:
    """Be one rank on a wire of this rate, rank 0 at ``address``; seconds of every side.

    On :data:`OVERLAP_WIRE`, also of ``overlap``'s.
    """
    pair = Pair(rank, store, address, port)
    # Half a second of messages, each long enough that its start does not count.
    size = min(2**20, int(bytes_per_s / 40))
    count = max(8, int(bytes_per_s / 2 / size))
    buffers = [torch.zeros(size, dtype=torch.uint8) for _ in range(WINDOW)]
    found = alternated(
        pair,
        {
            "ours": lambda: pair.stream_ours(buffers, count),
            "tcp": lambda: pair.stream_tcp(buffers, count),
        },
        repeats=3 if quick else 7,
    )
    if bytes_per_s == parse_bytes_per_s(OVERLAP_WIRE):
        found |= overlap(pair, bytes_per_s, repeats=3 if quick else 7)
    return {**found, "bytes": [float(size * count)]}


def overlap(pair: Pair, bytes_per_s: float, *, repeats: int) -> dict[str, list[float]]:
    """Rank 0 sends, alone, beside its own computing, and only computes; rank 1 takes."""
    buffers = [torch.zeros(2**20, dtype=torch.uint8) for _ in range(WINDOW)]
    square, messages = torch.randn(256, 256), 64

    def compute(count: int) -> None:
        for _ in range(count):
            torch.mm(square, square)

    compute(20)
    start = time.perf_counter()
    compute(20)
    product_s = (time.perf_counter() - start) / 20
    products = max(1, round(buffers[0].numel() / bytes_per_s / product_s))

    def only_compute() -> None:
        if pair.rank == 0:
            compute(messages * products)

    def both() -> None:
        # Messages are started while computing goes on; what is under way stays so.
        if pair.rank == 1:
            pair.stream_ours(buffers, messages)
            return
        under_way: list[Pending] = []
        for i in range(messages):
            if len(under_way) == WINDOW:
                pair.transport.finish(under_way.pop(0))
            under_way.append(pair.transport.send(buffers[i % WINDOW], pair.message(0)))
            compute(products)
        for one in under_way:
            pair.transport.finish(one)

    return alternated(
        pair,
        {
            "send": lambda: pair.stream_ours(buffers, messages),
            "compute": only_compute,
            "both": both,
        },
        repeats=repeats,
    )


def records_of(found: dict[str, dict[str, list[float]]]) -> list[Record]:
    """The figures from rank 0's seconds."""
    made = []
    over_gloo = []
    for size in SIZES:
        sides = found[str(size)]
        ratio = _ratio(sides["gloo"], sides["ours"])
        over_gloo.append(ratio)
        rates = {
            f"{side}_gb_per_s": round(sides["bytes"][0] / statistics.median(sides[side]) / 1e9, 2)
            for side in ("ours", "gloo", "tcp")
        }
        made.append(record(f"bandwidth_over_raw_gloo_{size >> 20}mib", ratio, "ratio", **rates))
    sides = found[str(2**20)]
    repeats = len(sides["ours"])
    about = {"window": WINDOW, "repeats": repeats, "torch": torch.__version__}
    hop_us = statistics.median(found["hop"]["ours"]) / 400 * 1e6
    return [
        *made,
        record("bandwidth_over_raw_gloo_min", min(over_gloo), "ratio", **about),
        record(
            "bandwidth_over_raw_tcp_1mib", _ratio(sides["tcp"], sides["ours"]), "ratio", **about
        ),
        record(
            "hop_over_bare_gloo",
            _ratio(found["hop"]["ours"], found["hop"]["gloo"]),
            "ratio",
            hop_us=round(hop_us, 1),
            **about,
        ),
    ]


def _overlap(sides: dict[str, list[float]]) -> Record:
    """How much of the shorter side the other hides."""
    send, compute, both = (statistics.median(sides[side]) for side in ("send", "compute", "both"))
    hidden = (send + compute - both) / min(send, compute)
    seconds = {"send_s": round(send, 3), "compute_s": round(compute, 3), "both_s": round(both, 3)}
    return record("overlap_fraction", hidden, "fraction", **seconds)


def _ratio(one: list[float], other: list[float]) -> float:
    """Median of the pairs' ratios."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def on_wires(*, quick: bool) -> list[Record]:
    """Streams over shaped wires between two emulated hosts."""
    made, ratios = [], []
    for rate in WIRES[1:] if quick else WIRES:
        bytes_per_s = parse_bytes_per_s(rate)
        device = Device(name="cpu", kind="cpu", type="x", threads=1, memory_bytes=2**30)
        cluster = Cluster(
            hosts=tuple(Host(name=name, devices=(device,)) for name in ("a", "b")),
            emulate=Emulation(default_bytes_per_s=bytes_per_s),
        )
        with emulated(cluster) as hosts, tempfile.TemporaryDirectory() as folder:
            address = hosts.address("a")
            wire = ["--wire", address, str(bytes_per_s)]
            ranks = [
                hosts.popen(name, _command(rank, folder, 5000, quick, wire), stdout=subprocess.PIPE)
                for rank, name in enumerate(("a", "b"))
            ]
            sides = _answer(ranks)
        ratios.append(_ratio(sides["tcp"], sides["ours"]))
        rates = {
            f"{side}_mb_per_s": round(sides["bytes"][0] / statistics.median(sides[side]) / 1e6, 3)
            for side in ("ours", "tcp")
        }
        name = rate.split("/")[0].lower()
        made.append(record(f"bandwidth_over_wire_{name}", ratios[-1], "ratio", **rates))
        if rate == OVERLAP_WIRE:
            made.append(_overlap(sides))
    return [*made, record("bandwidth_over_wire_min", min(ratios), "ratio", window=WINDOW)]


def on_loopback(*, quick: bool) -> list[Record]:
    """Everything that needs no emulated hosts."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        ranks = [
            subprocess.Popen(_command(rank, folder, port, quick, []), stdout=subprocess.PIPE)
            for rank in (0, 1)
        ]
        return records_of(_answer(ranks))


def _command(rank: int, folder: str, port: int, quick: bool, more: list[str]) -> list[str]:
    flags = ["--quick"] if quick else []
    served = ["--serve", str(rank), f"{folder}/store", str(port)]
    return [sys.executable, __file__, *flags, *served, *more]


def _answer(ranks: list[subprocess.Popen[bytes]]) -> Any:
    outputs = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        sys.exit("a rank failed; its messages stand above")
    return json.loads(outputs[0])


def main() -> None:
    """Measure and publish."""
    flags = parser(__doc__)
    flags.add_argument("--serve", nargs=3, metavar=("RANK", "STORE", "PORT"), help="its own use")
    flags.add_argument("--wire", nargs=2, metavar=("ADDRESS", "RATE"), help="its own use")
    args = flags.parse_args()
    if args.serve:
        rank, store, port = int(args.serve[0]), args.serve[1], int(args.serve[2])
        if args.wire:
            address, rate = args.wire[0], float(args.wire[1])
            print(json.dumps(serve_wire(rank, store, port, address, rate, quick=args.quick)))
        else:
            print(json.dumps(serve(rank, store, port, args.quick)))
        return
    made = on_loopback(quick=args.quick)
    if os.geteuid() == 0:
        made += on_wires(quick=args.quick)
    else:
        print(
            "bandwidth_over_wire_min and overlap_fraction need root: emulated hosts",
            file=sys.stderr,
        )
    publish(made, args.json)


if __name__ == "__main__":
    main()
