"""A model directory in Hugging Face form: ``config.json`` and safetensors, no weights read.

The architecture is built with parameters that have shapes but no memory (fake tensors), so a model
larger than this machine can be captured on it. Buffers that are not in the checkpoint (rotary
frequencies, position tables) are real. Checkpoint names are mapped to parameters by transformers'
own conversion rules, which rename, and for mixtures of experts merge, what is stored.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from profiler.errors import InvalidInputError, UnsupportedModelError
from profiler.sources import Example, LoadedModel
from profiler.weights import Recipe, SafetensorsWeights, stored_keys

EXAMPLE_BATCH = 2
EXAMPLE_LENGTH = 64
"""Items and tokens of the example made for a directory, unless the model allows fewer."""


def load_directory(
    directory: Path, example: Example | None = None, *, length: int | None = None
) -> LoadedModel:
    """The model of a directory, ready to be captured, its weights left on disk.

    Without ``example``, inputs of ``length`` tokens (or as the model allows) are made.

    Raises:
        InvalidInputError: no readable config or safetensors; weights missing from the files.
        UnsupportedModelError: transformers is missing or does not know the architecture.
    """
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise InvalidInputError(f"{directory} has no config.json: it is not a model directory")
    try:
        import transformers
    except ImportError as error:
        raise UnsupportedModelError(
            f"{directory} needs transformers: pip install 'apportion[huggingface]'"
        ) from error
    config, architecture = _read_config(transformers, directory, config_file)
    with _parameters_on_meta():
        try:
            model = architecture._from_config(config)
        except Exception as error:
            raise UnsupportedModelError(
                f"{architecture.__name__} cannot be built from {config_file}: "
                f"{type(error).__name__}: {error}"
            ) from error
    model.eval()
    recipes = _recipes(model, directory)
    aliases = _aliases(model, recipes)
    missing = [
        name
        for name in dict(model.named_parameters(remove_duplicate=False))
        if aliases.get(name, name) not in recipes
    ]
    if missing:
        raise InvalidInputError(
            f"{directory} lacks {len(missing)} weights of {architecture.__name__}, "
            f"among them {missing[0]!r}; is the checkpoint complete, and of this architecture?"
        )
    chosen = example or _example_for(model, config, length)
    fake_parameters(model)
    return LoadedModel(
        kind="huggingface",
        ref=str(directory),
        name=architecture.__name__,
        module=model,
        exported=None,
        example=_without_cache(model, chosen),
        weights=SafetensorsWeights(recipes),
        has_weights=False,
        aliases=aliases,
    )


def load_whole(directory: Path) -> nn.Module:
    """The model with its weights, as transformers itself loads it: the reference of ``verify``."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    _, architecture = _read_config(transformers, directory, directory / "config.json")
    model: nn.Module = architecture.from_pretrained(directory, local_files_only=True)
    return model.eval()


def _read_config(transformers: Any, directory: Path, config_file: Path) -> tuple[Any, Any]:
    try:
        named = json.loads(config_file.read_text()).get("architectures") or []
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
    except (ValueError, OSError, KeyError, AttributeError) as error:
        raise InvalidInputError(f"{config_file} is not a model config: {error}") from error
    for name in named:
        if isinstance(getattr(transformers, name, None), type):
            return config, getattr(transformers, name)
    if named:
        raise UnsupportedModelError(
            f"this transformers ({transformers.__version__}) has no architecture {named[0]!r}; "
            "code shipped with a checkpoint is never run: use a factory instead"
        )
    try:
        mapped = transformers.AutoModel._model_mapping[type(config)]
    except KeyError as error:
        raise UnsupportedModelError(
            f"{config_file} names no architecture and its type has no default model"
        ) from error
    return config, mapped


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters made inside get no memory; buffers do, because their values are needed."""
    register: Any = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    changed: Any = nn.Module
    changed.register_parameter = register_on_meta
    try:
        yield
    finally:
        changed.register_parameter = register


def fake_parameters(model: nn.Module) -> None:
    """Turn meta parameters into fake ones on the processor, tied ones into one."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in made:
                with mode:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                    made[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]


