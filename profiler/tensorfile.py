"""Tensors of a safetensors file, read piece by piece into memory that is there already.

The library's own reader maps a whole file for writing: a file larger than this machine's memory
cannot be opened at all, and while it is open it counts as resident memory. Here a header is parsed
and bytes are read where they are wanted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

import torch

from profiler.errors import InvalidInputError
from profiler.graph import DTYPE_BYTES

CHUNK_BYTES = 32 * 2**20
"""How much is held beside the target when what is stored must be converted."""

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32",
    "U16": "uint16", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}  # fmt: skip

_LARGEST_HEADER = 100 * 10**6  # the format's own limit


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in a file."""

    file: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return prod(self.shape) * self.dtype.itemsize


def stored_tensors(file: Path) -> Mapping[str, StoredTensor]:
    """The tensors of a safetensors file by name.

    Raises:
        InvalidInputError: missing, no safetensors file, or cut short.
    """
    try:
        state = file.stat()
        return _header(file, state.st_mtime_ns, state.st_size)
    except FileNotFoundError as error:
        raise InvalidInputError(f"there is no file {file}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(
            f"{file} is not a safetensors file, or it is cut short: {error}"
        ) from error


@lru_cache(maxsize=64)
def _header(file: Path, _modified: int, size: int) -> Mapping[str, StoredTensor]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
            raise ValueError(f"its header would have {length} of {size} bytes")
        entries = json.loads(stream.read(length))
    if not isinstance(entries, dict):
        raise ValueError("its header is no mapping")
    return {
        name: _entry(file, name, entry, base=8 + length, size=size)
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def _entry(file: Path, name: str, entry: Any, *, base: int, size: int) -> StoredTensor:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise InvalidInputError(
            f"{file}: tensor {name!r} has dtype {entry['dtype']!r}, which is not supported"
        )
    shape, (first, last) = entry["shape"], entry["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, first, last)):
        raise ValueError(f"tensor {name!r} has sizes that are no counts")
    if last - first != prod(shape) * DTYPE_BYTES[dtype]:
        raise ValueError(f"tensor {name!r} of shape {shape} has {last - first} bytes")
    if base + last > size:
        raise ValueError(f"tensor {name!r} ends at byte {base + last}, the file has {size}")
    return StoredTensor(
        file=file, start=base + first, shape=tuple(shape), dtype=getattr(torch, dtype)
    )


def read_into(stored: StoredTensor, target: torch.Tensor) -> None:
    """Fill ``target`` (of the stored shape; any dtype, device and strides).

    Raises:
        InvalidInputError: the file is gone or ends too early.
    """
    if not target.numel():
        return
    try:
        with stored.file.open("rb", buffering=0) as stream:
            stream.seek(stored.start)
            if target.dtype == stored.dtype and _plain(target):
                _read(stream, target)
            else:
                _convert(stream, stored, target)
    except OSError as error:
        raise InvalidInputError(f"cannot read {stored.file}: {error}") from error


def read_run(stored: StoredTensor, target: torch.Tensor, *, dim: int, start: int) -> None:
    """Fill ``target`` with the places of ``dim`` from ``start`` on, and read no others.

    Raises:
        InvalidInputError: the file is gone or ends too early.
    """
    if not target.numel():
        return
    before, behind = prod(stored.shape[:dim]), prod(stored.shape[dim + 1 :])
    length, item = target.shape[dim], stored.dtype.itemsize
    # Rows of what is wanted, each in one piece in the file.
    rows_at_once = max(1, CHUNK_BYTES // max(1, length * behind * item))
    try:
        with stored.file.open("rb", buffering=0) as stream:
            for first in range(0, before, rows_at_once):
                count = min(rows_at_once, before - first)
                buffer = torch.empty((count, length * behind), dtype=stored.dtype)
                for row in range(count):
                    place = ((first + row) * stored.shape[dim] + start) * behind * item
                    stream.seek(stored.start + place)
                    _read(stream, buffer[row])
                _put(target, buffer, first, dim)
    except OSError as error:
        raise InvalidInputError(f"cannot read {stored.file}: {error}") from error


def _put(target: torch.Tensor, rows: torch.Tensor, first: int, dim: int) -> None:
    """Copy rows (over the dims before ``dim``, flat) to their places in a tensor of any strides."""
    lead, shape = target.shape[:dim], target.shape[dim:]
    if len(rows) == prod(lead):
        target.copy_(rows.reshape(target.shape))
        return
    if dim == 1:
        target[first : first + len(rows)].copy_(rows.reshape(len(rows), *shape))
        return
    for row, value in enumerate(rows):
        place: list[int] = []
        left = first + row
        for size in reversed(lead):
            place.insert(0, left % size)
            left //= size
        target[tuple(place)].copy_(value.reshape(shape))


def _plain(target: torch.Tensor) -> bool:
    return target.device.type == "cpu" and target.is_contiguous()


def _convert(stream: FileIO, stored: StoredTensor, target: torch.Tensor) -> None:
    """Read through a buffer of at most ``CHUNK_BYTES``, or one row of the tensor."""
    if target.ndim == 0:
        target, rows = target.reshape(1), 1
    else:
        rows = target.shape[0]
    row_bytes = stored.num_bytes // rows
    step = max(1, CHUNK_BYTES // row_bytes)
    if rows == 1 and row_bytes > CHUNK_BYTES and target.ndim > 1:
        # All of it in one row: what lies below can be read in pieces as well.
        _convert(stream, stored, target[0])
        return
    for start in range(0, rows, step):
        part = target[start : start + step]
        buffer = torch.empty(part.shape, dtype=stored.dtype)
        _read(stream, buffer)
        part.copy_(buffer)


def _read(stream: FileIO, target: torch.Tensor) -> None:
    view = target.detach().reshape(-1).view(torch.uint8).numpy().data
    done = 0
    while done < len(view):
        count = stream.readinto(view[done:])
        if not count:
            raise OSError(f"it ends after {os.fstat(stream.fileno()).st_size} bytes")
        done += count
