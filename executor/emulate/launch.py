"""One command on every host, as ranks of one torchrun world, with its output and its end.

The launchers (torchrun's agents) run on the hosts' networks but outside of their limits: a quarter
of a core would need a minute to import torch twice, and an agent's memory is not the plan's. The
ranks they start are inside. torchrun turns whatever a rank ends with into its own status 1, so each
rank leaves its status in a file.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

import psutil

from executor.emulate.hosts import EmulatedHosts
from executor.emulate.layout import HostLayout
from executor.emulate.meeting import require_meeting
from profiler.errors import InvalidInputError, RankFailedError
from profiler.units import format_bytes

PORT = 29500
"""Where the first host's agent listens; ``--port`` takes another."""
MEET_S = 120
"""How long agents wait for each other; torchrun's own choice is ten minutes."""
GRACE_S = 15.0
"""After a first failure, how long the other hosts may go on: to report what they know."""
AGENTS_LEVEL = "LOGLEVEL"
"""The variable that sets how much torchrun's agents log."""
STOP_S = 5.0
"""How long processes may take to end when asked to."""

AGENT = """\
import logging, os, sys
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main
quiet = os.environ["LOGLEVEL"] == "CRITICAL"
if quiet:
    logging.disable(logging.ERROR)
try:
    main()
except (ChildFailedError, SignalException):
    if not quiet:
        raise
    sys.exit(1)
"""
"""torchrun without its trace of thirty lines from every host where a rank has failed: the rank has
said why, and this process says which. (Who sets the level of its log gets the trace.)"""

REPORT = (
    'directory=$1; shift; "$@"; code=$?; [ $code -eq 0 ] || echo $code > "$directory/$RANK"; '
    "exit $code"
)
"""Runs a command and, if it fails, leaves its status under its rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended: status 0, or the first one that was not, and where."""

    status: int
    where: str = ""


def torchrun_command(
    hosts: EmulatedHosts, node: int, argv: Sequence[str], *, statuses: Path, port: int = PORT
) -> list[str]:
    """The agent of host number ``node`` (among those with devices), on that host's network.

    Static rendezvous: with ``--node-rank`` the ranks follow the cluster's order of hosts. The c10d
    backend orders hosts by the text of their addresses.
    """
    nodes = ranked(hosts)
    host = nodes[node]
    limited = hosts.limited(host.name, argv)
    program = [*_unset(), "sh", "-c", REPORT, "sh", str(statuses), *limited]
    agent = [
        *(sys.executable, "-c", AGENT),
        *("--nnodes", str(len(nodes))),
        *("--nproc-per-node", str(host.processes)),
        *("--node-rank", str(node)),
        *("--rdzv-backend", "static"),
        *("--rdzv-endpoint", f"{nodes[0].address}:{port}"),
        *("--rdzv-conf", f"timeout={MEET_S}"),
        *("--local-addr", host.address),
        "--no-python",
        # torchrun replaces $name and ${name} in arguments, and $$ by $.
        *(part.replace("$", "$$") for part in program),
    ]
    return hosts.connected(host.name, agent)


def ranked(hosts: EmulatedHosts) -> list[HostLayout]:
    """The hosts that have devices, so ranks, in order."""
    return [host for host in hosts.hosts if host.processes]


def run_on_all(
    hosts: EmulatedHosts, argv: Sequence[str], *, port: int = PORT, grace_s: float = GRACE_S
) -> Ended:
    """Run ``argv`` once for every device, on its host, under torchrun; wait for all.

    What the first host writes goes where this process writes; lines of the others go to stderr,
    after their host's name. Once one host has failed the others are ended after ``grace_s``.

    Raises:
        InvalidInputError: nothing to run, or ``port`` is taken on the first host.
        RankFailedError: a host does not reach the first one, or ran out of its memory.
    """
    if not argv:
        raise InvalidInputError("nothing to run: give a command after --")
    require_meeting(hosts, ranked(hosts), port=port)
    before = _kills(hosts)
    with tempfile.TemporaryDirectory(prefix="apportion-hosts-") as name, terminable():
        agents: dict[str, subprocess.Popen[bytes]] = {}
        forwarders = []
        try:
            for node, host in enumerate(ranked(hosts)):
                agent = subprocess.Popen(
                    torchrun_command(hosts, node, argv, statuses=Path(name), port=port),
                    env=_environment(hosts, host),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if node else None,
                    stderr=subprocess.STDOUT if node else None,
                    # Ctrl-C reaches this process alone, which then ends the agents.
                    start_new_session=True,
                )
                agents[host.name] = agent
                if agent.stdout is not None:
                    forwarders.append(_forward(agent.stdout, host.name))
            failed = _wait(agents, grace_s)
        finally:
            end(list(agents.values()))
            for forwarder in forwarders:
                forwarder.join(STOP_S)
        _require_memory(hosts, before)
        return _first(hosts, Path(name)) or _of_agents(agents, failed)


