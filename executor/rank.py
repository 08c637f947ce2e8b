"""One rank, from its bundle to its last command: what every kind of launcher runs.

A rank builds its stage, joins the process group, and then carries out commands (run, stop) that a
:class:`Control` hands it, until told to stop or until whoever started it is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from executor.alone import NoMessages, batch_s
from executor.clocks import compare_clocks
from executor.delivery import rank_file
from executor.distribute import RemoteWeights, send_weights
from executor.footprint import Footprint, forget_peak, peak_resident_bytes, resident_bytes
from executor.pipeline import RankLoop, RankRecord
from executor.schedule import Interval, Schedule
from executor.stage import RankBundle, connect_joins, load_stage
from executor.throttling import Throttling
from executor.transport import Transport
from profiler.allocator import keep_freed_memory, release_library_pages
from profiler.stores import Store, join_group

__all__ = ["Control", "RankOptions", "serve"]

Message = dict[str, Any]


class Control(Protocol):
    """Where a rank's commands come from and its reports go to."""

    def next(self) -> Message | None:
        """The next command; None when there will be no more."""

    def report(self, message: Message) -> None:
        """Tell how a command went."""


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """How a rank finds the others."""

    rank: int
    directory: Path
    timeout_s: float
    store: Callable[[], Store]


def serve(options: RankOptions, control: Control) -> None:
    """Be rank ``options.rank`` until the control has no more commands.

    Raises:
        ApportionError: the stage cannot be built, a transfer or an operator failed.
    """
    started = time.monotonic()
    keep_freed_memory()
    release_library_pages()
    forget_peak()
    bundle = RankBundle.read(options.directory, options.rank)
    torch.set_num_threads(bundle.threads.get(options.rank, 1))
    torch.set_grad_enabled(False)
    schedule = Schedule(bundle.plan, bundle.graph)
    device = _device(bundle, options.rank)
    world = len(bundle.plan.spec.ranks)
    join_group(options.store(), rank=options.rank, world_size=world, timeout_s=options.timeout_s)
    try:
        transport = Transport(rank=options.rank, timeout_s=options.timeout_s)
        baseline = resident_bytes()
        joins = connect_joins(bundle, schedule, rank=options.rank, transport=transport)
        if options.rank == 0:
            send_weights(options.directory, transport)
        weights = RemoteWeights(options.directory, transport, rank=options.rank)
        stage = load_stage(
            bundle,
            schedule,
            rank=options.rank,
            device=device,
            read=weights.read,
            joins=joins,
        )
        loaded = resident_bytes()
        loop = RankLoop(
            schedule,
            rank=options.rank,
            stage=stage,
            transport=transport,
            # On an accelerator the plan's memory is the accelerator's.
            footprint=Footprint.of(schedule, options.rank, baseline_bytes=baseline)
            if device.type == "cpu"
            else None,
        )
        control.report(
            {
                "event": "ready",
                "baseline_bytes": baseline,
                "loaded_bytes": loaded,
                "weight_bytes": _weight_bytes(stage),
                "start_s": time.monotonic() - started,
            }
        )
        while (command := control.next()) is not None and command["command"] != "stop":
            carry_out = _run_alone if command["command"] == "run alone" else _run
            control.report(carry_out(loop, command, options))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _run(loop: RankLoop, command: Message, options: RankOptions) -> Message:
    """Carry out a run; the root reads inputs from and writes outputs to files."""
    is_root = options.rank == loop.schedule.root
    inputs = load_file(command["inputs"]) if is_root else None
    recorded: dict[str, torch.Tensor] = {}

    def record(name: str, items: Interval | None, value: torch.Tensor) -> None:
        low, high = items or (-1, -1)
        recorded.setdefault(f"{name}|{low}|{high}", value.detach().to("cpu").clone().contiguous())

    offsets = compare_clocks(
        loop.transport,
        rank=options.rank,
        root=loop.schedule.root,
        world_size=len(loop.schedule.plan.spec.ranks),
    )
    loop.transport.log.start()
    throttling = Throttling()
    measured, outputs = loop.run(
        command["items"],
        symbols=command["symbols"],
        inputs=inputs,
        repeats=command.get("repeats", 1),
        recorder=record if command.get("boundaries") else None,
    )
    throttled = throttling.within(measured.wall_s)
    if outputs or is_root:
        _write_outputs(outputs, command, rank=options.rank, is_root=is_root)
    if command.get("boundaries"):
        save_file(recorded, Path(command["boundaries"]) / f"rank-{options.rank}.safetensors")
    return {
        "event": "ran",
        **_summary(measured),
        "beyond_bytes": _beyond_a_batch(loop.schedule, command["items"], inputs or {}, outputs),
        "transfers": loop.transport.log.to_data(),
        "clocks": [[o.seconds, o.error_s] for _, o in sorted(offsets.items())],
        "symbols": command["symbols"],
        "throttled": throttled,
    }


def _run_alone(loop: RankLoop, command: Message, options: RankOptions) -> Message:
    """Compute as in a run, but with zeros for whatever would have to be received."""
    apart = RankLoop(
        loop.schedule,
        rank=options.rank,
        stage=loop.stage,
        transport=NoMessages(rank=options.rank, timeout_s=options.timeout_s),
    )
    measured, _ = apart.run(
        command["items"],
        symbols=command["symbols"],
        inputs=load_file(command["inputs"]) if options.rank == loop.schedule.root else None,
        repeats=command["repeats"],
    )
    taken_s = batch_s(measured.step_ends_s, measured.wall_s) if measured.items else None
    return {"event": "ran alone", "batch_s": taken_s}


def _write_outputs(
    outputs: Mapping[str, torch.Tensor], command: Message, *, rank: int, is_root: bool
) -> None:
    """The tensors by name of the program on the root, by name of the answer on any rank that has
    it, or its part of it."""
    path = Path(command["outputs"])
    whole = {name: value.contiguous() for name, value in outputs.items()}
    names = command.get("names")
    if is_root and not command.get("scattered"):
        save_file(whole, path)
    elif names is not None:
        named = {new: whole[old].clone() for new, old in names.items() if old in whole}
        save_file(named, rank_file(path, rank))


def _beyond_a_batch(schedule: Schedule, num_items: int, *held: Mapping[str, torch.Tensor]) -> int:
    """Bytes of inputs and outputs that the rank held and the plan, which counts a batch, did not
    foresee."""
    whole = sum(tensor.nbytes for tensors in held for tensor in tensors.values())
    return max(0, whole - whole * schedule.batch_size // num_items)


def _summary(record: RankRecord) -> Message:
    return {**asdict(record), "peak_bytes": peak_resident_bytes()}


def _device(bundle: RankBundle, rank: int) -> torch.device:
    name = next(b.device for b in bundle.plan.spec.ranks if b.rank == rank).split("/")[-1]
    return torch.device(name) if name.startswith("cuda") else torch.device("cpu")


def _weight_bytes(stage: Any) -> int:
    if stage is None:
        return 0
    held = [*stage.module.parameters(), *stage.module.buffers()]
    seen = {tensor.untyped_storage().data_ptr(): tensor for tensor in held}
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
