"""Python processes forked from one that has imported torch, for tests that start very many.

Importing torch takes more than a second of a processor in every process; a suite that starts
hundreds would do little else. :class:`WarmPopen` is :class:`subprocess.Popen` for ``python -c`` and
``python -m``: same arguments, same pipes, a real child of the caller with a process id, exit status
and signals of its own. Only the start differs: a server (``tests.support.warm_server``) that has
imported the libraries forks it. What is fixed when a Python process starts (memory allocator,
OpenMP threads) is part of which server is asked; there is one for each such environment.

Not for tests of starting itself, of what a command imports, or of hosts whose hash seeds must
differ: processes of one server share theirs.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

FIXED_AT_START = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "LD_PRELOAD", "OMP_NUM_THREADS")
"""Variables that only the start of a process reads, or the loading of its libraries."""

_PR_SET_CHILD_SUBREAPER = 36  # from linux/prctl.h


class Server:
    """A process with everything imported, that forks others on demand."""

    def __init__(self, fixed: Mapping[str, str]) -> None:
        self._control, theirs = socket.socketpair()
        variables = {k: v for k, v in os.environ.items() if k not in FIXED_AT_START}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm_server", str(theirs.fileno())],
            cwd=ROOT,
            env={**variables, **fixed, "PYTHONPATH": str(ROOT)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    def start(self, order: Mapping[str, Any], descriptors: list[int]) -> int:
        """Fork a process with these descriptors; its id, as a child of the calling process."""
        line = json.dumps(order).encode()
        # The process's own parent is gone when the answer comes, and this is who inherits it.
        with _inheriting():
            socket.send_fds(self._control, [len(line).to_bytes(4, "big")], descriptors)
            self._control.sendall(line)
            answer = self._control.recv(4)
        if len(answer) != 4:
            raise RuntimeError(f"the warm server ended: {self._process.wait()}")
        return int.from_bytes(answer, "big")

    def close(self) -> None:
        """End the server; what it forked lives on."""
        self._control.close()
        self._process.wait(timeout=10)

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid


_servers: dict[tuple[int, tuple[tuple[str, str], ...]], Server] = {}


def server_pids() -> set[int]:
    """Process ids of the running servers of this process."""
    return {one.pid for (owner, _), one in _servers.items() if owner == os.getpid()}


def close_servers() -> None:
    """End all servers of this process."""
    for key in [key for key in _servers if key[0] == os.getpid()]:
        _servers.pop(key).close()


atexit.register(close_servers)


def _server(variables: Mapping[str, str]) -> Server:
    fixed = {name: variables[name] for name in FIXED_AT_START if name in variables}
    key = (os.getpid(), tuple(sorted(fixed.items())))
    if key not in _servers:
        _servers[key] = Server(fixed)
    return _servers[key]


_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
_NAMES = (
    *("args", "executable", "preexec_fn", "close_fds", "pass_fds", "cwd", "env", "startupinfo"),
    *("creationflags", "shell", *_PIPES, "restore_signals", "gid", "gids", "uid", "umask"),
    *("start_new_session", "process_group"),
)
"""What :class:`subprocess.Popen` hands to the method that starts the process, Python 3.11 on."""


class WarmPopen(subprocess.Popen[Any]):
    """:class:`subprocess.Popen` that has Python processes forked, not started."""

    def _execute_child(self, *arguments: Any) -> None:
        given = dict(zip(_NAMES, arguments, strict=True))
        argv = [os.fspath(one) for one in given["args"]]
        assert argv[0] == sys.executable, argv
        assert argv[1] in ("-c", "-m"), argv
        assert given["close_fds"], "others are closed"
        assert (given["preexec_fn"], given["shell"]) == (None, False)
        variables = dict(os.environ if given["env"] is None else given["env"])
        standard = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
        standard = [own if own != -1 else usual for usual, own in enumerate(standard)]
        passed = [int(one) for one in given["pass_fds"]]
        order = {
            "argv": argv[1:],
            "cwd": str(Path(given["cwd"] or ".").absolute()),
            "env": variables,
            "targets": [0, 1, 2, *passed],
            "session": bool(given["start_new_session"]),
        }
        self.pid = _server(variables).start(order, [*standard, *passed])
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in _PIPES))  # type: ignore[attr-defined]


@contextlib.contextmanager
def _inheriting() -> Iterator[None]:
    """Meanwhile processes below this one whose parent ends become this one's children."""
    _set_subreaper(1)
    try:
        yield
    finally:
        _set_subreaper(0)


def _set_subreaper(value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot inherit processes")
