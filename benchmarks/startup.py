"""How long people wait: for plans of 1,000 layers to be read, for four ranks to give an answer.

    python benchmarks/startup.py [--quick] [--json FILE]

The model has 1,000 different layers, measured on 3 devices at 6 batch sizes. Each command is run
from a shell again and again, interleaved; the file cache is warm. What can be expected at best is
an interpreter that does nothing.

The four ranks run a small Llama from a model directory: capture, start, loading and the first
answer, from the shell's prompt to the next. The floor there is importing torch and transformers.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.records import Record, parser, publish
from benchmarks.synthetic import invented_profile, planned, residual_chain, unequal_devices

NUM_LAYERS = 1000
NUM_DEVICES = 3


def main() -> None:
    """Run the measurements that were asked for."""
    flags = parser(__doc__)
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        records = measure(Path(folder), repeats=5 if args.quick else 15)
        records += first_output(Path(folder), repeats=3 if args.quick else 7)
    publish(records, args.json)


def measure(folder: Path, *, repeats: int) -> list[Record]:
    """One record a command: the median time of its whole process."""
    profile = invented_profile(residual_chain(NUM_LAYERS), unequal_devices(NUM_DEVICES))
    profile.dump(folder / "profile.json")
    planned(profile, profile_ref="profile.json").dump(folder / "plan.yaml")
    # The console script's own two lines, so that an uninstalled checkout is measured alike.
    start = f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r}); "
    apportion = [sys.executable, "-c", start + "from executor.cli import main; main()"]
    commands = {
        "explain_1000_layers_s": [*apportion, "explain", "plan.yaml"],
        "check_1000_layers_s": [*apportion, "check", "plan.yaml"],
        "empty_interpreter_s": [sys.executable, "-c", "pass"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            times[name].append(_seconds(command, folder))
    conditions = {
        "layers": NUM_LAYERS,
        "devices": NUM_DEVICES,
        "batch_sizes": len(profile.batch_sizes),
        "profile_bytes": (folder / "profile.json").stat().st_size,
        "python": platform.python_version(),
        "repeats": repeats,
    }
    return [
        {
            "measure": name,
            "value": statistics.median(found),
            "unit": "s",
            "conditions": {
                **conditions,
                "least_s": round(min(found), 3),
                "most_s": round(max(found), 3),
            },
        }
        for name, found in times.items()
    ]


def first_output(folder: Path, *, repeats: int) -> list[Record]:
    """The time of ``apportion run`` with a four-stage plan, and of the imports it cannot avoid."""
    import numpy as np
    from transformers import LlamaConfig, LlamaForCausalLM

    import planner
    import profiler
    from profiler.discover import discover
    from profiler.measure import Effort

    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 1000}
    LlamaForCausalLM(LlamaConfig(**shape, **heads)).save_pretrained(folder / "model")
    profile = profiler.profile_model(
        str(folder / "model"),
        cluster=discover(cpu_devices=4),
        batch_sizes=[4],
        effort=Effort(budget_s=2.0),
    )
    profile.dump(folder / "ranks.json")
    ref = str(folder / "ranks.json")
    planner.plan(profile, batch_size=4, splits=["layers"], profile_ref=ref).dump(
        folder / "ranks.yaml"
    )
    ids = np.zeros((4, 64), dtype=np.int64)
    np.savez(folder / "x.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    start = f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r}); "
    run = ["run", "ranks.yaml", "-i", "x.npz", "-o", "y.npz"]
    commands = {
        "four_ranks_first_output_s": [
            *(sys.executable, "-c", start + "from executor.cli import main; main()"),
            *run,
        ],
        "torch_and_transformers_import_s": [
            *(sys.executable, "-c"),
            "import torch; from transformers import LlamaForCausalLM",
        ],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            times[name].append(_seconds(command, folder))
    return [
        {
            "measure": name,
            "value": statistics.median(found),
            "unit": "s",
            "conditions": {
                "model": "Llama of 8 layers from a directory",
                "ranks": 4,
                "repeats": repeats,
                "least_s": round(min(found), 3),
                "most_s": round(max(found), 3),
            },
        }
        for name, found in times.items()
    ]


def _seconds(command: Sequence[str], folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
