"""Whether the hosts of a world reach the first one, where their agents meet.

An agent that does not get there tries for minutes, while those of the other hosts wait for it.
"""

from __future__ import annotations

import subprocess
import sys

from executor.emulate.hosts import EmulatedHosts
from executor.emulate.layout import HostLayout
from profiler.errors import RankFailedError

REACH_S = 5.0
"""How long the first host may take to answer."""

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


def require_reach(hosts: EmulatedHosts, nodes: list[HostLayout], *, port: int) -> None:
    """Have every host but the first of ``nodes`` call that one.

    Raises:
        RankFailedError: some cannot reach it; names them and what their system says.
    """
    first, *others = nodes
    call = [sys.executable, "-S", "-c", _CALL, first.address, str(port), str(REACH_S)]
    calls = {
        host: subprocess.Popen(
            hosts.connected(host.name, call),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in others
    }
    said = {host: process.communicate()[1].strip() for host, process in calls.items()}
    silent = [
        f"{host.name} ({host.address}): {said[host]}"
        for host, process in calls.items()
        if process.returncode
    ]
    if silent:
        raise RankFailedError(
            f"{len(silent)} of {len(nodes)} hosts cannot reach {first.name} at {first.address}, "
            f"where torchrun meets: {'; '.join(silent)}. Look at the interfaces of both ends, or "
            "take the hosts down and up again with `apportion hosts down`"
        )


__all__ = ["REACH_S", "require_reach"]