def run_on_one(hosts: EmulatedHosts, name: str, argv: Sequence[str]) -> Ended:
    """Run ``argv`` inside one host, with this process's own input and output.

    Raises:
        InvalidInputError: no such host, or nothing to run.
        RankFailedError: the host ran out of its memory.
    """
    before = _kills(hosts)
    with terminable():
        process = hosts.popen(name, argv)
        # Ctrl-C is for the command, which may be a shell: it decides what to do.
        interrupt = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            status = process.wait()
        finally:
            signal.signal(signal.SIGINT, interrupt)
            end([process])
    _require_memory(hosts, before)
    return Ended(status=_positive(status), where=f"the command on host {name}")


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes and all that they have started: asked first, then killed."""
    running = [process for process in processes if process.poll() is None]
    below: list[psutil.Process] = []
    for process in running:
        with contextlib.suppress(psutil.NoSuchProcess):
            below += psutil.Process(process.pid).children(recursive=True)
    for process in running:
        process.terminate()
    deadline = time.monotonic() + STOP_S
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    for one in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    for process in running:
        process.kill()
        process.wait()


@contextmanager
def terminable() -> Iterator[None]:
    """Meanwhile, being asked to end (SIGTERM, SIGHUP) unwinds the stack as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    former = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, former, strict=True):
            signal.signal(number, handler)


def _environment(hosts: EmulatedHosts, host: HostLayout) -> dict[str, str]:
    found = {**os.environ, **hosts.environment(host.name)}
    # What torchrun would set for several processes, without its warning.
    if host.processes > 1 and host.cores is None:
        found.setdefault("OMP_NUM_THREADS", "1")
    # Addresses here have no names; torch would warn of that once for every connection.
    found.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # The first agent has the others' store: where it ends before they have seen that all are done,
    # they log an error, with a trace, of a run that succeeded. What ranks end with is said anyway.
    found.setdefault(AGENTS_LEVEL, "CRITICAL")
    return found


def _unset() -> tuple[str, ...]:
    """What keeps from the ranks what is meant for their agents."""
    return () if AGENTS_LEVEL in os.environ else ("env", "-u", AGENTS_LEVEL)


def _wait(agents: Mapping[str, subprocess.Popen[bytes]], grace_s: float) -> str | None:
    """Wait for all; the name of the host whose agent failed first, if one did."""
    failed: str | None = None
    deadline: float | None = None
    with selectors.DefaultSelector() as selector:
        for name, agent in agents.items():
            selector.register(os.pidfd_open(agent.pid), selectors.EVENT_READ, name)
        try:
            while selector.get_map():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                for key, _ in selector.select(left):
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
                    if agents[key.data].wait() and failed is None:
                        failed, deadline = key.data, time.monotonic() + grace_s
        finally:
            for key in list(selector.get_map().values()):
                os.close(key.fd)
    return failed


def _first(hosts: EmulatedHosts, statuses: Path) -> Ended | None:
    """The rank that failed first, by the time it left its status."""
    files = sorted(statuses.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    for file in files:
        with contextlib.suppress(ValueError):
            status = int(file.read_text())
            return Ended(status=status, where=f"rank {file.name} on {_host_of(hosts, file.name)}")
    return None


def _host_of(hosts: EmulatedHosts, rank: str) -> str:
    first = 0
    for host in ranked(hosts):
        first += host.processes
        if int(rank) < first:
            return f"host {host.name}"
    return "no host"


def _of_agents(agents: Mapping[str, subprocess.Popen[bytes]], failed: str | None) -> Ended:
    if failed is None:
        return Ended(status=0)
    status = _positive(agents[failed].returncode)
    return Ended(status=status, where=f"torchrun on host {failed}")


def _positive(status: int) -> int:
    """A status as shells count it: 128 and the signal's number for a process that was killed."""
    return 128 - status if status < 0 else status


def _kills(hosts: EmulatedHosts) -> dict[str, int]:
    return {host.name: hosts.memory_kills(host.name) for host in hosts.hosts}


def _require_memory(hosts: EmulatedHosts, before: Mapping[str, int]) -> None:
    for host in hosts.hosts:
        killed = hosts.memory_kills(host.name) - before[host.name]
        if killed > 0 and host.memory_bytes is not None:
            raise RankFailedError(
                f"host {host.name} ran out of memory: the kernel killed {killed} of its processes "
                f"at its limit of {format_bytes(host.memory_bytes)}; raise memory_bytes of "
                f"{host.name} under emulate.hosts, or plan with less free_bytes there"
            )


def _forward(stream: IO[bytes], name: str) -> threading.Thread:
    """Copy lines to stderr after the host's name, until the stream ends."""
    prefix = f"{name}: ".encode()

    def copy() -> None:
        for line in stream:
            ended = line if line.endswith(b"\n") else line + b"\n"
            sys.stderr.buffer.write(prefix + ended)
            sys.stderr.buffer.flush()

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


__all__ = ["Ended", "end", "ranked", "run_on_all", "run_on_one", "torchrun_command"]
