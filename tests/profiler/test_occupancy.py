from __future__ import annotations

import pytest

from profiler.linkfit import LinkFit
from profiler.occupancy import MAX_MESSAGES, Stream, Window, occupancy


def fit(bytes_per_s: float, latency_s: float = 0.0) -> LinkFit:
    return LinkFit(latency_s=latency_s, bytes_per_s=bytes_per_s, error_fraction=0.0, samples=1)


def windows(*pieces: int, elapsed_s: float = 0.2) -> list[Window]:
    return [Window(elapsed_s=elapsed_s, pieces=n) for n in pieces]


def test_computing_that_goes_on_as_before_loses_nothing() -> None:
    assert occupancy(windows(100, 101, 99), windows(100, 99, 100), transfer_s=0.2) <= 0.02


def test_computing_that_stands_still_during_transfers_loses_all_of_their_time() -> None:
    # 0.1 s of transfers in 0.2 s, in which half as much was computed.
    assert occupancy(windows(100), windows(50), transfer_s=0.1) == pytest.approx(1.0)


def test_the_part_is_of_the_transfers_time_not_of_the_windows() -> None:
    # 20 of 100 pieces lost in 0.2 s are 0.04 s, of 0.08 s that the messages take by themselves.
    assert occupancy(windows(100), windows(80), transfer_s=0.08) == pytest.approx(0.5)


def test_noise_cannot_lead_out_of_bounds() -> None:
    assert occupancy(windows(50), windows(100), transfer_s=0.2) == 0.0
    assert occupancy(windows(100), windows(1), transfer_s=0.05) == 1.0


def test_windows_that_something_else_disturbed_do_not_count() -> None:
    alone = windows(100, 20, 100, 30, 100, 100, 25, 100)
    beside = windows(10, 80, 81, 80, 20, 15, 80, 80)
    assert occupancy(alone, beside, transfer_s=0.2) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("rate", [1e4, 1e5, 1.25e6, 12.5e6, 125e6, 1.25e9, 5e9])
@pytest.mark.parametrize("latency_s", [0.0, 1e-4, 0.05])
def test_a_stream_takes_about_as_long_as_asked_on_any_link(rate: float, latency_s: float) -> None:
    made = Stream.for_link(fit(rate, latency_s), seconds=0.15)
    took = made.num_messages * fit(rate, latency_s).transfer_time_s(made.num_bytes)
    assert made.num_bytes >= 64
    # A link with much latency or of few bytes per second cannot be cut finer than a message.
    assert 0.07 < took < 0.3 or made.num_messages in (1, MAX_MESSAGES)
    assert made.num_messages <= MAX_MESSAGES
