"""Which devices are alike, found without comparing all in pairs, and links looked up once.

Knows devices and links, no costs and no solver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from profiler.cluster import Cluster, Link
from profiler.profile import DeviceTimings

if TYPE_CHECKING:
    from planner.problem import PlanningProblem

MAX_COMPARED = 256
"""Of more devices, those that ``links`` name are not compared with each other across hosts."""


class LikeDevices:
    """What devices have in common, found without comparing them in pairs."""

    def __init__(self, problem: PlanningProblem) -> None:
        self._problem, self._cluster = problem, problem.cluster
        allowed = dict.fromkeys(problem.allowed)
        everywhere = frozenset(problem.cluster.device)
        self._limited = [here for here in allowed if here != everywhere]
        self._measured: list[DeviceTimings] = []
        self._position: dict[int, int] = {}
        # A link of a host with itself is what its devices have between them.
        links = [link for link in self._cluster.links if link.source != link.target]
        self._named = {end for link in links for end in (link.source, link.target)}
        self._within = {link.source for link in self._cluster.links if link.source == link.target}
        self._usable: dict[str, int] = {}
        for name in dict.fromkeys((self._cluster.root, *problem.devices)):
            host = self._cluster.host_of[name].name
            for place in (host, *self._cluster.enclosing[host]):
                self._usable[place] = self._usable.get(place, 0) + 1

    def kind(self, name: str) -> tuple[object, ...]:
        """Equal for devices that are alike apart from their links."""
        problem = self._problem
        return (
            self._cluster.device[name].type,
            problem.capacity_bytes(name),
            problem.reserve_bytes(name),
            self._timings(problem.profile.timings_of[name]),
            tuple(name in here for here in self._limited),
            tuple(budget.each[name] for budget in problem.targets.budgets),
        )

    def named(self, name: str) -> bool:
        """Whether ``links`` say something of the device or its host in particular."""
        return name in self._named or self._cluster.host_of[name].name in self._named

    def surroundings(self, name: str) -> str | None:
        """The innermost place whose inside link the device meets; None: the whole cluster.

        Devices with the same kind and surroundings have equal links: whatever holds both, or one
        and a third, is there or further out.
        """
        host = self._cluster.host_of[name]
        if name in self._named:
            return name
        own_link = host.inner_link is not None or host.name in self._within
        if host.name in self._named or (own_link and self._usable[host.name] > 1):
            return host.name
        for group in self._cluster.enclosing[host.name]:
            if self._usable[group] > 1:
                return group
        return None

    def _timings(self, timings: DeviceTimings) -> int:
        """Equal for equal measurements."""
        if id(timings) not in self._position:
            for at, other in enumerate(self._measured):
                same = (timings.layers, timings.dispatch_s, timings.heap, timings.slices)
                if timings.hypothetical == other.hypothetical and same == (
                    other.layers,
                    other.dispatch_s,
                    other.heap,
                    other.slices,
                ):
                    self._position[id(timings)] = at
                    break
            else:
                self._position[id(timings)] = len(self._measured)
                self._measured.append(timings)
        return self._position[id(timings)]


def same_figures(one: Link, other: Link) -> bool:
    """Whether two links cost the same, on the same wire if they share one."""
    return (
        one.latency_s == other.latency_s
        and one.bytes_per_s == other.bytes_per_s
        and one.send_occupancy == other.send_occupancy
        and one.receive_occupancy == other.receive_occupancy
        and one.shares == other.shares
    )


class Links(dict[tuple[str, str], Link]):
    """Links by ordered pair of devices; thousands of devices have millions of pairs."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self._cluster = cluster

    def __missing__(self, pair: tuple[str, str]) -> Link:  # noqa: D105
        self[pair] = self._cluster.link(*pair)
        return self[pair]
