"""The process that :mod:`tests.support.warm` asks for others: imports torch once, forks on demand.

Run as ``python -m tests.support.warm_server DESCRIPTOR``; ends when the other side is closed.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback
import types
from pathlib import Path
from typing import Any

MAX_DESCRIPTORS = 64


def main() -> None:
    """Serve until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides when this process ends
    control = socket.socket(fileno=int(sys.argv[1]))
    usual = [place for place in sys.path if place not in _given_places(os.environ)]
    _import_all()
    while True:
        head, descriptors, _, _ = socket.recv_fds(control, 4, MAX_DESCRIPTORS)
        if not head:
            return
        order = json.loads(_exactly(control, int.from_bytes(head, "big")))
        pid = _fork_away(order, descriptors, control, usual)
        for one in descriptors:
            os.close(one)
        control.sendall(pid.to_bytes(4, "big"))


def _import_all() -> None:
    """What rank processes and measuring commands import, the tracer of models included."""
    for name in (
        *("torch._dynamo", "torch.export", "executor.cli", "executor.rank", "executor.session"),
        *("executor.torchrun", "profiler.cli", "profiler.session"),
    ):
        importlib.import_module(name)


def _given_places(variables: Any) -> list[str]:
    """Where modules are looked for first: the working directory, then ``PYTHONPATH``."""
    named = variables.get("PYTHONPATH", "")
    return [str(Path.cwd()), *(one for one in named.split(":") if one)]


def _exactly(control: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        parts.append(control.recv(size))
        size -= len(parts[-1])
    return b"".join(parts)


def _fork_away(
    order: dict[str, Any], descriptors: list[int], control: socket.socket, usual: list[str]
) -> int:
    """Fork a process whose parent has ended when this returns; its id."""
    heard, told = os.pipe()
    between = os.fork()
    if between == 0:
        if os.fork() == 0:
            if order["session"]:
                os.setsid()
            os.write(told, os.getpid().to_bytes(4, "big"))
            os.close(heard)
            os.close(told)
            control.close()
            _be(order, descriptors, usual)
        os._exit(0)
    os.close(told)
    pid = int.from_bytes(os.read(heard, 4), "big")
    os.close(heard)
    os.waitpid(between, 0)
    return pid


def _be(order: dict[str, Any], descriptors: list[int], usual: list[str]) -> None:
    """Become the process asked for; never returns."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _place(descriptors, order["targets"])
        os.environ.clear()
        os.environ.update(order["env"])
        os.chdir(order["cwd"])
        sys.path[:] = [*_given_places(order["env"]), *usual]
        code = _run(*order["argv"])
    except BaseException:
        traceback.print_exc()
    _leave(code)


def _place(descriptors: list[int], targets: list[int]) -> None:
    """Put descriptors at the numbers the caller knows them by, out of each other's way first."""
    high = max([*descriptors, *targets]) + 1
    away = [fcntl.fcntl(one, fcntl.F_DUPFD, high) for one in descriptors]
    for one in descriptors:
        os.close(one)
    for one, target in zip(away, targets, strict=True):
        os.dup2(one, target, inheritable=True)
        os.close(one)


def _run(kind: str, what: str, *arguments: str) -> int:
    """Run a module or a text as ``__main__``; the exit status, as Python would have it."""
    try:
        if kind == "-m":
            sys.argv[:] = [what, *arguments]
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.argv[:] = ["-c", *arguments]
            sys.path[0] = ""
            module = types.ModuleType("__main__")
            sys.modules["__main__"] = module
            exec(compile(what, "<string>", "exec"), module.__dict__)
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return left.code or 0
        print(left.code, file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0


def _leave(code: int) -> None:
    """End as Python does: wait for threads, run what was registered, flush."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
