"""When messages were ready to move, and when they had come: what a rank notes of its transfers.

A message can move once its sender has it and its receiver has asked for it; both ends note that
moment. When a receiver has to wait for a message, the end of the wait is the end of the transfer;
when it finds the message there, nobody knows when it came. ``executor.links`` joins both ends'
notes to the time that one message takes.

Only the last :data:`LIMIT` messages of each direction are kept; they are counted without limit.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import NamedTuple

from executor.schedule import Message

LIMIT = 2000
"""Messages of each direction that are kept."""

WAITED_S = 50e-6
"""A wait longer than this was one: asking for a message that is there takes some microseconds.
(``work.is_completed()`` does not tell: gloo's says no until somebody has waited.)"""


Kind = tuple[int, str, int]
"""What messages have in common that are counted together: source, tensor, bytes."""


class Receipt(NamedTuple):
    """A receive that has been asked for: its place among those of its sender and tag, and when."""

    number: int
    asked_s: float


class TransferLog:
    """The notes of one rank; times are those of ``now``."""

    def __init__(self, *, limit: int = LIMIT, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self._limit = limit
        self.start()

    def start(self) -> None:
        """Forget everything: a run begins. Both ends of every message must do so."""
        self._numbers: dict[tuple[bool, int, int], int] = defaultdict(int)
        self._sent: deque[list[float]] = deque(maxlen=self._limit)
        self._received: deque[tuple[Message, Receipt, float, float, Kind]] = deque(
            maxlen=self._limit
        )
        self._counts: dict[Kind, int] = {}

    def sent(self, message: Message, at_s: float) -> None:
        """A message was ready to be sent at a time; noted when it is on its way already."""
        number = self._number(True, message.target, message.tag)
        self._sent.append([message.target, message.tag, number, at_s])

    def asked(self, message: Message, at_s: float) -> Receipt:
        """A message was asked for at a time."""
        return Receipt(self._number(False, message.source, message.tag), at_s)

    def arrived(
        self, message: Message, receipt: Receipt, *, begun_s: float, num_bytes: int
    ) -> None:
        """A message is there, after a wait that began at ``begun_s``."""
        # Somebody is waiting for the message: as little as can be is done here.
        ended_s = self.now()
        kind = (message.source, message.tensor, num_bytes)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._received.append((message, receipt, begun_s, ended_s, kind))

    def to_data(self) -> dict[str, list[list[float]] | list[list[object]]]:
        """The notes as JSON data: ``executor.links`` reads them.

        ``sent``: target, tag, number, time. ``received``: source, tag, number, time asked, time
        found there, whether that took waiting, kind. ``kinds``: source, tensor, bytes, how many.
        """
        place = {kind: i for i, kind in enumerate(self._counts)}
        received: list[list[float]] = [
            [
                message.source,
                message.tag,
                receipt.number,
                round(receipt.asked_s, 7),
                round(ended_s, 7),
                ended_s - begun_s > WAITED_S,
                place[kind],
            ]
            for message, receipt, begun_s, ended_s, kind in self._received
        ]
        return {
            "sent": [[*entry[:3], round(entry[3], 7)] for entry in self._sent],
            "received": received,
            "kinds": [[*kind, count] for kind, count in self._counts.items()],
        }

    def _number(self, sending: bool, other: int, tag: int) -> int:
        key = (sending, other, tag)
        self._numbers[key] += 1
        return self._numbers[key] - 1
