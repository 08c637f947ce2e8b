"""Captured models compute what their modules compute, whole and in any parts."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys

import pytest
import torch
from torch.utils import _pytree as pytree

from profiler.capture import Captured, capture
from profiler.errors import InvalidInputError, UnsupportedModelError
from profiler.program import StageProgram
from profiler.sources import Example, load_model
from tests.support import zoo
from tests.support.captures import APPROXIMATE, captured, undivided
from tests.support.cutting import build, random_parts, resized, run_parts, same

SIZES = {"fixed_batch": (3,), "batch_of_one_only": (1,), "no_batch": (1,)}
"""Items that a model takes, where not any number."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # Bit for bit: kernels add in an order that depends on the number of threads.
    torch.set_num_threads(1)


def module_of(made: Captured) -> torch.nn.Module:
    assert made.source.module is not None
    return made.source.module


@pytest.mark.parametrize("name", zoo.CAPTURABLE)
def test_parts_equal_the_module(name: str) -> None:
    made = captured(name)
    rng = random.Random(name)
    for items in SIZES.get(name, (1, 2, 5)):
        args, kwargs = resized(made, items)
        expected = undivided(module_of(made), args, kwargs)
        for num_parts in (1, 2, 3, len(made.graph.layers)):
            parts = random_parts(made, rng, num_parts=num_parts)
            answer = run_parts(made, parts, args, kwargs)
            if name in APPROXIMATE:
                torch.testing.assert_close(answer, expected)
            else:
                assert same(expected, answer) is None, f"{items} items, parts {parts}"


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "whisper", "clip"])
def test_a_program_from_a_directory_s_lengths_takes_other_lengths(name: str) -> None:
    module, example = zoo.HUGGING_FACE[name]()
    lengths = {
        key: {1: "decoder_length" if key.startswith("decoder") else "length"}
        for key in ("input_ids", "attention_mask", "decoder_input_ids")
        if key in example
    }
    made = capture(load_model(module, Example(kwargs=example, dynamic_dims=lengths)))
    longer = {
        key: torch.cat([value, value[:, :3]], dim=1) if key in lengths else value
        for key, value in example.items()
    }
    parts = random_parts(made, random.Random(0), num_parts=3)
    answer = run_parts(made, parts, (), longer)
    assert made.graph.captured_by == "torch.export, dynamic batch and lengths"
    assert same(undivided(module, (), longer), answer) is None


@pytest.mark.parametrize("name", zoo.CAPTURABLE)
def test_stage_programs_survive_json(name: str) -> None:
    made = captured(name)
    for layers in random_parts(made, random.Random(name), num_parts=3):
        program = made.cutter.part(layers)
        text = json.dumps(program.to_data(), allow_nan=False)
        again = StageProgram.from_data(json.loads(text))
        assert json.dumps(again.to_data()) == text
        assert again.inputs == program.inputs
        assert again.weights == program.weights


def test_a_stage_read_from_json_computes_the_same() -> None:
    made = captured("bert")
    layers = [layer.name for layer in made.graph.layers]
    program = made.cutter.part(layers)
    again = StageProgram.from_data(json.loads(json.dumps(program.to_data())))
    args, kwargs = resized(made, 3)
    tensors = [kwargs[name] for name in program.inputs]
    sizes = [3 if size == "batch" else int(size) for _, size in program.sizes]
    first = build(made, program)(*tensors, *sizes)
    second = build(made, again)(*tensors, *sizes)
    assert args == ()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["resnet50", "bert", "tied_weights", "mixtral"])
def test_a_stage_holds_only_its_own_weights(name: str) -> None:
    made = captured(name)
    held_together = 0
    for layers in random_parts(made, random.Random(1), num_parts=4):
        program = made.cutter.part(layers)
        used = {ref for node in program.nodes for ref in node.references()}
        assert {port.name for port in program.weights} <= used
        module = build(made, program)
        held = [*module.parameters(), *module.buffers()]
        own = sum(t.numel() * t.element_size() for t in held)
        assert own == sum(port.num_bytes for port in program.weights)
        held_together += own
    # Tied weights and the prelude's constants may be held twice, the rest once.
    assert held_together <= 1.7 * made.graph.total_weight_bytes
    assert held_together >= made.graph.total_weight_bytes


