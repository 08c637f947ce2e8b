"""Shared wires found on a simulated network: max-min fair rates over wires of given capacity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from profiler.wires import LinkKey, find_shared, trials

Wires = dict[str, tuple[float, set[LinkKey]]]


class Network:
    """Links over wires; every link uses those that list it. Rates are filled up evenly."""

    def __init__(self, wires: Wires, *, noise: Sequence[float] = (1.0,)) -> None:
        self.wires = wires
        self.noise = noise
        self.runs: list[list[LinkKey]] = []

    def run(self, keys: Sequence[LinkKey]) -> Mapping[LinkKey, float]:
        self.runs.append(list(keys))
        left = {name: capacity for name, (capacity, _) in self.wires.items()}
        rates: dict[LinkKey, float] = {}
        while len(rates) < len(keys):
            waiting = [key for key in keys if key not in rates]
            users = {n: [k for k in waiting if k in self.wires[n][1]] for n in left}
            name = min((n for n in left if users[n]), key=lambda n: left[n] / len(users[n]))
            share = left[name] / len(users[name])
            for key in users[name]:
                rates[key] = share
                for other in left:
                    if key in self.wires[other][1]:
                        left[other] -= share
        return {
            key: rate * self.noise[(len(self.runs) + i) % len(self.noise)]
            for i, (key, rate) in enumerate(rates.items())
        }


def links(num: int) -> list[LinkKey]:
    return [(a, b) for a in range(num) for b in range(num) if a != b]


def cables(num: int, rate: float = 100.0) -> Wires:
    """A wire of its own for every direction of every pair."""
    return {f"{a}>{b}": (rate, {(a, b)}) for a, b in links(num)}


def search(num: int, wires: Wires, **more: Sequence[float]) -> tuple[set[frozenset[LinkKey]], int]:
    network = Network(wires, **more)
    found = find_shared(num, network.run, tell=lambda _: None)
    assert found.alone.keys() == set(links(num))
    return {frozenset(wire) for wire in found.wires}, len(found.unclear)


NOISE = (1.0, 0.93, 1.05, 0.97, 1.08, 0.9, 1.02)


@pytest.mark.parametrize("num", [2, 3, 4, 5, 8])
def test_cables_of_their_own_share_nothing(num: int) -> None:
    assert search(num, cables(num), noise=NOISE) == (set(), 0)


def test_one_medium_for_all_is_one_wire() -> None:
    everything = set(links(4))
    assert search(4, {"air": (50.0, everything)}, noise=NOISE) == ({frozenset(everything)}, 0)


def test_a_wire_for_both_directions_of_a_pair() -> None:
    wires = {**cables(3), "radio": (20.0, {(0, 1), (1, 0)})}
    assert search(3, wires, noise=NOISE) == ({frozenset({(0, 1), (1, 0)})}, 0)


def test_a_slow_way_out_of_one_host() -> None:
    out = {(2, b) for b in (0, 1, 3)}
    assert search(4, {**cables(4), "slow": (10.0, out)}, noise=NOISE) == ({frozenset(out)}, 0)


def test_a_slow_line_between_two_groups_of_hosts() -> None:
    across = {(a, b) for a, b in links(6) if (a < 3) and (b >= 3)}
    back = {(b, a) for a, b in across}
    wires = {**cables(6), "there": (10.0, across), "back": (10.0, back)}
    assert search(6, wires, noise=NOISE) == ({frozenset(across), frozenset(back)}, 0)


def test_hosts_with_one_plug_each_are_reported_but_not_filled_in() -> None:
    # A link uses the way out of its source and the way into its target: no single name fits.
    out = {f"out {a}": (100.0, {(a, b) for b in range(4) if b != a}) for a in range(4)}
    into = {f"into {b}": (100.0, {(a, b) for a in range(4) if a != b}) for b in range(4)}
    wires, unclear = search(4, {**out, **into}, noise=NOISE)
    assert wires == set()
    assert unclear == 8


def test_trials_grow_with_the_hosts_not_with_pairs_of_links() -> None:
    for num in (2, 5, 12):
        assert len(trials(num)) <= 3 * num
        assert all(len(set(group)) == len(group) > 1 for group in trials(num))
    network = Network(cables(12))
    find_shared(12, network.run, tell=lambda _: None)
    assert len(network.runs) == 12 * 11 + len(trials(12))


def test_progress_ends_at_the_whole() -> None:
    told: list[float] = []
    find_shared(3, Network(cables(3)).run, tell=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
