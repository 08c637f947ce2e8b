"""The model's answer: its leaves from what the ranks computed, and their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from executor.aggregation.members import GATHER
from executor.inputs import RunInputs
from planner.planfile import Aggregation
from profiler.capture import Captured
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


def answer_places(captured: Captured, wanted: Aggregation) -> dict[str, OutputLeaf]:
    """The leaves of the answer by the name that each has for users."""
    leaves = list(captured.encoded.program.outputs)
    positions = list(range(len(leaves)))
    if captured.graph.ensemble is None:
        shown = captured.unflatten_outputs(positions)
    else:
        members = captured.member_leaves(positions)
        answers = [captured.unflatten_member(i, own) for i, own in enumerate(members)]
        shown = answers if wanted.strategy == GATHER else answers[0]
    names = zip(output_names(shown), pytree.tree_flatten(shown)[0], strict=True)
    return {name: leaves[position] for name, position in names}


def named_tensors(captured: Captured, wanted: Aggregation) -> dict[str, str]:
    """For each tensor of the answer, by the name that it has for users, its name in the program."""
    return {
        name: leaf.value
        for name, leaf in answer_places(captured, wanted).items()
        if leaf.value is not None and leaf.value in captured.graph.outputs
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
