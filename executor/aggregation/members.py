"""From the answers of an ensemble's members to the ensemble's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from executor.aggregation.registry import make_aggregator
from planner.planfile import Aggregation
from profiler.errors import InvalidInputError
from profiler.graph import Members

GATHER = "gather"


def combine_tensors(
    ensemble: Members | None, wanted: Aggregation, gathered: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The answer's tensors by name: of each row of members' tensors, under that of the first.

    What is gathered as a list stays as it is; so does the answer of a model that is no ensemble.
    """
    if ensemble is None or wanted.strategy == GATHER:
        return dict(gathered)
    aggregator = make_aggregator(wanted)
    made = {}
    for row in ensemble.answers:
        whole = aggregator.join([gathered[name] for name in row], [1] * len(row))
        if not isinstance(whole, torch.Tensor):
            raise InvalidInputError(
                f"aggregation {wanted.strategy} made a {type(whole).__name__} of {row[0]}; "
                "a strategy of your own must make one tensor"
            )
        made[row[0]] = whole
    return made


def combine_answers(wanted: Aggregation, answers: Sequence[Sequence[Any]]) -> list[Any]:
    """The leaves of the ensemble's answer from the leaves of each member's.

    Tensors are joined; numbers, texts and the like are taken from the first member, for all have
    the same. With ``gather``, each member's leaves stay a list of their own.
    """
    if wanted.strategy == GATHER:
        return [list(leaves) for leaves in answers]
    aggregator = make_aggregator(wanted)
    return [
        aggregator.join(list(leaves), [1] * len(leaves))
        if isinstance(leaves[0], torch.Tensor)
        else leaves[0]
        for leaves in zip(*answers, strict=True)
    ]
