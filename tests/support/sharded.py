"""Ranks that divide regions, as threads of one process: joins go through memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from executor.joining import place_runs
from executor.schedule import split_items
from profiler.build import build_stage
from profiler.capture import Captured
from profiler.cut import Cutter
from profiler.expressions import evaluate
from profiler.program import (
    JOIN_SUM,
    Node,
    Program,
    StageProgram,
    SubProgram,
    TensorSpec,
    WeightPort,
)
from profiler.sharding.regions import Sharding, find_regions
from profiler.sharding.slicing import sliced


@dataclass(frozen=True)
class Divisible:
    """A captured model with its sharding, in its own precision or in double."""

    captured: Captured
    cutter: Cutter
    sharding: Sharding
    double: bool

    def weight(self, port: WeightPort) -> torch.Tensor:
        """A weight's value, or the shard of it."""
        original = next(p for p in self.captured.encoded.program.weights if p.weight == port.weight)
        value = self.captured.weight(replace(original, shard=port.shard, shape=port.shape))
        return value.double() if self.double and value.dtype == torch.float32 else value


def divisible(captured: Captured, *, double: bool = False) -> Divisible:
    """The model, every float32 of its program made float64 if ``double``."""
    if not double:
        return Divisible(captured, captured.cutter, captured.sharding, double)
    program = in_double(captured.encoded.program)
    sharding = find_regions(
        program,
        captured.layering,
        twins={layer.name: layer.twin for layer in captured.graph.layers},
        weight_names={p.weight: p.weight for p in program.weights},
    )
    return Divisible(captured, Cutter(program, captured.layering), sharding, double)


def in_double(program: Program) -> Program:
    """The same computation in float64: casts inside a model would hide what slicing changes."""

    def spec(one: TensorSpec | None) -> TensorSpec | None:
        return one and replace(one, dtype=one.dtype.replace("float32", "float64"))

    def args(value: Any) -> Any:
        text = json.dumps(value).replace('{"dtype": "float32"}', '{"dtype": "float64"}')
        return json.loads(text)

    def node(one: Node) -> Node:
        return replace(
            one, args=tuple(args(one.args)), kwargs=args(one.kwargs), spec=spec(one.spec)
        )

    def graph(one: SubProgram) -> SubProgram:
        return replace(one, nodes=tuple(node(n) for n in one.nodes))

    return replace(
        program,
        inputs=tuple(replace(p, spec=spec(p.spec)) for p in program.inputs),
        weights=tuple(
            replace(p, dtype=p.dtype.replace("float32", "float64")) for p in program.weights
        ),
        nodes=tuple(node(n) for n in program.nodes),
        graphs={name: graph(g) for name, g in program.graphs.items()},
    )


def shares_of(sharding: Sharding, ratio: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Units of every region in about this ratio; regions with too few units are left whole."""
    found = {}
    for region in sharding.regions:
        if region.units < len(ratio):
            continue
        given = split_items(region.units - len(ratio), ratio)
        found[region.name] = tuple(1 + extra for extra in given)
    return found


class MemoryJoins:
    """Joins of ``width`` threads; counts them by rank."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.barrier = threading.Barrier(width, timeout=60)
        self.parts: list[torch.Tensor | None] = [None] * width
        self.done = [0] * width

    def maker(self, rank: int) -> Callable[[Node], Callable[[torch.Tensor], torch.Tensor]]:
        """What makes the joins of one rank's program."""

        def make(node: Node) -> Callable[[torch.Tensor], torch.Tensor]:
            def join(part: torch.Tensor) -> torch.Tensor:
                self.parts[rank] = part
                self.barrier.wait()
                parts = [p for p in self.parts if p is not None]
                if node.op == JOIN_SUM:
                    whole = parts[0].clone()
                    for other in parts[1:]:
                        whole += other
                else:
                    whole = place_runs(parts, dim=node.args[3], lengths=node.args[4])
                self.barrier.wait()
                self.done[rank] += 1
                return whole

            return join

        return make


def run_divided(
    model: Divisible,
    slices: dict[str, tuple[int, ...]],
    width: int,
    tensors: dict[str, torch.Tensor],
    symbols: dict[str, int],
) -> tuple[list[dict[str, torch.Tensor]], list[StageProgram], list[int]]:
    """Every rank's outputs, its program, and how many joins it did."""
    whole = model.cutter.whole()
    programs = [sliced(whole, model.sharding, slices, rank) for rank in range(width)]
    joins = MemoryJoins(width)
    results: list[dict[str, torch.Tensor]] = [{} for _ in range(width)]
    failures: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            module = build_stage(
                programs[rank],
                device=torch.device("cpu"),
                weight=model.weight,
                join=joins.maker(rank),
            )
            results[rank] = call(programs[rank], module, tensors, symbols)
        except BaseException as error:
            failures.append(error)
            joins.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(width)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    real = [f for f in failures if not isinstance(f, threading.BrokenBarrierError)]
    if real or failures:
        raise (real or failures)[0]
    return results, programs, joins.done


def call(
    program: StageProgram, module: Any, tensors: dict[str, torch.Tensor], symbols: dict[str, int]
) -> dict[str, torch.Tensor]:
    """A built program's outputs by name."""
    taken = [tensors[name].clone() for name in program.inputs]
    sizes = [evaluate(size, symbols) for _, size in program.sizes]
    with torch.inference_mode():
        return dict(zip(program.outputs, module(*taken, *sizes), strict=True))
