"""Ranks on this machine: started, commanded, watched and ended by the calling process."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Any

from profiler import errors
from profiler.allocator import heap_environment
from profiler.errors import ApportionError, RankFailedError

Message = dict[str, Any]

GATHER_S = 0.5
"""After a first failure, how long to listen for its cause before reporting it."""
GRACE_S = 3.0
"""How much longer than the time limit a rank may be silent: ranks that wait for it, and so know at
what, report first."""
STOP_S = 5.0
"""How long ranks may take to stop by themselves."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where on this machine a rank runs: a network namespace, control groups, variables.

    ``process_files`` are the files into which a process writes its id to join a group.
    """

    namespace: str
    process_files: tuple[str, ...]
    environment: Mapping[str, str]


class LocalRanks:
    """The processes of a plan on this machine.

    ``describe`` names a rank for messages (its device and stage). ``places`` are where ranks run,
    in rank order; without them, here.
    """

    def __init__(
        self,
        directory: Path,
        num_ranks: int,
        *,
        timeout_s: float,
        describe: Callable[[int], str],
        places: Sequence[Place] = (),
    ) -> None:
        self.num_ranks = num_ranks
        self.timeout_s = timeout_s
        self.describe = describe
        self._heard: dict[int, float] = {}
        self._selector = selectors.DefaultSelector()
        self._buffers: dict[object, bytes] = {}
        self._sockets: list[socket.socket] = []
        self._failed: dict[int, str] = {}
        theirs = []
        for rank in range(num_ranks):
            ours, other = socket.socketpair()
            self._sockets.append(ours)
            theirs.append(other)
            self._selector.register(ours, selectors.EVENT_READ, rank)
        lifeline_read, self._lifeline = os.pipe()
        status_read, status_write = os.pipe()
        self._status = os.fdopen(status_read, "rb", buffering=0)
        self._selector.register(self._status, selectors.EVENT_READ, "status")
        order = {
            "directory": str(directory),
            "store": str(directory / f"store-{os.getpid()}-{time.monotonic_ns()}"),
            "timeout_s": timeout_s,
            "lifeline": lifeline_read,
            "status": status_write,
            "controls": [other.fileno() for other in theirs],
            "places": [asdict(place) for place in places],
        }
        given = [lifeline_read, status_write, *(other.fileno() for other in theirs)]
        # A session of its own: Ctrl-C reaches the caller alone, which then ends the ranks.
        self._process = Popen(
            [sys.executable, "-m", "executor.zygote"],
            stdin=PIPE,
            pass_fds=given,
            start_new_session=True,
            env=heap_environment({"GLOO_SOCKET_IFNAME": "lo", **os.environ}),
        )
        for fd in (lifeline_read, status_write):
            os.close(fd)
        for other in theirs:
            other.close()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.close()

    def command(self, message: Message) -> None:
        """Give every rank the same command."""
        line = json.dumps(message).encode() + b"\n"
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.sendall(line)

    def reports(self) -> list[Message]:
        """One report of every rank, in rank order.

        Raises:
            RankFailedError: a rank failed, died, or gave no sign of life for ``timeout_s``; all
                others have been ended.
        """
        found: dict[int, Message] = {}
        self._heard = {rank: time.monotonic() for rank in self._heard}
        try:
            while len(found) < self.num_ranks:
                for source, message in self._listen(self.timeout_s / 4):
                    if source == "status":
                        self._note_exit(message)
                    elif message.get("event") == "error":
                        self._fail(int(source), message)
                    else:
                        found[int(source)] = message
                self._require_life()
                if not self._selector.get_map():
                    raise RankFailedError("the ranks ended without a word; messages stand above")
        except BaseException:
            self.kill()
            raise
        return [found[rank] for rank in range(self.num_ranks)]

    def _listen(self, timeout: float | None) -> Iterator[tuple[Any, Message]]:
        """Messages that have arrived, waiting for at least one unless the time is up."""
        for key, _ in self._selector.select(timeout):
            data = os.read(key.fd, 1 << 16)
            if not data:
                self._selector.unregister(key.fileobj)
                if key.data == "status":
                    self._require_starter()
                continue
            whole = self._buffers.get(key.fileobj, b"") + data
            *lines, rest = whole.split(b"\n")
            self._buffers[key.fileobj] = rest
            if key.data != "status":
                self._heard[key.data] = time.monotonic()
            for line in lines:
                message = json.loads(line)
                if message.get("event") != "alive":
                    yield key.data, message

    def _require_starter(self) -> None:
        """The process that ranks are forked from has ended: as it should, or not."""
        # Not reaped here: as long as it is not, its process group is ours to kill.
        ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        if ended is not None and ended.si_status != 0:
            raise RankFailedError(
                "the process that the ranks are forked from ended with status "
                f"{ended.si_status}; its messages stand above"
            )

    def _require_life(self) -> None:
        """Find a rank that has fallen silent: stopped, swapped out, its host frozen.

        Ranks that have not said a word are still importing torch; they are not judged.
        """
        limit = self.timeout_s + GRACE_S
        silent = [r for r, at in self._heard.items() if time.monotonic() - at > limit]
        if silent:
            raise RankFailedError(
                f"{self.describe(silent[0])} gave no sign of life in {limit:g} s: "
                "its process is stopped, or the machine is out of memory"
            )

    def _note_exit(self, exited: Message) -> None:
        """A rank ended although it was not told to."""
        rank, status = int(exited["rank"]), int(exited["status"])
        if status == 0:
            return
        if status < 0:
            name = signal.Signals(-status).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            raise RankFailedError(f"{self.describe(rank)} was ended by {name}{hint}")
        if rank not in self._failed:
            # Its own report is on the way; only without one is this all there is to say.
            self._drain()
            raise RankFailedError(
                self._failed.get(rank, f"{self.describe(rank)} ended with status {status}")
            )

    def _fail(self, rank: int, message: Message) -> None:
        """Find the failure that caused the others, and raise it."""
        self._failed[rank] = self._text(rank, message)
        first = message
        deadline = time.monotonic() + GATHER_S
        lost = first["kind"] == "RankFailedError"
        while lost and time.monotonic() < deadline:
            for source, other in self._listen(max(0.0, deadline - time.monotonic())):
                if source == "status":
                    if int(other["status"]) < 0:
                        self._note_exit(other)
                elif other.get("event") == "error":
                    if other["kind"] != "RankFailedError" or "computing" in other["message"]:
                        raise self._error(int(source), other)
                    self._failed[int(source)] = self._text(int(source), other)
        raise self._error(rank, first)

    def _drain(self) -> None:
        for source, message in self._listen(GATHER_S):
            if source != "status" and message.get("event") == "error":
                self._failed[int(source)] = self._text(int(source), message)

    def _text(self, rank: int, message: Message) -> str:
        detail = f"\n{message['traceback']}" if message.get("traceback") else ""
        return f"{self.describe(rank)} failed: {message['message']}{detail}"

    def _error(self, rank: int, message: Message) -> ApportionError:
        """The rank's own error, as the class it was."""
        kind = getattr(errors, str(message["kind"]), None)
        if isinstance(kind, type) and issubclass(kind, errors.InvalidInputError):
            return kind(message["message"])
        return RankFailedError(self._text(rank, message))

    def stop(self) -> None:
        """End the ranks: ask, wait a little, then insist."""
        if self._process.returncode is None:
            self.command({"command": "stop"})
            with contextlib.suppress(TimeoutExpired):
                self._process.wait(timeout=STOP_S)
        self.kill()

    def kill(self) -> None:
        """End all processes now; safe to call twice."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for one in self._sockets:
            one.close()
        self._selector.close()
        if not self._status.closed:
            self._status.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
