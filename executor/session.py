"""A plan's ranks on this machine, loaded and waiting for inputs."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import load_file, save_file

from executor.bundle import write_bundle
from executor.delivery import kept_items, rank_file
from executor.inputs import RunInputs, prepare_inputs
from executor.local import LocalRanks, Message
from executor.outputs import make_answer, named_tensors
from executor.preflight import preflight, require_room
from executor.report import RunReport, make_report
from planner.inputs import Sources
from planner.planfile import Plan
from planner.request import Destination
from profiler.capture import Captured
from profiler.errors import InvalidInputError

if TYPE_CHECKING:
    from executor.emulate import EmulatedHosts

DEFAULT_TIMEOUT_S = 120.0
"""How long a rank waits for any one message before it gives up and says so."""


def temporary_prefix(pid: int) -> str:
    """How names of directories begin that the process ``pid`` makes for its ranks."""
    return f"apportion-run-{pid}-"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The model's answer, in the model's own structure, and the report of the run.

    If the plan leaves the answer with the ranks, ``outputs`` is a :class:`Scattered`.
    """

    outputs: Any
    report: RunReport


@dataclass(frozen=True, kw_only=True)
class ScatteredPart:
    """What one rank has of an answer that stays scattered.

    ``tensors`` are by name of the answer's leaves; ``items`` says for each which items it holds,
    as runs from the first up to but not including the second.
    """

    rank: int
    device: str
    items: Mapping[str, list[tuple[int, int]]]
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Scattered:
    """An answer that no rank has as a whole."""

    num_items: int
    parts: tuple[ScatteredPart, ...]


