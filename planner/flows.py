"""Which tensors cross between stages, from the model's input, and to its output.

The transfers of a plan follow from its stages and a routing; cost, memory and the plan file all
read them from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from profiler.graph import ModelGraph


class Routing(StrEnum):
    """How a tensor reaches the stages that read it.

    ``relay``: through every stage in between, which pass it on; the stages form a line.
    ``direct``: from the stage that computes it to each stage that reads it.
    """

    RELAY = "relay"
    DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class Flow:
    """A tensor from one stage to another; ``None`` is the model's input or its output."""

    source: int | None
    target: int | None
    tensor: str


def find_flows(
    graph: ModelGraph, stages: Sequence[Sequence[int]], routing: Routing
) -> tuple[Flow, ...]:
    """All transfers among ``stages`` (layer positions, stages in topological order).

    Ordered by the tensors' order in the graph, then by source and target.
    """
    home = {layer: s for s, layers in enumerate(stages) for layer in layers}
    inputs, outputs = set(graph.inputs), set(graph.outputs)
    flows: list[Flow] = []
    for tensor in graph.tensors:
        reading = sorted({home[i] for i in graph.readers[tensor.name]})
        if tensor.producer is None:
            if tensor.name in inputs:
                flows.extend(Flow(None, s, tensor.name) for s in reading)
            continue
        source = home[graph.layer_index[tensor.producer]]
        if routing is Routing.DIRECT:
            flows.extend(Flow(source, s, tensor.name) for s in reading if s != source)
        elif reading:
            flows.extend(Flow(s, s + 1, tensor.name) for s in range(source, reading[-1]))
        if tensor.name in outputs:
            flows.append(Flow(source, None, tensor.name))
    return tuple(flows)
