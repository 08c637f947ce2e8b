"""Ranks that ``torchrun`` (or anything that sets its environment) has started, on any hosts.

Rank 0 has the model captured and cut, and puts what each rank needs into the rendezvous store; the
others read their part from there. Weights in files are read by each rank from its own host; weights
that exist only in rank 0's memory are sent to whoever holds their layer. Before any collective all
ranks agree that they were started for the same plan.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from executor.delivery import rank_file
from executor.rank import RankOptions, serve
from planner.planfile import Plan
from planner.request import Destination
from profiler.environment import Environment
from profiler.errors import (
    ApportionError,
    InvalidInputError,
    RankFailedError,
    StalePlanError,
    from_data,
    to_data,
)
from profiler.stores import Store, below, get_bytes, put_bytes

Message = dict[str, Any]

INPUTS, ANSWER = "in.safetensors", "out.safetensors"
"""Names of the files of the inputs and of the answer in a rank's directory."""

LOST_FRACTION = 0.9
"""A wait that fails before this part of its limit has failed for another reason than time."""

HEARD_S = 5.0
"""How long rank 0 stays for ranks that it has told why there is no run."""

_OF_A_RANK = re.compile(r"rank-\d+\.json")


def require_world(plan: Plan, environment: Environment) -> None:
    """Refuse a plan for another number of ranks than were started.

    Raises:
        InvalidInputError: the numbers differ.
    """
    needed = len(plan.spec.ranks)
    if needed != environment.world_size:
        raise InvalidInputError(
            f"the plan has {needed} ranks, {environment.world_size} processes were started: "
            f"start it with --nnodes and --nproc-per-node whose product is {needed}"
        )


def _plain(store: Store, key: str) -> bytes:
    return bytes(store.get(key))


class _Queue:
    """Commands for one rank, given beforehand; keeps its reports."""

    def __init__(self, commands: list[Message]) -> None:
        self._commands = commands
        self.reports: list[Message] = []

    def next(self) -> Message | None:
        return self._commands.pop(0) if self._commands else None

    def report(self, message: Message) -> None:
        self.reports.append(message)


