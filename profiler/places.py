"""Hosts and devices of a cluster by name, for people who mistype: errors have close names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from profiler.cluster import Cluster, Device, Host
from profiler.errors import InvalidInputError


def find_host(cluster: Cluster, name: str) -> Host:
    """The host of that name.

    Raises:
        InvalidInputError: there is none.
    """
    for host in cluster.hosts:
        if host.name == name:
            return host
    raise InvalidInputError(
        f"there is no host {name!r}; {near(name, [x.name for x in cluster.hosts])}"
    )


def find_device(cluster: Cluster, name: str) -> Device:
    """The device of that full name.

    Raises:
        InvalidInputError: there is none.
    """
    if name not in cluster.device:
        raise InvalidInputError(f"there is no device {name!r}; {near(name, cluster.device)}")
    return cluster.device[name]


def places_of(cluster: Cluster, name: str) -> tuple[str, ...]:
    """What an end of a link stands for: a device; or a host and its devices.

    Raises:
        InvalidInputError: there is no such place.
    """
    if name in cluster.device:
        return (name,)
    for host in cluster.hosts:
        if host.name == name:
            return (name, *(f"{name}/{x.name}" for x in host.devices))
    places = [*(x.name for x in cluster.hosts), *cluster.device, *(x.name for x in cluster.groups)]
    raise InvalidInputError(f"a link has no end {name!r}; {near(name, places)}")


def near(name: str, known: Iterable[str]) -> str:
    """Names that may have been meant, or else some of those there are."""
    names = list(known)
    close = [x for x in names if x.endswith("/" + name)]
    close = close or difflib.get_close_matches(name, names, n=4, cutoff=0.4)
    if close:
        return f"close names: {', '.join(close)}"
    return f"there is {', '.join(names[:6])}{' and more' if len(names) > 6 else ''}"
