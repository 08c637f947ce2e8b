"""Directories in Hugging Face form: captured without their weights, filled like from_pretrained."""

from __future__ import annotations

import json
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from profiler.capture import Captured, capture
from profiler.errors import InvalidInputError, UnsupportedModelError
from profiler.huggingface import load_directory, load_whole
from profiler.sources import Example, load_model
from tests.support import zoo
from tests.support.captures import undivided
from tests.support.checkpoints import checkpoint
from tests.support.cutting import resized, run_parts, same

_captured: dict[str, Captured] = {}


def captured(name: str) -> Captured:
    if name not in _captured:
        _captured[name] = capture(load_model(str(checkpoint(name))))
    return _captured[name]


@pytest.mark.parametrize("name", zoo.HUGGING_FACE)
def test_every_parameter_is_filled_as_transformers_fills_it(name: str) -> None:
    source = load_directory(checkpoint(name))
    whole = load_whole(checkpoint(name))
    for parameter, expected in whole.named_parameters(remove_duplicate=False):
        value = torch.full_like(expected, float("nan"))
        source.weights.fill(source.aliases.get(parameter, parameter), value)
        assert torch.equal(value, expected), parameter


@pytest.mark.parametrize("name", zoo.HUGGING_FACE)
def test_the_captured_directory_computes_what_the_loaded_model_computes(name: str) -> None:
    torch.set_num_threads(1)
    made = captured(name)
    args, kwargs = resized(made, 3)
    parts = [[layer.name] for layer in made.graph.layers]
    expected = undivided(load_whole(checkpoint(name)), args, kwargs)
    assert same(expected, run_parts(made, parts, args, kwargs)) is None


@pytest.mark.parametrize("name", ["llama", "mixtral", "t5"])
def test_no_weight_is_read_to_capture(name: str, tmp_path: Path) -> None:
    directory = shutil.copytree(checkpoint(name), tmp_path / "model")
    for file in directory.glob("*.safetensors"):
        hide_tensors(file)
    made = capture(load_model(str(directory)))
    assert made.graph.fingerprint == captured(name).graph.fingerprint
    value = torch.empty(99, 32)
    made.source.weights.fill(made.stored_as["lm_head.weight"], value)
    assert not value.any(), "the tensors are hidden: what is read now is zero"


def hide_tensors(file: Path) -> None:
    """Keep the header; where the tensors were, a hole of the same size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        head += stream.read(struct.unpack("<Q", head)[0])
    with file.open("wb") as stream:
        stream.write(head)
        stream.truncate(size)


def test_a_model_larger_than_memory_is_captured(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=64_000,
        hidden_size=8192,
        intermediate_size=28_672,
        num_hidden_layers=8,
        num_attention_heads=64,
        num_key_value_heads=8,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    config.save_pretrained(tmp_path)
    total = sparse_checkpoint(config, tmp_path / "model.safetensors")
    assert total > 30e9
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    made = capture(load_model(str(tmp_path)))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert made.graph.total_weight_bytes >= total
    assert grown < 500e6


def sparse_checkpoint(config: object, file: Path) -> int:
    """A safetensors file with all of a Llama's tensors, none of which takes room on the disk."""
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        size = tensor.numel() * 4
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)
    return end


def test_half_precision_checkpoints_keep_their_dtype(tmp_path: Path) -> None:
    module, _ = zoo.llama()
    module.to(torch.bfloat16).save_pretrained(tmp_path)
    made = capture(load_model(str(tmp_path)))
    assert made.graph.dtype == "bfloat16"
    args, kwargs = resized(made, 2)
    expected = undivided(load_whole(tmp_path), args, kwargs)
    answer = run_parts(made, [[layer.name] for layer in made.graph.layers], args, kwargs)
    assert expected.logits.dtype == torch.bfloat16
    assert same(expected, answer) is None


def test_a_checkpoint_in_several_files(tmp_path: Path) -> None:
    module, _ = zoo.mixtral()
    module.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    # The same weights again in another form, as some directories have them: not to be read.
    save_file({"lm_head.weight": torch.zeros(99, 32)}, tmp_path / "z-consolidated.safetensors")
    source = load_directory(tmp_path)
    value = torch.empty(99, 32)
    source.weights.fill("lm_head.weight", value)
    assert torch.equal(value, module.lm_head.weight)