class World:
    """The ranks of a plan, seen from one of them."""

    def __init__(self, plan: Plan, environment: Environment, *, timeout_s: float) -> None:
        """Meet the other ranks and make sure all were started for the same plan.

        Raises:
            InvalidInputError: the wrong number of processes.
            StalePlanError: another rank was started for another plan.
            RankFailedError: a rank did not come in time.
        """
        require_world(plan, environment)
        self.plan = plan
        self.environment = environment
        self.timeout_s = timeout_s
        self.store = environment.store(timeout_s=timeout_s)
        self._told = False
        self._agree()

    def _agree(self) -> None:
        own = self.plan.plan_id + self.plan.expected_id()
        self.store.set(f"plan/{self.environment.rank}", own)
        for rank in range(self.environment.world_size):
            other = self._get(f"plan/{rank}", rank).decode()
            if other != own:
                raise StalePlanError(
                    f"rank {self.environment.rank} was started for plan {self.plan.plan_id}, rank "
                    f"{rank} for another one; copy the same plan file to every host"
                )

    def _get(self, key: str, rank: int, *, read: Callable[[Store, str], bytes] = _plain) -> bytes:
        begun_s = time.monotonic()
        try:
            return read(self.store, key)
        except (RuntimeError, dist.DistError) as error:
            waited_s = time.monotonic() - begun_s
            own = self.environment.rank
            # The process that keeps the store ends with its ranks; that is no silence.
            if waited_s < LOST_FRACTION * self.timeout_s:
                raise RankFailedError(
                    f"rank {own} waited {waited_s:.0f} of {self.timeout_s:g} s for rank {rank} "
                    f"when the rendezvous store was lost: a rank, or the host that keeps the "
                    "store, has ended; its own message says why"
                ) from error
            raise RankFailedError(
                f"rank {own} heard nothing from rank {rank} in {self.timeout_s:g} s: is it running?"
            ) from error

    @contextmanager
    def leading(self) -> Iterator[Path]:
        """A directory in which rank 0 prepares a run, for :meth:`lead`; if it cannot, the other
        ranks are told why."""
        with _directory() as directory:
            try:
                yield directory
            except ApportionError as error:
                if not self._told:
                    self._tell(to_data(error))
                    self._wait_until_heard()
                raise

    def lead(
        self,
        directory: Path,
        *,
        num_items: int,
        symbols: Mapping[str, int],
        repeats: int = 1,
        names: Mapping[str, str] | None = None,
        outputs: Path | None = None,
    ) -> tuple[dict[str, Any], list[Message], list[Message]]:
        """Be rank 0: give every rank its part, run, and gather answers and reports.

        ``directory`` holds what the ranks need (of ``executor.bundle``) and the inputs
        (:data:`INPUTS`), ``num_items`` of them. Where other ranks are to have the answer too,
        ``names`` are those of its tensors, and each writes its own file beside ``outputs`` (as
        named on its host).
        """
        from safetensors.torch import load_file

        self._publish(directory)
        answer = directory / ANSWER
        scattered = self.plan.spec.aggregation.destination is Destination.SCATTERED
        command = {
            "command": "run",
            "items": num_items,
            "symbols": dict(symbols),
            "inputs": str(directory / INPUTS),
            "outputs": str(answer),
            "repeats": repeats,
            "names": None if names is None else dict(names),
            "scattered": scattered,
        }
        self.store.set("command", json.dumps(command))
        self._serve(directory, command)
        gathered: dict[str, Any] = {}
        if not scattered:
            gathered = {name: t.clone() for name, t in load_file(answer).items()}
        _hand_over(directory, self.environment.rank, outputs)
        reports = [
            json.loads(self._get(f"report/{rank}", rank))
            for rank in range(self.environment.world_size)
        ]
        failed = [r for r in reports if "error" in r]
        if failed:
            raise RankFailedError(failed[0]["error"])
        self.store.set("done", "1")
        started, ran = zip(*(r["reports"] for r in reports), strict=True)
        return gathered, list(started), list(ran)

    def follow(self, outputs: Path | None = None) -> None:
        """Be any other rank: take the part that rank 0 gives, run, report.

        What the plan delivers to this rank is written beside ``outputs``.
        """
        rank = self.environment.rank
        verdict = json.loads(self._get("bundle/verdict", 0))
        if "error" in verdict:
            self.store.set(f"heard/{rank}", "1")
            raise from_data(verdict, before="rank 0 could not prepare the run: ")
        with _directory() as directory:
            for name in ("bundle.json", f"rank-{rank}.json", "constants.safetensors"):
                (directory / name).write_bytes(self._get(f"bundle/{name}", 0, read=get_bytes))
            command = json.loads(self._get("command", 0))
            self._serve(directory, {**command, "outputs": str(directory / ANSWER)})
            # Leaving before rank 0 has read the report would close the store's last connection;
            # and rank 0 does not wait for what we write.
            self._get("done", 0)
            _hand_over(directory, rank, outputs)

    def _publish(self, directory: Path) -> None:
        for file in directory.iterdir():
            if file.name in ("bundle.json", "constants.safetensors") or _OF_A_RANK.match(file.name):
                put_bytes(self.store, f"bundle/{file.name}", file.read_bytes())
        self._tell({})

    def _tell(self, verdict: Mapping[str, str]) -> None:
        """Whether there is a run, for ranks that wait for it."""
        self.store.set("bundle/verdict", json.dumps(dict(verdict)))
        self._told = True

    def _wait_until_heard(self) -> None:
        """Stay until all others know why there is no run: the store may end with this process."""
        others = [f"heard/{rank}" for rank in range(1, self.environment.world_size)]
        deadline = time.monotonic() + HEARD_S
        with contextlib.suppress(RuntimeError, dist.DistError):
            while others and not self.store.check(others) and time.monotonic() < deadline:
                time.sleep(0.02)

    def _serve(self, directory: Path, command: Message) -> None:
        rank = self.environment.rank
        queue = _Queue([command])
        options = RankOptions(
            rank=rank,
            directory=directory,
            timeout_s=self.timeout_s,
            store=lambda: below("group/", self.store),
        )
        try:
            serve(options, queue)
        except ApportionError as error:
            self.store.set(f"report/{rank}", json.dumps({"error": str(error)}))
            raise
        self.store.set(f"report/{rank}", json.dumps({"reports": queue.reports}))


def _hand_over(directory: Path, rank: int, outputs: Path | None) -> None:
    """Write what this rank has of the answer, if it has any, to where the user wants it."""
    own = rank_file(directory / ANSWER, rank)
    if outputs is not None and own.exists():
        from safetensors.torch import load_file

        from executor.tensorfiles import write_tensors

        write_tensors(rank_file(outputs, rank), load_file(own))


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="apportion-run-") as name:
        yield Path(name)
