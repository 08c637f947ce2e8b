"""Limits that a plan as a whole must keep: the times of a batch, and what its devices come to.

Every solver leaves out plans that break one (``PlanCost.allowed``), and those that can prove
something prove it of the plans that keep them all. ``check`` derives them with code of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from planner.request import Objective, PlanRequest
from profiler.cluster import Cluster
from profiler.errors import InvalidInputError
from profiler.units import format_seconds

KEPT = 1e-9
"""A limit is kept by what exceeds it by no more than this fraction: rounding."""

DEVICES = "devices"
PRICE = "price"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """At most ``most`` of what the devices with a rank come to together.

    ``each`` is what one device adds: 1, or its price an hour. The root device always has a rank.
    """

    what: str
    each: Mapping[str, float]
    root: str
    most: float = math.inf

    def total(self, devices: Iterable[str]) -> float:
        """What a plan with stages on ``devices`` comes to."""
        return math.fsum(self.each[device] for device in {self.root, *devices})

    def keeps(self, total: float) -> bool:
        """Whether a plan may come to ``total``."""
        return total <= self.most * (1 + KEPT)

    def text(self, total: float) -> str:
        """``total`` in words."""
        if self.what == DEVICES:
            return f"{total:.0f} device{'' if total == 1 else 's'}"
        return f"price {total:.6g} an hour"

    def totals(
        self, classes: Sequence[Sequence[str]], counts: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """What groups of devices come to, given as counts by class ``[group, class]``."""
        each = np.array([self.each[members[0]] for members in classes])
        rooted = [c for c, members in enumerate(classes) if self.root in members]
        own = counts[:, rooted[0]] > 0 if rooted else np.zeros(len(counts), dtype=np.bool_)
        return np.asarray(counts @ each + np.where(own, 0.0, self.each[self.root]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The limits of one planning question; without any, everything is allowed."""

    max_period_s: float = math.inf
    max_latency_s: float = math.inf
    budgets: tuple[Budget, ...] = field(default=())

    @classmethod
    def of(cls, request: PlanRequest, cluster: Cluster) -> Targets:
        """The limits of ``request``.

        Raises:
            InvalidInputError: the least price is asked for and a device has none, or a price is
                of no device.
        """
        rate = request.min_items_per_s
        budgets = []
        if request.max_devices is not None or request.objective is Objective.DEVICES:
            budgets.append(
                Budget(
                    what=DEVICES,
                    each=dict.fromkeys(cluster.device, 1.0),
                    root=cluster.root,
                    most=request.max_devices or math.inf,
                )
            )
        prices = prices_per_hour(request, cluster)
        if request.objective is Objective.PRICE:
            budgets.append(Budget(what=PRICE, each=_complete(prices, cluster), root=cluster.root))
        return cls(
            max_period_s=math.inf if rate is None else request.batch_size / rate,
            max_latency_s=request.max_latency_s or math.inf,
            budgets=tuple(budgets),
        )

    @property
    def limits_times(self) -> bool:
        """Whether a time of a batch is limited."""
        return min(self.max_period_s, self.max_latency_s) < math.inf

    @property
    def limited(self) -> bool:
        """Whether anything is limited."""
        return self.limits_times or any(x.most < math.inf for x in self.budgets)

    def keeps(self, *, period_s: float, latency_s: float, devices: Iterable[str]) -> bool:
        """Whether a plan with these times and ranks on these devices keeps every limit."""
        held = tuple(devices)
        return (
            period_s <= self.max_period_s * (1 + KEPT)
            and latency_s <= self.max_latency_s * (1 + KEPT)
            and all(budget.keeps(budget.total(held)) for budget in self.budgets)
        )

    def broken(self, *, period_s: float, latency_s: float, devices: Sequence[str]) -> str | None:
        """The first limit that such a plan breaks, with both figures; None if it keeps them."""
        for what, value, most in (
            ("period", period_s, self.max_period_s),
            ("latency", latency_s, self.max_latency_s),
        ):
            if value > most * (1 + KEPT):
                return f"{what} {format_seconds(value)}; the request allows {format_seconds(most)}"
        for budget in self.budgets:
            total = budget.total(devices)
            if not budget.keeps(total):
                return f"{budget.text(total)}; the request allows {budget.most:g}"
        return None

    def most_of(self, objective: Objective) -> float:
        """The limit on the very time that plans are compared by."""
        return self.max_latency_s if objective.counts_latency else self.max_period_s

    def other_than(self, objective: Objective) -> float:
        """The limit on the other time."""
        return self.max_period_s if objective.counts_latency else self.max_latency_s

    def affordable(
        self, classes: Sequence[Sequence[str]], counts: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Which groups of devices, as counts by class, keep every budget."""
        kept = np.ones(len(counts), dtype=np.bool_)
        for budget in self.budgets:
            kept &= budget.totals(classes, counts) <= budget.most * (1 + KEPT)
        return kept

    def budget(self, what: str) -> Budget | None:
        """The budget of ``what``, limited or not."""
        return next((x for x in self.budgets if x.what == what), None)

    def within(self, what: str, most: float) -> Targets:
        """The same limits with another one on ``what``."""
        return replace(
            self,
            budgets=tuple(replace(x, most=most) if x.what == what else x for x in self.budgets),
        )


NO_TARGETS = Targets()
"""Everything is allowed."""


def prices_per_hour(request: PlanRequest, cluster: Cluster) -> dict[str, float]:
    """The price of each device that has one: the request's by name, by type, the cluster's.

    Raises:
        InvalidInputError: the request has a price of something that is neither.
    """
    types = {device.type for device in cluster.device.values()}
    for name in request.prices_per_hour:
        if name not in types and name not in cluster.device:
            raise InvalidInputError(
                f"prices_per_hour names {name!r}, which is neither a device nor a type of the "
                f"cluster; its types are {', '.join(sorted(types)[:6])}"
            )
    found = {}
    for name, device in cluster.device.items():
        asked = request.prices_per_hour
        price = asked.get(name, asked.get(device.type, device.price_per_hour))
        if price is not None:
            found[name] = price
    return found


def _complete(prices: dict[str, float], cluster: Cluster) -> dict[str, float]:
    missing = [name for name in cluster.device if name not in prices]
    if missing:
        kinds = dict.fromkeys(cluster.device[name].type for name in missing)
        raise InvalidInputError(
            f"the least price needs a price of every device; {len(missing)} of "
            f"{len(cluster.device)} have none, of type {', '.join(list(kinds)[:4])}: give "
            f"--price {next(iter(kinds))!r}=PRICE, prices_per_hour in the request, or "
            "price_per_hour in the cluster file"
        )
    return prices
