"""Whether this process was started as one of several ranks, by torchrun or by hand."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from profiler.errors import InvalidInputError, RankFailedError

if TYPE_CHECKING:
    from profiler.stores import Store


@dataclass(frozen=True)
class Environment:
    """What torchrun tells each process.

    ``agent_store``: torchrun keeps a store open at the address; without it rank 0 opens one.
    ``attempt`` counts restarts, whose messages must not meet those of earlier attempts.
    """

    rank: int
    world_size: int
    master_addr: str
    master_port: int
    agent_store: bool = False
    attempt: str = "0"

    @staticmethod
    def read(variables: Mapping[str, str] = os.environ) -> Environment | None:
        """This process's place among the ranks; None when nothing started it as a rank.

        Raises:
            InvalidInputError: some of the variables are there and others are missing or wrong.
        """
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        there = [name for name in names if name in variables]
        if "RANK" not in there:
            return None
        if len(there) < len(names):
            missing = ", ".join(name for name in names if name not in there)
            raise InvalidInputError(f"RANK is set but not {missing}: start ranks with torchrun")
        try:
            found = Environment(
                rank=int(variables["RANK"]),
                world_size=int(variables["WORLD_SIZE"]),
                master_addr=variables["MASTER_ADDR"],
                master_port=int(variables["MASTER_PORT"]),
                agent_store=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
                attempt=variables.get("TORCHELASTIC_RESTART_COUNT", "0"),
            )
        except ValueError as error:
            raise InvalidInputError(
                f"RANK, WORLD_SIZE and MASTER_PORT must be numbers: {error}"
            ) from error
        if not 0 <= found.rank < found.world_size:
            raise InvalidInputError(
                f"RANK is {found.rank} and WORLD_SIZE {found.world_size}: ranks count from 0"
            )
        return found

    @property
    def hosts_store(self) -> bool:
        """Whether this process keeps the store open."""
        return self.rank == 0 and not self.agent_store

    def store(self, *, timeout_s: float) -> Store:
        """A connection to the store at the address, for this attempt only.

        Raises:
            RankFailedError: nobody answers there in ``timeout_s``.
        """
        import torch.distributed as dist

        from profiler.stores import below, tcp_store

        try:
            store = tcp_store(
                self.master_addr,
                self.master_port,
                hosted_here=self.hosts_store,
                timeout_s=timeout_s,
            )
        except (RuntimeError, dist.DistError) as error:
            raise RankFailedError(
                f"rank {self.rank} on {socket.gethostname()} cannot reach "
                f"{self.master_addr}:{self.master_port} in {timeout_s:g} s: {first_line(error)}"
            ) from error
        return below(f"apportion/{self.attempt}/", store)


def first_line(error: BaseException) -> str:
    """What an error of torch says, without where in torch it arose, nor the trace it carries."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return re.sub(r"^\[[^\]]*\.(cc|cpp|h):\d+\]\s*", "", line)[:200]
