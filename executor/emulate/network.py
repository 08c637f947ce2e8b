"""The commands that build the network of emulated hosts, as data: testable without root.

``ip``, ``bridge`` and ``tc`` read many commands from their input, so that a cluster of a hundred
hosts takes a few hundred processes, not tens of thousands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from executor.emulate.frames import MAX_MTU, MIN_FRAME_BYTES, Frames, bit_per_s
from executor.emulate.layout import INTERFACE, NETWORK, Layout

BURST_S = 0.001
"""How much may be sent at once, in time at the rate of the queue. More would make messages of less
than a few MB faster than their link; less, and a timer that fires late costs throughput."""
MAX_SEGMENTS_BYTES = 65536
"""The most that TCP hands to an interface as one packet."""
SEND_QUEUE_BYTES = 2**25
"""Room of a sender's queue: TCP fills its own share of it and waits, so nothing is ever dropped."""
WIRE_QUEUE_S = 0.05
"""Room of a queue on a common wire, as time at its rate: what routers have."""
MIN_WIRE_QUEUE_BYTES = 2**18

ACKNOWLEDGEMENTS = tuple(
    # IPv4 without options, TCP, and a length that leaves no room for data after both headers.
    f"match u8 0x45 0xff at 0 match ip protocol 6 0xff match u16 {20 + 4 * words} 0xffff at 2 "
    f"match u8 {words << 4:#x} 0xf0 at 32"
    for words in range(5, 16)
)
"""Packets of TCP that carry no data, by the number of 32-bit words in the header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One process to run: its arguments, and what it reads."""

    argv: tuple[str, ...]
    lines: tuple[str, ...]


def build_steps(layout: Layout) -> Iterator[Step]:
    """All steps that bring the network of ``layout`` up, in order."""
    frames = Frames(layout)
    yield _batch("ip", [f"netns add {name}" for name in layout.namespaces])
    yield _batch("ip", list(_devices(layout)))
    yield _batch("ip", list(_switch(layout)), layout.switch)
    yield _batch("bridge", list(_forwarding(layout)), layout.switch)
    if layout.wires:
        yield _batch("tc", list(_common_wires(layout, frames)), layout.switch)
    for index, host in enumerate(layout.hosts):
        yield _batch("ip", list(_host(layout, frames, index)), host.namespace)
        if layout.queues[index]:
            yield _batch("tc", list(_sending(layout, frames, index)), host.namespace)


def _batch(tool: str, lines: list[str], namespace: str | None = None) -> Step:
    place = ("-netns", namespace) if namespace else ()
    return Step(argv=(tool, *place, "-batch", "-"), lines=tuple(lines))


def _devices(layout: Layout) -> Iterator[str]:
    for host in layout.hosts:
        yield (
            f"link add name {INTERFACE} netns {host.namespace} address {host.mac} "
            f"type veth peer name {host.port} netns {layout.switch}"
        )


def _switch(layout: Layout) -> Iterator[str]:
    # No spanning tree: ports forward at once.
    yield "link add name br0 type bridge stp_state 0 mcast_snooping 0"
    yield "link set dev br0 addrgenmode none up"
    ports = [host.port for host in layout.hosts]
    for index, _ in enumerate(layout.wires):
        yield f"link add name w{index} type veth peer name x{index}"
        yield f"link set dev w{index} mtu {MAX_MTU} addrgenmode none up"
        ports.append(f"x{index}")
    for port in ports:
        yield f"link set dev {port} mtu {MAX_MTU} addrgenmode none master br0 up"


def _forwarding(layout: Layout) -> Iterator[str]:
    # Packets of one host come in at its port and from common wires: learning would go wrong.
    for index, _ in enumerate(layout.wires):
        yield f"link set dev x{index} learning off flood off mcast_flood off"
    for host in layout.hosts:
        yield f"link set dev {host.port} learning off"
        yield f"fdb replace {host.mac} dev {host.port} master static"


def _common_wires(layout: Layout, frames: Frames) -> Iterator[str]:
    address = [host.address for host in layout.hosts]
    for index, wire in enumerate(layout.wires):
        room = max(MIN_WIRE_QUEUE_BYTES, int(wire.bytes_per_s * WIRE_QUEUE_S))
        shaper = _Shaper(f"w{index}")
        yield from shaper.root()
        frame = min(frames.between(a, b) for a, b in wire.pairs)
        yield from shaper.add(
            bit_per_s(wire.bytes_per_s, frame),
            [f"match ip src {address[a]}/32 match ip dst {address[b]}/32" for a, b in wire.pairs],
            room_bytes=room,
        )
    yield from _detours(layout)


