"""What sending the model's inputs and receiving its outputs takes from the root's device.

The root cannot compute meanwhile, so a stage on it is busy for longer where batches follow each
other. Charged is every item once for each input and output that leaves or enters the root, at the
link that costs it least: what a stage on the root has to give up then depends on that stage alone,
not on who the others are, and solvers that build plans stage by stage count it exactly.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.figures import Figures


@dataclass(frozen=True, slots=True)
class RootWork:
    """Seconds that sending and receiving keep the root's device from computing."""

    send_s: float = 0.0
    receive_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Both."""
        return self.send_s + self.receive_s

    def times(self, factor: float) -> RootWork:
        """So often."""
        return RootWork(self.send_s * factor, self.receive_s * factor)

    def plus(self, other: RootWork) -> RootWork:
        """Both, one after the other."""
        return RootWork(self.send_s + other.send_s, self.receive_s + other.receive_s)


@dataclass(frozen=True, slots=True)
class RootSeat:
    """A stage's ranks as the root on one of them sees it: the parts of a microbatch that the other
    ranks take, whether they divide layers, and whether the root's rank is the first."""

    others: tuple[float, ...] = ()
    divides: bool = False
    first: bool = True

    @classmethod
    def at(cls, position: int, shares: Sequence[int], *, divides: bool) -> RootSeat:
        """The seat of the rank at ``position`` of a stage with these shares."""
        whole = max(shares) if divides else sum(shares)
        others = tuple(share / whole for r, share in enumerate(shares) if r != position)
        return cls(others, divides, position == 0)

    def sent(self, *, in_parts: bool) -> float:
        """How often an input that the stage reads is sent to its other ranks."""
        return sum(self.others) if in_parts else len(self.others)

    def received(self, *, in_parts: bool) -> float:
        """How often an output that the stage writes comes from its other ranks."""
        if in_parts and not self.divides:
            return sum(self.others)
        return 0.0 if self.first else 1.0


class RootRates:
    """Seconds a microbatch by input and output, of those that are read or asked for."""

    def __init__(self, figures: Figures) -> None:
        problem = figures.problem
        graph, root = problem.graph, problem.cluster.root
        others = [name for name in problem.cluster.device if name != root]
        away = dict.fromkeys(problem.links[root, name] for name in others)
        back = dict.fromkeys(problem.links[name, root] for name in others)
        self.inputs: dict[str, float] = {}
        self.outputs: dict[str, float] = {}
        for name in dict.fromkeys(graph.inputs):
            if graph.readers[name]:
                size = figures.tensor_bytes(name, problem.microbatch)
                costs = (x.send_occupancy * x.transfer_time_s(size) for x in away)
                self.inputs[name] = min(costs, default=0.0)
        for name in dict.fromkeys(graph.outputs):
            if graph.tensor[name].producer is not None:
                size = figures.tensor_bytes(name, problem.microbatch)
                costs = (x.receive_occupancy * x.transfer_time_s(size) for x in back)
                self.outputs[name] = min(costs, default=0.0)
        self._graph = graph
        self.each = RootWork(sum(self.inputs.values()), sum(self.outputs.values()))
        """For a microbatch that the root has no part in."""

    def own(self, layers: Collection[int], seat: RootSeat) -> RootWork:
        """For a microbatch of the pipeline in which a stage with ``layers`` is on the root."""
        graph, here = self._graph, set(layers)
        send_s = receive_s = 0.0
        for name, seconds in self.inputs.items():
            readers = graph.readers[name]
            times = float(not here.issuperset(readers))
            if not here.isdisjoint(readers):
                times += seat.sent(in_parts=graph.tensor[name].in_parts)
            send_s += times * seconds
        for name, seconds in self.outputs.items():
            producer = graph.tensor[name].producer
            assert producer is not None
            inside = graph.layer_index[producer] in here
            times = seat.received(in_parts=graph.tensor[name].in_parts) if inside else 1.0
            receive_s += times * seconds
        return RootWork(send_s, receive_s)


__all__ = ["RootRates", "RootSeat", "RootWork"]
