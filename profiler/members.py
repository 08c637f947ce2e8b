"""The members of a captured ensemble: whose tensors are whose, and whether they go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils import _pytree as pytree

from profiler.encode import Encoded
from profiler.ensemble import Combination
from profiler.errors import InvalidInputError, UnsupportedModelError
from profiler.export import Traced
from profiler.graph import Members
from profiler.program import OutputLeaf, TensorSpec

ANY_SHAPE = ("gather",)
"""Strategies for members whose answers need have nothing in common."""


def describe_members(
    combination: Combination, refs: Sequence[str], traced: Traced, encoded: Encoded
) -> Members:
    """The record of a captured ensemble: its members, and their answers side by side.

    Raises:
        InvalidInputError: the members' answers have not the same structure, shapes and dtypes.
        UnsupportedModelError: a member returns an input or a weight instead of computing.
    """
    names = tuple(f"member{i}" for i in range(len(refs)))
    answers = split_leaves(traced, list(encoded.program.outputs))
    nodes = {node.name: node for node in encoded.program.nodes}
    for name, leaves in zip(names, answers, strict=True):
        for leaf in leaves:
            if leaf.value is not None and leaf.value not in nodes:
                raise UnsupportedModelError(
                    f"{name} of the ensemble returns {leaf.value}, an input or a weight, as it is; "
                    "members must compute what they return: add .clone()"
                )
    rows: list[tuple[str, ...]] = []
    structures = _structures(traced)
    if combination.strategy not in ANY_SHAPE or structures.count(structures[0]) == len(names):
        _require_same_structure(names, structures)
        for position, same in enumerate(zip(*answers, strict=True)):
            values = tuple(leaf.value for leaf in same if leaf.value is not None)
            if len(values) == len(names):
                rows.append(values)
            elif values or any(leaf != same[0] for leaf in same):
                odd = next(i for i, leaf in enumerate(same) if leaf != same[0])
                raise InvalidInputError(
                    f"the members of the ensemble answer differently: at position {position}, "
                    f"member0 gives {_shown(same[0])}, {names[odd]} {_shown(same[odd])}"
                )
    specs = [[spec for value in row if (spec := nodes[value].spec)] for row in rows]
    alike = all(_alike(combination, row, names) for row in specs)
    return Members(
        members=names,
        refs=tuple(refs),
        answers=tuple(dict.fromkeys(rows)) if alike else (),
        strategy=combination.strategy,
        weights=combination.weights,
        dim=combination.dim,
    )


def split_leaves(traced: Traced, leaves: list[Any]) -> list[list[Any]]:
    """The leaves of an ensemble's answers, member by member."""
    found, start = [], 0
    for spec in _structures(traced):
        found.append(leaves[start : start + spec.num_leaves])
        start += spec.num_leaves
    return found


def unflatten_member(traced: Traced, member: int, leaves: list[Any]) -> Any:
    """A member's own answer structure around leaves."""
    return pytree.tree_unflatten(leaves, _structures(traced)[member])


def _structures(traced: Traced) -> list[pytree.TreeSpec]:
    spec = traced.exported.call_spec.out_spec
    assert spec is not None
    return list(spec.children())


def _require_same_structure(names: Sequence[str], structures: Sequence[pytree.TreeSpec]) -> None:
    for name, structure in zip(names, structures, strict=True):
        if structure != structures[0]:
            raise InvalidInputError(
                "the members of the ensemble answer with different structures: member0 gives "
                f"{_structure(structures[0])}, {name} gives {_structure(structure)}; wrap them in "
                "modules that return the same, or combine them with gather"
            )


def _structure(spec: pytree.TreeSpec) -> str:
    if spec.is_leaf():
        return "one value"
    kind = getattr(spec.type, "__name__", str(spec.type))
    keys = spec.context if isinstance(spec.context, list) else None
    return f"{kind} of {', '.join(map(str, keys)) if keys else f'{spec.num_leaves} values'}"


def _alike(combination: Combination, specs: Sequence[TensorSpec], names: Sequence[str]) -> bool:
    """Whether tensors have one shape and dtype; where they need to, anything else is an error."""
    free = combination.dim if combination.strategy == "concat" else None
    first = specs[0]
    for name, spec in zip(names, specs, strict=True):
        shapes = [
            tuple(size for dim, size in enumerate(s.shape) if dim != free) for s in (first, spec)
        ]
        if spec.dtype == first.dtype and shapes[0] == shapes[1]:
            continue
        if combination.strategy in ANY_SHAPE:
            return False
        raise InvalidInputError(
            f"the members of the ensemble answer with unlike tensors: member0 gives "
            f"{_tensor(first)}, {name} gives {_tensor(spec)}; {combination.strategy} needs equal "
            "shapes and dtypes (gather does not)"
        )
    return True


def _tensor(spec: TensorSpec) -> str:
    return f"[{', '.join(str(size) for size in spec.shape)}] {spec.dtype}"


def _shown(leaf: OutputLeaf) -> str:
    return "a tensor" if leaf.value is not None else repr(leaf.constant or leaf.size)