def test_tied_weights_are_one_weight_of_the_graph() -> None:
    graph = captured("tied_weights").graph
    (tied,) = [weight for weight in graph.weights if weight.tied]
    users = [layer.name for layer in graph.layers if tied.name in layer.weights]
    assert (tied.name, tied.tied) == ("table.weight", ("head.weight",))
    assert tied.num_bytes == 40 * 8 * 4
    assert users == ["table", "head"]
    assert graph.total_weight_bytes == 40 * 8 * 4 + 3 * (64 + 8) * 4


@pytest.mark.parametrize("name", ["counter", "cache"])
def test_buffers_that_the_model_changes_are_state(name: str) -> None:
    graph = captured(name).graph
    (state,) = [weight for weight in graph.weights if weight.state]
    assert len([layer for layer in graph.layers if state.name in layer.weights]) == 1


def test_capturing_leaves_state_and_mode_of_buffers_alone() -> None:
    module, example = zoo.counter()
    made = capture(load_model(module, example))
    layers = [[layer.name for layer in made.graph.layers]]
    run_parts(made, layers, (example,), {})
    assert float(module.calls) == 0.0


def test_constants_of_the_answer_keep_their_types() -> None:
    made = captured("constants_in_output")
    args, kwargs = resized(made, 5)
    answer = run_parts(made, [[x.name for x in made.graph.layers]], args, kwargs)
    value = answer.pop("value")
    assert value.shape == (5, 8)
    assert answer == {
        "none": None, "three": 3, "text": "kept", "half": 0.5, "true": True, "items": 5
    }  # fmt: skip


def test_an_answer_is_of_the_model_s_own_class() -> None:
    made = captured("dataclass_output")
    args, kwargs = resized(made, 2)
    answer = run_parts(made, [[x.name for x in made.graph.layers]], args, kwargs)
    assert isinstance(answer, zoo.Answer)
    hugging_face = captured("bert")
    args, kwargs = resized(hugging_face, 2)
    answer = run_parts(hugging_face, [[x.name for x in hugging_face.graph.layers]], args, kwargs)
    assert type(answer).__name__ == "MaskedLMOutput"


def test_inputs_shared_by_all_items_have_no_batch_dim() -> None:
    tensors = captured("shared_input").graph.tensor
    assert tensors["x"].batch_dim == 0
    assert tensors["scale"].batch_dim is None
    assert not tensors["scale"].per_batch


def test_a_batch_dim_may_be_any_dim() -> None:
    graph = captured("transformer_sequence_first").graph
    assert {graph.tensor[name].batch_dim for name in (*graph.inputs, *graph.outputs)} == {1}


def test_values_over_pairs_of_items_belong_to_the_batch() -> None:
    graph = captured("batch_similarity").graph
    square, mean = (graph.tensor[name] for name in graph.outputs)
    assert (square.batch_dim, square.per_batch) == (None, True)
    assert (mean.batch_dim, mean.per_batch) == (None, True)


def test_a_batch_of_one_is_still_dynamic() -> None:
    made = captured("one_item_example")
    assert made.graph.static_batch is None
    assert made.graph.tensor["x"].shape == ("batch", 8)


@pytest.mark.parametrize(
    ("name", "items"), [("batch_of_one_only", 1), ("no_batch", 1), ("fixed_batch", 3)]
)
def test_a_model_that_fixes_its_batch_is_captured_for_that_batch(name: str, items: int) -> None:
    graph = captured(name).graph
    assert graph.static_batch == items
    assert graph.symbols["batch"] == items
    assert {tensor.batch_dim for tensor in graph.tensors} == {None}


FINGERPRINTS = """
import sys
from tests.support.captures import captured
for name in sys.argv[1:]:
    graph = captured(name).graph
    print(name, graph.content_digest(), graph.fingerprint)
"""


