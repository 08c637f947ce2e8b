"""The model's answer: its leaves from what the ranks computed, its names, its file."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch.utils import _pytree as pytree

from executor.aggregation.members import GATHER
from executor.delivery import rank_file
from executor.inputs import SUFFIXES, RunInputs
from planner.planfile import Aggregation
from profiler.capture import Captured
from profiler.documents import require_writable, write_atomically
from profiler.errors import InvalidInputError
from profiler.expressions import BATCH, evaluate
from profiler.program import OutputLeaf


def make_answer(
    captured: Captured,
    wanted: Aggregation,
    gathered: Mapping[str, torch.Tensor],
    run: RunInputs,
) -> Any:
    """The answer in the model's own structure, from the tensors that the root has.

    Of an ensemble, that is the structure of one member's answer; with ``gather``, a list of them.
    """
    outputs = list(captured.encoded.program.outputs)
    if captured.graph.ensemble is None:
        return captured.unflatten_outputs(answer_leaves(captured, gathered, run))
    members = captured.member_leaves(outputs)
    shown = members if wanted.strategy == GATHER else members[:1]
    answers = [
        captured.unflatten_member(i, answer_leaves(captured, gathered, run, leaves=leaves))
        for i, leaves in enumerate(shown)
    ]
    return answers if wanted.strategy == GATHER else answers[0]


def answer_leaves(
    captured: Captured,
    gathered: Mapping[str, torch.Tensor],
    run: RunInputs,
    *,
    leaves: Sequence[OutputLeaf] | None = None,
) -> list[Any]:
    """The leaves of the model's answer, from the tensors that the ranks computed.

    ``leaves`` are those wanted; default all.
    """
    wanted = captured.encoded.program.outputs if leaves is None else leaves
    symbols = {**captured.graph.symbols, **run.symbols, BATCH: run.num_items}
    weights = captured.cutter.weights
    found_leaves: list[Any] = []
    for leaf in wanted:
        if leaf.value in weights:
            found_leaves.append(captured.weight(weights[leaf.value]))
        elif leaf.value is not None:
            found = gathered.get(leaf.value)
            found_leaves.append(run.tensors[leaf.value] if found is None else found)
        else:
            number = leaf.constant if leaf.size is None else evaluate(leaf.size, symbols)
            found_leaves.append(number)
    return found_leaves


def named_tensors(captured: Captured, wanted: Aggregation) -> dict[str, str]:
    """For each tensor of the answer, by the name that it has for users, its name in the program."""
    leaves = list(captured.encoded.program.outputs)
    positions = list(range(len(leaves)))
    if captured.graph.ensemble is None:
        shown = captured.unflatten_outputs(positions)
    else:
        members = captured.member_leaves(positions)
        answers = [captured.unflatten_member(i, own) for i, own in enumerate(members)]
        shown = answers if wanted.strategy == GATHER else answers[0]
    names = zip(output_names(shown), pytree.tree_flatten(shown)[0], strict=True)
    return {
        name: value
        for name, position in names
        if (value := leaves[position].value) is not None and value in captured.graph.outputs
    }


def answer_tensors(answer: Any) -> dict[str, torch.Tensor]:
    """The tensors of an answer by name: field, key, or ``output``, ``output_1``, ..."""
    leaves = pytree.tree_flatten(answer)[0]
    return {
        name: leaf
        for name, leaf in zip(output_names(answer), leaves, strict=True)
        if isinstance(leaf, torch.Tensor)
    }


def output_names(answer: Any) -> list[str]:
    """A name for each leaf of the model's answer: field, key or position."""
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
