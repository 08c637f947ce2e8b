"""``refit``: what runs of plans measured, folded back into the profile that they were planned by.

Needs the profile and the reports, nothing else; loads no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from profiler.documents import Document, load_data
from profiler.errors import InvalidInputError, StalePlanError
from profiler.evidence import RunEvidence, read_evidence
from profiler.expressions import BATCH
from profiler.profile import Profile, Refit
from profiler.refit_links import LEAST_SAMPLES, refit_links
from profiler.refit_times import LEAST_PIECES, refit_times

Report = str | os.PathLike[str] | Document | Mapping[str, object]
"""A RunReport: its file, the document, or its data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refitted:
    """The new profile; what changed in it and what was not used, as lines for people."""

    profile: Profile
    changes: tuple[str, ...]
    ignored: tuple[str, ...]


def refit(profile: Profile, reports: Sequence[Report]) -> Profile:
    """``profile`` corrected by what ``reports`` measured.

    Times of layers on the devices that ran them, what slicing saves there, the time of dispatching
    and the links between them are scaled to what was measured; ``conditions.refits`` names the
    reports. A report that is there already is not folded back again, and a run that agrees changes
    nothing.

    Raises:
        StalePlanError: a report is of another model, or of devices that the profile does not know.
        InvalidInputError: not a report, too little in it to learn from, inputs of another length
            than those of the profile, or figures that are no drift but another machine.
    """
    return fold_back(profile, reports).profile


def fold_back(profile: Profile, reports: Sequence[Report]) -> Refitted:
    """:func:`refit`, with what changed."""
    runs = [_evidence(report, number) for number, report in enumerate(reports, start=1)]
    if not runs:
        raise InvalidInputError("there is no run report to fold back")
    known = {refit.report for refit in profile.conditions.refits}
    new: dict[str, RunEvidence] = {}
    again = []
    for name, run in runs:
        _require_same(profile, run, name)
        if run.content_digest() in known:
            again.append(f"{name} is in the profile already")
        else:
            new[run.content_digest()] = run
    if not new:
        return Refitted(profile=profile, changes=(), ignored=tuple(again))
    linked = refit_links(profile.cluster, [link for run in new.values() for link in run.links])
    timed = refit_times(
        profile.timings,
        [rank for run in new.values() for rank in run.ranks],
        linked.cluster,
        profile.model,
    )
    ignored = tuple(dict.fromkeys((*again, *timed.ignored, *linked.ignored)))
    if not timed.used and not linked.used:
        why = f" ({'; '.join(ignored[:3])})" if ignored else ""
        raise InvalidInputError(
            f"there is too little to learn from{why}: run more batches; a rank needs "
            f"{LEAST_PIECES} pieces, a link {LEAST_SAMPLES} messages that were waited for"
        )
    return Refitted(
        profile=profile.replaced(
            cluster=linked.cluster,
            timings=timed.timings,
            conditions=profile.conditions.replaced(
                refits=(*profile.conditions.refits, *_noted(new))
            ),
        ),
        changes=(*timed.changes, *linked.changes),
        ignored=ignored,
    )


def _evidence(report: Report, number: int) -> tuple[str, RunEvidence]:
    if isinstance(report, Document):
        name, data = f"report {number}", report.model_dump(mode="json", exclude_none=True)
    elif isinstance(report, Mapping):
        name, data = f"report {number}", dict(report)
    else:
        name, data = str(Path(report)), load_data(report)
    return name, read_evidence(data, name=name)


def _require_same(profile: Profile, run: RunEvidence, name: str) -> None:
    """Refuse a run of something else than what the profile is about."""
    graph, devices = profile.model, profile.cluster.device
    if run.model != graph.fingerprint:
        raise StalePlanError(
            f"{name} is of a model with fingerprint {run.model[:60]}, the profile of "
            f"{graph.name} has {graph.fingerprint}: fold it back into the profile it was planned by"
        )
    named = {rank.device: rank.device_type for rank in run.ranks}
    ends = {end for link in run.links for end in (link.source, link.target)}
    ends |= {x.device for rank in run.ranks for x in (*rank.receives, *rank.sends)}
    unknown = sorted((named.keys() | ends) - devices.keys())
    if unknown:
        raise StalePlanError(
            f"{name} is of another cluster: it ran on {unknown[0]}, the profile has "
            f"{', '.join(list(devices)[:6])}"
        )
    for device, kind in named.items():
        if devices[device].type != kind:
            raise StalePlanError(
                f"{name} is of another cluster: its {device} is a {kind!r}, the profile's a "
                f"{devices[device].type!r}"
            )
    planned = {symbol: size for symbol, size in graph.symbols.items() if symbol != BATCH}
    for symbol, size in run.symbols.items():
        if planned.get(symbol, size) != size:
            raise InvalidInputError(
                f"{name} is of inputs with {symbol} = {size}, the profile was measured at "
                f"{planned[symbol]}: times of different sizes cannot be compared"
            )


def _noted(runs: Mapping[str, RunEvidence]) -> Iterator[Refit]:
    for digest, run in runs.items():
        yield Refit(report=digest, plan_id=run.plan_id, ranks=len(run.ranks), links=len(run.links))
