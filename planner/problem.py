"""One planning question, checked once: what every solver sees.

A :class:`PlanningProblem` is for one microbatch size. It holds the resolved wishes (where each
layer may run, what stays together) and the devices sorted into classes of equals; it computes no
cost and knows no solver.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from planner.aggregation import answer_names
from planner.alike import MAX_COMPARED, LikeDevices, Links, same_figures
from planner.request import Destination, PlanRequest, Split
from planner.selection import LayerIndex
from planner.targets import NO_TARGETS, Targets
from profiler.cluster import Cluster, Link
from profiler.errors import InvalidInputError
from profiler.graph import ModelGraph
from profiler.profile import Profile


@dataclass(frozen=True, kw_only=True)
class PlanningProblem:
    """A validated bundle of model, machines, measurements and wishes, for one microbatch size.

    ``allowed[l]`` are the devices that may hold layer ``l``. ``together`` are sets of layers that
    share a stage. ``classes`` are the usable devices, equal ones together: exchanging two of a
    class changes no figure; the root is always a class of its own. ``required`` devices must have
    a stage (used to price an idle device); ``must_use`` is a way to split the work that plans must
    use (to price one that is not chosen). ``items`` are those that one pipeline is planned for: the
    whole batch, or a part of it beside other pipelines. ``targets`` limit the plan as a whole,
    ``option_work`` the ways to split stages that are searched (``planner.options``).
    """

    graph: ModelGraph
    cluster: Cluster
    profile: Profile
    request: PlanRequest
    microbatch: int
    items: int
    allowed: tuple[frozenset[str], ...]
    together: tuple[tuple[int, ...], ...]
    whole_batch: frozenset[int]
    one_device: frozenset[int]
    classes: tuple[tuple[str, ...], ...]
    required: frozenset[str] = frozenset()
    must_use: Split | None = None
    targets: Targets = NO_TARGETS
    option_work: float = math.inf

    @classmethod
    def build(
        cls,
        profile: Profile,
        request: PlanRequest,
        *,
        cluster: Cluster | None = None,
        microbatch: int,
    ) -> PlanningProblem:
        """The problem, or the first contradiction in its parts.

        Raises:
            InvalidInputError: unknown device or layer, a device or layer without a usable timing
                or a price that is needed, a batch that the captured model cannot take, wishes that
                exclude each other.
        """
        cluster = cluster or profile.cluster
        graph = profile.model
        if request.destination is Destination.SCATTERED:
            graph = graph.replaced(outputs=())  # no answer goes anywhere
        _check_timings(profile, cluster)
        _check_batch(graph, request, microbatch)
        allowed = _allowed(graph, cluster, request)
        problem = cls(
            graph=graph,
            cluster=cluster,
            profile=profile,
            request=request,
            microbatch=microbatch,
            items=request.batch_size,
            allowed=allowed,
            together=_together(graph, request, allowed),
            whole_batch=frozenset(
                i for i in range(len(graph.layers)) if needs_whole_batch(graph, i)
            ),
            one_device=frozenset(
                i
                for i, layer in enumerate(graph.layers)
                if any(graph.weight[name].state for name in layer.weights)
            ),
            classes=(),
            targets=Targets.of(request, cluster),
        )
        return replace(problem, classes=problem._equal_devices())

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return len(self.graph.layers)

    @property
    def batch(self) -> int:
        """Items of a batch."""
        return self.request.batch_size

    @property
    def num_microbatches(self) -> int:
        """Microbatches of the planned items, the last one possibly shorter."""
        return math.ceil(self.items / self.microbatch)

    @property
    def max_stages(self) -> int:
        """How many stages a pipeline may have."""
        most = sum(len(members) for members in self.classes)
        if Split.LAYERS not in self.request.splits:
            most = 1
        return min(most, self.request.max_stages or most)

    @property
    def batch_splits(self) -> bool:
        """Whether a stage may be split by batch over several devices."""
        return (
            Split.BATCH in self.request.splits
            and self.microbatch > 1
            and self.graph.static_batch is None
        )

    @property
    def tensor_splits(self) -> bool:
        """Whether a stage may be split by tensor over several devices."""
        return Split.TENSOR in self.request.splits and any(x.units > 1 for x in self.graph.regions)

    @cached_property
    def region_layers(self) -> tuple[tuple[int, ...], ...]:
        """Positions of the layers of each region, ascending."""
        at = self.graph.layer_index
        return tuple(
            tuple(sorted(at[name] for name in region.layers)) for region in self.graph.regions
        )

    def one_pipeline(self) -> str | None:
        """Why there must be one pipeline for all items; None if there may be several."""
        graph = self.graph
        if Split.PIPELINES not in self.request.splits:
            return "the request allows no pipelines side by side"
        if graph.static_batch is not None:
            return f"the model was captured for exactly {graph.static_batch} items"
        if self.whole_batch:
            first = graph.layers[min(self.whole_batch)].name
            return f"{first} looks across the items of a batch"
        if self.one_device:
            first = graph.layers[min(self.one_device)].name
            return f"{first} keeps state that changes, and each pipeline would have its own"
        for name in graph.outputs:
            if graph.tensor[name].per_batch and not graph.tensor[name].in_parts:
                return f"output {name} is one value for a whole batch"
        fewest = min(range(self.num_layers), key=lambda i: len(self.allowed[i]))
        if len(self.allowed[fewest]) < 2:
            return f"{graph.layers[fewest].name} may run on {min(self.allowed[fewest])} only"
        return None if self.batch > 1 else "the batch has one item"

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """The tensors of the answer as the root has it, after any combination of members."""
        return answer_names(self.profile.model, self.request)

    def keeps(self, device: str) -> tuple[str, ...]:
        """Outputs of which a rank on ``device`` may come to hold a whole batch, for its caller."""
        match self.request.destination:
            case Destination.SCATTERED:
                return tuple(dict.fromkeys(self.profile.model.outputs))
            case Destination.ALL if device != self.cluster.root:
                return self.answers
        return ()

    def delivered(self, device: str) -> bool:
        """Whether the root sends the answer to ``device``."""
        return self.request.destination is Destination.ALL and device != self.cluster.root

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """The devices that may hold a layer, in the cluster's order."""
        usable = frozenset[str]().union(*self.allowed)
        return tuple(name for name in self.cluster.device if name in usable)

    @cached_property
    def class_of(self) -> Mapping[str, int]:
        """Position of each usable device's class."""
        return {name: c for c, members in enumerate(self.classes) for name in members}

    @cached_property
    def links(self) -> Mapping[tuple[str, str], Link]:
        """The link of each ordered pair of devices, looked up when first asked for."""
        return Links(self.cluster)

    def kinds_of_link(self) -> Iterator[tuple[tuple[str, str], Link]]:
        """One pair of devices, with its link, for each ordered pair of classes and the root."""
        ends = [(self.cluster.root,), *self.classes]
        for a, senders in enumerate(ends):
            for b, receivers in enumerate(ends):
                source = senders[0]
                target = receivers[-1] if a == b else receivers[0]
                if source != target:
                    yield (source, target), self.links[source, target]

    def wire(self, source: str, target: str) -> str:
        """Name of the wire between two devices: links with equal ``shares`` are one."""
        return self.links[source, target].shares or f"{source} -> {target}"

    def capacity_bytes(self, device: str) -> int:
        """What a plan may put on ``device``, the reserve included."""
        usable = self.cluster.device[device].usable_bytes
        return min(usable, self.request.max_bytes.get(device, usable))

    def reserve_bytes(self, device: str) -> int:
        """What stays free for the runtime on ``device``."""
        if self.request.reserve_bytes is not None:
            return self.request.reserve_bytes
        return self.profile.timings_of[device].baseline_bytes

    def requiring(self, devices: Iterable[str]) -> PlanningProblem:
        """The same problem where these devices must have a stage."""
        return replace(self, required=self.required | frozenset(devices))

    def using(self, split: Split) -> PlanningProblem:
        """The same problem where the work must be split in this way, among others."""
        return replace(self, must_use=split)

    def limited_to(self, devices: Collection[str], *, items: int) -> PlanningProblem | None:
        """The problem of one pipeline on some of these devices, for some of the items; None if a
        layer may run on none of them."""
        chosen = frozenset(devices)
        allowed = tuple(here & chosen for here in self.allowed)
        if not all(allowed):
            return None
        usable = frozenset[str]().union(*allowed)
        classes = (tuple(d for d in members if d in usable) for members in self.classes)
        return replace(
            self,
            items=items,
            allowed=allowed,
            classes=tuple(members for members in classes if members),
            required=frozenset(),
            must_use=None,
        )

    def _equal_devices(self) -> tuple[tuple[str, ...], ...]:
        """Usable devices in classes: exchanging two of a class maps the problem to itself."""
        alike = LikeDevices(self)
        found: dict[object, list[str]] = {}
        named: dict[object, list[list[str]]] = {}
        for name in self.devices:
            if name == self.cluster.root:
                found[name] = [name]
                continue
            kind, place = alike.kind(name), alike.surroundings(name)
            if (kind, place) in found:
                found[kind, place].append(name)
                continue
            rivals = named.setdefault(kind, []) if alike.named(name) else []
            if len(self.devices) <= MAX_COMPARED:
                joined = next((x for x in rivals if self._same_links(x[0], name)), None)
                if joined is not None:
                    joined.append(name)
                    found[kind, place] = joined
                    continue
            found[kind, place] = [name]
            rivals.append(found[kind, place])
        return tuple(tuple(members) for members in dict.fromkeys(map(tuple, found.values())))

    def _same_links(self, one: str, other: str) -> bool:
        return self._same_link((one, other), (other, one)) and all(
            self._same_link((one, third), (other, third))
            and self._same_link((third, one), (third, other))
            for third in dict.fromkeys((self.cluster.root, *self.devices))
            if third not in (one, other)
        )

    def _same_link(self, pair: tuple[str, str], exchanged: tuple[str, str]) -> bool:
        return same_figures(self.links[pair], self.links[exchanged])


