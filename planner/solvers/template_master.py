"""Column generation: the least period that real numbers of pipelines can keep, and its templates.

Within a period ``P`` a template whose time between microbatches is at most ``P / k`` is worth ``k``
microbatches. Let ``Z(P)`` be the optimum of the linear master over *all* templates. For any sound
prices (``planner.solvers.master``) and the least price ``c(T)`` of a template within ``T``

    Z(P) <= (sum of the pools' prices) * max over k of k / c(P / k)

(weak duality; Farley, *A note on bounding a class of linear programming problems*, 1990). So a
period where that is below the microbatches of a batch cannot be kept, however few templates are
known: the bound is valid whenever the search stops. ``c`` never rises with ``T``, so the maximum
over a range of ``k`` is bounded by the ends of the range; ranges are halved where that matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from planner.pools import Pools
from planner.solvers.arrays import Floats
from planner.solvers.base import SolveLimits
from planner.solvers.master import Master, Supply
from planner.solvers.template_pricing import AT_ONCE, Pricing, Template
from planner.solvers.template_tables import TemplateTables

PROOF = 1e-9
"""Fraction by which a bound must be missed: more than sums can be off by rounding."""

CLOSE = 2e-4
"""Fraction to which the worth of templates is settled at one period, unless more is needed."""

SETTLED = 1e-3
"""Fraction to which the least period is settled."""

MAX_ROUNDS = 60
"""Rounds of pricing at one period."""


@dataclass
class Trial:
    """What is known of one period: microbatches that real numbers of pipelines reach, at most."""

    period_s: float
    reached: float
    at_most: float
    counts: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class _Range:
    """Template values ``first .. last``, with the least price for ``first``."""

    first: int
    last: int
    price: float

    @property
    def most(self) -> float:
        """Nothing in the range is worth more for its price."""
        return self.last / self.price if self.price > 0 else math.inf


@dataclass
class Columns:
    """The templates found so far under one assumption, and the master over them."""

    tables: TemplateTables
    pools: Pools
    wanted: int
    limits: SolveLimits
    templates: list[Template] = field(default_factory=list)
    priced: int = 0

    def __post_init__(self) -> None:  # noqa: D105
        self.pricing = Pricing(self.tables)
        self.supply = _supply(self.pools, self.tables)
        self.master = Master(self.supply)
        self._known: set[tuple[object, ...]] = set()

    def add(self, template: Template) -> bool:
        """Take a template, unless it is known."""
        key = template.stages
        if key in self._known:
            return False
        self._known.add(key)
        self.templates.append(template)
        self.master.add(template.needs)
        return True

    def values(self, period_s: float) -> list[int]:
        """Microbatches of each template within a period."""
        return [worth(template.period_s, period_s, self.wanted) for template in self.templates]

    def trial(self, period_s: float) -> Trial:
        """Generate templates until the period can be kept, cannot be, or nothing changes.

        Raises:
            TimeoutError: the deadline has passed.
        """
        trial = Trial(period_s, 0.0, math.inf)
        if not self.templates:
            self._offers(period_s, self._plain_prices(), CLOSE)
        close = CLOSE
        for _ in range(MAX_ROUNDS):
            relaxed = self.master.relax(self.values(period_s))
            trial.reached, trial.counts = relaxed.value, relaxed.counts
            if relaxed.value >= self.wanted * (1 - 1e-12):
                return trial
            if self.limits.expired:
                raise TimeoutError
            ratio, new = self._offers(period_s, relaxed.prices, close)
            trial.at_most = min(trial.at_most, ratio * self.supply.worth(relaxed.prices))
            if trial.at_most < self.wanted * (1 - PROOF) or (not new and close == 0.0):
                return trial
            if not new:
                close = 0.0  # what is left is a matter of how closely it is looked at
        return trial

    def _offers(self, period_s: float, prices: Floats, close: float) -> tuple[float, int]:
        """The most that any template is worth for its price, to ``close``; how many were new.

        Raises:
            TimeoutError: the deadline has passed.
        """
        best, new = 0.0, 0
        most = min(self.wanted, worth(self.pricing.least_s, period_s, self.wanted))
        open_ranges: list[_Range] = []
        if most < 1:
            return 0.0, 0
        firsts = sorted({n for n in (1, 2, *(2**i + 1 for i in range(1, 62))) if n <= most})
        asked = list(zip(firsts, [*(n - 1 for n in firsts[1:]), most], strict=True))
        while asked:
            if self.limits.expired:
                raise TimeoutError
            found = self.pricing.cheapest(
                prices,
                [period_s / first for first, _ in asked],
                below=[first / (1 + PROOF) for first, _ in asked],
            )
            self.priced += len(asked)
            for (first, last), (price, template) in zip(asked, found, strict=True):
                best = max(best, first / price if price > 0 else math.inf)
                if template is not None:
                    new += self.add(template)
                if price < math.inf:
                    open_ranges.append(_Range(first, last, price))
            # Far from the optimum, coarse answers move the prices as well as fine ones.
            useful = max(best, 1.0) * (1 + max(close, min(0.02, (best - 1) / 8)))
            split = sorted(
                (r for r in open_ranges if r.first < r.last and r.most > useful),
                key=lambda r: -r.most,
            )[:AT_ONCE]
            asked = []
            for r in split:
                open_ranges.remove(r)
                middle = (r.first + r.last) // 2
                open_ranges.append(_Range(r.first, middle, r.price))
                asked.append((middle + 1, r.last))
        return max([best, *(r.most for r in open_ranges)]), new

    def _plain_prices(self) -> Floats:
        """Prices by the most layers a second, to begin with."""
        size = self.tables.num_layers + 1
        lengths = np.arange(size)[None, :] - np.arange(size)[:, None]
        prices = np.full((self.tables.num_kinds, max(1, *self.supply.runs)), np.inf)
        for t, most in enumerate(self.supply.runs):
            speed = max(
                float((lengths / np.maximum(mode.width * own, 1e-300)).max())
                for mode, own in zip(self.tables.modes, self.tables.own, strict=True)
                if mode.kind == t
            )
            prices[t, :most] = max(speed, 0.0) * np.arange(1, most + 1)
        return prices


def worth(template_s: float, period_s: float, most: int) -> int:
    """Microbatches, up to ``most``, of a template within a period."""
    if template_s <= 0:
        return most
    return min(most, math.floor(period_s / template_s * (1 + 1e-12)))


def _supply(pools: Pools, tables: TemplateTables) -> Supply:
    held: dict[tuple[int, int], int] = {}
    for t, kind in enumerate(pools.kinds):
        if tables.runs[t] <= 1:
            held[t, 1] = kind.count
            continue
        for pool in kind.pools:
            held[t, len(pool)] = held.get((t, len(pool)), 0) + 1
    return Supply(held, tuple(max(1, run) for run in tables.runs))


def settle(
    columns: Columns, low_s: float, useful_s: float = math.inf, near_s: float | None = None
) -> tuple[float, Trial | None]:
    """A period that no plan can beat, and the least that real numbers of pipelines keep, close by.

    ``low_s`` is a bound known before; nothing from ``useful_s`` on is of use. The search begins at
    ``near_s``, a period that is kept or nearly so. Ends early at the deadline.
    """
    kept: Trial | None = None
    proved = low = low_s
    period_s = near_s or max(low_s, columns.pricing.least_s) * (1 + SETTLED)
    try:
        while period_s < useful_s or kept is None:
            trial = columns.trial(min(period_s, useful_s))
            if trial.reached >= columns.wanted * (1 - 1e-12):
                kept = trial
            else:
                low = trial.period_s
                if trial.at_most < columns.wanted * (1 - PROOF):
                    proved = max(proved, trial.period_s * (1 - PROOF))
                if low >= useful_s:
                    break
            if kept is not None:
                if kept.period_s <= low * (1 + SETTLED):
                    break
                period_s = (kept.period_s * low) ** 0.5 if low > 0 else kept.period_s / 2
                if near_s is not None and kept.period_s >= near_s:
                    period_s = max(period_s, near_s / (1 + SETTLED))  # mostly that is all
            else:
                short = columns.wanted / trial.reached if trial.reached > 0 else 2.0
                period_s = trial.period_s * min(2.0, max(short, 1 + 2 * SETTLED))
    except TimeoutError:
        pass
    return proved, kept
