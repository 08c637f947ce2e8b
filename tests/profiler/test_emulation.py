from __future__ import annotations

import pytest

from profiler.cluster import Cluster
from profiler.errors import InvalidInputError

TEXT = """
kind: Cluster
format_version: '1.0'
hosts:
- {name: a, address: 192.168.1.10, devices: [{name: cpu, type: t, memory_bytes: 1GiB}]}
- {name: b, devices: [{name: cpu, type: t, memory_bytes: 1GiB}]}
emulate:
  hosts:
  - {name: a, cores: 1, memory_bytes: 2GiB}
  - {name: b, cores: 0.25}
  links:
  - {source: a, target: b, bytes_per_s: 100Mbit/s, shares: air}
  - {source: b, target: a, bytes_per_s: 12.5MB/s, shares: air}
  default_bytes_per_s: 1Gbit/s
"""


def cluster(text: str = TEXT) -> Cluster:
    return Cluster.parse(text, name="cluster.yaml")


def test_units_are_those_of_people() -> None:
    wish = cluster().emulate
    assert wish is not None
    assert [(h.name, h.cores, h.memory_bytes) for h in wish.hosts] == [
        ("a", 1.0, 2 * 2**30),
        ("b", 0.25, None),
    ]
    assert [link.bytes_per_s for link in wish.links] == [12.5e6, 12.5e6]
    assert wish.default_bytes_per_s == 125e6
    assert cluster().hosts[0].address == "192.168.1.10"


def test_it_survives_writing_and_reading() -> None:
    assert cluster(cluster().to_text(as_json=False)) == cluster()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: b, cores", "name: c, cores", "emulate.hosts: there is no host 'c'; the cluster"),
        ("name: b, cores", "name: a, cores", "emulate.hosts: a is listed twice"),
        ("source: b, target: a", "source: b, target: c", "there is no host 'c'; links here join"),
        ("source: b, target: a", "source: b/cpu, target: a", "join hosts, not devices"),
        ("source: b, target: a", "source: b, target: b", "within a host there is no wire"),
        ("source: b, target: a", "source: a, target: b", "a -> b is listed twice"),
        ("12.5MB/s", "10MB/s", r"wire 'air' has two rates: 1.25e\+07 bytes/s on a -> b, 1e\+07"),
        ("12.5MB/s", "0", "above zero"),
        ("1Gbit/s", "0", "above zero"),
        ("12.5MB/s", "999", "greater than or equal to 1000"),
        ("1Gbit/s", "10TB/s", "less than or equal to 1000000000000"),
        ("cores: 0.25", "cores: 5000", "less than or equal to 4096"),
        ("cores: 0.25", "cores: 0", "greater than or equal to 0.01"),
        ("cores: 0.25", "cores: -1", "greater than or equal to 0.01"),
        ("memory_bytes: 2GiB}\n  - {name: b", "memory_bytes: 0}\n  - {name: b", "greater than 0"),
        ("shares: air}\n  - {source: b", "shares: ''}\n  - {source: b", "at least 1 character"),
        ("address: 192.168.1.10", "address: 'a b'", "address"),
    ],
)
def test_what_contradicts_itself_is_refused(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(InvalidInputError, match=message):
        cluster(TEXT.replace(old, new, 1))


def test_plans_do_not_go_stale_over_addresses_and_emulation() -> None:
    head, _, _ = TEXT.partition("emulate:")
    plain = cluster(head.replace("address: 192.168.1.10, ", ""))
    assert plain.emulate is None
    assert plain.content_digest() == cluster().content_digest()
    larger = cluster(TEXT.replace("memory_bytes: 1GiB", "memory_bytes: 2GiB", 1))
    assert larger.content_digest() != cluster().content_digest()
