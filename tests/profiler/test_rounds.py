from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest

from profiler.cluster import Device, Host, Link
from profiler.rounds import Pair, fill, kind_of, pack, schedule, tournament


def no_host_twice(rounds: list[list[Pair]]) -> bool:
    return all(max(Counter(h for pair in one for h in pair).values()) == 1 for one in rounds)


@pytest.mark.parametrize("num", range(1, 34))
def test_every_pair_meets_once_and_no_host_is_in_two_pairs_of_a_round(num: int) -> None:
    rounds = tournament(num)
    assert sorted(pair for one in rounds for pair in one) == list(combinations(range(num), 2))
    assert no_host_twice(rounds)
    # Each pair measures both directions, so this many rounds hold every directed pair.
    assert len(rounds) == (0 if num == 1 else num - 1 if num % 2 == 0 else num)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_fewer_at_once_is_the_same_pairs_in_more_rounds(at_once: int) -> None:
    rounds = schedule(["k"] * 7, at_once=at_once)
    assert sorted(pair for one in rounds for pair in one) == list(combinations(range(7), 2))
    assert no_host_twice(rounds)
    assert max(map(len, rounds)) == at_once


def test_a_sample_has_so_many_pairs_of_each_two_kinds() -> None:
    kinds = ["a", "a", "a", "a", "b", "b", "c"]
    for sample in (1, 2):
        rounds = schedule(kinds, sample=sample)
        assert no_host_twice(rounds)
        pairs = [pair for one in rounds for pair in one]
        assert len(set(pairs)) == len(pairs)
        between = Counter("".join(sorted(kinds[h] for h in pair)) for pair in pairs)
        # There is one pair of b's, one c with four a's and two b's, and no two c's.
        assert between == {"aa": sample, "ab": sample, "ac": sample, "bb": 1, "bc": sample}


def test_a_sample_of_a_hundred_equal_hosts_is_one_pair() -> None:
    assert [len(one) for one in schedule(["k"] * 100, sample=1)] == [1]


def test_pairs_wait_for_their_hosts() -> None:
    assert pack([(0, 1), (0, 2), (2, 3), (1, 3)]) == [[(0, 1), (2, 3)], [(0, 2), (1, 3)]]


def link(source: str, target: str, rate: float, **more: float) -> Link:
    figures = {"latency_s": 1e-4, "error_fraction": 0.01, **more}
    return Link(source=source, target=target, bytes_per_s=rate, **figures)  # type: ignore[arg-type]


KINDS = {"a": "fast", "b": "fast", "c": "slow"}


def test_links_that_were_not_measured_get_their_twins_figures() -> None:
    links = fill(
        [
            link("a", "b", 100.0),
            link("b", "a", 90.0),
            link("a", "c", 10.0, send_occupancy=0.5),
            link("c", "a", 20.0),
        ],
        KINDS,
    )
    by_ends = {(x.source, x.target): x for x in links}
    assert len(links) == 6
    assert by_ends["a", "b"].bytes_per_s == 100.0  # measured ones stay
    assert by_ends["b", "a"].bytes_per_s == 90.0
    assert by_ends["b", "c"] == link("b", "c", 10.0, send_occupancy=0.5)  # not that of c -> a
    assert by_ends["c", "b"].bytes_per_s == 20.0


def test_twins_that_differ_say_so_in_the_error() -> None:
    kinds = {"a": "k", "b": "k", "c": "k"}
    links = fill([link("a", "b", 100.0), link("b", "a", 150.0)], kinds)
    (filled,) = (x for x in links if (x.source, x.target) == ("a", "c"))
    assert filled.bytes_per_s == 125.0
    assert filled.error_fraction == pytest.approx(0.2)


def test_kinds_without_any_measured_link_are_a_bug() -> None:
    with pytest.raises(ValueError, match="nothing like the link a -> c"):
        fill([link("a", "b", 1.0), link("b", "a", 1.0)], KINDS)


def test_hosts_are_equal_whatever_they_are_called() -> None:
    def host(name: str, device: str, threads: int) -> Host:
        made = Device(name=device, type="t", memory_bytes=1, threads=threads)
        return Host(name=name, cores=4, devices=(made,))

    assert kind_of(host("a", "cpu:0", 4)) == kind_of(host("b", "cpu", 4))
    assert kind_of(host("a", "cpu:0", 4)) != kind_of(host("a", "cpu:0", 2))
