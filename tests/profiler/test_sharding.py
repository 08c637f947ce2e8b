"""Ranks that divide a model's regions compute what the undivided model computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from executor.verification import tolerance
from profiler.build import build_stage
from profiler.capture import capture
from profiler.errors import InvalidInputError
from profiler.graph import ModelGraph, SliceRegion
from profiler.sharding.slicing import only_sound, sliced
from profiler.sharding.states import NodePlan, Scaled
from profiler.sources import load_model
from tests.support import zoo
from tests.support.captures import captured, captured_in
from tests.support.cutting import input_symbols, named_inputs, resized
from tests.support.sharded import Divisible, call, divisible, run_divided, shares_of

ARCHITECTURES = [*zoo.NETWORKS, *zoo.HUGGING_FACE]
RATIOS = {"two": (1, 1), "three": (1, 1, 1), "uneven": (5, 3)}

# Megatron-LM joins twice a layer in the forward pass (Shoeybi et al. 2019), and attention to an
# encoder once more; then once for a table of words and once for the words' scores.
MEGATRON = {
    "transformer": 2 * 3,
    "transformer_sequence_first": 2 * 3,
    "bert": 2 * 3 + 2,
    "gpt2": 2 * 3 + 2,
    "llama": 2 * 3 + 2,
    "qwen3": 2 * 3 + 2,
    "mixtral": 2 * 3 + 2,
    "t5": 2 * 2 + 3 * 2 + 3,
    "vit": 2 * 3,
    "clip": 2 * 2 + 2 * 2 + 1,
    "whisper": 2 * 2 + 3 * 2 + 2,
}
BEYOND = {
    "bert": ["cls.predictions.transform.dense"],
    "vit": ["vit.embeddings.patch_embeddings.projection"],
    "clip": ["vision_model.embeddings.patch_embedding"],
    "whisper": ["model.encoder"],
}
"""Regions of layers that Megatron does not have: one join each."""


def inputs(model: Divisible, items: int = 3) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    args, kwargs = resized(model.captured, items)
    tensors = named_inputs(model.captured, args, kwargs)
    symbols = input_symbols(model.captured, tensors)
    if model.double:
        tensors = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
    return tensors, symbols


def undivided(
    model: Divisible, tensors: dict[str, torch.Tensor], symbols: dict[str, int]
) -> dict[str, torch.Tensor]:
    program = model.cutter.whole()
    module = build_stage(program, device=torch.device("cpu"), weight=model.weight)
    return call(program, module, tensors, symbols)


def worst(expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor]) -> float:
    errors = [0.0]
    for name, tensor in expected.items():
        assert actual[name].shape == tensor.shape
        if tensor.is_floating_point() or tensor.is_complex():
            scale = float(tensor.abs().max()) or 1.0
            wide = torch.complex128 if tensor.is_complex() else torch.float64
            distance = (actual[name].to(wide) - tensor.to(wide)).abs().max()
            errors.append(float(distance) / scale)
        else:
            assert torch.equal(tensor, actual[name])
    return max(errors)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_divided_equals_undivided(name: str, ratio: str) -> None:
    model = divisible(captured(name))
    slices = shares_of(model.sharding, RATIOS[ratio])
    width = len(RATIOS[ratio])
    tensors, symbols = inputs(model)
    results, programs, done = run_divided(model, slices, width, tensors, symbols)
    expected = undivided(model, tensors, symbols)
    joins = sum(len(r.joins) for r in model.sharding.regions if r.name in slices)
    assert joins
    assert done == [joins] * width
    for rank, found in enumerate(results):
        assert worst(expected, found) < 1e-5, f"rank {rank}"
    whole = sum(port.num_bytes for port in model.cutter.whole().weights)
    assert all(sum(p.num_bytes for p in program.weights) < whole for program in programs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_in_double_precision_nothing_but_rounding_differs(name: str) -> None:
    model = divisible(captured(name), double=True)
    slices = shares_of(model.sharding, (5, 3))
    tensors, symbols = inputs(model)
    results, _, _ = run_divided(model, slices, 2, tensors, symbols)
    assert worst(undivided(model, tensors, symbols), results[1]) < 1e-12


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
def test_in_bfloat16_parts_are_as_close_as_verify_asks(name: str) -> None:
    model = divisible(captured_in(name, torch.bfloat16))
    assert model.captured.graph.dtype == "bfloat16"
    slices = shares_of(model.sharding, (5, 3))
    tensors, symbols = inputs(model)
    results, programs, _ = run_divided(model, slices, 2, tensors, symbols)
    error = worst(undivided(model, tensors, symbols), results[1])
    assert any(port.shard for port in programs[1].weights)
    # Terms are rounded to 8 bits before they are added: about 2 ** -8 for every join on the way.
    assert 0 < error < tolerance(torch.bfloat16)


@pytest.mark.parametrize("name", MEGATRON)
def test_as_many_joins_as_megatron(name: str) -> None:
    regions = captured(name).sharding.regions
    beyond = [r for r in regions if r.name in BEYOND.get(name, [])]
    assert [r.name for r in beyond] == BEYOND.get(name, [])
    assert all(len(r.joins) == 1 for r in beyond)
    assert sum(len(r.joins) for r in regions) - len(beyond) == MEGATRON[name]


def region(name: str, which: str) -> SliceRegion:
    return next(r for r in captured(name).sharding.regions if r.name == which)


def test_units_are_key_heads_with_their_queries() -> None:
    found = region("llama", "model.layers.0.self_attn")
    assert (found.axis, found.units) == ("heads", 2)  # of 4 query heads
    assert found.divided == 1.0


def test_fused_projections_hold_every_head_in_each_part() -> None:
    found = region("gpt2", "transformer.h.0.attn")
    parts = {w.weight.split(".attn.")[1]: (w.dim, w.parts) for w in found.weights}
    assert parts["c_attn.weight"] == (1, 3)
    assert parts["c_proj.weight"] == (0, 1)


def test_experts_are_divided_inside_and_their_router_is_not() -> None:
    made = captured("mixtral")
    found = region("mixtral", "model.layers.0.mlp")
    assert {w.weight.rpartition(".")[2] for w in found.weights} == {"gate_up_proj", "down_proj"}
    assert found.units == 48
    # The sum over a token's experts comes before the join.
    assert found.joins[0].shape == ("12*batch", 32)
    assert made.sharding.why_not("model.layers.0.mlp") is None


def test_layers_that_are_not_divided_say_what_was_tried() -> None:
    sharding = captured("vit").sharding
    reason = sharding.why_not("classifier")
    assert reason is not None
    assert "by its columns" in reason
    assert "needs it whole" in reason
    counter = captured("scanned").sharding
    assert "no rule" in str(counter.why_not("cell"))


def test_regions_are_part_of_the_graph_and_survive_writing() -> None:
    graph = captured("bert").graph
    assert graph.regions == captured("bert").sharding.regions
    again = ModelGraph.model_validate_json(graph.model_dump_json(exclude_none=True))
    assert again.regions == graph.regions
    equal = {r.twin for r in graph.regions if r.axis == "heads"}
    assert len(equal) == 1  # three layers alike


@pytest.mark.parametrize(
    ("units", "says"),
    [((4, 0), "every rank one or more"), ((1, 1), "4 in all"), ((3, 2), "4 in all")],
)
def test_units_that_do_not_add_up_are_refused(units: tuple[int, ...], says: str) -> None:
    made = captured("bert")
    slices = {"bert.encoder.layer.0.attention": units}
    with pytest.raises(InvalidInputError, match=says):
        sliced(made.cutter.whole(), made.sharding, slices, 0)


def test_a_region_cut_by_a_stage_boundary_is_refused() -> None:
    made = captured("bert")
    part = made.cutter.part(["bert.encoder.layer.0.attention.self"])
    with pytest.raises(InvalidInputError, match=r"lacks its layer .*output\.dense"):
        sliced(part, made.sharding, {"bert.encoder.layer.0.attention": (2, 2)}, 0)


@pytest.mark.parametrize("name", [n for n in zoo.AWKWARD if n not in ("counter", "cache")])
def test_awkward_models_divide_rightly_or_not_at_all(name: str) -> None:
    model = divisible(captured(name))
    slices = shares_of(model.sharding, (5, 3))
    static = captured(name).graph.static_batch
    tensors, symbols = inputs(model, static or 3)
    results, _, _ = run_divided(model, slices, 2, tensors, symbols)
    expected = undivided(model, tensors, symbols)
    limit = 3e-2 if name == "bfloat16" else 1e-5
    assert worst(expected, results[0]) < limit


def test_a_region_that_cannot_be_written_down_is_left_out() -> None:
    made = captured("bert")
    name = "bert.encoder.layer.0.attention"
    view = next(
        n for n, node in made.sharding.facts.nodes.items() if node.op == "aten.view.default"
    )
    outcome = made.sharding.outcome
    # As if the rule for this view had put its heads into the wrong place.
    wrong = NodePlan(uses=outcome.plans[view].uses, scaled=(Scaled(1, 3, 8),))
    broken = replace(made.sharding, outcome=replace(outcome, plans={**outcome.plans, view: wrong}))
    left = only_sound(broken, made.cutter)
    assert name not in left.position
    assert "leave its region whole" in str(left.why_not("bert.encoder.layer.0.attention.self"))
    assert "bert.encoder.layer.0" in left.position


class Einsums(nn.Module):
    """Attention as people write it by hand: sums over letters, softmax in between."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(6, 4, 16) / 4) for _ in range(3))
        self.out = nn.Parameter(torch.randn(6, 4, 16) / 4)
        self.slopes = nn.Parameter(torch.randn(6, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (torch.einsum("btd,hkd->bhtk", x, w) for w in (self.q, self.k, self.v))
        scores = torch.einsum("bhtk,bhsk->bhts", q, k) * self.slopes
        mixed = torch.einsum("bhts,bhsk->bhtk", scores.softmax(-1), v)
        return x + torch.einsum("bhtk,hkd->btd", mixed, self.out)


class OneKeyHead(nn.Module):
    """Six query heads share one key head, which every rank computes."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 24), nn.Linear(12, 4), nn.Linear(12, 4)
        self.out = nn.Linear(24, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, 6, 4).transpose(1, 2)
        k, v = (w(x).view(b, t, 1, 4).transpose(1, 2).expand(b, 6, t, 4) for w in (self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(b, t, 24))


class FusedUnbound(nn.Module):
    """Query, key and value from one weight, taken apart by ``unbind``."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 72), nn.Linear(24, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, 6, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) / 2).softmax(dim=-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(b, t, 24))


class FusedGate(nn.Module):
    """A gate and what it lets through, from one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 24, bias=False), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.up(x)
        return x + self.down(F.silu(wide[..., :12]) * wide[..., 12:])


class ListedExperts(nn.Module):
    """Every expert computes every token; a router weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 3)
        self.up = nn.ModuleList(nn.Linear(8, 16) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(16, 8, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.router(x).softmax(-1)
        total = self.down[0](F.gelu(self.up[0](x))) * weight[..., 0:1]
        for i in (1, 2):
            total = total + self.down[i](F.gelu(self.up[i](x))) * weight[..., i : i + 1]
        return x + total


class Inverted(nn.Module):
    """Wide, by channel, narrow again; channels squeezed and weighed in between."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(4, 12, 1), nn.Conv2d(12, 4, 1)
        self.each = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.norm = nn.GroupNorm(6, 12)
        self.less, self.more = nn.Conv2d(12, 3, 1), nn.Conv2d(3, 12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.silu(self.norm(self.each(F.silu(self.wide(x)))))
        weight = torch.sigmoid(self.more(F.silu(self.less(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.narrow(y * weight)


@pytest.mark.parametrize(
    ("module", "shape", "axis", "units", "joins"),
    [
        (Einsums, (5, 16), "heads", 6, 1),
        (OneKeyHead, (5, 12), "heads", 6, 1),
        (FusedUnbound, (5, 12), "heads", 6, 1),
        (FusedGate, (8,), "features", 12, 1),
        (ListedExperts, (8,), "features", 16, 1),
        (Inverted, (4, 6, 6), "channels", 6, 2),
    ],
)
def test_other_ways_to_write_a_layer(
    module: Callable[[], nn.Module], shape: tuple[int, ...], axis: str, units: int, joins: int
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = capture(load_model(module().eval(), torch.randn(2, *shape)))
    model = divisible(made)
    (found,) = (r for r in made.sharding.regions if any(j.how == "sum" for j in r.joins))
    assert (found.axis, found.units, len(found.joins)) == (axis, units, joins)
    tensors, symbols = inputs(model)
    results, _, _ = run_divided(model, shares_of(model.sharding, (5, 3)), 2, tensors, symbols)
    assert worst(undivided(model, tensors, symbols), results[0]) < 1e-5
