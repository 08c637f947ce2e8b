"""Putting shards together: pure work on tensors that are all there."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def place_runs(parts: Sequence[torch.Tensor], *, dim: int, lengths: Sequence[int]) -> torch.Tensor:
    """The whole of which every rank has ``lengths[rank]`` places of ``dim``, in rank order.

    A part may hold several runs of that length one after another; the whole then has as many runs,
    each of all ranks' places.
    """
    runs = parts[0].shape[dim] // lengths[0]
    if runs == 1:
        return torch.cat(list(parts), dim=dim)
    split = [
        part.reshape(*part.shape[:dim], runs, length, *part.shape[dim + 1 :])
        for part, length in zip(parts, lengths, strict=True)
    ]
    return torch.cat(split, dim=dim + 1).flatten(dim, dim + 1)
