"""Splitting layers: what it brings on two hosts, and whether the planner knows when it does.

    python benchmarks/tensor.py [--quick] [--json FILE]

Two emulated hosts (root needed), one item at a time, objective latency; every comparison runs its
plans in turn on the same hosts, medians count.

``tensor_latency_speedup_min``: one device alone over two that divide every region, fast link, equal
hosts; the worst model. The limit is 2.
``choice_regret_worst``: over link speeds, the plan that the planner takes beside the fastest that
was measured (one device, two stages, tensor), as a fraction. ``crossing_steps_apart``: between the
link speeds from which on tensor is faster, predicted and measured, in steps of the sweep.
``uneven_over_even``: of what the speeds of two unlike hosts allow slices by speed to gain over even
ones, the part that is gained.
``collectives_over_megatron``: joins of a forward pass over Megatron's two a transformer layer.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cells import profile_inside
from benchmarks.records import Record, parser, publish, record
from executor import Session
from executor.emulate import EmulatedHosts, emulated
from executor.session import StartedRanks
from planner import Plan, PlanRequest, plan
from planner.inputs import Sources
from planner.request import Objective
from profiler.bench import example_inputs
from profiler.capture import Captured, capture
from profiler.cluster import Cluster, Device, Host
from profiler.emulation import EmulatedHost, Emulation
from profiler.profile import Profile
from profiler.sources import load_model
from profiler.units import format_bytes_per_s, parse_bytes_per_s
from tests.support.plans import Part, make_plan

MODELS = ("bert_base", "llama_wide")
RATES = ("100Mbit/s", "300Mbit/s", "1Gbit/s", "3Gbit/s", "10Gbit/s")
EQUAL: tuple[float | None, ...] = (None, None)
"""Whole cores: quotas stop two hosts at different times, and each then waits for the other."""
UNLIKE = (0.9, 0.45)
PERIOD_S = 0.0025
"""Short periods of the quotas: the less the hosts are apart at a join."""
REQUEST = PlanRequest(objective=Objective.LATENCY, batch_size=1)
TRANSFORMER_AXES = ("heads", "features")


def hosts_of(cores: Sequence[float | None], rate: str) -> Cluster:
    """Two hosts with parts of a core, and a link."""
    device = Device(name="cpu:0", type="board", memory_bytes=4 * 2**30)
    names = ("a", "b")
    return Cluster(
        hosts=tuple(Host(name=name, devices=(device,)) for name in names),
        emulate=Emulation(
            hosts=tuple(EmulatedHost(name=n, cores=c) for n, c in zip(names, cores, strict=True)),
            default_bytes_per_s=parse_bytes_per_s(rate),
            period_s=PERIOD_S,
        ),
    )


def profiled(
    hosts: EmulatedHosts,
    cluster: Cluster,
    model: str,
    *,
    quick: bool,
    batch_sizes: Sequence[int] = (1, 2),
) -> Profile:
    """The model measured on both hosts, one and two items at a time."""
    with tempfile.TemporaryDirectory() as folder:
        return profile_inside(
            hosts,
            cluster,
            f"benchmarks.models:{model}",
            folder=Path(folder),
            batch_sizes=batch_sizes,
            budget_s=3.0 if quick else 10.0,
        )


def with_links(hosts: EmulatedHosts, profile: Profile) -> Profile:
    """The profile with links as these hosts measure them."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "cluster.yaml"
        command = [sys.executable, "-m", "executor", "devices", "-o", str(target)]
        ranks = []
        for rank, name in enumerate(("a", "b")):
            variables = {
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": hosts.address("a"),
                "MASTER_PORT": "29700",
            }
            ranks.append(hosts.popen(name, command, env=variables, stdout=subprocess.DEVNULL))
        if any([rank.wait() for rank in ranks]):
            sys.exit("measuring links failed; messages stand above")
        links = {
            (x.source.split("/")[0], x.target.split("/")[0]): x for x in Cluster.load(target).links
        }
    measured = tuple(
        links[x.source.split("/")[0], x.target.split("/")[0]].model_copy(
            update={"source": x.source, "target": x.target}
        )
        for x in profile.cluster.links
    )
    cluster = profile.cluster.model_copy(update={"links": measured})
    return profile.model_copy(update={"cluster": cluster})


