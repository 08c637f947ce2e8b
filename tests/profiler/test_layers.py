"""How operators are grouped: nothing lost, nothing doubled, names people can use."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import nn

from profiler.capture import Captured, capture
from profiler.operators import is_random
from profiler.sources import load_model
from tests.support import zoo
from tests.support.captures import captured


def layers_of(name: str) -> list[str]:
    return [layer.name for layer in captured(name).graph.layers]


@pytest.mark.parametrize("name", zoo.CAPTURABLE)
def test_every_operator_is_in_one_layer_or_in_the_prelude(name: str) -> None:
    made = captured(name)
    grouped = [node for group in made.layering.groups for node in group.nodes]
    numbers = {node.name for node in made.encoded.program.nodes if node.size is not None}
    assert len(grouped) == len(set(grouped))
    assert not set(grouped) & made.layering.prelude
    everything = {*grouped, *made.layering.prelude, *numbers}
    assert everything == {node.name for node in made.encoded.program.nodes}


@pytest.mark.parametrize("name", zoo.CAPTURABLE)
def test_names_are_distinct_and_none_begins_another(name: str) -> None:
    names = layers_of(name)
    assert len(set(names)) == len(names)
    begun = {n.rsplit(".", k)[0] for n in names for k in range(1, n.count(".") + 1)}
    assert not begun & set(names)


@pytest.mark.parametrize("name", zoo.CAPTURABLE)
def test_layers_form_no_cycle_and_stand_in_order(name: str) -> None:
    graph = captured(name).graph
    assert nx.is_directed_acyclic_graph(graph.digraph)
    assert all(source < target for source, target in graph.digraph.edges)


@pytest.mark.parametrize("name", zoo.CAPTURABLE)
def test_the_prelude_depends_on_inputs_alone(name: str) -> None:
    made = captured(name)
    free = {port.name for port in made.encoded.program.inputs}
    free |= {port.name for port in made.encoded.program.weights if port.constant}
    free |= {node.name for node in made.encoded.program.nodes if node.size is not None}
    outputs = {leaf.value for leaf in made.encoded.program.outputs}
    for node in made.encoded.program.nodes:
        if node.name in made.layering.prelude:
            assert set(node.references()) <= free | made.layering.prelude
            assert not is_random(made.encoded.origins[node.name].target)
            assert node.name not in outputs


@pytest.mark.parametrize("name", zoo.CAPTURABLE)
def test_twins_have_equal_operators_and_shapes(name: str) -> None:
    made = captured(name)
    shapes: dict[str, object] = {}
    for layer in made.graph.layers:
        part = made.cutter.part([layer.name], prelude=False)
        shape = (
            [node.op for node in part.nodes],
            [made.cutter.spec(n) for n in (*part.inputs, *part.outputs)],
            [(port.shape, port.dtype) for port in part.weights],
        )
        assert shapes.setdefault(layer.twin, shape) == shape


def test_equal_blocks_are_twins() -> None:
    by_name = {layer.name: layer.twin for layer in captured("llama").graph.layers}
    assert by_name["model.layers.0.self_attn"] == by_name["model.layers.2.self_attn"]
    assert by_name["model.layers.0.mlp"] == by_name["model.layers.1.mlp"]
    assert by_name["model.layers.0.mlp"] != by_name["model.layers.0.self_attn"]


def test_other_widths_dtypes_and_constants_are_no_twins() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.c, self.d = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.nn.functional.leaky_relu(self.a(x), 0.1)
            x = torch.nn.functional.leaky_relu(self.b(x), 0.2)
            return self.d(torch.tanh(self.c(x)))

    graph = capture(load_model(Other(), torch.randn(2, 8))).graph
    assert len({layer.twin for layer in graph.layers}) == len(graph.layers) == 4


def test_names_are_those_of_the_modules() -> None:
    assert layers_of("mlp") == ["0", "2", "4", "6"]
    assert layers_of("called_twice") == ["shared", "between", "shared@1"]
    assert layers_of("tied_weights") == ["table", "body.a", "body.b", "body.c", "head"]
    assert layers_of("llama") == [
        "model.embed_tokens",
        *(f"model.layers.{i}.{part}" for i in range(3) for part in ("self_attn", "mlp")),
        "model.norm",
        "lm_head",
    ]


def test_a_convolution_takes_its_norm_and_activation_along() -> None:
    by_name = {layer.name: layer for layer in captured("resnet50").graph.layers}
    assert len(by_name) == 54  # 53 convolutions and the classifier
    stem = by_name["conv1"]
    assert stem.module_type == "Conv2d"
    assert set(stem.modules) == {"conv1", "bn1", "relu", "maxpool"}


def test_a_module_s_own_operators_are_named_after_the_operator() -> None:
    # clip compares text with images in the top module's own forward.
    last = captured("clip").graph.layers[-1]
    assert (last.name, last.module_type) == ("matmul", "matmul")


def test_a_model_without_modules_inside_is_one_layer() -> None:
    (only,) = captured("no_parameters").graph.layers
    assert only.name == "forward"
    assert only.weights == ()


def test_masks_are_repeated_rather_than_sent() -> None:
    made = captured("bert")
    users = [layer.name for layer in made.graph.layers if layer.uses_prelude]
    assert users == [f"bert.encoder.layer.{i}.attention.self" for i in range(3)]
    assert all("attention_mask" in x.reads for x in made.graph.layers if x.uses_prelude)
    written = {name for layer in made.graph.layers for name in layer.writes}
    assert not written & made.layering.prelude


def test_work_shared_by_two_layers_on_a_small_input_is_sent_when_it_grows() -> None:
    class Grown(nn.Module):
        """A wide table made from one number an item: cheaper to repeat than to send."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            wide = scale * torch.arange(64.0)
            return self.b(torch.tanh(self.a(x)) * wide) * wide

    made = capture(load_model(Grown(), (torch.randn(2, 64), torch.randn(2, 1))))
    assert len(made.layering.prelude) == 2
    assert [layer.name for layer in made.graph.layers] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "together"),
    [
        ("view_before_change", {"a", "b", "c"}),
        ("written_slices", {"a", "b", "c"}),
        ("alias_returned_then_changed", {"a", "b"}),
        ("data_dependent", {"chosen.inner", "before"}),
    ],
)
def test_what_memory_or_data_ties_together_is_one_layer(name: str, together: set[str]) -> None:
    assert any(
        together <= set(layer.modules) | {layer.name} for layer in captured(name).graph.layers
    )


def test_changes_in_place_that_nobody_else_sees_cut_nothing() -> None:
    assert len(layers_of("in_place_residual")) == 3
    assert len(layers_of("counter")) == 3


def test_state_stays_with_all_who_read_it() -> None:
    class Shared(nn.Module):
        """Two layers read and change one buffer."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
            self.register_buffer("total", torch.zeros(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            self.total.add_(1.0)
            y = self.b(y + self.total)
            return self.c(y) * self.total

    graph = capture(load_model(Shared(), torch.randn(2, 8))).graph
    assert len([layer for layer in graph.layers if "total" in layer.weights]) == 1


def test_random_operators_are_not_repeated() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            noise = torch.rand_like(x)
            return self.b(self.a(x) + noise) * noise

    made: Captured = capture(load_model(Noisy(), torch.randn(2, 8)))
    assert not made.layering.prelude
