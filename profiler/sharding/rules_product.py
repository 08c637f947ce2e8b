"""Rules of matrix products and convolutions: where a region begins, and where it leaves sums.

Dims carry labels, as in an Einstein sum: a label of two operands that the result lacks is summed
over. A shard along a label of the result gives a shard of the result; along a label summed over, a
term. Where every operand is whole, a label that only the weight has begins a region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from profiler.program import Node
from profiler.sharding.facts import argument, base_name, reference
from profiler.sharding.propagate import Pass, Result, Rule
from profiler.sharding.rules_shape import cut_whole
from profiler.sharding.states import (
    NodePlan,
    Own,
    Partial,
    Scaled,
    Sharded,
    Use,
)

Labels = tuple[str | None, ...]
"""One label a dim; None for a dim that takes no part (of one element, or a kernel's)."""


@dataclass(frozen=True)
class Product:
    """A product as labels. ``bias`` is a vector along ``bias_label``."""

    operands: tuple[tuple[str, Labels], ...]
    result: Labels
    bias: str | None = None
    bias_label: str | None = None


def _names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{k}" for k in range(count)]


def labelled(run: Pass, node: Node) -> Product | None:
    """The labels of a node's operands; None if it is none of these products."""
    base, read = base_name(node.op), [reference(a) for a in node.args]
    if base == "einsum":
        return _einsum(node)

    def ndim(position: int) -> int:
        return len(run.dims[read[position] or ""])

    if any(r is not None and r not in run.dims for r in read[:3]) or len(read) < 2:
        return None
    pair: list[tuple[str | None, Sequence[str | None]]]
    if base == "linear":
        lead = _names("b", ndim(0) - 1)
        pair = [(read[0], (*lead, "k")), (read[1], ("n", "k"))]
        return _product(pair, (*lead, "n"), read[2] if len(read) > 2 else None, "n")
    if base == "addmm":
        if node.kwargs or ndim(0) != 1:
            return None
        return _product(((read[1], ("m", "k")), (read[2], ("k", "n"))), ("m", "n"), read[0], "n")
    if base == "mm":
        return _product(((read[0], ("m", "k")), (read[1], ("k", "n"))), ("m", "n"))
    if base == "bmm":
        pair = [(read[0], ("b", "m", "k")), (read[1], ("b", "k", "n"))]
        return _product(pair, ("b", "m", "n"))
    if base == "matmul":
        return _matmul(run, str(read[0]), str(read[1]))
    if base in ("grouped_mm_fallback", "_grouped_mm", "grouped_mm"):
        if ndim(0) != 2 or ndim(1) != 3:
            return None
        return _product(((read[0], ("s", "k")), (read[1], ("e", "k", "n"))), ("s", "n"))
    if base.startswith("conv") and base[-1] == "d":
        kernel, groups = ndim(1) - 2, argument(node, 6, "groups", 1)
        if groups != 1 or ndim(0) != ndim(1):
            return None
        image, made = _names("x:", kernel), _names("y:", kernel)
        pair = [(read[0], ("b", "k", *image)), (read[1], ("n", "k", *[None] * kernel))]
        return _product(pair, ("b", "n", *made), read[2] if len(read) > 2 else None, "n")
    return None


def _einsum(node: Node) -> Product | None:
    """Two operands whose dims all have their own letters."""
    left, arrow, right = str(node.args[0]).replace(" ", "").partition("->")
    letters, names = left.split(","), [reference(a) for a in node.args[1]]
    plain = arrow and all(len(set(x)) == len(x) and "." not in x for x in (*letters, right))
    if not plain or len(names) != 2:
        return None
    return _product([(n, tuple(x)) for n, x in zip(names, letters, strict=True)], tuple(right))


def _product(
    operands: Sequence[tuple[str | None, Sequence[str | None]]],
    result: Sequence[str | None],
    bias: str | None = None,
    bias_label: str | None = None,
) -> Product:
    pairs = tuple((str(name), tuple(labels)) for name, labels in operands)
    return Product(pairs, tuple(result), bias, bias_label)


def _matmul(run: Pass, one: str, other: str) -> Product | None:
    a, b = run.dims[one], run.dims[other]
    if len(a) < 2 or len(b) < 2:
        return None
    count = max(len(a), len(b)) - 2

    def lead(dims: tuple[int, ...]) -> list[str | None]:
        first = count - (len(dims) - 2)
        return [None if dims[k - first] == 1 else f"b{k}" for k in range(first, count)]

    pair = ((one, (*lead(a), "m", "k")), (other, (*lead(b), "k", "n")))
    return _product(pair, (*_names("b", count), "m", "n"))


def product(run: Pass, node: Node) -> Result | None:
    """A product of shards, of terms, or one that begins a region."""
    grouped = _channelwise(run, node)
    if grouped is not None:
        return grouped
    found = labelled(run, node)
    if found is None or found.operands[0][0] == found.operands[1][0]:
        return None
    states = [run.state(name) for name, _ in found.operands]
    if any(isinstance(s, Partial) for s in states):
        return _of_terms(run, found)
    shards = [
        (name, labels, state)
        for (name, labels), state in zip(found.operands, states, strict=True)
        if isinstance(state, Sharded)
    ]
    if not shards:
        return _begin(run, node, found)
    lead, label = _leading(run, found, shards)
    if label is None:
        return None
    uses: dict[str, Use] = {}
    taken = [lead]
    for name, labels in found.operands:
        state = run.state(name)
        if label not in labels:
            continue
        dim = labels.index(label)
        if isinstance(state, Sharded) and state.dim == dim:
            if (state.outer, state.rest) != (lead.outer, lead.rest):
                return None
            uses[name] = Own()
            taken.append(state)
            continue
        use = cut_whole(run, name, dim, lead, heavy=True)
        if use is None:
            return None
        uses[name] = use
    if label not in found.result:
        axis, seeds = run.unite(*taken)
        row = found.bias is not None
        return Result(
            Partial(axis, seeds, linear=not row), NodePlan(uses=uses, kind="row" if row else "same")
        )
    if found.bias is not None and label == found.bias_label:
        use = run.cut_weight(found.bias, 0, lead)
        if use is None:
            return None
        uses[found.bias] = use
    axis, seeds = run.unite(*taken)
    state = Sharded(found.result.index(label), axis, lead.outer, lead.rest, seeds)
    return Result(state, NodePlan(uses=uses))


def _leading(
    run: Pass, found: Product, shards: Sequence[tuple[str, Labels, Sharded]]
) -> tuple[Sharded, str | None]:
    """The shard that decides, and its label: one that both operands have comes first."""
    ranked = []
    for name, labels, state in shards:
        label = labels[state.dim]
        shared = sum(label in other for _, other in found.operands)
        if label is not None and not label.startswith("x:"):
            ranked.append((shared, run.facts.num_bytes(name), state, label))
    if not ranked:
        return shards[0][2], None
    _, _, state, label = max(ranked, key=lambda one: one[:2])
    return state, label


def _of_terms(run: Pass, found: Product) -> Result | None:
    """A product of terms and whole values is a term."""
    terms = [(n, s) for n, _ in found.operands for s in [run.state(n)] if isinstance(s, Partial)]
    others = [n for n, _ in found.operands if run.state(n) is not None]
    if len(terms) != 1 or len(others) != 1 or found.bias is not None:
        return None
    name, state = terms[0]
    return Result(state, NodePlan(uses={name: Own()}))


def _begin(run: Pass, node: Node, found: Product) -> Result | None:
    """Cut the weight of a product of whole values along the label that only it has."""
    weights = [one for one in found.operands if run.facts.is_weight(one[0])]
    if len(weights) != 1 or node.name in run.banned:
        return None
    name, labels = weights[0]
    other = next(other for n, other in found.operands if n != name)
    free = [x for x in labels if x is not None and x in found.result and x not in other]
    if not free:
        return None
    dim = labels.index(free[0])
    parts, size = run.parts.get(node.name, 1), run.dims[name][dim]
    if size % parts or size // parts < 2:
        return None
    rest = size // parts
    axis = run.axes.new(rest)
    state = Sharded(found.result.index(free[0]), axis, parts, rest, frozenset({node.name}))
    use = run.cut_weight(name, dim, state)
    if use is None:
        return None
    uses = {name: use}
    if found.bias is not None:
        bias = run.cut_weight(found.bias, 0, state)
        if bias is None:
            return None
        uses[found.bias] = bias
    return Result(state, NodePlan(uses=uses))


def _channelwise(run: Pass, node: Node) -> Result | None:
    """A convolution in groups of channels, on sharded channels."""
    base, groups = base_name(node.op), argument(node, 6, "groups", 1)
    if not base.startswith("conv") or groups == 1 or not isinstance(groups, int):
        return None
    image, weight = reference(node.args[0]) or "", reference(node.args[1]) or ""
    state = run.state(image)
    if not isinstance(state, Sharded) or state.dim != 1 or state.outer != 1 or state.rest % groups:
        return None
    made = run.dims[weight][0]
    shard = Sharded(1, state.axis, 1, made, state.seeds)
    uses: dict[str, Use] = {image: Own()}
    for name in (weight, reference(argument(node, 2, "bias"))):
        if name is not None:
            use = run.cut_weight(name, 0, shard)
            if use is None:
                return None
            uses[name] = use
    run.axes.restrict(state.axis, groups)
    plan = NodePlan(uses=uses, scaled=(Scaled(6, None, groups),))
    return Result(run.sharded(state, dim=1, outer=1, rest=made), plan)


def attention(run: Pass, node: Node) -> Result | None:
    """Scaled dot product attention, along a dim before the last two (heads).

    Keys and values may have fewer heads than queries: the units are then theirs.
    """
    names = [reference(argument(node, k, n)) for k, n in enumerate(("query", "key", "value"))]
    if any(n is None or isinstance(run.state(n), Partial) for n in names):
        return None
    ndim = len(run.dims[node.name])
    shards = [s for s in (run.state(n) for n in names) if isinstance(s, Sharded)]
    usable = [s for s in shards if s.dim < ndim - 2]
    if not usable:
        return None
    lead = usable[0]
    uses: dict[str, Use] = {}
    taken = [lead]
    for name in names:
        assert name is not None
        state, size = run.state(name), run.dims[name][lead.dim]
        if isinstance(state, Sharded) and (state.dim, state.outer) == (lead.dim, lead.outer):
            uses[name] = Own()
            taken.append(state)
        elif size > 1:
            own = run.sharded(lead, dim=lead.dim, outer=lead.outer, rest=size // lead.outer)
            use = cut_whole(run, name, lead.dim, own, heavy=True)
            if use is None:
                return None
            uses[name] = use
    mask = reference(argument(node, 3, "attn_mask"))
    if mask is not None:
        dim = lead.dim - (ndim - len(run.dims[mask]))
        state = run.state(mask)
        if isinstance(state, Partial):
            return None
        if dim >= 0 and run.dims[mask][dim] > 1:
            if isinstance(state, Sharded) and (state.dim, state.outer) == (dim, lead.outer):
                taken.append(state)
            whole = run.dims[mask][dim] // lead.outer
            like = Sharded(dim, lead.axis, lead.outer, whole, lead.seeds)
            use = Own() if state in taken else cut_whole(run, mask, dim, like, heavy=True)
            if use is None:
                return None
            uses[mask] = use
    axis, seeds = run.unite(*taken)
    heads = run.dims[node.name][lead.dim] // lead.outer
    run.axes.restrict(axis, heads)
    return Result(Sharded(lead.dim, axis, lead.outer, heads, seeds), NodePlan(uses=uses))


PRODUCT_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("linear", "addmm", "mm", "bmm", "matmul", "conv1d", "conv2d", "conv3d", "einsum"), product
    ),
    **dict.fromkeys(("grouped_mm_fallback", "_grouped_mm", "grouped_mm"), product),
    "scaled_dot_product_attention": attention,
}