def _recipes(model: Any, directory: Path) -> dict[str, Recipe]:
    """How each weight of the model is made from what the files store."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    logging.getLogger("transformers").setLevel(logging.ERROR)
    files = stored_keys(directory)
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {p: rule for rule in converters for p in rule.source_patterns}
    state = model.state_dict()
    recipes: dict[str, Recipe] = {}
    merged: dict[str, tuple[Any, dict[str, list[Recipe]]]] = {}
    for key in sorted(files, key=dot_natural_key):
        stored: Recipe = {"file": str(files[key]), "key": key}
        name, pattern = rename_source_key(
            key, renamings, converters, model.base_model_prefix, state
        )
        if name not in state and key in state:
            name, pattern = key, None
        if name not in state:
            continue
        if pattern is None:
            recipes[name] = stored
        else:
            parts = merged.setdefault(name, (by_pattern[pattern], {}))[1]
            parts.setdefault(pattern, []).append(stored)
    for name, (converter, parts) in merged.items():
        recipes.update(_converted(name, converter, parts))
    return recipes


def _converted(name: str, converter: Any, parts: dict[str, list[Recipe]]) -> dict[str, Recipe]:
    """The recipe of a weight that is stored in pieces, or of several stored as one."""
    groups = [parts[pattern] for pattern in converter.source_patterns if pattern in parts]
    for operation in converter.operations:
        kind = type(operation).__name__
        if kind == "MergeModulelist":
            groups = [[{"op": "stack", "dim": operation.dim, "parts": group}] for group in groups]
        elif kind == "Concatenate":
            flat = [part for group in groups for part in group]
            groups = [[{"op": "concat", "dim": operation.dim, "parts": flat}]]
        elif kind == "Transpose":
            dims = [operation.dim0, operation.dim1]
            groups = [
                [{"op": "transpose", "dims": dims, "parts": [p]} for p in group] for group in groups
            ]
        elif kind == "Chunk" and len(groups) == 1 and len(groups[0]) == 1:
            targets = converter.target_patterns
            first = next(t for t in targets if t in name)
            return {
                name.replace(first, target): {
                    "op": "chunk",
                    "dim": operation.dim,
                    "chunks": len(targets),
                    "index": index,
                    "parts": groups[0],
                }
                for index, target in enumerate(targets)
            }
        else:
            raise UnsupportedModelError(
                f"weight {name} is stored in a form that needs {kind}, which is not supported; "
                "load the model in a factory (package.module:factory) instead"
            )
    if len(groups) != 1 or len(groups[0]) != 1:
        raise UnsupportedModelError(
            f"weight {name} is made of {sum(map(len, groups))} stored tensors in a way that is not "
            "supported; load the model in a factory (package.module:factory) instead"
        )
    return {name: groups[0][0]}


def _aliases(model: nn.Module, recipes: dict[str, Recipe]) -> dict[str, str]:
    """For each tied name, the name of its group under which a value is stored."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    aliases = {}
    for names in groups.values():
        stored = next((name for name in names if name in recipes), names[0])
        aliases.update({name: stored for name in names})
    return aliases


def _example_for(model: nn.Module, config: Any, wanted: int | None) -> Example:
    """Inputs for a model known only by its config: ids, pixels or features, as its kind takes."""
    main = getattr(model, "main_input_name", "input_ids")
    accepts = inspect.signature(model.forward).parameters
    text = getattr(config, "text_config", None) or config
    vision = getattr(config, "vision_config", None) or config
    limit = min(
        (
            value
            for key in ("max_position_embeddings", "n_positions", "max_target_positions")
            if isinstance(value := getattr(text, key, None), int) and value > 0
        ),
        default=2**20,
    )
    if wanted is not None and not 1 <= wanted <= limit:
        raise InvalidInputError(
            f"a length of {wanted} tokens was asked for; the model takes {limit}"
        )
    # A little below the limit: some models keep the first positions for padding.
    length = wanted or max(1, min(EXAMPLE_LENGTH, limit - 2 if limit > 8 else limit))
    generator = torch.Generator().manual_seed(0)

    def ids(num: int) -> torch.Tensor:
        high = max(2, getattr(text, "vocab_size", 2))
        return torch.randint(0, high, (EXAMPLE_BATCH, num), generator=generator)

    kwargs: dict[str, Any] = {}
    lengths: dict[str, dict[int, str]] = {}
    if main == "input_ids" or (hasattr(config, "text_config") and "input_ids" in accepts):
        kwargs["input_ids"] = ids(length)
        lengths["input_ids"] = {1: "length"}
        if "attention_mask" in accepts:
            kwargs["attention_mask"] = torch.ones(EXAMPLE_BATCH, length, dtype=torch.long)
            lengths["attention_mask"] = {1: "length"}
    if main == "pixel_values" or (hasattr(config, "vision_config") and "pixel_values" in accepts):
        size = getattr(vision, "image_size", 224)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        channels = getattr(vision, "num_channels", 3)
        kwargs["pixel_values"] = torch.randn(
            EXAMPLE_BATCH, channels, height, width, generator=generator
        )
    if main == "input_features":
        frames = 2 * getattr(config, "max_source_positions", 1500)
        bins = getattr(config, "num_mel_bins", 80)
        kwargs["input_features"] = torch.randn(EXAMPLE_BATCH, bins, frames, generator=generator)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepts:
        kwargs["decoder_input_ids"] = ids(max(1, length // 2))
        lengths["decoder_input_ids"] = {1: "decoder_length"}
    if not kwargs:
        raise UnsupportedModelError(
            f"no example inputs are known for {type(model).__name__}, whose main input is "
            f"{main!r}; wrap it in a factory that returns (module, example inputs)"
        )
    return Example(kwargs=kwargs, dynamic_dims=lengths)


def _without_cache(model: nn.Module, example: Example) -> Example:
    """The example with the generation cache off: a plan runs whole sequences."""
    if "use_cache" in inspect.signature(model.forward).parameters:
        kwargs = {"use_cache": False, **example.kwargs}
        return Example(
            args=example.args,
            kwargs=kwargs,
            batch_dims=example.batch_dims,
            dynamic_dims=example.dynamic_dims,
        )
    return example
