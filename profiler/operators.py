"""Operators by name: from the torch object to text and back, and what each does to memory.

Only operators of ``torch.ops`` and a closed list of number functions have names here, so a program
read from elsewhere can call nothing else.
"""

from __future__ import annotations

import builtins
import importlib
import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from profiler.errors import UnsupportedModelError
from profiler.program import JOINS, StageProgram

_NUMBER_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{module.__name__.lstrip('_')}.{name}": getattr(module, name)
    for module, names in (
        (
            operator,
            "getitem add sub mul floordiv truediv mod pow neg abs eq ne lt le gt ge and_ or_ not_",
        ),
        (math, "ceil floor trunc sqrt"),
        (torch, "sym_max sym_min sym_ite sym_float sym_int sym_not"),
        (builtins, "round max min"),
    )
    for name in names.split(" ")
}
_NAME_OF = {function: name for name, function in _NUMBER_FUNCTIONS.items()}

_MAY_ALIAS = frozenset({"reshape", "contiguous", "flatten", "to", "type_as", "expand_as"})
"""Operators that return a view of their input in some cases although no schema says so."""

# Where operators live that are not part of torch; tried when their namespace is missing.
_PROVIDERS = {
    "transformers": ("transformers.integrations.moe", "transformers"),
    "torchvision": ("torchvision",),
    "torchaudio": ("torchaudio",),
}


def operator_name(target: Any, *, where: str) -> str:
    """The name of a call's target, such as ``aten.linear.default`` or ``operator.getitem``.

    Raises:
        UnsupportedModelError: the target is neither; ``where`` says which module called it.
    """
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, base = target._schema.name.partition("::")
        return f"{namespace}.{base}.{target._overloadname}"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order.{target.__name__}"
    name = _NAME_OF.get(target, "") if isinstance(target, Callable) else ""  # type: ignore[arg-type]
    if not name:
        raise UnsupportedModelError(
            f"{where} calls {target!r}, which is not a torch operator and cannot be sent to ranks"
        )
    return name


def resolve_operator(name: str) -> Callable[..., Any]:
    """The callable behind a name from :func:`operator_name`.

    Raises:
        UnsupportedModelError: this installation has no such operator.
    """
    if name in _NUMBER_FUNCTIONS:
        return _NUMBER_FUNCTIONS[name]
    namespace, _, rest = name.partition(".")
    if namespace == "higher_order":
        found: Any = getattr(torch.ops.higher_order, rest, None)
        if found is not None:
            return found  # type: ignore[no-any-return]
    packet, _, overload = rest.rpartition(".")
    for provider in (None, *_PROVIDERS.get(namespace, (namespace,))):
        if provider is not None:
            try:
                importlib.import_module(provider)
            except ImportError:
                continue
        try:
            found = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
        except AttributeError:
            continue
        return found  # type: ignore[no-any-return]
    raise UnsupportedModelError(
        f"this installation has no operator {name!r}: install the package that defines it on "
        f"every machine that runs the plan (its namespace is {namespace!r})"
    )


def written_arguments(target: Any) -> tuple[int | str, ...]:
    """Positions and names of the arguments that a call changes in place."""
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return ()
    return tuple(
        argument.name if argument.kwarg_only else position
        for position, argument in enumerate(target._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def aliased_arguments(target: Any) -> tuple[int, ...]:
    """Positions of the arguments whose memory the result of a call may share."""
    if not isinstance(target, torch._ops.OpOverload):
        return (0,) if target is operator.getitem else ()
    schema = target._schema
    if schema.name.partition("::")[2] in _MAY_ALIAS:
        return (0,)
    return tuple(
        position
        for position, argument in enumerate(schema.arguments)
        if argument.alias_info is not None
    )


def changed_inputs(program: StageProgram) -> frozenset[str]:
    """Inputs that a stage may modify: those its in-place operators can reach."""
    source: dict[str, frozenset[str]] = {name: frozenset({name}) for name in program.inputs}
    changed: frozenset[str] = frozenset()
    for node in program.nodes:
        reached = frozenset[str]().union(
            *(source.get(ref, frozenset()) for ref in node.references())
        )
        source[node.name] = reached
        if node.op in JOINS or node.op.startswith("operator."):
            continue
        if written_arguments(resolve_operator(node.op)):
            changed |= reached
    return changed


def is_random(target: Any) -> bool:
    """Whether two calls with equal arguments may differ."""
    return (
        isinstance(target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded in target.tags
    )


def is_assertion(target: Any) -> bool:
    """Whether a call only checks something and has no result."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    base = target._schema.name.partition("::")[2]
    return base.startswith(("_assert", "sym_constrain_range"))
