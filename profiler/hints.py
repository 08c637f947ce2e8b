"""What a Hugging Face model's own plans say about dividing it: read as hints, never required.

``config.base_model_tp_plan`` names modules and how their weights are cut (``colwise``: output
features; ``rowwise``: input features), ``config.base_model_pp_plan`` the modules in the order in
which stages take them. What apportion finds by following the program should agree; where it does
not, the capture's notes say so, and what was found counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from profiler.graph import ModelGraph

CUT_FROM_END = {"colwise": 2, "rowwise": 1}
"""Which dim a style cuts, counted from a weight's last: matrices are (out, in), and experts' are
stacked in front of that."""


def read_hints(module: Any) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """The plans of a model's configuration: styles by module pattern, and modules in order."""
    config = getattr(module, "config", None)
    tensor = getattr(config, "base_model_tp_plan", None)
    stages = getattr(config, "base_model_pp_plan", None)
    return (
        dict(tensor) if isinstance(tensor, Mapping) else {},
        tuple(stages) if isinstance(stages, Mapping) else (),
    )


def disagreements(
    graph: ModelGraph, shapes: Mapping[str, tuple[int, ...]], module: Any
) -> Iterator[str]:
    """Where the model's own plans and the captured graph differ; ``shapes`` are those of weights.

    One line for each pattern, with the first weight that it is about.
    """
    styles, order = read_hints(module)
    cut = {x.weight: x.dim for region in graph.regions for x in region.weights}
    for pattern, style in styles.items():
        from_end = next((n for kind, n in CUT_FROM_END.items() if style.endswith(kind)), None)
        for name in () if from_end is None else _matching(pattern, shapes):
            wanted = len(shapes[name]) - (from_end or 0)
            if len(shapes[name]) > 1 and cut.get(name) != wanted:
                found = f"dim {cut[name]}" if name in cut else "nothing"
                yield (
                    f"the model's own tensor plan cuts dim {wanted} of {name} ({style}), "
                    f"the captured program {found}"
                )
                break
    first: dict[str, int] = {}
    for i, layer in enumerate(graph.layers):
        for module_name in (layer.name, *layer.modules):
            for part in order:
                if re.search(rf"(^|\.){re.escape(part)}(\.|$)", module_name):
                    first.setdefault(part, i)
    places = [first[part] for part in order if part in first]
    if places != sorted(places):
        yield (
            f"the model's own pipeline plan has {', '.join(order)} in this order, the captured "
            f"program {', '.join(sorted(first, key=first.__getitem__))}"
        )


def _matching(pattern: str, weights: Mapping[str, object]) -> Iterator[str]:
    """Weights of the modules that a pattern names; ``*`` is a number."""
    wanted = re.compile(
        rf"(^|\.){re.escape(pattern).replace(re.escape('*'), '[0-9]+')}(\.weight)?$"
    )
    return (name for name in weights if wanted.search(name))
