"""Rules of operators that move, cut or reduce values: where a sharded dim goes.

Sums of terms pass through whatever keeps sums: moving elements and adding them up.
"""

from __future__ import annotations

from typing import Any

from profiler.program import Node
from profiler.sharding.facts import argument, base_name, reference
from profiler.sharding.propagate import Pass, Result, Rule
from profiler.sharding.states import (
    Narrowed,
    NodePlan,
    Own,
    Partial,
    Scaled,
    Sharded,
    State,
    Use,
)


def _first(run: Pass, node: Node) -> tuple[str, State]:
    name = reference(node.args[0]) if node.args else None
    return name or "", run.state(name)


def _moved(name: str, state: State, *scaled: Scaled) -> Result:
    return Result(state, NodePlan(uses={name: Own()}, scaled=scaled))


def _dims(value: Any, ndim: int) -> list[int]:
    if value is None:
        return list(range(ndim))
    many = value if isinstance(value, (list, tuple)) else [value]
    return [int(d) % ndim for d in many]


def regroup(
    source: tuple[int, ...], target: tuple[int, ...], dim: int, outer: int, rest: int
) -> tuple[int, int, int] | None:
    """Where a sharded dim is after a reshape: dim, outer, rest; None if it is torn apart.

    >>> regroup((2, 12, 32), (2, 12, 4, 8), 2, 1, 32), regroup((2, 96), (2, 3, 32), 1, 3, 32)
    ((2, 1, 4), (2, 1, 32))
    """
    i = j = 0
    while i < len(source) and j < len(target):
        first_i, first_j = i, j
        left, right = source[i], target[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                if i == len(source):
                    return None
                left, i = left * source[i], i + 1
            else:
                if j == len(target):
                    return None
                right, j = right * target[j], j + 1
        if first_i <= dim < i:
            # Trailing dims of one element belong to whatever is before them.
            while j < len(target) and target[j] == 1:
                j += 1
            before, behind = 1, 1
            for size in source[first_i:dim]:
                before *= size
            for size in source[dim + 1 : i]:
                behind *= size
            return _place(target, (first_j, j), before * outer, rest * behind)
    return None


def _place(
    target: tuple[int, ...], group: tuple[int, int], outer: int, rest: int
) -> tuple[int, int, int] | None:
    best: tuple[int, int, int] | None = None
    before = 1
    for k in range(*group):
        size = target[k]
        if outer % before == 0:
            own = outer // before
            if size % own == 0 and size // own >= 1 and rest % (size // own) == 0:
                found = (k, own, size // own)
                if best is None or found[2] > best[2]:
                    best = found
        before *= size
    return best if best is not None and best[2] > 1 else None


def view(run: Pass, node: Node) -> Result | None:
    """Another shape for the same elements in the same order."""
    name, state = _first(run, node)
    if isinstance(state, Partial):
        return _moved(name, state)
    if not isinstance(state, Sharded):
        return None
    source, target = run.dims[name], run.dims[node.name]
    found = regroup(source, target, state.dim, state.outer, state.rest)
    if found is None:
        return None
    dim, outer, rest = found
    size = run.facts.specs[node.name].shape[dim]
    scaled: list[Scaled] = []
    where, first = 1, 0
    if base_name(node.op) == "unflatten":
        where, first = 2, _dims(argument(node, 1, "dim"), len(source))[0]
    sizes = argument(node, where, "sizes")
    if base_name(node.op) != "flatten" and sizes[dim - first] != -1:
        scaled.append(Scaled(where, dim - first, size))
    return _moved(name, run.sharded(state, dim=dim, outer=outer, rest=rest), *scaled)


def expand(run: Pass, node: Node) -> Result | None:
    """Dims of one element are repeated; dims may be added in front."""
    name, state = _first(run, node)
    if isinstance(state, Partial):
        return _moved(name, state)
    if not isinstance(state, Sharded):
        return None
    dim = state.dim + len(run.dims[node.name]) - len(run.dims[name])
    sizes = argument(node, 1, "size")
    size = run.facts.specs[node.name].shape[dim]
    return _moved(name, state.at(dim), *([] if sizes[dim] == -1 else [Scaled(1, dim, size)]))


def move(run: Pass, node: Node) -> Result | None:
    """Dims change places, come or go."""
    name, state = _first(run, node)
    if isinstance(state, Partial):
        return _moved(name, state)
    if not isinstance(state, Sharded):
        return None
    ndim, dim = len(run.dims[name]), state.dim
    match base_name(node.op):
        case "t":
            dim = ndim - 1 - dim
        case "transpose":
            pair = [_dims(argument(node, i, f"dim{i - 1}"), ndim)[0] for i in (1, 2)]
            dim = pair[1 - pair.index(dim)] if dim in pair else dim
        case "permute":
            dim = _dims(argument(node, 1, "dims"), ndim).index(dim)
        case "unsqueeze":
            dim += int(argument(node, 1, "dim")) % (ndim + 1) <= dim
        case "squeeze":
            if not node.op.startswith("aten.squeeze.dim"):
                return None
            gone = [d for d in _dims(argument(node, 1, "dim"), ndim) if run.dims[name][d] == 1]
            dim -= sum(d < dim for d in gone)
    return _moved(name, state.at(dim))


def select(run: Pass, node: Node) -> Result | None:
    """One place of a dim."""
    name, state = _first(run, node)
    if isinstance(state, Partial):
        return _moved(name, state)
    if not isinstance(state, Sharded):
        return None
    dim = _dims(argument(node, 1, "dim", 0), len(run.dims[name]))[0]
    if dim == state.dim:
        run.suggest(state, run.dims[name][dim])
        return None
    return _moved(name, state.at(state.dim - (dim < state.dim)))


def cut(run: Pass, node: Node) -> Result | None:
    """A run of a dim (``slice``, ``narrow``); of a sharded one only whole parts."""
    name, state = _first(run, node)
    if isinstance(state, Partial):
        return _moved(name, state)
    if not isinstance(state, Sharded):
        return None
    dim = _dims(argument(node, 1, "dim", 0), len(run.dims[name]))[0]
    size, left = run.dims[name][dim], run.dims[node.name][dim]
    if dim != state.dim or size == left:
        return _moved(name, state)
    start = argument(node, 2, "start", 0) or 0
    if not isinstance(start, int) or argument(node, 4, "step", 1) != 1:
        return None
    if left < 1 or size % left or start % left:
        return None
    parts = size // left
    if state.outer % parts:
        if state.outer == 1:
            run.suggest(state, parts)
        return None
    scaled = [Scaled(2, None, start)] if start else []
    end = argument(node, 3, "end")
    if isinstance(end, int) and end < size:
        scaled.append(Scaled(3, None, end))
    shard = run.sharded(state, dim=dim, outer=state.outer // parts, rest=state.rest)
    return _moved(name, shard, *scaled)


def split(run: Pass, node: Node) -> Result | None:
    """Several runs of a dim, each a value."""
    name, state = _first(run, node)
    if state is None:
        return None
    base, sizes = base_name(node.op), run.dims[name]
    position = 1 if base == "unbind" else 2
    dim = _dims(argument(node, position, "dim", 0), len(sizes))[0]
    lengths = _lengths(node, base, sizes[dim])
    if lengths is None:
        return None
    if isinstance(state, Partial):
        return Result((state,) * len(lengths), NodePlan(uses={name: Own()}))
    if dim != state.dim:
        own = state.at(state.dim - (dim < state.dim)) if base == "unbind" else state
        return Result((own,) * len(lengths), NodePlan(uses={name: Own()}))
    parts = len(lengths)
    if len(set(lengths)) != 1:
        return None
    if base == "unbind" or state.outer % parts:
        if state.outer == 1:
            run.suggest(state, parts)
        return None
    shard = run.sharded(state, dim=dim, outer=state.outer // parts, rest=state.rest)
    scaled: tuple[Scaled, ...] = ()
    if base == "split" and isinstance(node.args[1], int):
        scaled = (Scaled(1, None, lengths[0]),)
    elif base != "chunk":
        scaled = tuple(Scaled(1, k, length) for k, length in enumerate(lengths))
    return Result((shard,) * parts, NodePlan(uses={name: Own()}, scaled=scaled))


def _lengths(node: Node, base: str, size: int) -> list[int] | None:
    if base == "unbind":
        return [1] * size
    given = argument(node, 1, "split_size")
    if isinstance(given, list):
        return given if all(isinstance(x, int) for x in given) else None
    if not isinstance(given, int) or given < 1:
        return None
    step = -(-size // given) if base == "chunk" else given
    return [min(step, size - at) for at in range(0, size, step)]


def cat(run: Pass, node: Node) -> Result | None:
    """Values side by side (``cat``) or in a new dim (``stack``)."""
    names = [reference(arg) or "" for arg in node.args[0]]
    shards = [s for s in (run.state(n) for n in names) if isinstance(s, Sharded)]
    if not shards or any(isinstance(run.state(n), Partial) for n in names):
        return None
    lead = shards[0]
    stacked = base_name(node.op) == "stack"
    dim = int(argument(node, 1, "dim", 0)) % len(run.dims[node.name])
    if (dim == lead.dim and not stacked) or any(
        (s.dim, s.outer, s.rest) != (lead.dim, lead.outer, lead.rest) for s in shards
    ):
        return None
    uses: dict[str, Use] = {}
    for name in names:
        use = Own() if run.state(name) else cut_whole(run, name, lead.dim, lead)
        if use is None:
            return None
        uses[name] = use
    axis, seeds = run.unite(*shards)
    at = lead.dim + (stacked and dim <= lead.dim)
    return Result(Sharded(at, axis, lead.outer, lead.rest, seeds), NodePlan(uses=uses))


def cut_whole(run: Pass, name: str, dim: int, like: Sharded, *, heavy: bool = False) -> Use | None:
    """How a rank takes its units of a value that is whole everywhere; None if it had better not.

    A heavy value is cut only where a product follows: cutting what skips over a region would shard
    all that comes after it.
    """
    if run.dims[name][dim] != like.outer * like.rest:
        return None
    if run.facts.is_weight(name):
        return run.cut_weight(name, dim, like)
    if like.outer != 1 or (name in run.facts.heavy and not heavy):
        return None
    return Narrowed(dim, like.axis, like.rest)


def along(run: Pass, node: Node) -> Result | None:
    """Operators that mix the elements of one dim and keep the shape (softmax, cumulated sums)."""
    name, state = _first(run, node)
    if not isinstance(state, Sharded):
        return None
    if _dims(argument(node, 1, "dim"), len(run.dims[name]))[0] == state.dim:
        return None
    return _moved(name, state)


def reduce(run: Pass, node: Node) -> Result | None:
    """Sums, means and extremes over dims."""
    name, state = _first(run, node)
    base = base_name(node.op)
    linear = base in ("sum", "mean")
    if isinstance(state, Partial):
        same = run.facts.specs[name].dtype == run.facts.specs[node.name].dtype
        return _moved(name, state) if linear and same else None
    if not isinstance(state, Sharded):
        return None
    ndim = len(run.dims[name])
    gone = _dims(argument(node, 1, "dim"), ndim) if len(node.args) > 1 else list(range(ndim))
    if state.dim in gone:
        return _moved(name, Partial(state.axis, state.seeds)) if base == "sum" else None
    kept = len(run.dims[node.name]) == ndim
    return _moved(name, state if kept else state.at(state.dim - sum(d < state.dim for d in gone)))


def spatial(run: Pass, node: Node) -> Result | None:
    """Pooling, padding and resizing: work on the last dims alone."""
    name, state = _first(run, node)
    if not isinstance(state, Sharded):
        return None
    base = base_name(node.op)
    if "pad" in base:
        pads = argument(node, 1, "pad")
        last = len(pads) // 2
    else:
        last = next((int(c) for c in base if c.isdigit()), 2)
    return _moved(name, state) if state.dim < len(run.dims[name]) - last else None


def repeat_interleave(run: Pass, node: Node) -> Result | None:
    """Every place of a dim several times."""
    name, state = _first(run, node)
    times, dim = argument(node, 1, "repeats"), argument(node, 2, "dim")
    if not isinstance(state, Sharded) or not isinstance(times, int) or dim is None:
        return None
    if _dims(dim, len(run.dims[name]))[0] != state.dim:
        return _moved(name, state)
    return _moved(
        name, Sharded(state.dim, state.axis, state.outer, state.rest * times, state.seeds)
    )


def index(run: Pass, node: Node) -> Result | None:
    """Rows chosen by whole indices."""
    name, state = _first(run, node)
    if state is None:
        return None
    if isinstance(state, Partial):
        return _moved(name, state)
    if base_name(node.op) == "index_select":
        dim = _dims(argument(node, 1, "dim"), len(run.dims[name]))[0]
        return _moved(name, state) if dim != state.dim else None
    chosen = [k for k, one in enumerate(node.args[1]) if one is not None]
    if not chosen or chosen[-1] >= state.dim or chosen[-1] - chosen[0] >= len(chosen):
        return None
    behind = len(run.dims[name]) - state.dim
    return _moved(name, state.at(len(run.dims[node.name]) - behind))


SHAPE_RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten"), view),
    **dict.fromkeys(("t", "transpose", "permute", "unsqueeze", "squeeze"), move),
    **dict.fromkeys(("slice", "narrow"), cut),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unbind"), split),
    **dict.fromkeys(("cat", "stack"), cat),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum"), along),
    **dict.fromkeys(("sum", "mean", "amax", "amin"), reduce),
    **dict.fromkeys(("index", "index_select"), index),
    **dict.fromkeys(
        (
            *(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg") for n in (1, 2, 3)),
            *("constant_pad_nd", "pad", "upsample_nearest2d", "upsample_bilinear2d"),
        ),
        spatial,
    ),
    "expand": expand,
    "select": select,
    "repeat_interleave": repeat_interleave,
}
