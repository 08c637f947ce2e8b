"""Loading an ensemble that a file lists: members from directories and factories, weights unread."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from profiler.ensemble import Ensemble
from profiler.ensemblefile import member_refs
from profiler.errors import UnsupportedModelError
from profiler.huggingface import fake_parameters, load_whole
from profiler.sources import EnsembleSource, Example, LoadedModel, load_model
from profiler.weights import MemoryWeights, Recipe, SafetensorsWeights, WeightSource


@dataclass(frozen=True)
class MixedWeights:
    """Weights of which some are in this process and some in files."""

    memory: MemoryWeights
    stored: SafetensorsWeights

    def _home(self, name: str) -> WeightSource:
        return self.memory if self.memory.has(name) else self.stored

    def has(self, name: str) -> bool:
        """Whether either has it."""
        return self._home(name).has(name)

    def fill(self, name: str, target: torch.Tensor) -> None:
        """Copy from where it is."""
        self._home(name).fill(name, target)

    def recipes(self, names: Iterable[str], *, directory: Path) -> dict[str, Recipe]:
        """Those of both."""
        wanted = list(names)
        here = [name for name in wanted if self.memory.has(name)]
        there = [name for name in wanted if not self.memory.has(name)]
        found = self.memory.recipes(here, directory=directory) if here else {}
        return {**found, **self.stored.recipes(there, directory=directory)}


def load_ensemble(
    path: Path, file: Path, example: Any = None, *, length: int | None = None
) -> LoadedModel:
    """The ensemble that ``file`` lists, ready to be captured; ``path`` is how it was referred to.

    Without ``example``, its inputs are those of its first member.

    Raises:
        InvalidInputError: the file or a member cannot be read, or inputs do not fit a member.
        UnsupportedModelError: a member cannot be built, or is a saved program.
    """
    listed, refs = member_refs(file)
    loaded = [_member(ref, length=length) for ref in refs]
    ensemble = Ensemble(
        [module for _, module in loaded],
        combine=listed.combine,
        weights=listed.weights,
        dim=listed.dim,
    )
    chosen = loaded[0][0].example if example is None else Example.of(example)
    ensemble.require_callable(chosen.args, dict(chosen.kwargs))
    ensemble.eval()
    memory, stored, aliases = {}, {}, {}
    for name, (member, _) in zip(ensemble.members, loaded, strict=True):
        aliases.update({f"{name}.{k}": f"{name}.{v}" for k, v in member.aliases.items()})
        if isinstance(member.weights, SafetensorsWeights):
            stored.update({f"{name}.{k}": recipe for k, recipe in member.weights.stored.items()})
        elif isinstance(member.weights, MemoryWeights):
            memory.update({f"{name}.{k}": value for k, value in member.weights.tensors.items()})
    has_weights = all(member.has_weights for member, _ in loaded)
    if not has_weights:
        fake_parameters(ensemble)  # one kind of placeholder for all: torch.export refuses several
    return LoadedModel(
        kind="ensemble",
        ref=str(path),
        name=f"Ensemble of {len(loaded)}",
        module=ensemble,
        exported=None,
        example=chosen,
        weights=MixedWeights(MemoryWeights(memory), SafetensorsWeights(stored)),
        has_weights=has_weights,
        aliases=aliases,
        ensemble=EnsembleSource(
            refs=tuple(member.ref for member in listed.members),
            combination=ensemble.combination,
        ),
    )


def load_whole_ensemble(file: Path) -> Ensemble:
    """The ensemble with its weights: the reference of ``verify``."""
    listed, refs = member_refs(file)
    members = [
        load_whole(Path(ref)) if Path(ref).is_dir() else _member(ref, length=None)[1]
        for ref in refs
    ]
    made = Ensemble(members, combine=listed.combine, weights=listed.weights, dim=listed.dim)
    return made.eval()


def _member(ref: str, *, length: int | None) -> tuple[LoadedModel, nn.Module]:
    loaded = load_model(ref, length=length if Path(ref).is_dir() else None)
    if loaded.module is None or loaded.ensemble is not None:
        what = "an ensemble" if loaded.ensemble is not None else "a saved program"
        raise UnsupportedModelError(
            f"member {ref} of the ensemble is {what}; members are model directories or factories"
        )
    return loaded, loaded.module
