"""The time of one message, from what both ends noted."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.links import LinkTime, Noted, Offset, link_times, transfer_times
from executor.schedule import Message
from executor.wirelog import LIMIT, WAITED_S, TransferLog

SAME = {0: Offset(0.0, 0.0), 1: Offset(0.0, 0.0), 2: Offset(0.0, 0.0)}


def message(tag: int = 0, *, tensor: str = "t", source: int = 0, target: int = 1) -> Message:
    return Message(
        tag=tag,
        tensor=tensor,
        source=source,
        target=target,
        source_piece=0,
        target_piece=0,
        items=None,
    )


class Clock:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


class Wire:
    """Two ranks and the wire from the first to the second, in simulated time."""

    def __init__(self, *, ahead_s: float = 0.0, limit: int = LIMIT) -> None:
        self.clock = Clock()
        self.ahead_s = ahead_s  # of the receiver's clock
        self.logs = [TransferLog(limit=limit, now=self.clock) for _ in range(2)]
        self.free_s = 0.0

    def move(
        self, *, sent: float, asked: float, looks: float, takes: float, num_bytes: int = 100
    ) -> None:
        """One message: sent and asked for at these times, looked for at ``looks``."""
        one = message(tensor=f"t{num_bytes}")
        self.clock.at = sent
        self.logs[0].sent(one, self.logs[0].now())
        self.clock.at = asked + self.ahead_s
        receipt = self.logs[1].asked(one, self.logs[1].now(), num_bytes=num_bytes)
        self.free_s = max(sent, asked, self.free_s) + takes
        self.clock.at = max(looks, self.free_s) + self.ahead_s
        self.logs[1].arrived(receipt, begun_s=looks + self.ahead_s)

    def times(self, offsets: dict[int, Offset] = SAME) -> list[LinkTime]:
        return list(link_times([log.to_data() for log in self.logs], offsets))


def one(found: list[LinkTime]) -> LinkTime:
    (link,) = found
    return link


def test_a_message_that_is_awaited_takes_from_its_start_to_its_end() -> None:
    wire = Wire()
    for i in range(5):
        wire.move(sent=i, asked=i - 0.5, looks=i, takes=0.25)
    link = one(wire.times())
    assert (link.state, link.time_s, link.samples, link.messages) == ("measured", 0.25, 5, 5)
    assert (link.source, link.target, link.tensor, link.num_bytes) == (0, 1, "t100", 100)
    assert link.spread == 0.0


def test_messages_queue_behind_each_other() -> None:
    # All are sent at once; the fourth ends after 4 x 0.25 s and still took 0.25 s.
    wire = Wire()
    for _ in range(8):
        wire.move(sent=0.0, asked=0.0, looks=0.0, takes=0.25)
    assert one(wire.times()).time_s == pytest.approx(0.25)


def test_a_message_starts_when_its_receiver_has_asked_for_it() -> None:
    # Sent long before, as the root does with its inputs.
    wire = Wire()
    for i in range(5):
        wire.move(sent=0.0, asked=10.0 * i, looks=10.0 * i, takes=0.5)
    assert one(wire.times()).time_s == pytest.approx(0.5)


def test_a_link_that_is_never_awaited_is_hidden() -> None:
    wire = Wire()
    for i in range(20):
        wire.move(sent=i, asked=i, looks=i + 0.9, takes=0.25)
    link = one(wire.times())
    assert (link.state, link.time_s, link.samples, link.messages) == ("hidden", None, 0, 20)


def test_a_few_accidents_do_not_measure_a_hidden_link() -> None:
    # 3 of 100 receivers were interrupted while they looked: less than one in twenty.
    wire = Wire()
    for i in range(100):
        wire.move(sent=i, asked=i, looks=i + (0.0 if i % 40 == 1 else 0.9), takes=0.25)
    assert one(wire.times()).state == "hidden"


def test_what_follows_an_unknown_end_is_no_sample() -> None:
    # The second was there when looked for at 2.0: it may have ended at any time until then, so the
    # third, ready at 1.0, is not known to have begun then.
    known = {"kind": 0}
    noted = [
        Noted(ready_s=0.0, found_s=0.5, waited=True, **known),
        Noted(ready_s=0.5, found_s=2.0, waited=False, **known),
        Noted(ready_s=1.0, found_s=3.0, waited=True, **known),
        Noted(ready_s=3.5, found_s=4.0, waited=True, **known),
    ]
    assert [time for _, time in transfer_times(noted)] == [0.5, None, None, 0.5]


def test_the_wire_is_only_known_to_be_free_if_nothing_was_forgotten() -> None:
    noted = [Noted(kind=0, ready_s=0.0, found_s=1.0, waited=True)]
    assert transfer_times(noted, complete=True) == [(0, 1.0)]
    assert transfer_times(noted, complete=False) == [(0, None)]


@given(st.integers(0, 10_000))
def test_every_sample_is_the_time_that_the_wire_took(seed: int) -> None:
    chance = random.Random(seed)
    takes_s = chance.choice([0.001, 0.25])
    wire = Wire(ahead_s=chance.choice([0.0, 1000.0, -3.5]))
    now = 0.0
    for _ in range(60):
        now += chance.choice([0.0, 0.1, 2.0]) * takes_s
        asked = now + chance.choice([-1.0, 0.0, 0.5]) * takes_s
        wire.move(
            sent=now,
            asked=asked,
            looks=max(now, asked) + chance.choice([0.0, 0.2, 5.0]) * takes_s,
            takes=takes_s,
        )
    (link,) = wire.times({0: Offset(0.0, 0.0), 1: Offset(wire.ahead_s, 0.0)})
    assert link.time_s == pytest.approx(takes_s, rel=1e-6)


def test_clocks_that_differ_are_put_right() -> None:
    wire = Wire(ahead_s=-3600.0)
    for i in range(5):
        wire.move(sent=i, asked=i - 0.5, looks=i, takes=0.25)
    right = {0: Offset(0.0, 0.0), 1: Offset(-3600.0, 0.001)}
    assert one(wire.times(right)).time_s == pytest.approx(0.25)
    # Uncorrected they arrive an hour before they are sent, which nobody is told as a figure.
    assert (one(wire.times()).state, one(wire.times()).time_s) == ("unresolved", None)


def test_what_is_quicker_than_clocks_can_tell_is_not_resolved() -> None:
    wire = Wire()
    for i in range(5):
        wire.move(sent=i, asked=i - 0.5, looks=i, takes=0.25)
    link = one(wire.times({0: Offset(0.0, 0.0), 1: Offset(0.0, 0.13)}))
    assert (link.state, link.time_s, link.samples) == ("unresolved", None, 0)


def test_sizes_are_kept_apart() -> None:
    wire = Wire()
    for i in range(6):
        wire.move(sent=i, asked=i, looks=i, takes=0.5 if i % 2 else 0.1, num_bytes=100 + i % 2)
    assert [(x.num_bytes, x.time_s) for x in wire.times()] == [
        (100, pytest.approx(0.1)),
        (101, pytest.approx(0.5)),
    ]


def test_only_the_last_messages_are_kept_and_all_are_counted() -> None:
    wire = Wire(limit=10)
    for i in range(50):
        wire.move(sent=i, asked=i - 0.5, looks=i, takes=0.25)
    data = wire.logs[1].to_data()
    assert (len(data["received"]), len(wire.logs[0].to_data()["sent"])) == (10, 10)
    link = one(wire.times())
    # The oldest that is kept may have queued behind one that is not.
    assert (link.messages, link.samples, link.time_s) == (50, 9, pytest.approx(0.25))


def test_ends_that_remember_different_messages_are_joined_by_number() -> None:
    wire = Wire()
    wire.logs[0] = TransferLog(limit=6, now=wire.clock)
    for i in range(20):
        wire.move(sent=i, asked=i - 0.5, looks=i, takes=0.25 if i < 10 else 0.5)
    link = one(wire.times())
    assert (link.samples, link.time_s) == (5, pytest.approx(0.5))


def test_tags_and_pairs_count_for_themselves() -> None:
    clock = Clock()
    log = TransferLog(now=clock)
    for one_message in (message(0), message(1), message(0), message(0, target=2)):
        log.sent(one_message, log.now())
    data: dict[str, Any] = log.to_data()
    assert [entry[:3] for entry in data["sent"]] == [[1, 0, 0], [1, 1, 0], [1, 0, 1], [2, 0, 0]]
    log.start()
    assert log.to_data() == {"sent": [], "received": [], "kinds": []}


def test_asking_for_what_is_there_is_no_wait() -> None:
    for took, waited in ((WAITED_S / 2, False), (WAITED_S * 2, True)):
        clock = Clock()
        log = TransferLog(now=clock)
        receipt = log.asked(message(), log.now(), num_bytes=8)
        clock.at = took
        log.arrived(receipt, begun_s=0.0)
        (entry,) = log.to_data()["received"]
        assert entry[5] is waited
