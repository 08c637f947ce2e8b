"""Every rule that a plan must keep, judged from the file and the profile alone.

``check_plan`` believes nothing that the plan says about itself: structure, transfers, aggregation,
memory, times and the certificate are derived again from ``spec`` and the profile and compared.
This module and those it is built of share no code with what makes plans (the cost model there,
the solvers, the lowering): an error of theirs shows here.
"""

from __future__ import annotations

from pydantic import ValidationError

from planner.aggregation import refusal
from planner.check_evidence import (
    edited,
    estimate_findings,
    extrapolated,
    hypothetical_findings,
    memory_findings,
    search_findings,
)
from planner.check_request import request_findings
from planner.check_structure import structure_findings
from planner.check_targets import target_findings
from planner.check_transfers import transfer_findings
from planner.derive import Derived, derive
from planner.findings import Finding, Severity, error
from planner.hypothetical import hypothetical_estimate
from planner.layout import read, resolve
from planner.planfile import HypotheticalEstimate, Plan
from planner.prices import Prices
from profiler.cluster import Cluster, Device, Host
from profiler.errors import StalePlanError
from profiler.graph import ModelGraph
from profiler.profile import Profile
from profiler.units import MAX_BYTES


def check_plan(
    plan: Plan, profile: Profile, *, cluster: Cluster | None = None
) -> tuple[Finding, ...]:
    """Every rule that ``plan`` breaks; empty when it keeps them all.

    ``cluster`` is the one that the plan was made for, if it is not the profile's own.

    Raises:
        StalePlanError: the plan was made from another model, cluster or profile.
        InvalidInputError: the profile cannot price the plan (a device without timings).
    """
    machines = cluster or profile.cluster
    require_current(plan, profile, cluster=machines)
    findings = edited(plan)
    # Figures that differ are expected after an edit, and an error otherwise.
    severity = Severity.WARNING if findings else Severity.ERROR
    reading = read(plan, profile.model, machines)
    wrong = structure_findings(reading)
    findings += wrong
    why_not = refusal(reading)
    if why_not:
        findings.append(error("aggregation", "spec.aggregation", why_not))
    if _has_errors(wrong):
        return tuple(findings)
    layout = resolve(reading)
    findings += request_findings(reading, layout)
    wrong = transfer_findings(reading, layout)
    findings += wrong
    if _has_errors(wrong):
        return tuple(findings)
    prices = Prices(profile, machines)
    derived = derive(plan, layout, prices)
    findings += memory_findings(derived, layout)
    findings += extrapolated(layout, prices)
    findings += estimate_findings(plan, derived, profile.error_fraction, severity=severity)
    findings += target_findings(plan, derived, machines, severity=severity)
    ranged = rederive_range(plan, derived, profile, cluster=machines)
    findings += hypothetical_findings(plan, profile, ranged, severity=severity)
    findings += search_findings(plan, derived, machines, severity=severity)
    return tuple(findings)


def check_spec(plan: Plan, graph: ModelGraph) -> tuple[Finding, ...]:
    """The rules that need neither measurements nor a cluster, for a plan without its profile.

    ``graph`` may come straight from capture: whether its layers look across items is not known
    then, and not judged.
    """
    findings: list[Finding] = []
    try:
        machines = _stand_in(plan)
    except ValidationError:
        names = ", ".join(binding.device for binding in plan.spec.ranks)[:200]
        return (error("device", "spec.ranks", f"these cannot be the devices: {names or 'none'}"),)
    reading = read(plan, graph, machines)
    findings += (f for f in structure_findings(reading) if f.code not in _MEASURED)
    why_not = refusal(reading)
    if why_not:
        findings.append(error("aggregation", "spec.aggregation", why_not))
    if not _has_errors(findings):
        findings += transfer_findings(reading, resolve(reading))
    return tuple(findings)


_MEASURED = frozenset({"whole-batch"})
"""Structural rules that rest on measured verdicts."""


def _stand_in(plan: Plan) -> Cluster:
    """A cluster of the devices that the plan names, for rules that only ask which there are."""
    hosts: dict[str, dict[str, Device]] = {}
    for binding in plan.spec.ranks:
        host, _, name = binding.device.rpartition("/")
        device = Device(name=name or "?", type=binding.device_type or "?", memory_bytes=MAX_BYTES)
        hosts.setdefault(host or "?", {})[device.name] = device
    return Cluster(
        hosts=tuple(
            Host(name=host, devices=tuple(devices.values())) for host, devices in hosts.items()
        )
    )


def rederive(plan: Plan, profile: Profile, *, cluster: Cluster | None = None) -> Derived:
    """The figures of ``plan``, from its spec and the profile; its structure must be sound.

    Raises:
        InvalidInputError: the profile cannot price the plan.
    """
    machines = cluster or profile.cluster
    layout = resolve(read(plan, profile.model, machines))
    return derive(plan, layout, Prices(profile, machines))


def rederive_range(
    plan: Plan, derived: Derived, profile: Profile, *, cluster: Cluster | None = None
) -> HypotheticalEstimate | None:
    """The figures of ``plan`` at both ends of its hypothetical times; None if all was measured.

    ``derived`` is what it costs by the profile as it is.
    """
    machines = cluster or profile.cluster
    return hypothetical_estimate(
        profile,
        machines,
        devices=[x.device for x in plan.spec.ranks if x.device in machines.device],
        wires={name.removeprefix("wire ") for name in derived.busy_s if name.startswith("wire ")},
        price=lambda times, links: rederive(plan, times, cluster=links),
    )


def require_current(plan: Plan, profile: Profile, *, cluster: Cluster) -> None:
    """Refuse a plan that was made from other documents than these.

    Raises:
        StalePlanError: a fingerprint differs; the message names each that does.
    """
    differing = [
        f"  {what}: planned with {planned[:40]}, now {present}"
        for what, planned, present in (
            ("model", plan.inputs.model.graph, profile.model.fingerprint),
            ("cluster", plan.inputs.cluster.fingerprint, cluster.content_digest()),
            ("profile", plan.inputs.profile.fingerprint, profile.content_digest()),
        )
        if planned != present
    ]
    if differing:
        raise StalePlanError(
            "the plan is stale: it was made from other inputs than these\n"
            + "\n".join(differing)
            + "\nplan again, or check against the documents that it was made from"
        )


def _has_errors(findings: list[Finding]) -> bool:
    return any(finding.severity is Severity.ERROR for finding in findings)
