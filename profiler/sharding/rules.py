"""Which rule an operator follows; rules of norms, tables and operators on single elements."""

from __future__ import annotations

from profiler.program import Node
from profiler.sharding.facts import argument, base_name, is_pointwise, reference
from profiler.sharding.propagate import Pass, Result, Rule
from profiler.sharding.rules_product import PRODUCT_RULES
from profiler.sharding.rules_shape import SHAPE_RULES, cut_whole
from profiler.sharding.states import (
    NodePlan,
    Own,
    Partial,
    Scaled,
    Sharded,
    Use,
)

LEAST_ROWS = 64
"""Tables with fewer rows are not worth a join."""


def rule_of(op: str) -> Rule | None:
    """The rule of an operator; None if it needs everything whole."""
    base = base_name(op)
    found = SHAPE_RULES.get(base) or PRODUCT_RULES.get(base) or OTHER_RULES.get(base)
    if found is None and is_pointwise(op):
        return pointwise
    return found


def pointwise(run: Pass, node: Node) -> Result | None:
    """Element by element: every operand is cut alike, or is whole and reaches across."""
    names = run.tensors(node)
    states = {name: run.state(name) for name in names}
    if any(isinstance(s, Partial) for s in states.values()):
        return _of_terms(run, node)
    ndim = len(run.dims[node.name])
    shards = {n: s for n, s in states.items() if isinstance(s, Sharded)}
    if not shards:
        return None
    cuts = {(s.dim + ndim - len(run.dims[n]), s.outer, s.rest): s for n, s in shards.items()}
    if len(cuts) != 1:
        return None
    (dim, outer, rest), lead = next(iter(cuts.items()))
    uses: dict[str, Use] = {}
    for name in names:
        own = dim - (ndim - len(run.dims[name]))
        if name in shards:
            uses[name] = Own()
        elif own >= 0 and run.dims[name][own] != 1:
            use = cut_whole(run, name, own, lead)
            if use is None:
                return None
            uses[name] = use
    axis, seeds = run.unite(*shards.values())
    return Result(Sharded(dim, axis, outer, rest, seeds), NodePlan(uses=uses))


_IDENTITIES = {"dropout", "feature_dropout", "to", "contiguous", "clone", "detach", "alias", "neg"}


def _of_terms(run: Pass, node: Node) -> Result | None:
    """Sums pass through scaling by whole values, and through adding terms to terms."""
    base, names = base_name(node.op), run.tensors(node)
    terms = {n: s for n in names for s in [run.state(n)] if isinstance(s, Partial)}
    dtypes = {run.facts.specs[n].dtype for n in (*terms, node.name)}
    if len(dtypes) != 1 or any(isinstance(run.state(n), Sharded) for n in names):
        return None
    whole = [n for n in names if n not in terms]
    if base in _IDENTITIES:
        allowed = not whole
    elif base == "mul":
        allowed = len(terms) == 1 and not _same_twice(node)
    elif base == "div":
        allowed = len(terms) == 1 and reference(node.args[0]) in terms and not _same_twice(node)
        allowed &= "rounding_mode" not in node.kwargs
    elif base in ("add", "sub"):
        allowed = not whole and len(names) == 2
    else:
        allowed = False
    if not allowed:
        return None
    axis, seeds = run.unite(*terms.values())
    return Result(Partial(axis, seeds), NodePlan(uses={n: Own() for n in terms}))


def _same_twice(node: Node) -> bool:
    return len(node.args) > 1 and node.args[0] == node.args[1]


def norm(run: Pass, node: Node) -> Result | None:
    """Norms over the last dims (``layer_norm``, ``rms_norm``)."""
    name = reference(node.args[0]) or ""
    state = run.state(name)
    if not isinstance(state, Sharded):
        return None
    if state.dim >= len(run.dims[name]) - len(argument(node, 1, "normalized_shape")):
        return None
    return Result(state, NodePlan(uses={name: Own()}))


def channel_norm(run: Pass, node: Node) -> Result | None:
    """Norms with a weight for each channel (``batch_norm`` of a trained model, ``group_norm``)."""
    name = reference(node.args[0]) or ""
    state = run.state(name)
    if not isinstance(state, Sharded) or state.dim != 1:
        return None
    scaled: tuple[Scaled, ...] = ()
    if base_name(node.op) == "group_norm":
        groups = argument(node, 1, "num_groups")
        if state.outer != 1 or state.rest % groups:
            return None
        scaled = (Scaled(1, None, groups),)
    elif base_name(node.op) == "batch_norm" and argument(node, 5, "training") is not False:
        return None
    uses: dict[str, Use] = {name: Own()}
    for other in run.tensors(node):
        if other != name:
            use = run.cut_weight(other, 0, state)
            if use is None:
                return None
            uses[other] = use
    if scaled:
        run.axes.restrict(state.axis, int(scaled[0].size))
    return Result(state, NodePlan(uses=uses, scaled=scaled))


def lookup(run: Pass, node: Node) -> Result | None:
    """A table of which each rank holds some rows: what it lacks, it looks up as zero."""
    table, ids = reference(node.args[0]) or "", reference(node.args[1]) or ""
    rows = run.dims[table][0] if table in run.dims else 0
    if (
        node.name in run.banned
        or run.state(ids) is not None
        or rows < LEAST_ROWS
        or ids not in run.facts.from_data
    ):
        return None
    seeds = frozenset({node.name})
    state = Sharded(0, run.axes.new(rows), 1, rows, seeds)
    use = run.cut_weight(table, 0, state)
    if use is None:
        return None
    return Result(Partial(state.axis, seeds), NodePlan(uses={table: use}, kind="lookup"))


OTHER_RULES: dict[str, Rule] = {
    **dict.fromkeys(("layer_norm", "rms_norm"), norm),
    **dict.fromkeys(("batch_norm", "group_norm"), channel_norm),
    "embedding": lookup,
}