def by_hand(profile: Profile) -> dict[str, Plan]:
    """One device, two stages of half the layers each, every region divided evenly."""
    a, b = profile.cluster.device
    num = len(profile.model.layers)
    halves = [Part(layers=range(num // 2), devices=[a])]
    halves.append(Part(layers=range(num // 2, num), devices=[b]))
    even = {r.name: (r.units - r.units // 2, r.units // 2) for r in profile.model.regions}
    return {
        "one device": make_plan(profile, [Part(layers=range(num), devices=[a])], request=REQUEST),
        "two stages": make_plan(profile, halves, request=REQUEST),
        "tensor": make_plan(
            profile,
            [Part(layers=range(num), devices=[a, b], slices=even)],
            request=REQUEST,
        ),
    }


def latencies(
    hosts: EmulatedHosts,
    captured: Captured,
    profile: Profile,
    plans: Mapping[str, Plan],
    *,
    quick: bool,
) -> dict[str, float]:
    """Seconds of one item by each plan, in turn."""
    inputs = example_inputs(captured, 1, varied=True)
    sources = Sources(profile=profile, cluster=profile.cluster)
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    with ExitStack() as stack:
        sessions = {
            name: stack.enter_context(
                Session(made, captured, sources=sources, started=StartedRanks(made, hosts=hosts))
            )
            for name, made in plans.items()
        }
        for session in sessions.values():
            session.run(inputs)
            session.run(inputs)
        for _ in range(7 if quick else 25):
            for name, session in sessions.items():
                seconds[name].append(session.run(inputs).report.wall_s)
    return {name: statistics.median(each) for name, each in seconds.items()}


def sweep(model: str, *, quick: bool) -> tuple[float, float, int]:
    """Speedup at the fastest link, the worst regret of choices, steps between crossings."""
    captured = capture(load_model(f"benchmarks.models:{model}"))
    rates = (RATES[0], RATES[-1]) if quick else RATES
    with emulated(hosts_of(EQUAL, RATES[-1])) as hosts:
        profile = profiled(hosts, hosts_of(EQUAL, RATES[-1]), model, quick=quick)
    regrets, predicted, measured = [], [], []
    speedup = 0.0
    for rate in rates:
        with emulated(hosts_of(EQUAL, rate)) as hosts:
            here = with_links(hosts, profile)
            chosen = plan(here, REQUEST)
            plans = by_hand(here)
            found = latencies(hosts, captured, here, {**plans, "chosen": chosen}, quick=quick)
        same = next((n for n, p in plans.items() if p.spec == chosen.spec), "chosen")
        best = min(found.values())
        regrets.append(min(found["chosen"], found[same]) / best - 1)
        alone, divided = (plans[name].estimate.latency_s for name in ("one device", "tensor"))
        predicted.append(divided < alone)
        measured.append(found["tensor"] < found["one device"])
        speedup = found["one device"] / found["tensor"]
        bytes_per_s = min(link.bytes_per_s for link in here.cluster.links)
        said = ", ".join(
            f"{name} {1e3 * found[name]:.1f} ms"
            + (f" (said {1e3 * plans[name].estimate.latency_s:.1f})" if name in plans else "")
            for name in found
        )
        taken = same if same != "chosen" else chosen.spec.pipelines[0].stages[0].split
        print(f"{model}, {rate} ({format_bytes_per_s(bytes_per_s)}): {said}; takes {taken}")
    return speedup, max(regrets), abs(sum(predicted) - sum(measured))


def uneven(model: str, *, quick: bool) -> tuple[float, float, float]:
    """The part of the possible gain that is gained, what was gained, what was possible."""
    captured = capture(load_model(f"benchmarks.models:{model}"))
    cluster = hosts_of(UNLIKE, RATES[-1])
    with emulated(cluster) as hosts:
        profile = profiled(hosts, cluster, model, quick=quick)
        a, b = profile.cluster.device
        times = [
            sum(profile.timings_of[d].layers[x.twin][0].median_s for x in profile.model.layers)
            for d in (a, b)
        ]
        share = times[1] / (times[0] + times[1])
        slices = {}
        for region in profile.model.regions:
            first = min(region.units - 1, max(1, round(region.units * share)))
            slices[region.name] = (first, region.units - first)
        num = len(profile.model.layers)
        by_speed = [Part(layers=range(num), devices=[a, b], slices=slices)]
        plans = {
            "even": by_hand(profile)["tensor"],
            "by speed": make_plan(profile, by_speed, request=REQUEST),
        }
        found = latencies(hosts, captured, profile, plans, quick=quick)
    gained = found["even"] / found["by speed"]
    allowed = max(times) / 2 / (times[0] * times[1] / sum(times))
    return (gained - 1) / (allowed - 1), gained, allowed


def collectives() -> list[tuple[str, float]]:
    """Joins inside transformer layers over two a layer, by model."""
    from transformers import PreTrainedModel

    found = []
    for model in ("bert", "vit", "llama", "bert_base", "llama_wide"):
        loaded = load_model(f"benchmarks.models:{model}")
        assert isinstance(loaded.module, PreTrainedModel)
        layers = int(loaded.module.config.num_hidden_layers)
        regions = capture(loaded).graph.regions
        joins = sum(len(r.joins) for r in regions if r.axis in TRANSFORMER_AXES)
        found.append((model, joins / (2 * layers)))
    return found


def main() -> None:
    """Measure and publish."""
    args = parser(__doc__).parse_args()
    if os.geteuid() != 0:
        sys.exit("emulated hosts need root")
    torch.set_num_threads(1)
    models = MODELS[:1] if args.quick else MODELS
    made: list[Record] = []
    counted = collectives()
    made.append(
        record("collectives_over_megatron", max(n for _, n in counted), "ratio", **dict(counted))
    )
    swept = {model: sweep(model, quick=args.quick) for model in models}
    speedups = {model: round(one[0], 3) for model, one in swept.items()}
    made += [
        record("tensor_latency_speedup_min", min(speedups.values()), "ratio", **speedups),
        record("choice_regret_worst", max(one[1] for one in swept.values()), "fraction",
               rates=len(RATES)),
        record("crossing_steps_apart", max(one[2] for one in swept.values()), "steps"),
    ]  # fmt: skip
    gains = {model: uneven(model, quick=args.quick) for model in models}
    worst = min(gains, key=lambda model: gains[model][0])
    part, gained, allowed = gains[worst]
    made.append(
        record("uneven_over_even", part, "fraction", model=worst, gained=round(gained, 3),
               allowed=round(allowed, 3))
    )  # fmt: skip
    publish(made, args.json)


if __name__ == "__main__":
    main()
