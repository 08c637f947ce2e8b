"""The regions of a captured model: what ranks may divide, as the planner sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import gcd

from profiler.documents import canonical_json, digest
from profiler.graph import Join, SlicedWeight, SliceRegion
from profiler.layers import Layering
from profiler.program import Program
from profiler.sharding.components import Component, clusters, divide
from profiler.sharding.facts import Facts, base_name
from profiler.sharding.propagate import BEGINNING, Outcome
from profiler.sharding.states import Sharded, WeightSlice


@dataclass(frozen=True)
class Sharding:
    """How the layers of a model can be divided: the regions, and what they are made of.

    ``region_of_axis`` gives the position of the region that an axis belongs to. ``refused`` are
    nodes that might have begun a region, and why they do not.
    """

    facts: Facts
    outcome: Outcome
    regions: tuple[SliceRegion, ...]
    region_of_axis: Mapping[int, int]
    refused: Mapping[str, str]

    @cached_property
    def position(self) -> dict[str, int]:
        """Regions by name."""
        return {region.name: i for i, region in enumerate(self.regions)}

    def why_not(self, layer: str) -> str | None:
        """What was tried on a layer that is in no region; None for one that is.

        >>> sharding.why_not("router")  # doctest: +SKIP
        'linear_4 by its columns: softmax needs it whole at once, and it is 1% of its layers'
        """
        if any(layer in region.layers for region in self.regions):
            return None
        tried = []
        for name, home in self.facts.layer_of.items():
            if home != layer:
                continue
            kind = base_name(self.facts.nodes[name].op)
            if name in self.refused and kind in BEGINNING:
                how = "by its rows" if kind == "embedding" else "by its columns"
                tried.append(f"{name} {how}: {self.refused[name]}")
            elif self.facts.flops.get(name):
                why = "no rule" if kind not in BEGINNING else "no weight that can be cut"
                tried.append(f"{name}: {why} ({self.facts.nodes[name].op})")
        return "; ".join(tried) or "it multiplies no matrices: every rank computes it whole"


def find_regions(
    program: Program,
    layering: Layering,
    *,
    twins: Mapping[str, str],
    weight_names: Mapping[str, str],
) -> Sharding:
    """The regions of a program, in the order of their first layers.

    ``twins`` gives each layer's twin, ``weight_names`` the name under which a weight is known.
    """
    facts = Facts(program, layering)
    outcome, found, refused = divide(facts)
    position = {group.name: i for i, group in enumerate(layering.groups)}
    groups = sorted(clusters(found), key=lambda g: min(position[x] for c in g for x in c.layers))
    regions: list[SliceRegion] = []
    for group in groups:
        layers = sorted({x for c in group for x in c.layers}, key=position.__getitem__)
        taken = {region.name for region in regions}
        regions.append(_record(facts, outcome, group, layers, twins, weight_names, taken))
    return Sharding(
        facts=facts,
        outcome=outcome,
        regions=tuple(regions),
        region_of_axis={c.axis: i for i, group in enumerate(groups) for c in group},
        refused=refused,
    )


def _record(  # noqa: PLR0913
    facts: Facts,
    outcome: Outcome,
    group: list[Component],
    layers: list[str],
    twins: Mapping[str, str],
    weight_names: Mapping[str, str],
    taken: set[str],
) -> SliceRegion:
    weights = dict.fromkeys(
        (weight_names[facts.weights[ref].weight], use.dim, use.outer)
        for name in sorted((n for c in group for n in c.nodes), key=facts.order.__getitem__)
        for ref, use in _uses(outcome, name)
    )
    joins = tuple(
        Join(
            tensor=name,
            how=outcome.joins[name].how,
            dim=state.dim if isinstance(state := outcome.joins[name].state, Sharded) else None,
            shape=facts.specs[name].shape,
            dtype=facts.specs[name].dtype,
        )
        for name in sorted((n for c in group for n in c.joins), key=facts.order.__getitem__)
    )
    inside = set(layers)
    total = sum(facts.flops.get(n, 0.0) for n, layer in facts.layer_of.items() if layer in inside)
    divided = sum(c.flops for c in group) / total if total else 0.0
    units, axis = gcd(*(c.units for c in group)), _axis_name(facts, group)
    sliced = tuple(SlicedWeight(weight=w, dim=d, parts=p) for w, d, p in weights)
    shapes = {weight_names[port.weight]: port.shape for port in facts.weights.values()}
    cost = [
        [twins[name] for name in layers],
        [axis, units, round(divided, 6)],
        [[list(shapes[w.weight]), w.dim, w.parts] for w in sliced],
        [[j.how, j.dim, list(facts.specs[j.tensor].shape), j.dtype] for j in joins],
    ]
    return SliceRegion(
        name=_name(layers, taken),
        axis=axis,
        units=units,
        layers=tuple(layers),
        weights=sliced,
        joins=joins,
        divided=float(f"{divided:.6g}"),
        twin=digest(canonical_json(cost)).removeprefix("sha256:")[:12],
    )


def _uses(outcome: Outcome, name: str) -> Iterator[tuple[str, WeightSlice]]:
    plan = outcome.moved[name][1] if name in outcome.moved else outcome.plans[name]
    for ref, use in plan.uses.items():
        if isinstance(use, WeightSlice):
            yield ref, use


def _axis_name(facts: Facts, group: list[Component]) -> str:
    """What the units of a region are, for people."""
    kinds = {base_name(facts.nodes[n].op) for c in group for n in c.nodes}
    if kinds & {"scaled_dot_product_attention", "softmax", "_softmax"}:
        return "heads"
    if any(kind.startswith("conv") for kind in kinds):
        return "channels"
    if "embedding" in kinds:
        return "vocabulary"
    answers = {n for c in group for n in c.joins} & set(facts.outputs)
    only = len(group) == 1 and not group[0].sums
    return "vocabulary" if only and answers else "features"


def _name(layers: list[str], taken: set[str]) -> str:
    """The modules that the layers have in common, or else the first layer."""
    parts = [name.split(".") for name in layers]
    common: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) != 1:
            break
        common.append(level[0])
    for name in (".".join(common), layers[0]):
        if name and name not in taken:
            return name
    return f"{layers[0]} (2)"
