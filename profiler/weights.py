"""Weights by name, without ever holding more of a file than the tensor being copied.

A checkpoint does not always store a parameter as the model holds it: names differ, experts are
stored one by one. A *recipe* says how to fill a parameter from stored tensors; it is JSON, so it
travels to ranks, and it is carried out into a tensor allocated once, through views, in bounded
pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file

from profiler.errors import InvalidInputError
from profiler.program import Shard
from profiler.tensorfile import StoredTensor, read_into, read_run, stored_tensors

Recipe = dict[str, Any]
"""``{"file", "key"}``, or ``{"op": "stack" | "concat" | "transpose" | "chunk", "parts": [...]}``
with ``dim`` (``dims`` for transpose; ``chunks`` and ``index`` for chunk)."""


@dataclass(frozen=True, slots=True)
class Run:
    """Places ``start`` to ``stop`` of ``dim``, which is ``size`` long in the whole tensor."""

    dim: int
    start: int
    stop: int
    size: int


class WeightSource(Protocol):
    """Where the values of a model's weights are."""

    def has(self, name: str) -> bool:
        """Whether a weight of this qualified name is stored."""

    def fill(self, name: str, target: torch.Tensor) -> None:
        """Copy the weight into ``target``, converting its dtype and device if need be.

        Raises:
            InvalidInputError: not stored, or of another shape.
        """

    def recipes(self, names: Iterable[str], *, directory: Path) -> dict[str, Recipe]:
        """How any process on this machine can fill these weights.

        Values that live only in this process's memory are written below ``directory``.
        """


@dataclass(frozen=True)
class MemoryWeights:
    """Weights that this process holds."""

    tensors: Mapping[str, torch.Tensor]

    def has(self, name: str) -> bool:
        """Whether the module has such a parameter or buffer."""
        return name in self.tensors

    def fill(self, name: str, target: torch.Tensor) -> None:
        """Copy from memory."""
        if name not in self.tensors:
            raise InvalidInputError(f"the model holds no weight {name!r}")
        _copy(self.tensors[name].detach(), target, name)

    def recipes(self, names: Iterable[str], *, directory: Path) -> dict[str, Recipe]:
        """Write the named weights to one file below ``directory``."""
        file = directory / "weights.safetensors"
        wanted = {}
        for name in names:
            if name not in self.tensors:
                raise InvalidInputError(f"the model holds no weight {name!r}")
            # A copy of its own: safetensors refuses views that share memory.
            wanted[name] = self.tensors[name].detach().cpu().clone().contiguous()
        save_file(wanted, file)
        return {name: {"file": str(file), "key": name} for name in wanted}


@dataclass(frozen=True)
class SafetensorsWeights:
    """Weights in safetensors files, by recipe."""

    stored: Mapping[str, Recipe]

    def has(self, name: str) -> bool:
        """Whether the checkpoint has what the weight is made of."""
        return name in self.stored

    def fill(self, name: str, target: torch.Tensor) -> None:
        """Copy from the files."""
        if name not in self.stored:
            raise InvalidInputError(f"the checkpoint has no weight {name!r}")
        fill(target, self.stored[name], name=name)

    def recipes(self, names: Iterable[str], *, directory: Path) -> dict[str, Recipe]:  # noqa: ARG002
        """The recipes themselves: the files are there for every process."""
        missing = [name for name in names if name not in self.stored]
        if missing:
            raise InvalidInputError(f"the checkpoint has no weight {missing[0]!r}")
        return {name: self.stored[name] for name in names}


def cut(whole: torch.Tensor, shard: Shard | None) -> torch.Tensor:
    """The shard of a tensor (a view where it is one run); without a shard the tensor itself."""
    if shard is None:
        return whole
    runs = [whole.narrow(shard.dim, start, stop - start) for start, stop in shard.runs]
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim=shard.dim)


def fill_shard(target: torch.Tensor, recipe: Recipe, shard: Shard | None, *, name: str) -> None:
    """Carry out a recipe into ``target``, which holds only the ``shard`` of the weight.

    Only what belongs to the shard is read, but for parts that a recipe splits.

    Raises:
        InvalidInputError: a stored tensor is missing, damaged or of another shape.
    """
    if shard is None:
        fill(target, recipe, name=name)
        return
    at, size = 0, shard.whole[shard.dim]
    for start, stop in shard.runs:
        part = target.narrow(shard.dim, at, stop - start)
        _fill_run(part, recipe, Run(shard.dim, start, stop, size), name)
        at += stop - start


