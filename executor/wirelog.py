"""When messages were ready to move, and when they had come: what a rank notes of its transfers.

A message can move once its sender has it and its receiver has asked for it; both ends note that
moment. When a receiver has to wait for a message, the end of the wait is the end of the transfer;
when it finds the message there, nobody knows when it came. ``executor.links`` joins both ends'
notes to the time that one message takes.

Only the last :data:`LIMIT` messages of each direction are kept; they are counted without limit.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from executor.schedule import Message

LIMIT = 2000
"""Messages of each direction that are kept."""

WAITED_S = 50e-6
"""A wait longer than this was one: asking for a message that is there takes some microseconds.
(``work.is_completed()`` does not tell: gloo's says no until somebody has waited.)"""


Kind = tuple[int, str, int]
"""What messages have in common that are counted together: source, tensor, bytes."""


@dataclass(slots=True)  # not frozen: that would cost a microsecond a message
class Receipt:
    """A receive: when it was asked for, when somebody began to wait for it and found it there."""

    message: Message
    num_bytes: int
    asked_s: float
    begun_s: float = 0.0
    ended_s: float | None = None


class TransferLog:
    """The notes of one rank; times are those of ``now``.

    Somebody waits for the message of every call: as little as can be is done in them. A message's
    number among those of its peer and tag follows from the order of the notes; ``_fold`` counts
    those that it drops.
    """

    def __init__(self, *, limit: int = LIMIT, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self._limit = limit
        self.start()

    def start(self) -> None:
        """Forget everything: a run begins. Both ends of every message must do so."""
        self._sent: list[tuple[Message, float]] = []
        self._received: list[Receipt] = []
        self._sent_before: Counter[tuple[int, int]] = Counter()
        self._received_before: Counter[tuple[int, int]] = Counter()
        self._kinds_before: Counter[Kind] = Counter()

    def sent(self, message: Message, at_s: float) -> None:
        """A message was ready to be sent at a time; noted when it is on its way already."""
        self._sent.append((message, at_s))
        if len(self._sent) >= 2 * self._limit:
            self._fold()

    def asked(self, message: Message, at_s: float, *, num_bytes: int) -> Receipt:
        """A message was asked for at a time."""
        receipt = Receipt(message, num_bytes, at_s)
        self._received.append(receipt)
        if len(self._received) >= 2 * self._limit:
            self._fold()
        return receipt

    def arrived(self, receipt: Receipt, *, begun_s: float) -> None:
        """A message is there, after a wait that began at ``begun_s``."""
        receipt.ended_s = self.now()
        receipt.begun_s = begun_s

    def to_data(self) -> dict[str, list[list[float]] | list[list[object]]]:
        """The notes as JSON data: ``executor.links`` reads them.

        ``sent``: target, tag, number, time. ``received``: source, tag, number, time asked, time
        found there, whether that took waiting, kind. ``kinds``: source, tensor, bytes, how many.
        """
        self._fold()
        kinds = Counter(self._kinds_before)
        kinds.update(map(_kind, self._received))
        place = {kind: i for i, kind in enumerate(kinds)}
        sent_before, received_before = Counter(self._sent_before), Counter(self._received_before)
        sent: list[list[float]] = []
        for message, at_s in self._sent:
            peer = message.target, message.tag
            sent.append([*peer, sent_before[peer], round(at_s, 7)])
            sent_before[peer] += 1
        received: list[list[float]] = []
        for receipt in self._received:
            peer = receipt.message.source, receipt.message.tag
            if receipt.ended_s is not None:
                times = round(receipt.asked_s, 7), round(receipt.ended_s, 7)
                waited = receipt.ended_s - receipt.begun_s > WAITED_S
                received.append(
                    [*peer, received_before[peer], *times, waited, place[_kind(receipt)]]
                )
            received_before[peer] += 1
        return {
            "sent": sent,
            "received": received,
            "kinds": [[*kind, count] for kind, count in kinds.items()],
        }

    def _fold(self) -> None:
        """Drop all but the latest notes, and count them."""
        dropped = self._sent[: -self._limit]
        self._sent_before.update((message.target, message.tag) for message, _ in dropped)
        del self._sent[: len(dropped)]
        old = self._received[: -self._limit]
        self._received_before.update((one.message.source, one.message.tag) for one in old)
        # All that were asked for, arrived or not: an early one may be under way still.
        self._kinds_before.update(map(_kind, old))
        del self._received[: len(old)]


def _kind(receipt: Receipt) -> Kind:
    return receipt.message.source, receipt.message.tensor, receipt.num_bytes
