"""A run prepared in a process of its own: what capturing loads is gone before rank 0 computes.

``python -m executor.preparation`` reads one line from standard input, a request as JSON; it
captures the model, checks plan and inputs, writes the ranks' bundle, the checked inputs and what
else the answer needs into a directory, and ends. What it has to say is in ``prepared.json`` there:
the error, if there was one. It also ends when whoever started it does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from typing import TYPE_CHECKING, Any

from executor.torchrun import INPUTS
from profiler.errors import ApportionError, RankFailedError, from_data, to_data

if TYPE_CHECKING:
    import torch

HELD, SAID = "held.safetensors", "prepared.json"
"""Weights that are part of the answer, and what the process said."""

LEAVING = 75
"""Exit code of a process whose starter is gone; no other error has it."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that can start: its bundle and inputs are in ``directory``.

    ``names`` are those of the answer's tensors that ranks compute, of users to those of the
    program; ``places`` those of all that are no weights.
    """

    directory: Path
    num_items: int
    symbols: dict[str, int]
    names: dict[str, str]
    places: dict[str, str]
    order: tuple[str, ...]

    def answer(self, gathered: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The answer's tensors by name, of those that the root gathered by the program's names."""
        from safetensors.torch import load_file

        held = load_file(self.directory / HELD)
        passed = load_file(self.directory / INPUTS)
        found = held | {
            name: gathered[value] if value in gathered else passed[value]
            for name, value in self.places.items()
        }
        return {name: found[name] for name in self.order}


def prepare_apart(directory: Path, *, plan: Path, inputs: Path, model: str | None) -> Prepared:
    """Prepare a run of a plan file for rank 0, in another process.

    Raises:
        StalePlanError, InvalidInputError, UnsupportedModelError: as the process found.
        RankFailedError: it died.
    """
    request = {
        "directory": str(directory),
        "plan": str(plan),
        "inputs": str(inputs),
        "model": model,
    }
    with Popen([sys.executable, "-m", "executor.preparation"], stdin=PIPE, text=True) as process:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            code = process.wait()
        except BrokenPipeError:
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    if not (directory / SAID).exists():
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise RankFailedError(
            f"rank 0: the process that captures the model ended with {how}; messages stand above "
            "(signal 9 is often the system's, out of memory)"
        )
    said = json.loads((directory / SAID).read_text())
    if "error" in said:
        raise from_data(said)
    return Prepared(directory=directory, **{**said, "order": tuple(said["order"])})


def main() -> None:
    """Prepare what standard input asks for."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_starter, daemon=True).start()
    directory = Path(request["directory"])
    said: dict[str, Any]
    try:
        said = _prepare(directory, Path(request["plan"]), Path(request["inputs"]), request["model"])
    except ApportionError as error:
        said = to_data(error)
    (directory / SAID).write_text(json.dumps(said))


def _prepare(directory: Path, plan: Path, inputs: Path, model: str | None) -> dict[str, Any]:
    from safetensors.torch import save_file

    from executor.bundle import write_bundle
    from executor.inputs import prepare_inputs
    from executor.outputs import answer_places
    from executor.preflight import preflight
    from executor.running import model_of
    from executor.schedule import Schedule
    from executor.session import rank_threads
    from executor.tensorfiles import read_tensors
    from planner.inputs import find_sources
    from planner.planfile import Plan

    loaded = Plan.load(plan)
    given = read_tensors(inputs)
    captured = model_of(loaded, model, plan)
    sources = find_sources(loaded, plan)
    preflight(loaded, captured, sources=sources, here_only=False)
    prepared = prepare_inputs(captured, given)
    list(Schedule(loaded, captured.graph).steps(prepared.num_items))
    threads = rank_threads(loaded, sources)
    write_bundle(directory, plan=loaded, captured=captured, threads=threads, shared_disk=False)
    save_file({n: t.cpu().contiguous() for n, t in prepared.tensors.items()}, directory / INPUTS)
    weights = captured.cutter.weights
    places, held = {}, {}
    found = answer_places(captured, loaded.spec.aggregation)
    for name, leaf in found.items():
        if leaf.value is not None and leaf.value in weights:
            held[name] = captured.weight(weights[leaf.value])
        elif leaf.value is not None:
            places[name] = leaf.value
    save_file(held, directory / HELD)
    return {
        "num_items": prepared.num_items,
        "symbols": prepared.symbols,
        "names": {n: value for n, value in places.items() if value in captured.graph.outputs},
        "places": places,
        "order": [name for name in found if name in held or name in places],
    }


def _leave_with_starter() -> None:
    sys.stdin.read()
    os._exit(LEAVING)


if __name__ == "__main__":
    main()
