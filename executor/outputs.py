"""The model's answer: its leaves from what the ranks computed, its names, its file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch.utils import _pytree as pytree

from executor.inputs import SUFFIXES, RunInputs
from profiler.capture import Captured
from profiler.documents import require_writable, write_atomically
from profiler.errors import InvalidInputError
from profiler.expressions import BATCH, evaluate


def answer_leaves(
    captured: Captured, gathered: Mapping[str, torch.Tensor], run: RunInputs
) -> list[Any]:
    """The leaves of the model's answer, from the tensors that the ranks computed."""
    symbols = {**captured.graph.symbols, **run.symbols, BATCH: run.num_items}
    weights = captured.cutter.weights
    leaves: list[Any] = []
    for leaf in captured.encoded.program.outputs:
        if leaf.value in weights:
            leaves.append(captured.weight(weights[leaf.value]))
        elif leaf.value is not None:
            found = gathered.get(leaf.value)
            leaves.append(run.tensors[leaf.value] if found is None else found)
        else:
            leaves.append(leaf.constant if leaf.size is None else evaluate(leaf.size, symbols))
    return leaves


def answer_tensors(captured: Captured, answer: Any) -> dict[str, torch.Tensor]:
    """The tensors of an answer by name: field, key, or ``output``, ``output_1``, ..."""
    names = output_names(captured)
    leaves = pytree.tree_flatten(answer)[0]
    return {
        name: leaf
        for name, leaf in zip(names, leaves, strict=True)
        if isinstance(leaf, torch.Tensor)
    }


def output_names(captured: Captured) -> list[str]:
    """A name for each leaf of the model's answer: field, key or position."""
    leaves = len(captured.encoded.program.outputs)
    answer = captured.unflatten_outputs(list(range(leaves)))
    names: list[str] = []
    for path, _ in pytree.tree_flatten_with_path(answer)[0]:
        parts = [str(getattr(p, "key", getattr(p, "idx", getattr(p, "name", p)))) for p in path]
        names.append("_".join(parts) if not all(p.isdigit() for p in parts) else "")
    return [name or (f"output_{i}" if len(names) > 1 else "output") for i, name in enumerate(names)]


def require_tensor_file(path: Path) -> Path:
    """``path``, after checking that tensors can be written there.

    Raises:
        InvalidInputError: another suffix, a directory, not writable.
    """
    if path.suffix not in SUFFIXES:
        raise InvalidInputError(
            f"{path} has suffix {path.suffix!r}; tensors are written to {' or '.join(SUFFIXES)}"
        )
    return require_writable(path)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors to an npz or safetensors file, atomically.

    Raises:
        InvalidInputError: as for :func:`require_tensor_file`; a dtype that npz lacks.
    """
    require_tensor_file(path)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        write_atomically(path, save({n: t.clone() for n, t in whole.items()}))
        return
    try:
        arrays = {name: tensor.numpy() for name, tensor in whole.items()}
    except TypeError as error:
        raise InvalidInputError(f"{path}: {error}; write a .safetensors file instead") from error
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    write_atomically(path, stream.getvalue())
