"""How large the frames between two emulated hosts are, and the rate of frames that moves a payload.

A frame costs its hosts processor time however little it carries: on a slow link, where a queue lets
frames through one by one, some twenty microseconds at the receiver, most of it in the
interrupt that the thread which computes pays for. With frames of 1,500 bytes that would be a fifth
of the time that a third of a core has while 5 MB/s come in; network cards spare real hosts most of
it by merging frames. So frames here are what cards make of them, as large as they can be without a
message noticing.
"""

from __future__ import annotations

from executor.emulate.layout import Layout

FRAME_S = 0.001
"""How long a frame may take: a message waits for so much of another, and the last of a message
counts as whole when it begins."""
ETHERNET_BYTES = 14
"""Of a frame, what its interface's MTU does not count,"""
HEADER_BYTES = 66
"""and what TCP cannot use: that, and its own headers with time stamps."""
MIN_FRAME_BYTES = 1514
MAX_FRAME_BYTES = 65014
"""Ethernet's frames, and nearly the most that an IP packet holds."""
MAX_MTU = MAX_FRAME_BYTES - ETHERNET_BYTES
"""What interfaces allow; routes say how much of it is used."""


def frame_bytes(bytes_per_s: float) -> int:
    """The frame for a rate: what takes :data:`FRAME_S`, within what IP allows.

    >>> frame_bytes(1e5), frame_bytes(5e6), frame_bytes(125e6)
    (1514, 5000, 65014)
    """
    return min(MAX_FRAME_BYTES, max(MIN_FRAME_BYTES, int(bytes_per_s * FRAME_S)))


class Frames:
    """Frames between the hosts of ``layout``: one size a pair, that of its slower direction.

    Both ends of a TCP connection agree on one.
    """

    def __init__(self, layout: Layout) -> None:
        self._size: dict[frozenset[int], int] = {}
        for source, queues in enumerate(layout.queues):
            for queue in queues:
                for target in queue.targets:
                    pair = frozenset((source, target))
                    size = frame_bytes(queue.bytes_per_s)
                    self._size[pair] = min(size, self._size.get(pair, MAX_FRAME_BYTES))

    def between(self, one: int, other: int) -> int:
        """Bytes of a frame, all of it, between two hosts by number."""
        return self._size.get(frozenset((one, other)), MAX_FRAME_BYTES)

    def mtu(self, one: int, other: int) -> int:
        """The same as interfaces and routes count it."""
        return self.between(one, other) - ETHERNET_BYTES


def bit_per_s(bytes_per_s: float, frame: int) -> int:
    """The rate of whole frames of ``frame`` bytes, in bits, that moves so much payload."""
    return max(8, round(8 * bytes_per_s * frame / (frame - HEADER_BYTES)))


__all__ = ["MAX_MTU", "MIN_FRAME_BYTES", "Frames", "bit_per_s", "frame_bytes"]
