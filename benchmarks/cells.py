"""One cell of the comparison on unequal machines: a model on an emulated cluster, under many plans.

Everything runs inside emulated hosts (root needed): each host profiles itself, all at once, links
are measured once a cluster, and every plan's ranks stay up, so that plans are run in turn.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from executor import Session
from executor.emulate import EmulatedHosts
from executor.session import StartedRanks
from planner import Plan, PlanRequest, plan
from planner.inputs import Sources
from planner.request import Limits, Objective, Pin
from planner.rules import in_proportion
from profiler.bench import example_inputs
from profiler.capture import Captured
from profiler.cluster import Cluster
from profiler.emulation import EmulatedHost
from profiler.errors import InfeasiblePlanError
from profiler.profile import Profile

PORT = 29600
SEQUENTIAL = "device map order"
"""Layers in order on devices filled evenly by bytes, one device busy at a time."""

APPORTION = "apportion"

SEARCH_S = 60.0
"""For one plan: ResNet-50 on hosts that share a wire takes half of it on two free cores."""

RULES_SEARCH_S = 5.0
"""For a plan whose layers are all pinned: the rest would go into what else was possible."""

LEAST_BATCHES = 8
"""In a row, for the time between two: the first three and the last do not count."""

LEAST_REPEATS = 2
"""Turns that every plan takes part in."""

NEAR = 1.05
"""Plans whose predicted time is within this of the best take part in all turns, and others in every
second: which of two like plans is faster takes more turns to tell than that one is far behind."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A plan and what it was made for. ``one_at_a_time``: no batch starts before another ends."""

    name: str
    objective: Objective
    plan: Plan
    one_at_a_time: bool = False

    @property
    def predicted_s(self) -> float:
        """Seconds between batches, or of one batch, by the plan itself."""
        estimate = self.plan.estimate
        latency = self.objective is Objective.LATENCY or self.one_at_a_time
        return estimate.latency_s if latency else estimate.period_s


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What plans compete on: a model measured inside hosts."""

    hosts: EmulatedHosts
    profile: Profile
    captured: Captured


@dataclass
class Outcome:
    """What a contender reached: seconds by repeat, of a batch; and of apportion's plan for
    throughput, right after each, those that its slowest rank takes without messages."""

    contender: Contender
    seconds: list[float] = field(default_factory=list)
    alone_s: list[float] = field(default_factory=list)

    @property
    def measured_s(self) -> float:
        """The median."""
        return statistics.median(self.seconds)


def only_timed(cluster: Cluster) -> Cluster:
    """The cluster with many plans' ranks at once on each host in mind: only time is emulated.

    Cores are kept warm: on a machine that others use too, a plan with one busy host at a time is
    otherwise slower by up to a fifth than the profile that all hosts made at once.
    """
    assert cluster.emulate is not None
    hosts = tuple(EmulatedHost(name=h.name, cores=h.cores) for h in cluster.emulate.hosts)
    emulate = cluster.emulate.model_copy(update={"hosts": hosts, "keep_warm": True})
    return cluster.model_copy(update={"emulate": emulate})


def profile_inside(
    hosts: EmulatedHosts,
    cluster: Cluster,
    model: str,
    *,
    folder: Path,
    batch_sizes: Sequence[int],
    budget_s: float,
) -> Profile:
    """The model measured by all hosts at once; quotas apply from the first measurement on.

    Links are measured unless ``cluster`` has measured ones.
    """
    cluster.dump(folder / "cluster.yaml")
    output = folder / "profile.json"
    argv = [
        sys.executable, "-m", "executor", "profile", model, "-c", str(folder / "cluster.yaml"),
        "-o", str(output), "--batch-sizes", ",".join(map(str, batch_sizes)),
        "--budget", str(budget_s), "--find-wires",
    ]  # fmt: skip
    names = [host.name for host in cluster.hosts]
    ranks: list[subprocess.Popen[str]] = []
    said: list[str] = []
    with hosts.unlimited():
        for rank, name in enumerate(names):
            environment = {
                "RANK": str(rank),
                "WORLD_SIZE": str(len(names)),
                "MASTER_ADDR": hosts.address(names[0]),
                "MASTER_PORT": str(PORT),
            }
            ranks.append(
                hosts.popen(
                    name,
                    argv,
                    env=environment,
                    stderr=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    text=True,
                )
            )
        # Not again later: hosts do not reach the same step at the same time.
        first = ranks[0].stderr
        assert first is not None
        for line in first:
            said.append(line)
            if any(word in line for word in ("measuring links", "warm-up")):
                break
    errors = [rank.communicate()[1] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        sys.exit(f"profiling {model} failed:\n{''.join(said)}" + "\n".join(errors))
    return Profile.load(output)


def contenders(profile: Profile, *, batch_size: int) -> list[Contender]:
    """apportion's plans and what people do without it, for each objective.

    The rules' plans pin every layer; how many items travel together is chosen as well as for
    apportion's own.
    """
    found: list[Contender] = []
    for objective in (Objective.THROUGHPUT, Objective.LATENCY):
        limits = Limits(time_s=SEARCH_S)
        request = PlanRequest(objective=objective, batch_size=batch_size, limits=limits)
        found.append(Contender(name=APPORTION, objective=objective, plan=plan(profile, request)))
        for name, wishes in by_hand(profile, request).items():
            tried = [_planned(profile, wish, name, objective) for wish in wishes]
            possible = [one for one in tried if one is not None]
            if possible:
                found.append(min(possible, key=lambda one: one.predicted_s))
        wish = _pinned(profile, request, _by_bytes(profile)).model_copy(
            update={"microbatch_size": batch_size}
        )
        made = plan(profile, wish)
        found.append(Contender(name=SEQUENTIAL, objective=objective, plan=made, one_at_a_time=True))
    return found


def _planned(
    profile: Profile, wish: PlanRequest, name: str, objective: Objective
) -> Contender | None:
    try:
        return Contender(name=name, objective=objective, plan=plan(profile, wish))
    except InfeasiblePlanError:
        return None


def by_hand(profile: Profile, request: PlanRequest) -> dict[str, list[PlanRequest]]:
    """Requests that leave nothing to choose but the microbatch; the best by prediction counts.

    The fastest device alone may be another than the best: inputs and outputs have their ways too.
    """
    devices = list(profile.cluster.device)
    num = len(profile.model.layers)
    memory = [float(profile.cluster.device[name].usable_bytes) for name in devices]
    speeds = [1.0 / _alone_s(profile, name) for name in devices]
    rules = {"even": [1.0] * len(devices), "by memory": memory, "by speed": speeds}
    return {
        **{
            name: [_pinned(profile, request, in_proportion(num, parts))]
            for name, parts in rules.items()
        },
        "one device": [
            _pinned(profile, request, [num if i == only else 0 for i in range(len(devices))])
            for only in range(len(devices))
        ],
    }


def _pinned(profile: Profile, request: PlanRequest, counts: Sequence[int]) -> PlanRequest:
    names = [layer.name for layer in profile.model.layers]
    pins, first = [], 0
    for device, count in zip(profile.cluster.device, counts, strict=True):
        pins += [Pin(layers=f"={name}", device=device) for name in names[first : first + count]]
        first += count
    limits = request.limits.model_copy(update={"time_s": RULES_SEARCH_S})
    return request.model_copy(update={"pins": tuple(pins), "limits": limits})


def _alone_s(profile: Profile, device: str) -> float:
    rows = profile.timings_of[device].layers
    return sum(rows[layer.twin][-1].median_s for layer in profile.model.layers)


def _by_bytes(profile: Profile) -> list[int]:
    """Layer counts that fill the devices in order, each with its part of the bytes."""
    graph = profile.model
    share = graph.total_weight_bytes / len(profile.cluster.device)
    counts = [0] * len(profile.cluster.device)
    held, device = 0.0, 0
    for i in range(len(graph.layers)):
        size = graph.weight_bytes([i])
        if held + size / 2 > share * (device + 1) and device + 1 < len(counts):
            device += 1
        counts[device] += 1
        held += size
    return counts


def compete(
    ground: Ground, entered: Sequence[Contender], *, repeats: int, run_s: float
) -> list[Outcome]:
    """Run all contenders in turn, ``repeats`` times; equal plans run once and share the result.

    Plans far behind the best by prediction take part in every second turn (:data:`NEAR`). A run
    lasts about ``run_s`` seconds. Plans whose single batches last longer take part in
    :data:`LEAST_REPEATS` of the turns: short runs are what a moment's noise spoils.
    """
    items = entered[0].plan.inputs.request.batch_size
    best_s = {
        objective: min(one.predicted_s for one in entered if one.objective is objective)
        for objective in {one.objective for one in entered}
    }
    inputs = example_inputs(ground.captured, items, varied=True)
    outcomes = [Outcome(contender=one) for one in entered]
    with ExitStack() as stack:
        sessions = {}
        for spec, one in {one.plan.spec.canonical(): one for one in entered}.items():
            known = set(psutil.Process().children(recursive=True))
            session = stack.enter_context(_session(one.plan, ground))
            ranks = set(psutil.Process().children(recursive=True)) - known
            session.run(inputs, repeats=2)
            sessions[spec] = Resting(session, ranks)
            stack.callback(sessions[spec].resume)
        for turn in range(repeats):
            done: dict[tuple[str, bool], float] = {}
            for outcome in outcomes:
                one = outcome.contender
                near = one.predicted_s <= NEAR * best_s[one.objective]
                taking_part = LEAST_REPEATS if one.predicted_s > run_s else repeats
                every = 1 if near or taking_part == LEAST_REPEATS else 2
                if turn >= taking_part or turn % every:
                    continue
                single = one.objective is Objective.LATENCY or one.one_at_a_time
                key = (one.plan.spec.canonical(), single)
                if key not in done:
                    with sessions[key[0]].awake() as session:
                        done[key] = _measured(session, inputs, single, run_s / one.predicted_s)
                outcome.seconds.append(done[key])
                if one.name == APPORTION and not single:
                    count = _batches(run_s / one.predicted_s)
                    with sessions[key[0]].awake() as session:
                        alone = session.run_alone(inputs, repeats=count)
                    outcome.alone_s.append(max(alone.values()))
    return outcomes


class Resting:
    """A session whose ranks are stopped while it is not used.

    Ranks that only wait wake up a hundred times a second (gloo's loop). On a host with a quota each
    may take what is left of it for that moment, from a rank that computes: a dozen of them cost it
    several percent, which no host of a single plan pays.
    """

    def __init__(self, session: Session, ranks: Iterable[psutil.Process]) -> None:
        self.session = session
        self.ranks = list(ranks)
        self.suspend()

    def suspend(self) -> None:
        """Stop the ranks."""
        for rank in self.ranks:
            with suppress(psutil.NoSuchProcess):  # a rank that failed is for the session to tell
                rank.suspend()

    def resume(self) -> None:
        """Let the ranks go on."""
        for rank in self.ranks:
            with suppress(psutil.NoSuchProcess):
                rank.resume()

    @contextmanager
    def awake(self) -> Iterator[Session]:
        """The session, to be used."""
        self.resume()
        try:
            yield self.session
        finally:
            self.suspend()


def _session(made: Plan, ground: Ground) -> Session:
    sources = Sources(profile=ground.profile, cluster=ground.profile.cluster)
    started = StartedRanks(made, hosts=ground.hosts)
    return Session(made, ground.captured, sources=sources, started=started)


def _measured(
    session: Session, inputs: Mapping[str, torch.Tensor], single: bool, batches: float
) -> float:
    """Seconds of one batch alone, or between batches that follow each other."""
    if single:
        count = max(1, min(15, round(batches)))
        walls = [session.run(inputs).report.wall_s for _ in range(count)]
        return statistics.median(walls)
    period = session.run(inputs, repeats=_batches(batches)).report.period_s.measured
    assert period is not None
    return period


def _batches(wanted: float) -> int:
    """How many batches follow each other in a measurement."""
    return max(LEAST_BATCHES, min(200, round(wanted)))


def settle(seconds: float = 1.0) -> None:
    """Let the machine come to rest after processes have started or ended."""
    time.sleep(seconds)