def needs_whole_batch(graph: ModelGraph, layer: int) -> bool:
    """Whether the layer must see every item of a batch at once."""
    return not graph.layers[layer].itemwise or any(
        graph.tensor[name].per_batch for name in graph.layers[layer].reads
    )


def layers_named(graph: ModelGraph, selector: str) -> tuple[int, ...]:
    """Positions of the layers that ``selector`` names, by layer or by a module they hold.

    Raises:
        InvalidInputError: it names none; the message has close names.
    """
    try:
        return tuple(LayerIndex([layer.name for layer in graph.layers]).positions([selector]))
    except InvalidInputError:
        holders: dict[str, list[int]] = {}
        for i, layer in enumerate(graph.layers):
            for module in layer.modules:
                holders.setdefault(module, []).append(i)
        names = tuple(holders)
        try:
            found = LayerIndex(names).positions([selector])
        except InvalidInputError:
            found = []
        if not found:
            raise
        return tuple(sorted({i for n in found for i in holders[names[n]]}))


def require_device(cluster: Cluster, name: str, *, where: str) -> str:
    """``name``, if the cluster has it.

    Raises:
        InvalidInputError: it has not; the message has close names.
    """
    if name in cluster.device:
        return name
    short = [full for full in cluster.device if full.split("/", 1)[1] == name]
    close = short or difflib.get_close_matches(name, list(cluster.device), n=3, cutoff=0.4)
    hint = f"close names: {', '.join(close)}" if close else f"it has {_few(cluster.device)}"
    raise InvalidInputError(f"{where} names device {name!r}, which the cluster lacks; {hint}")


