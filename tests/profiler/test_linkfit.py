from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.linkfit import fit_link, one_way

SIZES = [64 * 4**power for power in range(9)]


def messages(
    latency_s: float, bytes_per_s: float, *, noise: float = 0.0, repeats: int = 9, seed: int = 0
) -> dict[int, list[float]]:
    rng = random.Random(seed)
    return {
        size: [
            (latency_s + size / bytes_per_s) * (1 + noise * rng.expovariate(1))
            for _ in range(repeats)
        ]
        for size in SIZES
    }


@given(
    latency_s=st.floats(1e-6, 1e-1),
    bytes_per_s=st.floats(1e5, 1e10),
)
def test_a_line_without_noise_is_found(latency_s: float, bytes_per_s: float) -> None:
    fit = fit_link(messages(latency_s, bytes_per_s))
    assert fit.bytes_per_s == pytest.approx(bytes_per_s, rel=1e-3)
    # Where even 64 bytes take longer to send than the latency is, it can hardly be seen.
    assert fit.latency_s == pytest.approx(latency_s, rel=0.01, abs=0.2 * 64 / bytes_per_s)
    assert fit.error_fraction < 1e-3
    assert fit.samples == 9 * len(SIZES)


@pytest.mark.parametrize("seed", range(5))
def test_noise_that_only_adds_is_met_by_medians(seed: int) -> None:
    fit = fit_link(messages(200e-6, 125e6, noise=0.05, seed=seed))
    assert fit.bytes_per_s == pytest.approx(125e6, rel=0.06)
    assert fit.latency_s == pytest.approx(200e-6, rel=0.1)
    assert 0.005 < fit.error_fraction < 0.1


def test_single_messages_that_were_held_up_do_not_count() -> None:
    samples = messages(200e-6, 125e6)
    for times in samples.values():
        times[:3] = [50 * t for t in times[:3]]
    assert fit_link(samples).bytes_per_s == pytest.approx(125e6, rel=1e-3)


@pytest.mark.parametrize("disturbed", SIZES[:-1])
def test_one_size_that_is_off_bends_nothing(disturbed: int) -> None:
    samples = messages(200e-6, 12.5e6)
    samples[disturbed] = [3 * t for t in samples[disturbed]]
    fit = fit_link(samples)
    assert fit.bytes_per_s == pytest.approx(12.5e6, rel=0.03)
    assert fit.latency_s == pytest.approx(200e-6, rel=0.05)


def test_what_a_token_bucket_lets_through_is_not_taken_for_bandwidth() -> None:
    # 32 KiB pass at once; what is beyond them waits for 12.5 MB/s.
    samples = {size: [100e-6 + max(0, size - 32768) / 12.5e6] * 5 for size in SIZES}
    fit = fit_link(samples)
    assert fit.bytes_per_s == pytest.approx(12.5e6, rel=0.03)
    assert fit.latency_s == pytest.approx(100e-6, rel=0.15)


def test_scatter_is_told() -> None:
    samples = {size: [t, 1.2 * t, 1.2 * t] for size, (t, *_) in messages(1e-4, 1e8).items()}
    quiet = fit_link(messages(1e-4, 1e8)).error_fraction
    assert fit_link(samples).error_fraction < 0.02  # two of three agree with the median
    spread = {size: [0.8 * t, t, 1.2 * t] for size, (t, *_) in messages(1e-4, 1e8).items()}
    assert fit_link(spread).error_fraction == pytest.approx(0.2, abs=0.02)
    assert quiet < 1e-6


def test_messages_of_one_size_make_no_line() -> None:
    with pytest.raises(ValueError, match="two sizes or more"):
        fit_link({64: [1e-4]})


def test_times_that_do_not_grow_still_give_a_bandwidth_above_zero() -> None:
    fit = fit_link({size: [1e-3] * 3 for size in SIZES})
    assert fit.bytes_per_s > SIZES[-1] / 1e-3
    assert 0 < fit.latency_s <= 1e-3


def test_the_way_back_is_taken_off() -> None:
    there, back = 100e-6, 100e-6
    trips = {64: [there + back] * 3, 10**6: [there + 0.08 + back] * 3}
    ways = one_way(trips, ack_bytes=64)
    assert statistics.median(ways[64]) == pytest.approx(there)
    assert statistics.median(ways[10**6]) == pytest.approx(there + 0.08)
    assert all(t > 0 for times in ways.values() for t in times)
