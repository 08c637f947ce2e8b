"""The processes that measure together, one a host: meeting, telling, waiting, failing together.

What they tell each other goes through the rendezvous store as JSON. Every process gives a sign of
life there each second, so that waiting for one that works for minutes is no fault, and waiting for
one that is gone ends after a time limit, with the rank, its host and the step named. A process that
fails says so, and the others stop with its reason. Nothing here compares clocks of two hosts.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import getnode

import torch.distributed as dist

from profiler import errors
from profiler.environment import Environment, first_line
from profiler.errors import ApportionError, InvalidInputError, RankFailedError
from profiler.glooloop import threads_behind_computing
from profiler.stores import Store, below, get_bytes, join_group, put_bytes

DEFAULT_TIMEOUT_S = 60.0
BEAT_S = 1.0
"""Time between two signs of life."""
LINGER_S = 5.0
"""How long a failed process that keeps the store open waits for the others to read why."""
SILENT_S = 2.5 * BEAT_S
"""A rank without a sign of life for so long is not waited for then: it will read nothing."""

_worlds = count()


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A process as it introduces itself.

    ``machine`` is equal for processes under one running kernel, ``network`` for those that also
    have one network stack (a container or a network namespace has its own). ``chosen``: the host's
    name was given, not found.
    """

    host: str
    machine: str
    network: str
    chosen: bool

    @staticmethod
    def here(host: str, *, chosen: bool) -> Identity:
        """This process."""
        try:
            machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            network = str(Path("/proc/self/ns/net").readlink())
        except OSError:
            machine, network = f"node {getnode()}", ""
        return Identity(host=host, machine=machine, network=network, chosen=chosen)


def unique_names(identities: Sequence[Identity]) -> tuple[str, ...]:
    """Host names by rank; a name that several found for themselves gets the rank appended.

    Raises:
        InvalidInputError: two ranks on one machine without names of their own, or a name given
            to two ranks.

    >>> a, b = (Identity(host="pi", machine=m, network="", chosen=False) for m in "mn")
    >>> unique_names([a, b])
    ('pi-0', 'pi-1')
    """
    machines: dict[tuple[str, str], int] = {}
    for rank, one in enumerate(identities):
        other = machines.setdefault((one.machine, one.network), rank)
        if other != rank and not (one.chosen and identities[other].chosen):
            raise InvalidInputError(
                f"ranks {other} and {rank} are both on host {one.host}: start one process a host "
                "(--nproc-per-node 1), or name them as two hosts with --host"
            )
    times = Counter(one.host for one in identities)
    for name, number in times.items():
        holders = [rank for rank, one in enumerate(identities) if one.host == name]
        if number > 1 and any(identities[rank].chosen for rank in holders):
            raise InvalidInputError(
                f"ranks {holders[0]} and {holders[1]} are both called {name}: "
                "give each host a name of its own with --host"
            )
    names = tuple(
        f"{one.host}-{rank}" if times[one.host] > 1 else one.host
        for rank, one in enumerate(identities)
    )
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(f"two hosts would be called {name}: name them with --host")
    return names