def _check_timings(profile: Profile, cluster: Cluster) -> None:
    strange = [name for name in cluster.device if name not in profile.timings_of]
    if strange:
        raise InvalidInputError(
            f"the profile has no timings for {_few(strange)}; it covers "
            f"{_few(profile.timings_of)}: profile the model on the new devices, or drop them"
        )
    checked: set[int] = set()
    for device in cluster.device:
        timings = profile.timings_of[device]
        if id(timings) in checked:
            continue
        checked.add(id(timings))
        for layer in profile.model.layers:
            rows = timings.layers.get(layer.twin, ())
            if not rows or not all(
                math.isfinite(row.median_s) and row.median_s >= 0 for row in rows
            ):
                what = "no timing" if not rows else "a timing that is not a number of seconds"
                raise InvalidInputError(
                    f"layer {layer.name!r} has {what} on {device}; profile the model again"
                )


def _check_batch(graph: ModelGraph, request: PlanRequest, microbatch: int) -> None:
    if not 1 <= microbatch <= request.batch_size:
        raise InvalidInputError(
            f"microbatch_size is {microbatch}; it must be from 1 to batch_size, "
            f"{request.batch_size}"
        )
    static = graph.static_batch
    if static is not None and (request.batch_size, microbatch) != (static, static):
        raise InvalidInputError(
            f"the model was captured for exactly {static} items a batch; plan it with batch_size "
            f"{static} and no other microbatch_size (asked: {request.batch_size} and "
            f"{microbatch}), or capture it again with a dynamic batch"
        )


