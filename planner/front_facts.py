"""What is proved of the plans that keep limits, collected over many searches.

A search that asks for the least period of plans with a latency up to ``l`` on up to ``n`` devices
proves something of every tighter limit too: fewer plans are left, and none of them is quicker.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from planner.solvers.base import TOLERANCE


@dataclass(frozen=True, slots=True)
class _Fact:
    """No plan within both limits has less than ``bound`` of the figure."""

    devices: float
    limit_s: float
    bound_s: float


@dataclass(slots=True)
class Facts:
    """Bounds of the period under limits on the latency, and of the latency under limits on the
    period, each also under a limit on the devices."""

    _of_period: list[_Fact] = field(default_factory=list)
    _of_latency: list[_Fact] = field(default_factory=list)

    def note_period(self, *, devices: float, latency_s: float, bound_s: float) -> None:
        """No plan with so many devices and such a latency at most has a shorter period."""
        self._of_period.append(_Fact(devices, latency_s, bound_s))

    def note_latency(self, *, devices: float, period_s: float, bound_s: float) -> None:
        """No plan with so many devices and such a period at most has a lower latency."""
        self._of_latency.append(_Fact(devices, period_s, bound_s))

    def least_period_s(self, *, devices: float, latency_s: float) -> float:
        """The largest bound that is known for plans within both limits."""
        return _bound(self._of_period, devices, latency_s)

    def least_latency_s(self, *, devices: float, period_s: float) -> float:
        """The largest bound that is known for plans within both limits."""
        return _bound(self._of_latency, devices, period_s)

    def excludes(self, *, devices: float, period_s: float, latency_s: float) -> bool:
        """Whether it is proved that no plan is within all three limits."""
        shortest_s = self.least_period_s(devices=devices, latency_s=latency_s)
        quickest_s = self.least_latency_s(devices=devices, period_s=period_s)
        return devices < 1 or (
            shortest_s > period_s * (1 + TOLERANCE) or quickest_s > latency_s * (1 + TOLERANCE)
        )


def _bound(facts: list[_Fact], devices: float, limit_s: float) -> float:
    return max(
        (
            fact.bound_s
            for fact in facts
            if fact.devices >= devices and fact.limit_s >= limit_s * (1 - TOLERANCE)
        ),
        default=0.0,
    )
