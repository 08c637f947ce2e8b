"""Models of the zoo, captured once for all tests of a process."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from profiler.capture import Captured, capture
from profiler.sources import load_model
from tests.support import zoo

APPROXIMATE = frozenset({"scanned", "transformer", "dynamic_length"})
"""Models whose own forward runs other kernels than the captured operators (fused ones)."""


@functools.cache
def captured(name: str) -> Captured:
    """A model of the zoo as data."""
    module, example = {**zoo.CAPTURABLE, **zoo.UNCAPTURABLE}[name]()
    return capture(load_model(module, example))


def captured_in(name: str, dtype: torch.dtype) -> Captured:
    """A model of the zoo with all that floats in another precision, as data."""

    def cast(value: Any) -> Any:
        floats = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floats else value

    module, example = {**zoo.CAPTURABLE, **zoo.UNCAPTURABLE}[name]()
    return capture(load_model(module.to(dtype), tree_map(cast, example)))


def undivided(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> Any:
    """What the module itself returns; neither it nor its inputs are changed.

    Fused transformer kernels are off: they are not what the captured operators compute.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            return copy.deepcopy(module)(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