def _allowed(
    graph: ModelGraph, cluster: Cluster, request: PlanRequest
) -> tuple[frozenset[str], ...]:
    for name in request.max_bytes:
        require_device(cluster, name, where="max_bytes")
    allowed = [frozenset(cluster.device)] * len(graph.layers)
    pinned: dict[int, str] = {}
    for pin in request.pins:
        device = require_device(cluster, pin.device, where=f"the pin of {pin.layers!r}")
        for i in layers_named(graph, pin.layers):
            if pinned.setdefault(i, device) != device:
                raise InvalidInputError(
                    f"layer {graph.layers[i].name!r} is pinned to both {pinned[i]} and {device}; "
                    "remove one of the pins"
                )
            allowed[i] = frozenset((device,))
    for forbid in request.forbids:
        device = require_device(cluster, forbid.device, where="a forbid")
        everything = tuple(range(len(graph.layers)))
        for i in everything if forbid.layers is None else layers_named(graph, forbid.layers):
            allowed[i] -= {device}
            if not allowed[i]:
                why = f"is pinned to {device} and" if i in pinned else "may run nowhere: it"
                raise InvalidInputError(
                    f"layer {graph.layers[i].name!r} {why} is forbidden on {device}; "
                    "remove a pin or a forbid"
                )
    return tuple(allowed)


def _together(
    graph: ModelGraph, request: PlanRequest, allowed: Sequence[frozenset[str]]
) -> tuple[tuple[int, ...], ...]:
    """Sets of layers that share a stage: wished for, or because they share changing state."""
    wishes = [layers_named(graph, selector) for selector in request.keep_together]
    wishes.extend(
        tuple(i for i, layer in enumerate(graph.layers) if weight.name in layer.weights)
        for weight in graph.weights
        if weight.state
    )
    merged: list[set[int]] = []
    for wish in wishes:
        joined = set(wish)
        apart = []
        for other in merged:
            if other & joined:
                joined |= other
            else:
                apart.append(other)
        merged = [*apart, joined]
    for joined in merged:
        if not frozenset.intersection(*(allowed[i] for i in joined)):
            names = [graph.layers[i].name for i in sorted(joined)]
            raise InvalidInputError(
                f"layers {_few(names)} must share a stage, but no device is allowed for all of "
                "them; remove a pin, a forbid or a keep_together"
            )
    return tuple(sorted(tuple(sorted(joined)) for joined in merged if len(joined) > 1))


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