def _fill_run(target: torch.Tensor, recipe: Recipe, run: Run, name: str) -> None:
    """Fill ``target`` with a run of what the recipe makes."""
    parts = recipe.get("parts", ())
    op, dim = recipe.get("op"), recipe.get("dim", 0)
    if op is None:
        stored = _stored(Path(recipe["file"]), recipe["key"], name)
        shape = [*target.shape[: run.dim], run.size, *target.shape[run.dim + 1 :]]
        _require_shape(stored, shape, Path(recipe["file"]), recipe["key"], name)
        with torch.no_grad():
            read_run(stored, target, dim=run.dim, start=run.start)
    elif op == "stack" and dim == run.dim:
        _require_covered(len(parts), run.size, name)
        for index in range(run.start, run.stop):
            fill(target.select(dim, index - run.start), parts[index], name=name)
    elif op == "stack":
        _require_covered(len(parts), target.shape[dim], name)
        inner = Run(run.dim - (run.dim > dim), run.start, run.stop, run.size)
        for index, part in enumerate(parts):
            _fill_run(target.select(dim, index), part, inner, name)
    elif op == "concat" and dim == run.dim:
        lengths = [_stored_length(part, dim, name) or run.size // len(parts) for part in parts]
        _require_covered(sum(lengths), run.size, name)
        first = 0
        for part, length in zip(parts, lengths, strict=True):
            low, high = max(run.start, first), min(run.stop, first + length)
            if low < high:
                piece = Run(dim, low - first, high - first, length)
                _fill_run(target.narrow(dim, low - run.start, high - low), part, piece, name)
            first += length
    elif op == "concat":
        equal = target.shape[dim] // len(parts)
        first = 0
        for part in parts:
            length = _stored_length(part, dim, name) or equal
            _fill_run(target.narrow(dim, first, length), part, run, name)
            first += length
    elif op == "transpose":
        a, b = (d % target.ndim for d in recipe["dims"])
        other = {a: b, b: a}.get(run.dim, run.dim)
        inner = Run(other, run.start, run.stop, run.size)
        _fill_run(target.transpose(a, b), parts[0], inner, name)
    else:
        shape = [*target.shape[: run.dim], run.size, *target.shape[run.dim + 1 :]]
        whole = torch.empty(shape, dtype=target.dtype)
        fill(whole, recipe, name=name)
        target.copy_(whole.narrow(run.dim, run.start, run.stop - run.start))


def fill(target: torch.Tensor, recipe: Recipe, *, name: str) -> None:
    """Carry out a recipe into ``target`` (any device; a view is fine).

    Raises:
        InvalidInputError: a stored tensor is missing, damaged or of another shape.
    """
    parts = recipe.get("parts", ())
    match recipe.get("op"):
        case None:
            _fill_stored(target, Path(recipe["file"]), recipe["key"], name)
        case "stack":
            _require_covered(len(parts), target.shape[recipe["dim"]], name)
            for index, part in enumerate(parts):
                fill(target.select(recipe["dim"], index), part, name=name)
        case "concat":
            start, dim = 0, recipe["dim"]
            equal = target.shape[dim] // len(parts)
            lengths = [_stored_length(part, dim, name) or equal for part in parts]
            _require_covered(sum(lengths), target.shape[dim], name)
            for part, length in zip(parts, lengths, strict=True):
                fill(target.narrow(dim, start, length), part, name=name)
                start += length
        case "transpose":
            fill(target.transpose(*recipe["dims"]), parts[0], name=name)
        case "chunk":
            shape = list(target.shape)
            shape[recipe["dim"]] *= recipe["chunks"]
            whole = torch.empty(shape, dtype=target.dtype)
            fill(whole, parts[0], name=name)
            target.copy_(whole.chunk(recipe["chunks"], dim=recipe["dim"])[recipe["index"]])
        case other:
            raise InvalidInputError(f"weight {name}: unknown recipe step {other!r}")


def _fill_stored(target: torch.Tensor, file: Path, key: str, name: str) -> None:
    stored = _stored(file, key, name)
    _require_shape(stored, target.shape, file, key, name)
    with torch.no_grad():
        read_into(stored, target)


def _require_shape(
    stored: StoredTensor, shape: Iterable[int], file: Path, key: str, name: str
) -> None:
    if stored.shape != tuple(shape):
        raise InvalidInputError(
            f"weight {name}: {file.name} holds {key!r} of shape {list(stored.shape)}, the model "
            f"needs {list(shape)}"
        )


def _stored(file: Path, key: str, name: str) -> StoredTensor:
    found = stored_tensors(file).get(key)
    if found is None:
        raise InvalidInputError(f"weight {name}: {file} holds no tensor {key!r}")
    return found


def _require_covered(stored: int, needed: int, name: str) -> None:
    """Refuse parts that would leave some of a weight unfilled, or that do not fit in it."""
    if stored != needed:
        raise InvalidInputError(
            f"weight {name} is stored in parts that make up {stored} rows, the model needs "
            f"{needed}: is the checkpoint complete?"
        )


def _stored_length(recipe: Recipe, dim: int, name: str) -> int | None:
    """The size of a stored tensor along ``dim``; None for one that is made of others."""
    if recipe.get("op") is not None:
        return None
    return _stored(Path(recipe["file"]), recipe["key"], name).shape[dim]


def _copy(source: torch.Tensor, target: torch.Tensor, name: str) -> None:
    if source.shape != target.shape:
        raise InvalidInputError(
            f"weight {name} has shape {list(source.shape)}, the model needs {list(target.shape)}"
        )
    with torch.no_grad():
        target.copy_(source)


def stored_keys(directory: Path) -> dict[str, Path]:
    """Which file of a checkpoint directory holds each stored tensor.

    Raises:
        InvalidInputError: no safetensors file, one that is missing, or a damaged one.
    """
    return {
        key: file.resolve() for file in _checkpoint_files(directory) for key in stored_tensors(file)
    }


def _checkpoint_files(directory: Path) -> list[Path]:
    """The files that make up the checkpoint, as transformers chooses them.

    Directories often hold the same weights again in another form beside it.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise InvalidInputError(f"{index} is not an index of weights: {error}") from error
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise InvalidInputError(
                f"{directory} lacks {len(missing)} of the {len(names)} files that {index.name} "
                f"lists, among them {missing[0]}: download it again"
            )
        return [directory / name for name in names]
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise InvalidInputError(
            f"{directory} has no *.safetensors file; save the model with save_pretrained"
        )
    return files
