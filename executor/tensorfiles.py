"""Tensors in files that people give and get: npz or safetensors, by suffix. Never pickle."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from executor.delivery import rank_file
from profiler.documents import require_writable, write_atomically
from profiler.errors import InvalidInputError

SUFFIXES = (".npz", ".safetensors")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of an npz or safetensors file.

    Raises:
        InvalidInputError: another kind of file, damaged, or holding pickled objects.
    """
    if path.is_dir():
        raise InvalidInputError(f"{path} is a directory; a {' or '.join(SUFFIXES)} file is needed")
    if not path.is_file():
        raise InvalidInputError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InvalidInputError(f"{path} is not a safetensors file: {error}") from error
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name].copy()) for name in arrays.files}
        except (ValueError, OSError, zipfile.BadZipFile, TypeError) as error:
            raise InvalidInputError(
                f"{path} is not an npz file of plain arrays: {error}"
            ) from error
    raise InvalidInputError(f"{path} has suffix {path.suffix!r}; tensors are read from "
                            f"{' or '.join(SUFFIXES)} files")  # fmt: skip


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


Spans = Mapping[str, Sequence[tuple[int, int]]]
"""Items by name of an output, as runs from the first up to but not including the second."""


def write_index(path: Path, *, num_items: int, parts: Sequence[tuple[int, str, Spans]]) -> Path:
    """Write which rank's file beside ``path`` holds which items of a scattered answer.

    ``parts`` are ranks with their devices and items. Returns the index's own path.
    """
    index = path.with_name(f"{path.stem}.index.json")
    data = {
        "num_items": num_items,
        "parts": [
            {
                "rank": rank,
                "device": device,
                "file": rank_file(path, rank).name,
                "items": {name: [list(span) for span in spans] for name, spans in items.items()},
            }
            for rank, device, items in parts
        ],
    }
    write_atomically(index, json.dumps(data, indent=1) + "\n")
    return index
