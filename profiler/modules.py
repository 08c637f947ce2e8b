"""The tree of module calls behind a program, and how far to open it.

A module is identified by its call (``block.relu@1``): a module called twice is two nodes of the
tree, because its two calls may run in different stages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from profiler.encode import NodeOrigin

MAX_LAYER_FRACTION = 1 / 32
"""A module with more of the model's work than this is opened into its parts."""

MAX_SHARED_FRACTION = 1 / 4
"""Within a module of at most this much work, a light part may join any other part."""


@dataclass(frozen=True)
class ModuleTree:
    """Calls and the nodes below them. ``stacks`` gives each node's calls, outermost first."""

    stacks: Mapping[str, tuple[str, ...]]
    children: Mapping[str, tuple[str, ...]]
    parent: Mapping[str, str]
    work: Mapping[str, float]
    parallel: frozenset[str]

    @staticmethod
    def build(
        origins: Mapping[str, NodeOrigin],
        body: Iterable[str],
        flops: Mapping[str, float],
        references: Mapping[str, tuple[str, ...]],
    ) -> ModuleTree:
        """The tree above the nodes in ``body``."""
        stacks = {name: ("", *(c for c in origins[name].calls if c)) for name in body}
        total = sum(flops.get(name, 0.0) for name in stacks)
        children: dict[str, dict[str, None]] = defaultdict(dict)
        parent: dict[str, str] = {}
        work: dict[str, float] = defaultdict(float)
        below: dict[str, list[str]] = defaultdict(list)
        for name, stack in stacks.items():
            share = flops.get(name, 0.0) / total if total else 1.0 / len(stacks)
            for depth, call in enumerate(stack):
                work[call] += share
                below[call].append(name)
                if depth:
                    children[stack[depth - 1]].setdefault(call)
                    parent.setdefault(call, stack[depth - 1])
        tree = {call: tuple(found) for call, found in children.items()}
        parallel = frozenset(
            call
            for call, found in tree.items()
            if not any(child in tree for child in found)
            and _has_parallel(found, below, stacks, flops, references)
        )
        return ModuleTree(
            stacks=stacks, children=tree, parent=parent, work=dict(work), parallel=parallel
        )

    def home(self, node: str, chosen: set[str]) -> str | None:
        """The chosen call that a node runs under, if any."""
        return next((call for call in self.stacks[node] if call in chosen), None)

    def owner(self, node: str) -> str:
        """The innermost call a node runs under."""
        return self.stacks[node][-1]

    def siblings(self, one: str, other: str) -> bool:
        """Whether ``one`` is part of the module that ``other`` is a direct part of.

        In a module that holds much of the model (a whole encoder), only direct parts count.
        """
        home = self._parent_of(other)
        place = self._parent_of(one)
        if self.work.get(home, 0.0) <= MAX_SHARED_FRACTION:
            while place and place != home:
                place = self.parent.get(place, "")
        return place == home

    def _parent_of(self, unit: str) -> str:
        path, mark, _ = unit.partition("\0")
        return path if mark else self.parent.get(path, "")


def open_modules(tree: ModuleTree) -> set[str]:
    """The calls that become layers: no one lies below another."""
    chosen: set[str] = set()
    waiting = list(tree.children.get("", ()))
    while waiting:
        call = waiting.pop()
        if (
            tree.work.get(call, 0.0) > MAX_LAYER_FRACTION
            and call in tree.children
            and call not in tree.parallel
        ):
            waiting.extend(tree.children[call])
        else:
            chosen.add(call)
    return chosen


def _has_parallel(
    calls: tuple[str, ...],
    below: Mapping[str, list[str]],
    stacks: Mapping[str, tuple[str, ...]],
    flops: Mapping[str, float],
    references: Mapping[str, tuple[str, ...]],
) -> bool:
    """Whether two of these calls that do heavy work do not feed one another."""
    heavy = [c for c in calls if any(flops.get(n) for n in below[c])]
    if len(heavy) < 2:
        return False
    parent = set(below[stacks[below[calls[0]][0]][-2]])
    reach: dict[str, set[str]] = {}
    for name in (name for name in references if name in parent):
        found: set[str] = set()
        for ref in references[name]:
            found |= reach.get(ref, set())
        call = stacks[name][-1]
        reach[name] = found | ({call} if call in heavy else set())
    for position, later in enumerate(heavy):
        seen = set().union(*(reach[n] for n in below[later]))
        if any(earlier not in seen for earlier in heavy[:position]):
            return True
    return False