class World:
    """All processes, seen from one of them; a context that others learn the end of.

    ``hosts`` are the names by rank. ``shares_machine``: another rank's host is this very machine,
    as emulated hosts and containers are. Whoever leaves the context with an error tells the others.
    """

    def __init__(
        self, environment: Environment, *, host: Identity, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        """Meet the others.

        Raises:
            RankFailedError: the store cannot be reached, or a rank did not come in ``timeout_s``.
            InvalidInputError: two ranks are on one host.
        """
        self.environment = environment
        self.rank = environment.rank
        self.size = environment.world_size
        self.timeout_s = timeout_s
        self.hosts: tuple[str, ...] = ()
        self.shares_machine = False
        self._seen: dict[int, tuple[bytes | None, float]] = {}
        self._failure: dict[str, Any] | None = None
        self._lost: str | None = None
        self._steps = count()
        place = f"measure/{next(_worlds)}/"
        self._store = below(place, environment.store(timeout_s=timeout_s))
        self._ended = threading.Event()
        self._beats = threading.Thread(
            target=self._beat,
            args=(below(place, environment.store(timeout_s=timeout_s)),),
            daemon=True,
        )
        self._beats.start()
        try:
            met = [Identity(**one) for one in self.exchange("meeting", asdict(host))]
            self.hosts = unique_names(met)
            self.shares_machine = sum(one.machine == host.machine for one in met) > 1
        except BaseException as error:
            self._leave(error)
            raise

    def __enter__(self) -> World:
        """This world."""
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Tell the others how this process ends."""
        self._leave(error)

    @property
    def host(self) -> str:
        """Name of this process's host."""
        return self.hosts[self.rank]

    def describe(self, rank: int) -> str:
        """A rank and its host, for messages."""
        return f"rank {rank} on host {self.hosts[rank]}" if self.hosts else f"rank {rank}"

    # --- telling and hearing -------------------------------------------------------------------

    def exchange(self, step: str, data: Any) -> list[Any]:
        """What every rank gave, in rank order; all ranks call this in the same order.

        Raises:
            RankFailedError: a rank is gone or failed; an error of its own kind if it said so.
        """
        place = self._tell(step, data)
        return [self._hear(f"{place}/{rank}", rank, step) for rank in range(self.size)]

    def gather(self, step: str, data: Any) -> list[Any] | None:
        """What every rank gave, in rank order, on rank 0; None elsewhere, without waiting.

        Raises:
            RankFailedError: as for :meth:`exchange`.
        """
        place = self._tell(step, data)
        self.require_all_well()
        if self.rank:
            return None
        return [self._hear(f"{place}/{rank}", rank, step) for rank in range(self.size)]

    def broadcast(self, step: str, data: Any = None) -> Any:
        """What rank 0 gave; all ranks call this in the same order.

        Raises:
            RankFailedError: as for :meth:`exchange`.
        """
        place = f"step/{next(self._steps)}"
        if self.rank == 0:
            self._put(f"{place}/0", data, step)
        return self._hear(f"{place}/0", 0, step)

    def require_all_well(self) -> None:
        """Stop if another rank has failed; costs nothing, never waits.

        Raises:
            RankFailedError: one has; an error of its own kind if it said so.
        """
        if self._failure is not None and self._failure["rank"] != self.rank:
            rank, kind = int(self._failure["rank"]), getattr(errors, self._failure["kind"], None)
            message = f"{self.describe(rank)} gave up: {self._failure['message']}"
            known = isinstance(kind, type) and issubclass(kind, ApportionError)
            if known and kind is not None and kind is not errors.InfeasiblePlanError:
                raise kind(message)
            raise RankFailedError(message)
        if self._lost is not None:
            raise RankFailedError(
                f"{self.describe(self.rank)} lost the rendezvous store at "
                f"{self.environment.master_addr}:{self.environment.master_port}, which "
                f"{'torchrun' if self.environment.agent_store else self.describe(0)} kept: "
                f"{self._lost}"
            )

    def _tell(self, step: str, data: Any) -> str:
        place = f"step/{next(self._steps)}"
        self._put(f"{place}/{self.rank}", data, step)
        return place

    def _put(self, key: str, data: Any, step: str) -> None:
        try:
            put_bytes(self._store, key, json.dumps(data).encode())
        except (RuntimeError, dist.DistError) as error:
            raise self._store_gone(step, error) from error

    def _hear(self, key: str, rank: int, step: str) -> Any:
        since = time.monotonic()
        pause = 0.002
        try:
            while not self._store.check([key]):
                self.require_all_well()
                self._require_life(rank, since, step)
                time.sleep(pause)
                pause = min(0.1, 1.5 * pause)
            return json.loads(get_bytes(self._store, key))
        except (RuntimeError, dist.DistError) as error:
            raise self._store_gone(step, error) from error

    def _store_gone(self, step: str, error: BaseException) -> RankFailedError:
        self._lost = f"{step}: {first_line(error)}"
        self.require_all_well()
        return RankFailedError(self._lost)

    def _require_life(self, rank: int, since: float, step: str) -> None:
        key = f"beat/{rank}"
        beat = self._store.get(key) if self._store.check([key]) else None
        now = time.monotonic()
        if rank not in self._seen or self._seen[rank][0] != beat:
            self._seen[rank] = (beat, now)
        silent_s = now - max(since, self._seen[rank][1])
        if silent_s > self.timeout_s:
            what = "never came" if beat is None else "gave no sign of life"
            raise RankFailedError(
                f"{self.describe(rank)} {what} in {self.timeout_s:g} s; "
                f"{self.describe(self.rank)} waited for it at: {step}"
            )

    # --- signs of life -------------------------------------------------------------------------

    def _beat(self, store: Store) -> None:
        """Until the end: say that this process lives, and look whether another has failed."""
        number = 0
        try:
            while True:
                store.set(f"beat/{self.rank}", str(number))
                number += 1
                if self._failure is None and store.check(["failed"]):
                    self._failure = json.loads(store.get("failed"))
                if self._ended.wait(BEAT_S):
                    return
        except (RuntimeError, dist.DistError) as error:
            if self._lost is None:
                self._lost = first_line(error)

    def _leave(self, error: BaseException | None) -> None:
        """Say that this process goes, and why; the one that keeps the store goes last."""
        try:
            if error is not None and self._failure is None and self._lost is None:
                self._store.set("failed", json.dumps(self._reason(error)))
            self._store.set(f"left/{self.rank}", "1")
            if self.environment.hosts_store:
                if error is None:
                    self._see_off(self.timeout_s, silent_s=self.timeout_s)
                else:
                    self._see_off(LINGER_S, silent_s=SILENT_S)
        except (RuntimeError, dist.DistError):
            pass  # the store is gone, and with it whoever should be told
        finally:
            self._ended.set()
            self._beats.join(timeout=BEAT_S)

    def _reason(self, error: BaseException) -> dict[str, Any]:
        known = isinstance(error, ApportionError)
        message = "it was interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        return {
            "rank": self.rank,
            "kind": type(error).__name__ if known else "RankFailedError",
            "message": message or type(error).__name__,
        }

    def _see_off(self, limit_s: float, *, silent_s: float) -> None:
        """Keep the store open until all have left, but for those who are silent or never came."""
        deadline = time.monotonic() + limit_s
        staying = set(range(self.size)) - {self.rank}
        while staying and time.monotonic() < deadline:
            staying = {
                rank
                for rank in staying
                if not self._store.check([f"left/{rank}"]) and self._silent_s(rank) <= silent_s
            }
            time.sleep(0.05)

    def _silent_s(self, rank: int) -> float:
        """Seconds since this process saw a new sign of life of a rank; none yet: without end."""
        key = f"beat/{rank}"
        if not self._store.check([key]):
            return math.inf
        beat, now = self._store.get(key), time.monotonic()
        if rank not in self._seen or self._seen[rank][0] != beat:
            self._seen[rank] = (beat, now)
        return now - self._seen[rank][1]

    # --- the group -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def group(self) -> Iterator[dist.ProcessGroup | None]:
        """A gloo group of all ranks; beside a script's own group if there is one.

        Raises:
            RankFailedError: a host cannot be reached.
        """
        place = f"group/{next(self._steps)}/"
        try:
            if dist.is_initialized():
                limit = timedelta(seconds=self.timeout_s)
                with threads_behind_computing():
                    group = dist.new_group(backend="gloo", timeout=limit)
            else:
                group = None
                join_group(
                    below(place, self._store),
                    rank=self.rank,
                    world_size=self.size,
                    timeout_s=self.timeout_s,
                )
        except (RuntimeError, dist.DistError) as error:
            self.require_all_well()
            raise RankFailedError(
                f"{self.describe(self.rank)} could not connect to all of the {self.size} hosts "
                f"({', '.join(self.hosts)}) in {self.timeout_s:g} s: {first_line(error)}; are they "
                "reachable from each other, and does GLOO_SOCKET_IFNAME name the network between "
                "them?"
            ) from error
        try:
            yield group
        finally:
            dist.destroy_process_group(group)
