"""Connections between the ranks that divide a stage, used by the thread that computes.

A join stops the computing of all ranks until its last message is there. The transport hands
messages to a thread of its own and back, and where every core computes, each of these changes may
wait for the scheduler: ``benchmarks/joins.py`` measures several times what the bytes take. So joins
have sockets of their own that the computing thread writes and reads itself.

Both ends of a connection work off the same list of messages, so the bytes need no headers.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import psutil
import torch

from executor.schedule import Message
from executor.transport import Transport, explain
from profiler.errors import RankFailedError

TAG = 2**20 + 2
"""Tag of the messages that tell addresses: far from those of transfers."""

CARD_BYTES = 2048
"""Room for a rank's addresses."""

TRY_S = 3.0
"""How long one address of several is tried."""

ANSWER_S = 30.0
"""How long who is reached may take to answer: it calls others first."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message and the memory it is read from or written to (contiguous, on the host)."""

    message: Message
    tensor: torch.Tensor


@dataclass(frozen=True, slots=True)
class Card:
    """Where a rank may be called, and what to say then."""

    addresses: list[str]
    port: int
    token: str


class StageSockets:
    """One connection with each other rank of a stage."""

    def __init__(self, transport: Transport, connections: Mapping[int, socket.socket]) -> None:
        self._transport = transport
        self._connections = dict(connections)
        for connection in self._connections.values():
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @staticmethod
    def connect(transport: Transport, ranks: Sequence[int], rank: int) -> StageSockets:
        """Connect ``rank`` with the others of ``ranks``, all of which must call this at once.

        Raises:
            RankFailedError: another rank is silent, or none of its addresses can be reached.
        """
        deadline = time.monotonic() + transport.timeout_s
        others = [other for other in ranks if other != rank]
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(_listener(len(others)))
            token = secrets.token_hex(16)
            own = Card(addresses(), listener.getsockname()[1], token)
            cards = _exchange_cards(transport, own, others)
            found = {}
            for other in others:
                # Of two ranks the one that comes later in the plan calls.
                if ranks.index(rank) > ranks.index(other):
                    found[other] = _call(cards[other], rank, other, deadline)
                    stack.callback(found[other].close)
            waiting = {other for other in others if other not in found}
            for other, connection in _answered(listener, token, rank, waiting, deadline):
                found[other] = connection
                stack.callback(connection.close)
            stack.pop_all()
            listener.close()
        return StageSockets(transport, found)

    def exchange(self, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        """Send and receive all of these; at most one each way with every rank.

        Raises:
            RankFailedError: another rank is gone, or nothing came through in time.
        """
        log = self._transport.log
        begun = log.now()
        leaving = {p.message.target: (p, _bytes_of(p.tensor)) for p in sends if p.tensor.numel()}
        coming = {p.message.source: (p, _bytes_of(p.tensor)) for p in receives if p.tensor.numel()}
        for parcel, _ in leaving.values():
            log.sent(parcel.message, begun)
        receipts = {
            other: log.asked(parcel.message, begun, num_bytes=parcel.tensor.nbytes)
            for other, (parcel, _) in coming.items()
        }
        while leaving or coming:
            moved = 0
            for other, (parcel, left) in list(leaving.items()):
                count = self._move(parcel, left, other, sending=True)
                moved += count
                if count == len(left):
                    del leaving[other]
                else:
                    leaving[other] = parcel, left[count:]
            for other, (parcel, left) in list(coming.items()):
                count = self._move(parcel, left, other, sending=False)
                moved += count
                if count == len(left):
                    del coming[other]
                    log.arrived(receipts[other], begun_s=begun)
                else:
                    coming[other] = parcel, left[count:]
            if not moved:
                self._wait(
                    {o: p for o, (p, _) in leaving.items()}, {o: p for o, (p, _) in coming.items()}
                )

    def close(self) -> None:
        """Hang up."""
        for connection in self._connections.values():
            connection.close()

    def _move(self, parcel: Parcel, left: memoryview, other: int, *, sending: bool) -> int:
        """Bytes that could be moved at once."""
        connection = self._connections[other]
        try:
            if sending:
                return connection.send(left)
            count = connection.recv_into(left)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._failed(parcel, str(error)) from error
        if not count:
            raise self._failed(parcel, "the other rank has hung up")
        return count

    def _wait(self, leaving: Mapping[int, Parcel], coming: Mapping[int, Parcel]) -> None:
        """Until something can be moved."""
        poll = select.poll()
        for other in {**leaving, **coming}:
            wanted = select.POLLOUT * (other in leaving) | select.POLLIN * (other in coming)
            poll.register(self._connections[other], wanted)
        timeout_s = self._transport.timeout_s
        if not poll.poll(1000 * timeout_s):
            parcel = next(iter([*coming.values(), *leaving.values()]))
            raise self._failed(parcel, f"nothing came through in {timeout_s:g} s")

    def _failed(self, parcel: Parcel, why: str) -> RankFailedError:
        return RankFailedError(
            explain(parcel.message, parcel.tensor, rank=self._transport.rank, why=why)
        )


def addresses() -> list[str]:
    """Where other hosts may reach this one: on the interfaces of ``GLOO_SOCKET_IFNAME``, or all
    that are up; the loopback's if there is no other."""
    wanted = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found: list[str] = []
    inside: list[str] = []
    for name, every in psutil.net_if_addrs().items():
        if name not in up or (wanted and name not in wanted):
            continue
        for one in every:
            linked = one.address.startswith("fe80")  # means something on one link only
            if one.family in (socket.AF_INET, socket.AF_INET6) and not linked:
                local = one.address.startswith(("127.", "::1"))
                (inside if local and not wanted else found).append(one.address)
    return (found or inside or ["127.0.0.1"])[:16]


def _listener(backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog + 8
        )
    return socket.create_server(("", 0), backlog=backlog + 8)


def _exchange_cards(transport: Transport, own: Card, others: Sequence[int]) -> dict[int, Card]:
    """Every other rank's card, for one's own."""
    text = json.dumps(asdict(own)).encode()
    card = torch.frombuffer(bytearray(text.ljust(CARD_BYTES)), dtype=torch.uint8)
    come = {
        other: transport.receive(
            torch.empty(CARD_BYTES, dtype=torch.uint8), _card(other, transport.rank)
        )
        for other in others
    }
    gone = [transport.send(card, _card(transport.rank, other)) for other in others]
    cards = {
        other: Card(**json.loads(bytes(transport.finish(one).tolist())))
        for other, one in come.items()
    }
    for one in gone:
        transport.finish(one)
    return cards


def _card(source: int, target: int) -> Message:
    return Message(
        tag=TAG,
        tensor="addresses of a rank",
        source=source,
        target=target,
        source_piece=-1,
        target_piece=-1,
        items=None,
    )


def _call(card: Card, rank: int, other: int, deadline: float) -> socket.socket:
    """A connection with ``other``, at the first of its addresses that answers."""
    tried, hosts = [], card.addresses
    for host in hosts:
        left_s = deadline - time.monotonic()
        try_s = min(TRY_S, left_s) if len(hosts) > 1 else left_s
        try:
            connection = socket.create_connection((host, card.port), timeout=max(0.1, try_s))
        except OSError as error:
            tried.append(f"{host} ({error})")
            continue
        try:
            connection.settimeout(max(0.1, min(ANSWER_S, deadline - time.monotonic())))
            connection.sendall(_greeting(card.token, rank))
            if connection.recv(1) == b"!":
                return connection
            tried.append(f"{host} (another process answers)")
        except OSError as error:
            tried.append(f"{host} ({error})")
        connection.close()
    raise RankFailedError(
        f"rank {rank} cannot connect with rank {other}, which divides a stage with it, at port "
        f"{card.port} of {', '.join(tried)}: are these hosts reachable from each other, and "
        "does GLOO_SOCKET_IFNAME name the network between them?"
    )


def _greeting(token: str, rank: int) -> bytes:
    return f"{token} {rank:8d}".encode()


def _answered(
    listener: socket.socket, token: str, rank: int, waiting: set[int], deadline: float
) -> Iterator[tuple[int, socket.socket]]:
    """Connections from the ranks in ``waiting`` as they call; others' calls are turned away."""
    waiting = set(waiting)
    while waiting:
        listener.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            connection, _ = listener.accept()
        except TimeoutError as error:
            raise RankFailedError(
                f"rank {rank} waited in vain for a connection from rank {min(waiting)}, which "
                "divides a stage with it"
            ) from error
        connection.settimeout(TRY_S)
        try:
            said = _read(connection, len(_greeting(token, 0)))
            known = said[:-9].decode(errors="replace") == token and int(said[-8:]) in waiting
            if known:
                connection.sendall(b"!")
        except (OSError, ValueError):
            known = False
        if known:
            waiting.remove(int(said[-8:]))
            yield int(said[-8:]), connection
        else:
            connection.close()


def _read(connection: socket.socket, count: int) -> bytes:
    said = b""
    while len(said) < count:
        more = connection.recv(count - len(said))
        if not more:
            raise OSError("hung up")
        said += more
    return said


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
