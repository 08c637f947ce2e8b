"""Tracing: a loaded model through ``torch.export``, with the batch (and named lengths) dynamic.

Attempts run from the most to the least general and the first that succeeds is used; what failed
before is kept as notes, so that a reader knows what was captured and why. When all fail, the error
names the operator or line that stood in the way and lists what was tried.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from profiler.errors import InvalidInputError, UnsupportedModelError
from profiler.expressions import BATCH
from profiler.sources import Example, LoadedModel


@dataclass(frozen=True)
class Traced:
    """An exported program and what its inputs mean.

    ``tensors`` are the example's tensor inputs by name, in the order of ``forward``'s parameters
    (at least two items long where the batch is dynamic); ``batch_dims`` gives each one's batch dim
    or None; ``dim_names`` names the dynamic dims as ``{(input, dim): symbol}``. ``static_batch``
    is the only batch size it takes, if so.
    """

    exported: ExportedProgram
    tensors: dict[str, torch.Tensor]
    batch_dims: dict[str, int | None]
    dim_names: dict[tuple[str, int], str]
    static_batch: int | None
    level: str
    notes: tuple[str, ...]


def trace(model: LoadedModel) -> Traced:
    """Export ``model``.

    Raises:
        InvalidInputError: the example cannot be an input of the model.
        UnsupportedModelError: no attempt succeeded.
    """
    if model.exported is not None:
        return _from_exported(model)
    assert model.module is not None
    flat = named_leaves(model.module, model.example)
    tensors = {name: leaf for name, leaf in flat.items() if isinstance(leaf, torch.Tensor)}
    if not tensors:
        raise InvalidInputError("the example inputs hold no tensor")
    batch_dims = _batch_dims(tensors, model.example)
    batch = _batch_size(tensors, batch_dims)
    given = tensors
    if batch == 1:
        tensors = {name: _doubled(t, batch_dims[name]) for name, t in tensors.items()}
    dim_names = {(n, d): BATCH for n, d in batch_dims.items() if d is not None}
    for name, dims in model.example.dynamic_dims.items():
        if name not in tensors:
            raise InvalidInputError(f"dynamic_dims names {name!r}; the inputs are {list(tensors)}")
        for dim, symbol in dims.items():
            _require_dim(name, tensors[name], dim)
            if not symbol.isidentifier() or symbol == BATCH:
                raise InvalidInputError(
                    f"dynamic_dims calls dim {dim} of {name!r} {symbol!r}; give a name such as "
                    f"'length', other than {BATCH!r}"
                )
            dim_names[name, dim] = symbol
    failures: list[str] = []
    only_batch = {key: symbol for key, symbol in dim_names.items() if symbol == BATCH}
    lengths = [("torch.export, dynamic batch and lengths", False, Dim.DYNAMIC, dim_names)]
    for level, strict, mark, marked in (
        *(lengths if only_batch != dim_names else []),
        ("torch.export, dynamic batch", False, Dim.DYNAMIC, only_batch),
        ("torch.export, inferred dims", False, Dim.AUTO, dim_names),
        ("torch.export strict, dynamic batch", True, Dim.DYNAMIC, only_batch),
        ("torch.export, fixed batch", False, None, {}),
    ):
        if mark is None:
            tensors = given
        try:
            exported = _export(model, tensors, marked, mark, strict=strict)
        except Exception as error:  # torch.export raises many unrelated types
            failures.append(f"{level}: {_reason(error)}")
            continue
        dynamic = _dynamic_dims(exported, tensors)
        if mark is Dim.AUTO and not any(key in dynamic for key in marked):
            failures.append(f"{level}: the model fixes the batch size")
            continue
        kept = {key: symbol for key, symbol in marked.items() if key in dynamic}
        has_batch = BATCH in kept.values()
        return Traced(
            exported=exported,
            tensors=tensors,
            batch_dims={
                n: d if d is not None and (n, d) in kept else None for n, d in batch_dims.items()
            },
            dim_names=kept,
            static_batch=None if has_batch else batch,
            level=level,
            notes=tuple(failures),
        )
    _require_runs(model)
    tried = "\n".join(f"  {i}. {text}" for i, text in enumerate(failures, start=1))
    raise UnsupportedModelError(f"{model.name} cannot be captured; tried\n{tried}")


def _require_runs(model: LoadedModel) -> None:
    """Once capture has failed: is it the model that fails on its own example?

    Raises:
        InvalidInputError: it is.
    """
    if model.module is None or not model.has_weights:
        return
    try:
        with torch.no_grad():
            model.module(*model.example.args, **dict(model.example.kwargs))
    except Exception as error:  # whatever a model may raise
        raise InvalidInputError(
            f"{model.name} itself fails on its example inputs: {_reason(error)}"
        ) from error


def _doubled(tensor: torch.Tensor, dim: int | None) -> torch.Tensor:
    """Two items where there was one: a batch of one would be taken for a constant."""
    return tensor if dim is None else torch.cat([tensor, tensor], dim=dim)


def named_leaves(module: torch.nn.Module, example: Example) -> dict[str, Any]:
    """The leaves of the example by the names that torch.export will give them.

    Raises:
        InvalidInputError: the example does not fit ``forward``'s signature.
    """
    try:
        bound = inspect.signature(module.forward).bind(*example.args, **example.kwargs)
    except TypeError as error:
        raise InvalidInputError(
            f"the example inputs do not fit {type(module).__name__}.forward: {error}"
        ) from error
    leaves: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        parameter = bound.signature.parameters[name]
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            for key, inner in value.items():
                leaves.update(_leaves_of(key, inner))
        else:
            leaves.update(_leaves_of(name, value))
    return leaves


def _leaves_of(name: str, value: Any) -> dict[str, Any]:
    """Leaf names as torch.export makes them: path parts joined by underscores."""
    found = {}
    for path, leaf in pytree.tree_flatten_with_path(value)[0]:
        parts = [re.sub(r"[^a-zA-Z0-9_]+", "_", str(_key(part))) for part in path]
        found["_".join([name, *parts])] = leaf
    return found


def _key(part: Any) -> Any:
    for attribute in ("key", "idx", "name"):
        if hasattr(part, attribute):
            return getattr(part, attribute)
    return part


def _batch_dims(tensors: dict[str, torch.Tensor], example: Example) -> dict[str, int | None]:
    unknown = sorted(set(example.batch_dims) - set(tensors))
    if unknown:
        raise InvalidInputError(f"batch_dims names {unknown[0]!r}; the inputs are {list(tensors)}")
    for name, dim in example.batch_dims.items():
        if dim is not None:
            _require_dim(name, tensors[name], dim)
    chosen: dict[str, int | None] = {}
    sizes = [
        tensors[name].shape[dim] for name, dim in example.batch_dims.items() if dim is not None
    ]
    first = next((t.shape[0] for t in tensors.values() if t.ndim), 1)
    size = sizes[0] if sizes else first
    for name, tensor in tensors.items():
        if name in example.batch_dims:
            chosen[name] = example.batch_dims[name]
        else:
            chosen[name] = 0 if tensor.ndim and tensor.shape[0] == size else None
    return chosen


def _require_dim(name: str, tensor: torch.Tensor, dim: int) -> None:
    if not 0 <= dim < tensor.ndim:
        raise InvalidInputError(
            f"input {name!r} has no dim {dim}: its shape is {list(tensor.shape)}, dims count from 0"
        )


def _batch_size(tensors: dict[str, torch.Tensor], batch_dims: dict[str, int | None]) -> int:
    sizes = {name: tensors[name].shape[dim] for name, dim in batch_dims.items() if dim is not None}
    if len(set(sizes.values())) > 1:
        raise InvalidInputError(f"the example inputs disagree on the number of items: {sizes}")
    size = next(iter(sizes.values()), 1)
    if size == 0:
        raise InvalidInputError("the example inputs hold no item: the batch is empty")
    return size


def _export(
    model: LoadedModel,
    tensors: dict[str, torch.Tensor],
    marked: dict[tuple[str, int], str],
    mark: Any,
    *,
    strict: bool,
) -> ExportedProgram:
    assert model.module is not None
    fake = next((p.fake_mode for p in model.module.parameters() if hasattr(p, "fake_mode")), None)

    def shape_of(name: str) -> dict[int, Any] | None:
        dims = {dim: mark for (owner, dim) in marked if owner == name}
        return dims or None

    def tensor_of(name: str, original: Any) -> Any:
        if name not in tensors:
            return original
        found = tensors[name]
        return fake.from_tensor(found, static_shapes=True) if fake is not None else found

    args, kwargs = replace_leaves(model.module, model.example, tensor_of)
    shapes, shape_kwargs = replace_leaves(
        model.module, model.example, lambda name, _: shape_of(name)
    )
    with torch.no_grad(), _Quiet(), _explicit_keywords(model.module, kwargs):
        return torch.export.export(
            model.module,
            args,
            kwargs,
            dynamic_shapes=_by_parameter(model.module, shapes) | shape_kwargs,
            strict=strict,
        )


def replace_leaves(
    module: torch.nn.Module, example: Example, leaf: Callable[[str, Any], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example's arguments, every leaf ``x`` called ``name`` replaced by ``leaf(name, x)``."""

    def rebuilt(name: str, value: Any) -> Any:
        leaves = _leaves_of(name, value)
        spec = pytree.tree_structure(value)
        return pytree.tree_unflatten([leaf(n, x) for n, x in leaves.items()], spec)

    args: list[Any] = []
    for name, value in _by_parameter(module, example.args).items():
        made = rebuilt(name, value)
        args += made if name == _variable(module, inspect.Parameter.VAR_POSITIONAL) else [made]
    return tuple(args), {name: rebuilt(name, value) for name, value in example.kwargs.items()}