def test_graphs_are_equal_in_every_process() -> None:
    names = ["resnet50", "in_place_residual", "view_before_change", "t5"]
    # Sets of text iterate in another order under another seed.
    other = subprocess.run(
        [sys.executable, "-c", FINGERPRINTS, *names],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = "".join(
        f"{n} {captured(n).graph.content_digest()} {captured(n).graph.fingerprint}\n" for n in names
    )
    assert other.stdout == here


def test_fingerprints_do_not_depend_on_weights() -> None:
    module, example = zoo.mlp()
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    assert fingerprint(module, example) == fingerprint(other, example)


CHANGES = {
    "activation": lambda m: m.__setitem__(1, torch.nn.GELU()),
    "width": lambda m: m.__setitem__(6, torch.nn.Linear(16, 5)),
    "bias": lambda m: m.__setitem__(4, torch.nn.Linear(16, 16, bias=False)),
    "one layer more": lambda m: m.append(torch.nn.ReLU()),
    "dtype": lambda m: m.double(),
    "order": lambda m: m.insert(0, m.pop(1)),
    "slope": lambda m: m.__setitem__(1, torch.nn.LeakyReLU(0.1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprints_of_changed_models_differ(change: str) -> None:
    module, example = zoo.mlp()
    other = copy.deepcopy(module)
    CHANGES[change](other)
    cast = example.double() if change == "dtype" else example
    assert fingerprint(module, example) != fingerprint(other, cast)


def test_a_constant_s_value_is_part_of_what_runs() -> None:
    # Not of the fingerprint (it is data), but it must come from the module at hand.
    module, example = zoo.cache()
    made = capture(load_model(module, example))
    assert set(made.constants) == {"held"}


def fingerprint(module: torch.nn.Module, example: object) -> str:
    return capture(load_model(module, example)).graph.fingerprint


@pytest.mark.parametrize(
    ("name", "reason"),
    [("control_flow", "data-dependent"), ("number_returned", "depends on data")],
)
def test_what_cannot_be_captured_is_explained(
    name: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    module, example = zoo.UNCAPTURABLE[name]()
    with pytest.raises(UnsupportedModelError, match=reason):
        capture(load_model(module, example))
    assert capfd.readouterr() == ("", "")


def test_the_line_that_cannot_be_captured_is_named() -> None:
    module, example = zoo.UNCAPTURABLE["control_flow"]()
    with pytest.raises(UnsupportedModelError, match=r"if float\(y\.sum\(\)\) > 0"):
        capture(load_model(module, example))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example(args=(torch.ones(2, 8), torch.ones(2, 8))), "do not fit Sequential.forward"),
        (Example(kwargs={"unknown": torch.ones(2, 8)}), "do not fit Sequential.forward"),
        (Example(args=(3,)), "hold no tensor"),
        (Example(args=(torch.ones(0, 8),)), "batch is empty"),
        (Example(args=(torch.ones(2, 8),), batch_dims={"y": 0}), "batch_dims names 'y'"),
        (Example(args=(torch.ones(2, 8),), batch_dims={"input": 2}), "has no dim 2"),
        (
            Example(args=(torch.ones(2, 8),), dynamic_dims={"y": {0: "n"}}),
            "dynamic_dims names 'y'",
        ),
        (
            Example(args=(torch.ones(2, 8),), dynamic_dims={"input": {5: "n"}}),
            "has no dim 5",
        ),
        (
            Example(args=(torch.ones(2, 8),), dynamic_dims={"input": {1: "not a name"}}),
            "'not a name'",
        ),
    ],
)
def test_examples_that_cannot_be_right_are_refused(example: Example, message: str) -> None:
    module, _ = zoo.mlp()
    with pytest.raises(InvalidInputError, match=message):
        capture(load_model(module, example))


def test_examples_that_disagree_on_items_are_refused() -> None:
    module, _ = zoo.keyword_only()
    example = Example(
        kwargs={"x": torch.ones(2, 8), "gain": torch.ones(3, 8)}, batch_dims={"x": 0, "gain": 0}
    )
    with pytest.raises(InvalidInputError, match="disagree on the number of items"):
        capture(load_model(module, example))


def test_outputs_of_the_graph_cover_the_answer() -> None:
    made = captured("nested_output")
    leaves = pytree.tree_flatten(undivided(module_of(made), *resized(made, 2)))[0]
    assert len(leaves) == len(made.encoded.program.outputs)
