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
from dataclasses import dataclass

from executor.schedule import Message

LIMIT = 2000
"""Messages of each direction that are kept."""

WAITED_S = 50e-6
"""A wait longer than this was one: asking for a message that is there takes some microseconds.
(``work.is_completed()`` does not tell: gloo's says no until somebody has waited.)"""


@dataclass(frozen=True, slots=True)
class Receipt:
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
        self._received: deque[list[float]] = deque(maxlen=self._limit)
        self._kinds: dict[tuple[int, str, int], int] = {}
        self._counts: list[int] = []

    def sending(self, message: Message) -> None:
        """A message is about to be handed on."""
        number = self._number(True, message.target, message.tag)
        self._sent.append([message.target, message.tag, number, self.now()])

    def receiving(self, message: Message) -> Receipt:
        """A message has been asked for."""
        return Receipt(self._number(False, message.source, message.tag), self.now())

    def arrived(
        self, message: Message, receipt: Receipt, *, begun_s: float, num_bytes: int
    ) -> None:
        """A message is there, after a wait that began at ``begun_s``."""
        ended_s = self.now()
        key = (message.source, message.tensor, num_bytes)
        kind = self._kinds.setdefault(key, len(self._kinds))
        if kind == len(self._counts):
            self._counts.append(0)
        self._counts[kind] += 1
        waited = ended_s - begun_s > WAITED_S
        self._received.append(
            [message.source, message.tag, receipt.number, receipt.asked_s, ended_s, waited, kind]
        )

    def to_data(self) -> dict[str, list[list[float]] | list[list[object]]]:
        """The notes as JSON data: ``executor.links`` reads them.

        ``sent``: target, tag, number, time. ``received``: source, tag, number, time asked, time
        found there, whether that took waiting, kind. ``kinds``: source, tensor, bytes, how many.
        """
        return {
            "sent": [[*entry[:3], round(entry[3], 7)] for entry in self._sent],
            "received": [
                [*entry[:3], round(entry[3], 7), round(entry[4], 7), *entry[5:]]
                for entry in self._received
            ],
            "kinds": [[*kind, self._counts[i]] for kind, i in self._kinds.items()],
        }

    def _number(self, sending: bool, other: int, tag: int) -> int:
        key = (sending, other, tag)
        self._numbers[key] += 1
        return self._numbers[key] - 1