def _by_parameter(module: torch.nn.Module, values: Sequence[Any]) -> dict[str, Any]:
    """Positional values by parameter of ``forward``; what ``*args`` takes is one tuple."""
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    found = dict(zip(names, values, strict=False))
    rest = _variable(module, inspect.Parameter.VAR_POSITIONAL)
    return found if rest is None else {**found, rest: tuple(values[len(names) :])}


def _variable(module: torch.nn.Module, kind: Any) -> str | None:
    """The name of ``forward``'s ``*args`` or ``**kwargs``, if it has such."""
    parameters = inspect.signature(module.forward).parameters.values()
    return next((p.name for p in parameters if p.kind is kind), None)


@contextlib.contextmanager
def _explicit_keywords(module: torch.nn.Module, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Let ``forward`` seem to name what it takes as ``**kwargs``: torch.export 2.13 fails on it."""
    signature = inspect.signature(module.forward)
    rest = _variable(module, inspect.Parameter.VAR_KEYWORD)
    named = [p for p in signature.parameters.values() if p.name != rest]
    more = [name for name in kwargs if name not in signature.parameters]
    if not more:
        yield
        return
    original = module.forward

    def forward(*args: Any, **given: Any) -> Any:
        return original(*args, **given)

    extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in more]
    forward.__signature__ = signature.replace(parameters=[*named, *extra])  # type: ignore[attr-defined]
    replaced = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if replaced is not None:
            module.forward = replaced


class _Quiet:
    """torch.export logs, warns and prints at length about attempts that are expected to fail."""

    def __enter__(self) -> None:
        self._stderr = contextlib.redirect_stderr(io.StringIO())
        self._stderr.__enter__()
        self._level = logging.root.manager.disable
        logging.disable(logging.ERROR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *exception: object) -> None:
        self._warnings.__exit__(*exception)  # type: ignore[arg-type]
        logging.disable(self._level)
        self._stderr.__exit__(*exception)  # type: ignore[arg-type]


def _reason(error: Exception) -> str:
    """The part of an export error that names an operator, an input or a line."""
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    where = re.search(r'File "([^"]+)", line (\d+), in (\w+)\n\s+(.+)', text)
    shown = f"{type(error).__name__}: {first[:300]}"
    if where:
        shown += f" (at {where[3]}, {where[1].rsplit('/', 1)[-1]}:{where[2]}: {where[4].strip()})"
    return shown


def _dynamic_dims(
    exported: ExportedProgram, tensors: dict[str, torch.Tensor]
) -> dict[tuple[str, int], Any]:
    """The dims of the user's inputs that stayed symbolic: ``{(input, dim): SymInt}``."""
    found: dict[tuple[str, int], Any] = {}
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and node.name in tensors and isinstance(value, torch.Tensor):
            for dim, size in enumerate(value.shape):
                # A symbol that the trace has fixed to a number is no longer dynamic.
                if isinstance(size, torch.SymInt) and size.node.expr.free_symbols:
                    found[node.name, dim] = size
    return found


def _from_exported(model: LoadedModel) -> Traced:
    """A program loaded from a file: its dynamic dims are what was exported."""
    assert model.exported is not None
    exported = model.exported
    user = [
        spec.arg.name
        for spec in exported.graph_signature.input_specs
        if spec.kind.name == "USER_INPUT" and hasattr(spec.arg, "name")
    ]
    leaves, _ = pytree.tree_flatten((model.example.args, dict(model.example.kwargs)))
    tensors = {
        name: leaf
        for name, leaf in zip(user, leaves, strict=True)
        if isinstance(leaf, torch.Tensor)
    }
    if not tensors:
        raise InvalidInputError(f"{model.ref} takes no tensor input")
    dynamic = _dynamic_dims(exported, tensors)
    first = next((name for name in tensors if (name, 0) in dynamic), None)
    dim_names: dict[tuple[str, int], str] = {}
    batch_dims: dict[str, int | None] = dict.fromkeys(tensors)
    if first is not None:
        size = tensors[first].shape[0]
        for name, dim in dynamic:
            if dim == 0 and tensors[name].shape[0] == size:
                dim_names[name, dim] = BATCH
                batch_dims[name] = 0
            else:
                dim_names[name, dim] = f"dim_{name}_{dim}"
    static = None if first else next((t.shape[0] for t in tensors.values() if t.ndim), 1)
    return Traced(
        exported=exported,
        tensors=tensors,
        batch_dims=batch_dims,
        dim_names=dim_names,
        static_batch=static,
        level="saved program" + ("" if first else ", fixed batch"),
        notes=(),
    )
