"""Plans by hand for captured models, on made-up profiles: what runs is real, the times are not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from executor.running import RunOptions
from executor.schedule import split_items
from executor.session import Session
from executor.verification import tolerance
from planner.inputs import Sources
from planner.planfile import Plan
from planner.request import PlanRequest
from profiler.bench import LayerBench
from profiler.capture import Captured
from profiler.graph import ModelGraph
from profiler.itemwise import with_itemwise
from profiler.profile import Profile
from tests.support.builders import GIB, make_cluster, make_profile
from tests.support.captures import captured as captured_model
from tests.support.plans import Part, make_plan

HOST = "h"

DEVICES = tuple(f"{HOST}/cpu:{i}" for i in range(4))


def made_up_profile(captured: Captured, *, num_devices: int = 4) -> Profile:
    """A profile of four devices with 2 GiB; itemwise layers as observed, every time a millisecond.

    A rank's memory is mostly what torch itself takes; it is not counted here.
    """
    graph = observed(captured)
    cluster = make_cluster({f"cpu:{i}": 2 * GIB for i in range(num_devices)})
    seconds = {f"cpu:{i}": [0.001] * len(graph.layers) for i in range(num_devices)}
    return make_profile(graph, cluster, seconds=seconds)


@functools.cache
def profile_of(name: str) -> Profile:
    """:func:`made_up_profile` of a model of the zoo, made once for all tests of a process."""
    return made_up_profile(captured_model(name))


def observed(captured: Captured) -> ModelGraph:
    """The graph with itemwise layers as observed."""
    return with_itemwise(captured.graph, LayerBench(captured, device=torch.device("cpu")))


Splitting = Callable[[Profile], Plan]


def options(profile: Profile) -> RunOptions:
    """Options by which plans are checked against ``profile``."""
    return RunOptions(profile=profile)


def session(
    plan: Plan, captured: Captured, profile: Profile, *, timeout_s: float = 30.0
) -> Session:
    """The plan's ranks, the plan checked against its profile."""
    sources = Sources(profile=profile, cluster=profile.cluster)
    return Session(plan, captured, sources=sources, timeout_s=timeout_s)


def stage(
    profile: Profile, layers: Sequence[int], *devices: int, shares: Sequence[int] = ()
) -> Part:
    """A stage of layers by position; one that must see whole batches says so."""
    whole = any(not profile.model.layers[i].itemwise for i in layers)
    return Part(
        layers=layers,
        devices=[DEVICES[i] for i in devices],
        shares=shares,
        whole_batch=whole,
    )


def thirds(profile: Profile) -> list[list[int]]:
    """All layers in order, in three runs of about equal length (fewer if there are fewer)."""
    return runs(list(range(len(profile.model.layers))), 3)


