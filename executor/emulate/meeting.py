"""Whether the agents of the hosts can meet: at a port of the first host that nobody has yet, and
that all others reach.

An agent that does not get there tries for minutes, while those of the other hosts wait for it; one
that finds its port taken says so under a trace, after them.
"""

from __future__ import annotations

import subprocess
import sys

from executor.emulate.hosts import EmulatedHosts
from executor.emulate.layout import HostLayout
from profiler.errors import InvalidInputError, RankFailedError

REACH_S = 5.0
"""How long the first host may take to answer."""

_LISTEN = """\
import socket, sys
try:
    socket.create_server(("", int(sys.argv[2]))).close()
except OSError as error:
    sys.exit(str(error.strerror))
"""
# A port that nobody listens to is answered too: with a refusal.
_CALL = """\
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])).close()
except ConnectionRefusedError:
    pass
except OSError as error:
    sys.exit(str(error))
"""


def require_meeting(hosts: EmulatedHosts, nodes: list[HostLayout], *, port: int) -> None:
    """Have the first of ``nodes`` listen at ``port`` for a moment, and the others call it.

    Raises:
        InvalidInputError: another process has the port.
        RankFailedError: some cannot reach the first; names them and what their system says.
    """
    first, *others = nodes
    tries = {}
    for host in nodes:
        program = _LISTEN if host is first else _CALL
        argv = [sys.executable, "-S", "-c", program, first.address, str(port), str(REACH_S)]
        tries[host.name] = subprocess.Popen(
            hosts.connected(host.name, argv),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    said = {name: process.communicate()[1].strip() for name, process in tries.items()}
    failed = {name for name, process in tries.items() if process.returncode}
    if first.name in failed:
        raise InvalidInputError(
            f"torchrun cannot meet at port {port} of host {first.name}: {said[first.name]}. "
            "Another command runs on these hosts (`apportion hosts status`): wait for its end, or "
            "take another --port"
        )
    silent = [f"{x.name} ({x.address}): {said[x.name]}" for x in others if x.name in failed]
    if silent:
        raise RankFailedError(
            f"{len(silent)} of {len(nodes)} hosts cannot reach {first.name} at {first.address}, "
            f"where torchrun meets: {'; '.join(silent)}. Look at the interfaces of both ends, or "
            "take the hosts down and up again with `apportion hosts down`"
        )


__all__ = ["REACH_S", "require_meeting"]
