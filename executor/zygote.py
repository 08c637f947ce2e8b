"""The process that local ranks are forked from, so that torch is imported once for all of them.

Run as ``python -m executor.zygote``: reads one JSON line (:class:`executor.local.Order` as data)
from standard input, imports torch, forks one child per rank, and reports on ``status`` how each of
them ended. Nothing here imports the caller's main module, so plans can be run from any script.

Every rank watches a lifeline, a pipe whose other end only the caller holds: when the caller is
gone, however it went, the ranks end.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

Message = dict[str, Any]


BEAT_S = 0.5
"""How often a rank says that it is alive, whatever it is doing."""


class SocketControl:
    """Commands and reports as JSON lines over a socket, and a sign of life now and then."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._commands = self._socket.makefile("r", encoding="utf-8")
        self._lock = threading.Lock()
        threading.Thread(target=self._beat, daemon=True).start()

    def next(self) -> Message | None:
        """The next command; None once the caller has closed its end."""
        line = self._commands.readline()
        return json.loads(line) if line else None

    def report(self, message: Message) -> None:
        """Send a report; a caller that is gone is not an error here."""
        try:
            with self._lock:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            os._exit(1)

    def _beat(self) -> None:
        # A stopped or swapped-out process says nothing, and only its silence tells.
        while True:
            time.sleep(BEAT_S)
            self.report({"event": "alive"})


def main() -> None:
    """Fork the ranks and wait for them."""
    order = json.loads(sys.stdin.readline())
    _watch(order["lifeline"])

    import executor.rank  # noqa: F401  (imported once, before the forks)

    children: dict[int, int] = {}
    for rank, fd in enumerate(order["controls"]):
        pid = os.fork()
        if pid == 0:
            _be_rank(order, rank, fd)
        children[pid] = rank
    while children:
        pid, code = os.wait()
        if pid in children:
            exited = {"rank": children.pop(pid), "status": os.waitstatus_to_exitcode(code)}
            try:
                os.write(order["status"], json.dumps(exited).encode() + b"\n")
            except BrokenPipeError:  # the caller is gone, and nobody is there to be told
                os._exit(1)
    # Nothing is left to clean up; tearing torch down would take longer than the run's end should.
    os._exit(0)


def _be_rank(order: Message, rank: int, fd: int) -> None:
    """Serve as one rank, then leave without running the parent's clean-up."""
    from executor.rank import RankOptions, serve
    from profiler.errors import ApportionError
    from profiler.stores import file_store

    for other, other_fd in enumerate(order["controls"]):
        if other != rank:
            os.close(other_fd)
    os.close(order["status"])
    _watch(order["lifeline"])
    control = SocketControl(fd)
    code = 0
    try:
        if order["places"]:
            _enter(order["places"][rank])
        # The caller writes the bundle while torch is being imported here.
        if control.next() is None:
            os._exit(0)
        options = RankOptions(
            rank=rank,
            directory=Path(order["directory"]),
            timeout_s=order["timeout_s"],
            store=lambda: file_store(order["store"], len(order["controls"])),
        )
        serve(options, control)
    except BaseException as error:
        known = isinstance(error, ApportionError)
        control.report(
            {
                "event": "error",
                "kind": type(error).__name__,
                "message": str(error) or type(error).__name__,
                "traceback": "" if known else traceback.format_exc(),
            }
        )
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


CLONE_NEWNET = 0x40000000
"""From ``sched.h``; Python knows it, and ``setns``, from 3.12 on."""


def _enter(place: Message) -> None:
    """Move this process into an emulated host: its limits, its network, its variables."""
    for file in place["process_files"]:
        Path(file).write_text(str(os.getpid()))
    namespace = os.open(place["namespace"], os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"cannot enter {place['namespace']}: {os.strerror(number)}")
    os.close(namespace)
    os.environ.update(place["environment"])


def _watch(lifeline: int) -> None:
    """End this process as soon as nobody holds the other end of ``lifeline``."""

    def wait() -> None:
        while True:
            try:
                if not os.read(lifeline, 1):
                    os._exit(1)
            except InterruptedError:
                continue
            except OSError:
                os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    main()