def runs(layers: Sequence[int], num: int) -> list[list[int]]:
    """``layers`` in ``num`` runs, none empty."""
    num = min(num, len(layers))
    ends = [len(layers) * (i + 1) // num for i in range(num)]
    return [list(layers[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def sliced(
    profile: Profile, layers: Sequence[int], *devices: int, ratio: Sequence[int] = ()
) -> Part:
    """A stage whose devices divide all its regions that have a unit for each, in about a ratio."""
    ratio = tuple(ratio) or (1,) * len(devices)
    here = {profile.model.layers[i].name for i in layers}
    slices = {
        region.name: tuple(1 + n for n in split_items(region.units - len(ratio), ratio))
        for region in profile.model.regions
        if here.issuperset(region.layers) and region.units >= len(ratio)
    }
    assert slices, "the stage has no region to divide"
    return Part(layers=layers, devices=[DEVICES[i] for i in devices], slices=slices)


def request(*, batch_size: int, microbatch_size: int) -> PlanRequest:
    """What plans by hand are made for."""
    return PlanRequest(batch_size=batch_size, microbatch_size=microbatch_size)


def one_device(profile: Profile, *, batch_size: int = 8) -> Plan:
    """All layers on the root, a batch in one piece."""
    parts = [stage(profile, range(len(profile.model.layers)), 0)]
    return make_plan(
        profile, parts, request=request(batch_size=batch_size, microbatch_size=batch_size)
    )


def pipeline(profile: Profile, *, batch_size: int = 8, microbatch_size: int = 3) -> Plan:
    """Three stages, one device each."""
    parts = [stage(profile, layers, i) for i, layers in enumerate(thirds(profile))]
    return make_plan(
        profile, parts, request=request(batch_size=batch_size, microbatch_size=microbatch_size)
    )


def comparing(profile: Profile) -> int:
    """Position of the first layer from which on stages need whole batches."""
    layers = profile.model.layers
    return next((i for i, layer in enumerate(layers) if not layer.itemwise), len(layers))


def batch_split(profile: Profile, *, batch_size: int = 8, microbatch_size: int = 6) -> Plan:
    """All layers on three devices with unequal shares; layers that compare items on a fourth."""
    first = comparing(profile)
    parts = [stage(profile, range(first), 0, 1, 2, shares=(3, 1, 2))] if first else []
    if first < len(profile.model.layers):
        parts.append(stage(profile, range(first, len(profile.model.layers)), 3))
    return make_plan(
        profile, parts, request=request(batch_size=batch_size, microbatch_size=microbatch_size)
    )


def mixed(profile: Profile, *, batch_size: int = 8, microbatch_size: int = 4) -> Plan:
    """A stage alone, one on two devices, one alone; tensors go straight to their readers."""
    first = comparing(profile)
    layers = list(range(len(profile.model.layers)))
    a, b = runs(layers[:first], 2)
    parts = [stage(profile, a, 1), stage(profile, b, 0, 2, shares=(3, 1))]
    if first < len(layers):
        parts.append(stage(profile, layers[first:], 3))
    elif len(b) > 1:
        parts = [stage(profile, a, 1), stage(profile, b[:-1], 0, 2, shares=(3, 1))]
        parts.append(stage(profile, b[-1:], 3))
    return make_plan(
        profile,
        parts,
        request=request(batch_size=batch_size, microbatch_size=microbatch_size),
        routing="direct",
    )


def tensor(
    profile: Profile,
    *,
    ratio: Sequence[int] = (1, 1),
    batch_size: int = 8,
    microbatch_size: int = 3,
) -> Plan:
    """All layers on as many devices as ``ratio`` says; those that compare items on a fourth."""
    first, last = comparing(profile), len(profile.model.layers)
    parts = [sliced(profile, range(first), *range(len(ratio)), ratio=ratio)]
    if first < last:
        parts.append(stage(profile, range(first, last), 3))
    return make_plan(
        profile, parts, request=request(batch_size=batch_size, microbatch_size=microbatch_size)
    )


def tensor_three(profile: Profile) -> Plan:
    """Three devices divide all layers that have enough units."""
    return tensor(profile, ratio=(1, 1, 1))


def tensor_uneven(profile: Profile) -> Plan:
    """Two devices divide all layers, five to three."""
    return tensor(profile, ratio=(5, 3))


def tensor_mixed(profile: Profile, *, batch_size: int = 8, microbatch_size: int = 4) -> Plan:
    """A stage divided by tensor, one by batch where a device is left, in a pipeline."""
    first, last = comparing(profile), len(profile.model.layers)
    a, b = runs(range(first), 2)
    parts = [sliced(profile, a, 1, 0, ratio=(5, 3))]
    if first < last:
        parts += [stage(profile, b, 2), stage(profile, range(first, last), 3)]
    else:
        parts.append(stage(profile, b, 2, 3, shares=(3, 1)))
    return make_plan(
        profile,
        parts,
        request=request(batch_size=batch_size, microbatch_size=microbatch_size),
        routing="direct",
    )


def side_by_side(profile: Profile, *, batch_size: int = 8, microbatch_size: int = 2) -> Plan:
    """Two pipelines of unlike shape; the first takes five of eight items."""
    a, b = runs(range(len(profile.model.layers)), 2)
    both = [*a, *b]
    return make_plan(
        profile,
        [stage(profile, a, 0), stage(profile, b, 1)],
        [stage(profile, both, 2)],
        request=request(batch_size=batch_size, microbatch_size=microbatch_size),
        items=(5, batch_size - 5),
    )


def difference(expected: Any, actual: Any) -> tuple[float, bool]:
    """Worst error over tolerance (at most 1 is equal), and whether all bits agree.

    Structure, types, dtypes and shapes must be equal, and everything that is not a tensor.
    """
    a, spec_a = pytree.tree_flatten(expected)
    b, spec_b = pytree.tree_flatten(actual)
    assert spec_a == spec_b
    worst, identical = 0.0, True
    for x, y in zip(a, b, strict=True):
        if not isinstance(x, torch.Tensor):
            assert type(x) is type(y)
            assert x == y
            continue
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        if torch.equal(x, y):
            continue
        identical = False
        wide = torch.complex128 if x.is_complex() else torch.float64
        scale = float(x.to(wide).abs().max()) or 1.0
        error = float((x.to(wide) - y.to(wide)).abs().max()) / scale
        limit = tolerance(x.dtype)
        worst = max(worst, error / limit if limit else float("inf"))
    return worst, identical