def _detours(layout: Layout) -> Iterator[str]:
    """Lead what is sent on a common wire through its device, before the bridge sees it."""
    detours: dict[int, list[tuple[int, int]]] = {}
    for index, wire in enumerate(layout.wires):
        for source, target in wire.pairs:
            detours.setdefault(source, []).append((target, index))
    for source, ways in detours.items():
        port = layout.hosts[source].port
        yield f"qdisc add dev {port} handle ffff: ingress"
        for target, index in ways:
            yield (
                f"filter add dev {port} parent ffff: protocol ip prio 1 u32 "
                f"match ip dst {layout.hosts[target].address}/32 "
                f"action mirred egress redirect dev w{index}"
            )


def _host(layout: Layout, frames: Frames, index: int) -> Iterator[str]:
    host = layout.hosts[index]
    yield "link set dev lo up"
    # No IPv6 address: filters know addresses of version 4 alone.
    yield f"link set dev {INTERFACE} mtu {MAX_MTU} addrgenmode none up"
    yield f"address add {host.address}/{NETWORK.prefixlen} dev {INTERFACE}"
    # Neighbours are known: nothing is broadcast, and the first message takes no longer than others.
    for number, other in enumerate(layout.hosts):
        if other is not host:
            yield (f"route add {other.address}/32 dev {INTERFACE} mtu {frames.mtu(index, number)}")
            yield (
                f"neighbour replace {other.address} lladdr {other.mac} dev {INTERFACE} "
                "nud permanent"
            )


def _sending(layout: Layout, frames: Frames, index: int) -> Iterator[str]:
    shaper = _Shaper(INTERFACE)
    yield from shaper.root()
    for queue in layout.queues[index]:
        frame = min(frames.between(index, target) for target in queue.targets)
        yield from shaper.add(
            bit_per_s(queue.bytes_per_s, frame),
            [f"match ip dst {layout.hosts[target].address}/32" for target in queue.targets],
            room_bytes=SEND_QUEUE_BYTES,
        )


class _Shaper:
    """Commands that give flows through a device their rates; numbers classes as it goes."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._used = 0

    def root(self) -> Iterator[str]:
        """The queue of the device: what no filter sends to a class goes through at once."""
        yield f"qdisc add dev {self._device} root handle 1: htb default 0"
        # So do acknowledgements: behind data on a slow link they would slow the other direction.
        for match in ACKNOWLEDGEMENTS:
            yield (
                f"filter add dev {self._device} parent 1: protocol ip prio 1 u32 {match} flowid 1:0"
            )

    def add(self, ceiling: int, matches: Sequence[str], *, room_bytes: int) -> Iterator[str]:
        """Let the flows of ``matches`` have ``ceiling`` together, in bit/s of whole frames.

        Each has a queue of its own and may use what the others leave: a short message of one does
        not wait behind long ones of another.
        """
        burst = max(2 * MIN_FRAME_BYTES, int(ceiling / 8 * BURST_S))  # no frame is larger
        parent = "1:"
        if len(matches) > 1:
            parent = self._next()
            yield self._class("1:", parent, ceiling, ceiling, burst)
        for match in matches:
            own = self._next()
            yield self._class(parent, own, max(8, ceiling // len(matches)), ceiling, burst)
            yield (
                f"qdisc add dev {self._device} parent {own} handle {self._used + 1:x}: "
                f"{_leaf(ceiling, burst, room_bytes)}"
            )
            yield (
                f"filter add dev {self._device} parent 1: protocol ip prio 2 u32 {match} "
                f"flowid {own}"
            )

    def _next(self) -> str:
        self._used += 1
        return f"1:{self._used:x}"

    def _class(self, parent: str, name: str, rate: int, ceiling: int, burst: int) -> str:
        return (
            f"class add dev {self._device} parent {parent} classid {name} htb rate {rate}bit "
            f"ceil {ceiling}bit burst {burst} cburst {burst} quantum {MAX_SEGMENTS_BYTES}"
        )


def _leaf(ceiling: int, burst: int, room_bytes: int) -> str:
    """The queue of a class. TCP hands over up to 64 KiB as one packet, which would pass at once
    however slow the class is: where that is more than a burst, packets are cut."""
    if burst >= MAX_SEGMENTS_BYTES:
        return f"bfifo limit {room_bytes}"
    # The only simple queue that cuts; its own rate is out of the way.
    return f"tbf rate {8 * ceiling}bit burst {burst} limit {room_bytes}"


__all__ = ["Step", "build_steps"]
