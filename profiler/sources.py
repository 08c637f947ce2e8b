"""Where models come from: a factory, a directory in Hugging Face form, a ``.pt2`` file, a module,
or several of these together.

Each source yields a :class:`LoadedModel`: something ``torch.export`` takes (or an exported program
already), example inputs, and a place to read weights from by qualified name.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from profiler.ensemble import Combination, Ensemble
from profiler.ensemblefile import ensemble_file
from profiler.errors import ApportionError, InvalidInputError, UnsupportedModelError
from profiler.weights import MemoryWeights, SafetensorsWeights, WeightSource

SourceKind = Literal["factory", "huggingface", "pt2", "module", "ensemble"]


@dataclass(frozen=True)
class Example:
    """Inputs a model can be called with, and what their dims mean.

    ``batch_dims`` names, per input, the dim along which items lie (``None``: the input is shared
    by all items); inputs it leaves out have it at dim 0 if their size there equals the first
    input's. ``dynamic_dims`` names further dims that may change between runs, as
    ``{"input_ids": {1: "length"}}``. Input names are those of ``forward``'s parameters.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    batch_dims: Mapping[str, int | None] = field(default_factory=dict)
    dynamic_dims: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    @staticmethod
    def of(value: Any) -> Example:
        """An example from what factories return: an Example, a tensor, a tuple or a dict.

        Raises:
            InvalidInputError: none of these.
        """
        if isinstance(value, Example):
            return value
        if isinstance(value, torch.Tensor):
            return Example(args=(value,))
        if isinstance(value, Mapping):
            return Example(kwargs=dict(value))
        if isinstance(value, (tuple, list)):
            return Example(args=tuple(value))
        raise InvalidInputError(
            f"example inputs are a {type(value).__name__}; give a tensor, a tuple of arguments, "
            "a dict of keyword arguments, or profiler.Example"
        )


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to be captured.

    ``module`` computes with real weights when ``has_weights``; otherwise its parameters are
    placeholders and only ``weights`` knows their values. ``exported`` replaces ``module`` for a
    ``.pt2`` file. ``aliases`` maps a tied parameter's name to the name its value is stored under.
    """

    kind: SourceKind
    ref: str
    name: str
    module: nn.Module | None
    exported: torch.export.ExportedProgram | None
    example: Example
    weights: WeightSource
    has_weights: bool
    aliases: Mapping[str, str] = field(default_factory=dict)
    ensemble: EnsembleSource | None = None


@dataclass(frozen=True, kw_only=True)
class EnsembleSource:
    """What makes a loaded module an ensemble: where its members came from, how they combine."""

    refs: tuple[str, ...]
    combination: Combination


def load_model(
    model: str | nn.Module, example: Any = None, *, length: int | None = None
) -> LoadedModel:
    """The model behind a reference, or around a module at hand.

    ``model`` is ``package.module:factory`` (called without arguments; returns the module and its
    example inputs), a directory with ``config.json`` and safetensors, a ``.pt2`` file, an
    ``ensemble.yaml`` that lists several of these or the directory it is in, or an ``nn.Module``
    (then ``example`` is needed). ``example`` overrides the source's own; ``length``
    is the number of tokens of the inputs made for a directory.

    Raises:
        InvalidInputError: no such model; the factory raised or returned something else.
        UnsupportedModelError: the directory's architecture cannot be built.
    """
    if length is not None and (
        isinstance(model, nn.Module)
        or not (Path(model).is_dir() or ensemble_file(Path(model)) is not None)
    ):
        raise InvalidInputError("a length is only used for model directories")
    if isinstance(model, nn.Module):
        if example is None:
            raise InvalidInputError("a module needs example inputs: pass example=...")
        return from_module(model, Example.of(example), kind="module", ref=type(model).__qualname__)
    path = Path(model)
    if path.suffix == ".pt2":
        return _from_pt2(path)
    listed = ensemble_file(path)
    if listed is not None:
        from profiler.ensembleload import load_ensemble

        return load_ensemble(path, listed, example, length=length)
    if path.is_dir():
        from profiler.huggingface import load_directory

        chosen = None if example is None else Example.of(example)
        return load_directory(path, chosen, length=length)
    if ":" in model:
        return _from_factory(model, example)
    raise InvalidInputError(
        f"{model!r} is not a model: give package.module:factory, a directory with config.json and "
        "*.safetensors, an ensemble.yaml, or a .pt2 file"
    )


def from_module(module: nn.Module, example: Example, *, kind: SourceKind, ref: str) -> LoadedModel:
    """Wrap a module that holds its weights; it is put in evaluation mode."""
    module.eval()
    if isinstance(module, Ensemble):
        module.require_callable(example.args, dict(example.kwargs))
    state = {
        name: tensor
        for name, tensor in module.state_dict(keep_vars=True).items()
        if isinstance(tensor, torch.Tensor)
    }
    return LoadedModel(
        kind=kind,
        ref=ref,
        name=type(module).__name__,
        module=module,
        exported=None,
        example=example,
        weights=MemoryWeights(state),
        has_weights=True,
        ensemble=EnsembleSource(refs=module.refs, combination=module.combination)
        if isinstance(module, Ensemble)
        else None,
    )


def _from_factory(ref: str, example: Any) -> LoadedModel:
    module_name, _, attribute = ref.partition(":")
    if "/" in module_name or module_name.endswith(".py"):
        meant = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise InvalidInputError(
            f"{ref!r} names a file: modules are named as in an import, {meant}:{attribute}"
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ApportionError:
        raise
    except ModuleNotFoundError as error:
        raise InvalidInputError(
            f"cannot import {module_name!r} of model {ref!r}: {error}; modules are looked up in "
            "the current directory and in the environment"
        ) from error
    except AttributeError as error:
        raise InvalidInputError(f"{module_name} has no {attribute!r}: {error}") from error
    except Exception as error:
        raise InvalidInputError(
            f"importing {module_name!r} failed: {type(error).__name__}: {error}"
        ) from error
    try:
        made = found()
    except ApportionError:
        raise
    except Exception as error:
        raise InvalidInputError(f"factory {ref} raised {type(error).__name__}: {error}") from error
    if isinstance(made, nn.Module) and example is not None:
        made = (made, example)
    if not (isinstance(made, Sequence) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise InvalidInputError(
            f"factory {ref} returned {_describe(made)}; it must return (module, example inputs)"
        )
    chosen = made[1] if example is None else example
    return from_module(made[0], Example.of(chosen), kind="factory", ref=ref)


def _describe(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return (
            f"{type(value).__name__} of {', '.join(type(v).__name__ for v in value) or 'nothing'}"
        )
    return f"a {type(value).__name__}"


def _from_pt2(path: Path) -> LoadedModel:
    if not path.is_file():
        raise InvalidInputError(f"there is no file {path}")
    try:
        exported = torch.export.load(path)
    except Exception as error:
        raise InvalidInputError(
            f"{path} is not a program saved by torch.export.save, or it is damaged: {error}"
        ) from error
    if exported.example_inputs is None:
        raise UnsupportedModelError(
            f"{path} was saved without example inputs; save it again with torch.export.save after "
            "torch.export.export(module, example_args)"
        )
    args, kwargs = exported.example_inputs
    return LoadedModel(
        kind="pt2",
        ref=str(path),
        name=path.stem,
        module=None,
        exported=exported,
        example=Example(args=tuple(args), kwargs=dict(kwargs or {})),
        weights=MemoryWeights(dict(exported.state_dict)),
        has_weights=True,
    )


__all__ = [
    "EnsembleSource",
    "Example",
    "LoadedModel",
    "MemoryWeights",
    "SafetensorsWeights",
    "from_module",
    "load_model",
]