class StartedRanks:
    """Processes that are getting ready (importing torch), and the directory they will read.

    Starting them first and capturing the model meanwhile saves seconds. Handed to a
    :class:`Session`, which then owns them; otherwise they must be closed.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        hosts: EmulatedHosts | None = None,
    ) -> None:
        """Start one process per rank of ``plan``; inside ``hosts``, if there are any.

        Raises:
            InvalidInputError: ``timeout_s`` is not above zero.
        """
        if timeout_s <= 0:
            raise InvalidInputError(f"timeout_s must be above zero: {timeout_s}")
        shared = Path("/dev/shm")
        base = shared if shared.is_dir() and _fits(shared, plan.inputs.model.weight_bytes) else None
        self.hosts = hosts
        self.scattered = plan.spec.aggregation.destination is Destination.SCATTERED
        ordered = sorted(plan.spec.ranks, key=lambda binding: binding.rank)
        places = [hosts.place(b.device.rpartition("/")[0]) for b in ordered] if hosts else []
        self.directory = Path(tempfile.mkdtemp(prefix=temporary_prefix(os.getpid()), dir=base))
        try:
            self.processes = LocalRanks(
                self.directory,
                len(plan.spec.ranks),
                timeout_s=timeout_s,
                describe=lambda rank: _describe(plan, rank),
                places=places,
            )
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def start(self) -> list[Message]:
        """Have the ranks load what was written for them; what each says when ready.

        On emulated hosts without their quotas: those are for running.

        Raises:
            RankFailedError: a rank could not start.
        """
        with self.hosts.unlimited() if self.hosts else nullcontext():
            self.processes.command({"command": "start"})
            return self.processes.reports()

    def run(
        self,
        prepared: RunInputs,
        *,
        repeats: int = 1,
        boundaries: Path | None = None,
        names: Mapping[str, str] | None = None,
    ) -> tuple[list[Message], Mapping[str, torch.Tensor]]:
        """Run inputs through the ranks: what each measured, and the answer's tensors on the root.

        With ``names`` (of users, to those of the program) other ranks that are to have the answer,
        or a part of it, write that too: see :meth:`delivered`.

        Raises:
            RankFailedError: a rank failed.
        """
        outputs = self.directory / "out.safetensors"
        self.processes.command(
            {
                "command": "run",
                **self._given(prepared, repeats),
                "outputs": str(outputs),
                "boundaries": str(boundaries) if boundaries else None,
                "names": None if names is None else dict(names),
                "scattered": self.scattered,
            }
        )
        ran = self.processes.reports()
        return ran, {} if self.scattered else _loaded(outputs)

    def run_alone(self, prepared: RunInputs, *, repeats: int) -> list[float | None]:
        """Each rank's stage without messages: seconds a batch in rank order, None without a stage.

        Raises:
            RankFailedError: a rank failed.
        """
        self.processes.command({"command": "run alone", **self._given(prepared, repeats)})
        return [one["batch_s"] for one in self.processes.reports()]

    def _given(self, prepared: RunInputs, repeats: int) -> Message:
        """What a command says of its inputs; they are left in a file."""
        inputs = self.directory / "in.safetensors"
        save_file({k: v.cpu().contiguous() for k, v in prepared.tensors.items()}, inputs)
        return {
            "items": prepared.num_items,
            "symbols": prepared.symbols,
            "inputs": str(inputs),
            "repeats": repeats,
        }

    def delivered(self, rank: int) -> Mapping[str, torch.Tensor]:
        """What a rank other than the gathering root has of the last answer, by users' names."""
        file = rank_file(self.directory / "out.safetensors", rank)
        return _loaded(file) if file.exists() else {}

    def close(self) -> None:
        """End the processes and remove what was written for them; safe to call twice."""
        self.processes.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class Session:
    """Ranks that stay up between runs; use as a context manager.

    >>> with Session(plan, captured) as session:              # doctest: +SKIP
    ...     answer = session.run(images).outputs
    """

    def __init__(
        self,
        plan: Plan,
        captured: Captured,
        *,
        sources: Sources | None = None,
        started: StartedRanks | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """Check the plan, start its ranks (unless ``started``) and load their stages.

        Raises:
            StalePlanError: the plan was made for another model.
            InvalidInputError: the plan breaks a rule or does not fit this machine.
            RankFailedError: a rank could not start.
        """
        begun = time.monotonic()
        self.captured = captured
        self.sources = sources
        self._ranks: StartedRanks | None = started
        try:
            preflight(plan, captured, sources=sources)
            ranks = self._ranks = started or StartedRanks(plan, timeout_s=timeout_s)
            self.schedule = write_bundle(
                ranks.directory, plan=plan, captured=captured, threads=rank_threads(plan, sources)
            )
            self._ready = ranks.start()
        except BaseException:
            self.close()
            raise
        self.start_s = time.monotonic() - begun

    def run(self, inputs: Any, *, repeats: int = 1) -> RunResult:
        """Run the model on ``inputs`` (as a call would take them), any number of items.

        Items go through in batches of the plan's size, streaming. ``repeats`` sends the same
        inputs several times, to measure a longer run; outputs are those of one.

        Raises:
            InvalidInputError: the inputs do not fit the model.
            RankFailedError: a rank failed; the session is closed.
        """
        prepared = prepare_inputs(self.captured, inputs)
        return self.run_prepared(prepared, repeats=repeats)

    def run_prepared(
        self, prepared: RunInputs, *, repeats: int = 1, boundaries: Path | None = None
    ) -> RunResult:
        """:meth:`run` for inputs that were checked already.

        With ``boundaries``, every rank writes what its stage computed for others below it.
        """
        if self._ranks is None:
            raise InvalidInputError("the session is closed")
        list(self.schedule.steps(prepared.num_items))
        plan = self.schedule.plan
        require_room(plan, self.schedule.graph, prepared)
        wanted = plan.spec.aggregation
        names = None
        if wanted.destination is not Destination.ROOT:
            names = named_tensors(self.captured, wanted)
        try:
            ran, gathered = self._ranks.run(
                prepared, repeats=repeats, boundaries=boundaries, names=names
            )
        except BaseException:
            self.close()
            raise
        report = make_report(
            self.schedule,
            started=self._ready,
            ran=ran,
            num_items=prepared.num_items,
            start_s=self.start_s,
            sources=self.sources,
        )
        if names is not None and wanted.destination is Destination.SCATTERED:
            parts = tuple(
                ScatteredPart(
                    rank=rank, device=device, items=items, tensors=self._ranks.delivered(rank)
                )
                for rank, device, items in kept_items(plan, ran, names)
            )
            scattered = Scattered(num_items=prepared.num_items, parts=parts)
            return RunResult(outputs=scattered, report=report)
        answer = make_answer(self.captured, wanted, gathered, prepared)
        return RunResult(outputs=answer, report=report)

    def run_alone(self, inputs: Any, *, repeats: int = 1) -> Mapping[int, float]:
        """Seconds a batch by rank if no stage ever waited for another: what a run reaches at best.

        Every rank computes its part of ``repeats`` times the items of ``inputs``, all at once, with
        zeros for what it would receive; nothing is sent (but within a stage that is split by
        tensor). A plan's throughput cannot be more than the slowest rank's.

        Raises:
            InvalidInputError: the inputs do not fit the model; the session is closed.
            RankFailedError: a rank failed; the session is closed.
        """
        prepared = prepare_inputs(self.captured, inputs)
        if self._ranks is None:
            raise InvalidInputError("the session is closed")
        list(self.schedule.steps(prepared.num_items))
        try:
            taken_s = self._ranks.run_alone(prepared, repeats=repeats)
        except BaseException:
            self.close()
            raise
        return {rank: one for rank, one in enumerate(taken_s) if one is not None}

    def delivered(self, rank: int) -> Mapping[str, torch.Tensor]:
        """The answer as ``rank`` has it after the last run, by name; nothing if it has none.

        For plans with destination ``all``. (What scattered ranks have is in the run's result.)

        Raises:
            InvalidInputError: the session is closed.
        """
        if self._ranks is None:
            raise InvalidInputError("the session is closed")
        return self._ranks.delivered(rank)

    def close(self) -> None:
        """End the ranks and remove what was written for them; safe to call twice."""
        if self._ranks is not None:
            self._ranks.close()
            self._ranks = None

    def __enter__(self) -> Self:
        """The session itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close, whatever happened."""
        self.close()


def _loaded(path: Path) -> Mapping[str, torch.Tensor]:
    # Copies: the file is removed when the session closes, and overwritten by the next run.
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _fits(shared: Path, weight_bytes: int) -> bool:
    """Whether shared memory has room for the weights a bundle may hold, several times over."""
    return shutil.disk_usage(shared).free > 3 * weight_bytes + 2**28


def rank_threads(plan: Plan, sources: Sources | None) -> dict[int, int]:
    """Processor threads of each rank, as its device was profiled; 1 where that is not known."""
    devices = sources.cluster.device if sources is not None else {}
    return {
        b.rank: devices[b.device].threads if b.device in devices else 1 for b in plan.spec.ranks
    }


def _describe(plan: Plan, rank: int) -> str:
    device = next((b.device for b in plan.spec.ranks if b.rank == rank), "?")
    stage = next(
        (
            f"pipeline {p.index} stage {s.index}"
            for p in plan.spec.pipelines
            for s in p.stages
            if rank in s.ranks
        ),
        "feeds and gathers",
    )
    return f"rank {rank} ({device}, {stage})"
