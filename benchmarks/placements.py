"""Placement problems made up in the likeness of the published ones."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from planner.placement import Charging, Flow, Operator, PlacementProblem, machines


@dataclass
class _Graph:
    """A graph under construction. Times are for an accelerator; a processor takes ``ratio``."""

    random: random.Random
    ratio: float = 10.0
    operators: list[Operator] = field(default_factory=list)
    readers: dict[str, list[str]] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)

    def add(self, time_s: float, cost: float, *inputs: str, size: int = 0, **more: Any) -> str:
        """A new operator that reads ``inputs``; its output costs ``cost`` to move."""
        name = f"n{len(self.operators)}"
        time_s *= self.random.uniform(0.8, 1.2)
        times = {"accelerator": time_s, "cpu": time_s * self.ratio}
        self.operators.append(Operator(name=name, times_s=times, size_bytes=size, **more))
        self.costs[name] = cost
        for source in dict.fromkeys(inputs):
            self.readers.setdefault(source, []).append(name)
        return name

    def problem(self, accelerators: int, hosts: int, memory_bytes: int | None) -> PlacementProblem:
        """The finished problem."""
        return PlacementProblem(
            operators=tuple(self.operators),
            flows=tuple(
                Flow(producer=name, consumers=tuple(out), transfer_s=self.costs[name])
                for name, out in self.readers.items()
            ),
            places=machines(accelerators, hosts, memory_bytes=memory_bytes),
        )


def inception(seed: int = 0, *, modules: int = 11, accelerators: int = 6) -> PlacementProblem:
    """Modules of four branches of 4 to 9 layers, as in Inception: many down-sets."""
    graph = _Graph(random.Random(seed))
    last = graph.add(2.0, 0.5, size=10**6)
    for _ in range(10):
        last = graph.add(3.0, 0.4, last, size=10**6)
    for k in range(modules):
        cost = 0.3 / (1 + k / 3)
        ends = []
        for length in (4, 7, 9, 7):
            end = last
            for layer in range(length):
                end = graph.add(1.5 if layer % 3 == 0 else 0.3, cost, end, size=3 * 10**6)
            ends.append(end)
        last = graph.add(0.1, cost * 2, *ends)
    graph.add(0.5, 0.0, last, size=10**7)
    return graph.problem(accelerators, 1, 2**34)


def translation(seed: int = 0, *, layers: int = 8, accelerators: int = 6) -> PlacementProblem:
    """An encoder and a decoder whose every layer reads an attention over the encoder."""
    graph = _Graph(random.Random(seed))
    last = graph.add(0.5, 0.6, size=10**8)
    skip = last
    for _ in range(layers):
        inner = graph.add(6.0, 0.6, last, size=3 * 10**7)
        drop = graph.add(0.2, 0.6, inner)
        last, skip = graph.add(0.1, 0.6, drop, skip), last
    memory = last
    last = graph.add(0.5, 0.6, size=10**8)
    attention = None
    for _ in range(layers):
        inner = graph.add(6.0, 0.6, last, *([attention] if attention else []), size=3 * 10**7)
        if attention is None:
            attention = graph.add(2.0, 0.6, inner, memory, size=10**7)
        drop = graph.add(0.2, 0.6, inner)
        last = graph.add(0.1, 0.6, drop, last)
    graph.add(8.0, 0.0, last, attention or last, size=10**8)
    return graph.problem(accelerators, 1, 2**34)


def residual(
    seed: int = 0, *, blocks: int = 40, accelerators: int = 6, tightness: float = 0.0
) -> PlacementProblem:
    """Operators of a residual network: series of convolution, scale and ReLU with skips.

    With a ``tightness`` above 0, the accelerators together have ``1 / tightness`` times the memory
    that everything takes.
    """
    graph = _Graph(random.Random(seed))
    last = graph.add(4.0, 0.4, size=10**6)
    for k in range(blocks):
        start, cost = last, 0.4 / (1 + k / 10)
        for part in range(3):
            weight = graph.add(0.0, 1e-4, size=2**22, together=f"conv{k}.{part}")
            last = graph.add(1.2, cost, last, weight, together=f"conv{k}.{part}", size=2**21)
            last = graph.add(0.15, cost, last, size=2**20)
            if part < 2:
                last = graph.add(0.1, cost, last, size=2**20)
        last = graph.add(0.1, cost, last, start, size=2**20)
    total = sum(o.size_bytes for o in graph.operators)
    memory = math.ceil(total / accelerators * 1 / tightness) if tightness else 2**34
    return graph.problem(accelerators, 1, memory)


def encoder(seed: int = 0, *, layers: int = 12, accelerators: int = 3) -> PlacementProblem:
    """Operators of a transformer encoder: three-way fan-out, weights as sources, a mask for all."""
    graph = _Graph(random.Random(seed), ratio=23.0)

    def dense(time_s: float, cost: float, source: str, size: int) -> str:
        group = f"dense{len(graph.operators)}"
        weight = graph.add(0.0, cost, size=size, together=group)
        return graph.add(time_s, cost, source, weight, size=2**20, together=group)

    mask = graph.add(0.0005, 0.006)
    last = graph.add(0.5, 0.73, size=3 * 2**20)
    for _ in range(layers):
        start = last
        heads = []
        for _ in range(3):
            head = dense(0.6, 0.73, start, 9 * 2**20)
            head = graph.add(0.035, 0.73, head, size=2**20)
            heads.append(graph.add(0.025, 0.73, head, size=2**20))
        scores = graph.add(0.6, 5.9, heads[0], heads[1], size=12 * 2**20)
        scores = graph.add(0.4, 5.9, scores, mask, size=12 * 2**20)
        scores = graph.add(0.6, 5.9, scores, size=12 * 2**20)
        mixed = graph.add(0.5, 0.73, scores, heads[2], size=2**20)
        mixed = dense(0.6, 0.73, mixed, 9 * 2**20)
        last = graph.add(0.05, 0.73, mixed, start, size=2**20)
        wide = dense(1.1, 2.9, last, 36 * 2**20)
        wide = graph.add(1.5, 2.9, wide, size=12 * 2**20)
        narrow = dense(2.3, 0.73, wide, 36 * 2**20)
        last = graph.add(0.05, 0.73, narrow, last, size=2**20)
    graph.add(8.0, 0.0, last, size=360 * 2**20)
    return graph.problem(accelerators, 1, 2**34)


def training(problem: PlacementProblem, *, orphans: int = 0) -> PlacementProblem:
    """``problem`` with a backward operator for each forward one, in the same group.

    ``orphans`` more backward operators have no forward one.
    """
    operators = [replace(o, together=o.together or f"step.{o.name}") for o in problem.operators]
    backward = [
        replace(
            o,
            name=f"{o.name}'",
            times_s={kind: 2 * t for kind, t in o.times_s.items()},
            backward=True,
        )
        for o in operators
    ]
    flows, pins = list(problem.flows), {}
    for flow in problem.flows:
        for reader in flow.consumers:
            pins.setdefault(reader, (flow.transfer_s, []))[1].append(f"{flow.producer}'")
    flows = [replace(f, consumers=(*f.consumers, f"{f.producer}'")) for f in problem.flows]
    flows += [
        Flow(producer=f"{reader}'", consumers=tuple(dict.fromkeys(out)), transfer_s=cost)
        for reader, (cost, out) in pins.items()
    ]
    ends = sorted(o.name for o in operators if o.name not in {f.producer for f in problem.flows})
    flows += [Flow(producer=name, consumers=(f"{name}'",), transfer_s=0.1) for name in ends]
    for k in range(orphans):
        source = backward[(k + 1) * len(backward) // (orphans + 1)].name
        name = f"update{k}"
        backward.append(
            Operator(name=name, times_s={"accelerator": 0.1, "cpu": 1.0}, backward=True)
        )
        flows.append(Flow(producer=source, consumers=(name,), transfer_s=0.05))
    return replace(problem, operators=(*operators, *backward), flows=_one_each(flows))


def _one_each(flows: list[Flow]) -> tuple[Flow, ...]:
    """One flow per producer, as the published files have it: readers joined, dearest cost."""
    found: dict[str, Flow] = {}
    for flow in flows:
        before = found.get(flow.producer)
        found[flow.producer] = (
            flow
            if before is None
            else replace(
                before,
                consumers=tuple(dict.fromkeys((*before.consumers, *flow.consumers))),
                transfer_s=max(before.transfer_s, flow.transfer_s),
            )
        )
    return tuple(found.values())


def on_wires(problem: PlacementProblem) -> PlacementProblem:
    """The same problem with transfers beside computing."""
    return replace(problem, charging=Charging.WIRE)


GENERATED: dict[str, Callable[[], PlacementProblem]] = {
    "inception": inception,
    "translation": translation,
    "residual": residual,
    "residual_tight": lambda: residual(tightness=0.85),
    "encoder": encoder,
    "encoder_training": lambda: training(encoder(layers=6), orphans=3),
    "residual_training": lambda: training(residual(blocks=24)),
}
"""Problems of the size and shape of the published ones, by name."""