def test_a_given_example_is_taken(tmp_path: Path) -> None:
    example = Example(kwargs={"input_ids": torch.ones(3, 5, dtype=torch.long)})
    made = capture(load_model(str(checkpoint("llama")), example))
    assert made.graph.inputs == ("input_ids",)
    assert made.graph.tensor["input_ids"].shape == ("batch", 5)


def test_the_made_up_example_fits_short_models() -> None:
    graph = captured("whisper").graph
    assert graph.symbols["decoder_length"] <= 16
    assert captured("clip").graph.symbols["length"] <= 16


# --- what is wrong with a directory ------------------------------------------------------------


def without_files(directory: Path) -> None:
    for file in directory.glob("*.safetensors"):
        file.unlink()


def cut_short(directory: Path) -> None:
    (file,) = directory.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])


def not_safetensors(directory: Path) -> None:
    (file,) = directory.glob("*.safetensors")
    file.write_bytes(b"\x80\x04pickle, perhaps")


def empty_file(directory: Path) -> None:
    (file,) = directory.glob("*.safetensors")
    file.write_bytes(b"")


def without_a_weight(directory: Path) -> None:
    edit(directory, lambda tensors: tensors.pop("model.norm.weight"))


def without_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def broken_config(directory: Path) -> None:
    (directory / "config.json").write_text("{not json")


def listed_config(directory: Path) -> None:
    (directory / "config.json").write_text("[]")


def without_a_listed_file(directory: Path) -> None:
    (file,) = directory.glob("*.safetensors")
    file.rename(directory / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": file.name, "b": "model-00002-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def broken_index(directory: Path) -> None:
    (file,) = directory.glob("*.safetensors")
    file.rename(directory / "model-00001-of-00002.safetensors")
    (directory / "model.safetensors.index.json").write_text("{}")


def edit(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    (file,) = directory.glob("*.safetensors")
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata=metadata)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_files, r"has no \*\.safetensors file"),
        (cut_short, "is not a safetensors file, or it is cut short"),
        (not_safetensors, "is not a safetensors file, or it is cut short"),
        (empty_file, "is not a safetensors file, or it is cut short"),
        (without_a_weight, r"lacks 1 weights of LlamaForCausalLM, .*'model\.norm\.weight'"),
        (without_config, "has no config.json"),
        (broken_config, "is not a model config"),
        (listed_config, "is not a model config"),
        (without_a_listed_file, "lacks 2 of the 2 files"),
        (broken_index, "is not an index of weights"),
    ],
)
def test_damaged_directories_are_refused(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    directory = shutil.copytree(checkpoint("llama"), tmp_path / "model")
    damage(directory)
    with pytest.raises(InvalidInputError, match=message):
        load_model(str(directory))


def test_a_weight_of_another_shape_is_refused_when_it_is_read(tmp_path: Path) -> None:
    directory = shutil.copytree(checkpoint("llama"), tmp_path / "model")
    edit(directory, lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}))
    source = load_directory(directory)
    with pytest.raises(InvalidInputError, match=r"of shape \[31\], the model needs \[32\]"):
        source.weights.fill("model.norm.weight", torch.empty(32))


def test_a_missing_expert_is_no_half_filled_weight(tmp_path: Path) -> None:
    directory = shutil.copytree(checkpoint("mixtral"), tmp_path / "model")
    (file,) = directory.glob("*.safetensors")
    with safe_open(file, framework="pt") as opened:
        stored = [k for k in opened.keys() if ".experts.3.w2" in k]  # noqa: SIM118
    assert stored, "experts are stored one by one"
    edit(directory, lambda tensors: [tensors.pop(key) for key in stored])
    source = load_directory(directory)
    name = "model.layers.0.mlp.experts.down_proj"
    shape = dict(source.module.named_parameters())[name].shape  # type: ignore[union-attr]
    with pytest.raises(InvalidInputError, match="make up 3 rows, the model needs 4"):
        source.weights.fill(name, torch.empty(shape))


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    directory = shutil.copytree(checkpoint("llama"), tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "architectures": ["Remote"]}))
    with pytest.raises(UnsupportedModelError, match="no architecture 'Remote'"):
        load_model(str(directory))


def test_code_that_comes_with_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    directory = shutil.copytree(checkpoint("llama"), tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    config |= {"architectures": ["Evil"], "auto_map": {"AutoModel": "evil.Evil"}}
    config["model_type"] = "evil"
    (directory / "config.json").write_text(json.dumps(config))
    marker = tmp_path / "was-run"
    (directory / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    with pytest.raises(InvalidInputError):
        load_model(str(directory))
    assert not marker.exists()
