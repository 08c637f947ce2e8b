"""The plans that Hugging Face models bring along, beside what is found in the captured program."""

from __future__ import annotations

import pytest

from profiler.capture import Captured, capture
from profiler.hints import disagreements, read_hints
from profiler.sources import load_model
from tests.support import zoo

pytest.importorskip("transformers")


def captured(name: str) -> Captured:
    module, example = getattr(zoo, name)()
    return capture(load_model(module, example))


def shapes_of(found: Captured) -> dict[str, tuple[int, ...]]:
    return {port.weight: port.shape for port in found.encoded.program.weights}


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral"])
def test_models_own_plans_agree_with_the_program(name: str) -> None:
    found = captured(name)
    styles, order = read_hints(found.source.module)
    assert "colwise" in styles.values()
    assert "rowwise" in styles.values()
    assert order == ("embed_tokens", "layers", "norm")
    assert list(disagreements(found.graph, shapes_of(found), found.source.module)) == []
    assert not [note for note in found.graph.notes if "own" in note]


def test_what_differs_is_noted_and_no_more() -> None:
    found = captured("llama")
    module = found.source.module
    assert module is not None
    module.config.base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "rowwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.input_layernorm": "colwise",
        "norm": "sequence_parallel",
    }
    module.config.base_model_pp_plan = {"norm": ([], []), "layers": ([], [])}
    notes = list(disagreements(found.graph, shapes_of(found), module))
    assert len(notes) == 2
    assert "cuts dim 1 of model.layers.0.self_attn.q_proj.weight (rowwise)" in notes[0]
    assert "the captured program dim 0" in notes[0]
    assert "norm, layers in this order" in notes[1]


def test_models_without_plans_have_no_hints() -> None:
    assert read_hints(zoo.mlp()[0]) == ({}, ())
