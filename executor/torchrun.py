"""Ranks that ``torchrun`` (or anything that sets its environment) has started, on any hosts.

Rank 0 captures the model, cuts it, and puts what each rank needs into the rendezvous store; the
others read their part from there. Weights in files are read by each rank from its own host; weights
that exist only in rank 0's memory are sent to whoever holds their layer. Before any collective all
ranks agree that they were started for the same plan.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from executor.distribute import WEIGHTS_FILE
from executor.rank import RankOptions, serve
from planner.planfile import Plan
from profiler import errors
from profiler.environment import Environment
from profiler.errors import ApportionError, InvalidInputError, RankFailedError, StalePlanError
from profiler.stores import Store, below, get_bytes, put_bytes

if TYPE_CHECKING:
    from executor.inputs import RunInputs

Message = dict[str, Any]


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
        try:
            return read(self.store, key)
        except (RuntimeError, dist.DistError) as error:
            raise RankFailedError(
                f"rank {self.environment.rank} heard nothing from rank {rank} in "
                f"{self.timeout_s:g} s: is it running?"
            ) from error

    def lead(
        self, write: Callable[[Path], object], prepared: RunInputs, *, repeats: int = 1
    ) -> tuple[dict[str, Any], list[Message], list[Message]]:
        """Be rank 0: give every rank its part, run, and gather answers and reports.

        ``write`` puts what the ranks need into a directory (as ``executor.bundle`` does).
        """
        from safetensors.torch import load_file, save_file

        with _directory() as directory:
            write(directory)
            self._publish(directory)
            inputs, outputs = directory / "in.safetensors", directory / "out.safetensors"
            save_file({k: v.cpu().contiguous() for k, v in prepared.tensors.items()}, inputs)
            command = {
                "command": "run",
                "items": prepared.num_items,
                "symbols": prepared.symbols,
                "inputs": str(inputs),
                "outputs": str(outputs),
                "repeats": repeats,
            }
            self.store.set("command", json.dumps(command))
            self._serve(directory, command)
            gathered = {name: t.clone() for name, t in load_file(outputs).items()}
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

    def follow(self) -> None:
        """Be any other rank: take the part that rank 0 gives, run, report."""
        rank = self.environment.rank
        verdict = json.loads(self._get("bundle/verdict", 0))
        if "error" in verdict:
            kind = getattr(errors, verdict["kind"], RankFailedError)
            raise kind(f"rank 0 could not prepare the run: {verdict['error']}")
        with _directory() as directory:
            for name in ("bundle.json", f"rank-{rank}.json", "constants.safetensors"):
                (directory / name).write_bytes(self._get(f"bundle/{name}", 0, read=get_bytes))
            command = json.loads(self._get("command", 0))
            self._serve(directory, command)
        # Leaving before rank 0 has read the report would close the store's last connection.
        self._get("done", 0)

    def refuse(self, error: ApportionError) -> None:
        """Tell the other ranks that rank 0 gives up, and why."""
        kind = type(error).__name__
        if kind not in ("InvalidInputError", "StalePlanError", "UnsupportedModelError"):
            kind = "RankFailedError"
        self.store.set("bundle/verdict", json.dumps({"error": str(error), "kind": kind}))

    def _publish(self, directory: Path) -> None:
        for file in directory.iterdir():
            if file.name != WEIGHTS_FILE:
                put_bytes(self.store, f"bundle/{file.name}", file.read_bytes())
        self.store.set("bundle/verdict", json.dumps({}))

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


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="apportion-run-") as name:
        yield Path(name)
