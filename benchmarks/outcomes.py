"""What a cell of the comparison on unequal machines came to, and the figures over many of them.

A cell is data, kept in a file as soon as it is measured: a comparison of an hour can be
interrupted, continued, and extended by a cluster.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.bars import bars_svg
from benchmarks.records import Record, record
from planner.request import Objective
from profiler import documents
from profiler.profile import Profile

TORCH = "torch pipelining"
MEASURES = {"one device": "best_single"}
"""Contenders whose measure is not called as they are."""
APART = 0.10
"""Plans whose measured times differ by more are expected in the right order."""


class Result(documents.Record):
    """One contender for one objective: what its plan says and what it took, by repeat.

    ``spec`` is a digest of the plan's decision. ``bound_by`` is ``stage`` or ``wire``, whatever is
    the bottleneck of the plan; ``limit_s`` what a batch takes by the profile if nothing else is
    done (computing of the slowest rank, or the wire's messages), ``busy_s`` the same with the
    processor's part of messages; ``limit_seconds`` is computing alone as it was measured right
    after each of ``seconds`` (of apportion's plan for throughput).
    """

    name: str
    objective: Objective
    spec: str
    predicted_s: float
    seconds: tuple[float, ...]
    bound_by: str
    limit_s: float
    busy_s: float
    limit_seconds: tuple[float, ...] = ()

    @property
    def measured_s(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def off(self) -> float:
        """Time measured over time predicted, less one."""
        return self.measured_s / self.predicted_s - 1

    @property
    def computing_off(self) -> float | None:
        """How far computing, alone, is from its profile; None where it was not measured."""
        return statistics.median(self.limit_seconds) / self.limit_s - 1 if self.computes else None

    @property
    def computes(self) -> bool:
        """Whether a stage is the bottleneck, and its computing alone was measured."""
        return self.bound_by == "stage" and bool(self.limit_seconds)

    def efficiency(self, *, besides_s: float = 0.0) -> float:
        """The measured limit, and ``besides_s``, over what a batch took: the median of turns."""
        pairs = zip(self.limit_seconds, self.seconds, strict=True)
        return statistics.median((limit + besides_s) / took for limit, took in pairs)


class Cell(documents.Record):
    """One model on one cluster."""

    cluster: str
    model: str
    torch_version: str
    items: int
    results: tuple[Result, ...]
    bottlenecks: dict[str, str]
    bounds_s: dict[str, float]
    torch_s: dict[str, float]
    torch_why_not: str = ""
    again: bool = False

    @property
    def machine_off(self) -> float:
        """How much slower than in the profile the machine computes in the turns, at worst: one
        device alone, and the ranks of apportion's plan without messages."""
        alone = [r.off for r in self.results if r.name == "one device"]
        computing = [r.computing_off for r in self.results if r.computing_off is not None]
        return max((*alone, *computing), key=abs)

    def of(self, name: str, objective: Objective) -> Result:
        """What a contender reached."""
        return next(r for r in self.results if (r.name, r.objective) == (name, objective))

    def pairs(self) -> Iterator[tuple[Result, Result]]:
        """Every two contenders for one objective whose plans differ."""
        for i, one in enumerate(self.results):
            for other in self.results[i + 1 :]:
                if one.objective is other.objective and one.spec != other.spec:
                    yield one, other

    def show(self) -> None:
        """The cell as lines of the table."""
        for objective in (Objective.THROUGHPUT, Objective.LATENCY):
            best_s = self.of("apportion", objective).measured_s
            print(f"\n{self.cluster} x {self.model}, {objective}: {self.items} items")
            print(_line("", "predicted", "measured", "ratio", "items/s", "of best"))
            for one in self.results:
                if one.objective is objective:
                    ratio = f"{one.measured_s / one.predicted_s:.3f}"
                    rates = self._rates(one.measured_s, best_s)
                    print(_line(one.name, _ms(one.predicted_s), _ms(one.measured_s), ratio, *rates))
            if objective in self.torch_s:
                seconds = self.torch_s[objective]
                print(_line(TORCH, "-", _ms(seconds), "-", *self._rates(seconds, best_s)))
            else:
                print(f"  {TORCH:<18} cannot: {self.torch_why_not[:70]}")
            print(f"  proven bound {_ms(self.bounds_s[objective])}; {self.bottlenecks[objective]}")

    def _rates(self, seconds: float, best_s: float) -> tuple[str, str]:
        return f"{self.items / seconds:.2f}", f"{best_s / seconds:.3f}"


def load(folder: Path) -> list[Cell]:
    """The cells kept in a folder, by name."""
    files = sorted(folder.glob("*.json"))
    return [Cell.model_validate_json(file.read_text()) for file in files]


def keep(cell: Cell, profile: Profile, folder: Path) -> None:
    """Write a cell to a folder; and below it, what its plans were made from."""
    name = f"{cell.cluster}-{cell.model}.json"
    (folder / "profiles").mkdir(parents=True, exist_ok=True)
    profile.dump(folder / "profiles" / name)
    (folder / name).write_text(cell.model_dump_json(indent=1) + "\n")


def figures(cells: Sequence[Cell], *, unequal: Sequence[str]) -> list[Record]:
    """The measures over all cells; in clusters ``unequal`` processors differ."""
    results = [result for cell in cells for result in cell.results]
    errors = [abs(r.off) for r in results]
    right = wrong = 0
    for cell in cells:
        for one, other in cell.pairs():
            ratio = one.measured_s / other.measured_s
            if max(ratio, 1 / ratio) > 1 + APART:
                agree = (ratio > 1) == (one.predicted_s > other.predicted_s)
                right, wrong = right + agree, wrong + (not agree)
    about = {
        "clusters": len({cell.cluster for cell in cells}),
        "models": len({cell.model for cell in cells}),
        "repeats": min(len(result.seconds) for result in results),
        "torch": cells[0].torch_version,
    }
    worst = max(results, key=lambda r: abs(r.off))
    where = next(f"{c.cluster} x {c.model}" for c in cells if worst in c.results)
    made = [
        record("estimate_error_median", statistics.median(errors), "fraction", **about),
        record(
            "estimate_error_worst", max(errors), "fraction", plans=len(errors),
            worst=f"{where}: {worst.name}, {worst.objective}",
        ),
        record(
            "order_right_fraction", right / max(1, right + wrong), "fraction", pairs=right + wrong
        ),
    ]  # fmt: skip
    alone = [abs(r.off) for r in results if r.name == "one device"]
    made.append(_worst("one_device_error_worst", alone))
    best = [cell.of("apportion", Objective.THROUGHPUT) for cell in cells]
    made += _limits(best)
    moved = [abs(cell.machine_off) for cell in cells]
    made.append(_worst("machine_off_worst", moved, again=sum(cell.again for cell in cells)))
    made += _gains(cells, unequal)
    noise = [abs(statistics.median(r.seconds[1::2]) / statistics.median(r.seconds[::2]) - 1)
             for r in results]  # fmt: skip
    made.append(_worst("same_plan_twice_worst", noise))
    return made


def _limits(best: Sequence[Result]) -> list[Record]:
    """Of apportion's plans for throughput: how near they are to what their devices could do."""
    made = []
    computing = [one for one in best if one.computes]
    if computing:
        off = [abs(one.computing_off or 0.0) for one in computing]
        made = [
            _least("compute_bound_efficiency_min", [one.efficiency() for one in computing]),
            _least(
                "compute_bound_with_messages_min",
                [one.efficiency(besides_s=one.busy_s - one.limit_s) for one in computing],
            ),
            _least(
                "compute_bound_of_profile_min",
                [one.limit_s / one.measured_s for one in computing],
            ),
            _worst("computing_off_profile_worst", off),
        ]
    wires = [one.limit_s / one.measured_s for one in best if one.bound_by == "wire"]
    return [*made, *([_least("link_bound_efficiency_min", wires)] if wires else [])]


def _least(name: str, values: Sequence[float]) -> Record:
    median = round(statistics.median(values), 3)
    return record(name, min(values), "fraction", median=median, cells=len(values))


def _worst(name: str, values: Sequence[float], **about: int) -> Record:
    median = round(statistics.median(values), 4)
    return record(name, max(values), "fraction", median=median, of=len(values), **about)


def _gains(cells: Sequence[Cell], unequal: Sequence[str]) -> list[Record]:
    """apportion beside the others: how many times as fast, the worst cell of each comparison."""
    over: dict[str, list[float]] = {}
    for cell in cells:
        for objective in (Objective.THROUGHPUT, Objective.LATENCY):
            best_s = cell.of("apportion", objective).measured_s
            for one in cell.results:
                if one.objective is objective and one.name != "apportion":
                    name = MEASURES.get(one.name, one.name.replace(" ", "_"))
                    over.setdefault(name, []).append(one.measured_s / best_s)
                    over.setdefault("every_rule", []).append(one.measured_s / best_s)
                    if name == "even" and cell.cluster in unequal:
                        key = f"even_unequal_processors_{objective}"
                        over.setdefault(key, []).append(one.measured_s / best_s)
            if objective in cell.torch_s:
                over.setdefault("torch_pipelining", []).append(cell.torch_s[objective] / best_s)
    return [
        record(
            f"over_{name}_min", min(values), "ratio",
            median=round(statistics.median(values), 3), cells=len(values),
        )
        for name, values in over.items()
    ]  # fmt: skip


def picture(cells: Sequence[Cell]) -> str:
    """Rates of all contenders, each cell relative to apportion's plan."""
    groups = []
    for cell in cells:
        best_s = cell.of("apportion", Objective.THROUGHPUT).measured_s
        bars = {
            one.name: best_s / one.measured_s
            for one in cell.results
            if one.objective is Objective.THROUGHPUT
        }
        if Objective.THROUGHPUT in cell.torch_s:
            bars[TORCH] = best_s / cell.torch_s[Objective.THROUGHPUT]
        groups.append((f"{cell.cluster.replace('_', ' ')}: {cell.model}", bars))
    return bars_svg("Measured throughput, apportion's plan = 1", groups)


def table(cells: Sequence[Cell], objective: Objective) -> str:
    """Rates of all contenders in Markdown, the best of each cell bold; how far off the estimate of
    apportion's plan is; and its rate over the even split's."""
    names = list(dict.fromkeys(r.name for cell in cells for r in cell.results))
    rows = [["cluster", "model", *names, TORCH, "estimate off", "over even"]]
    for cell in cells:
        taken = {r.name: r.measured_s for r in cell.results if r.objective is objective}
        taken |= {TORCH: cell.torch_s[objective]} if objective in cell.torch_s else {}
        best = min(taken, key=lambda name: taken[name])
        rates = {name: f"{cell.items / seconds:.1f}" for name, seconds in taken.items()}
        rates[best] = f"**{rates[best]}**"
        ours = cell.of("apportion", objective)
        off = f"{100 * ours.off:+.1f} %"
        over = f"{taken['even'] / ours.measured_s:.2f} x" if "even" in taken else "-"
        shown = [rates.get(name, "-") for name in (*names, TORCH)]
        rows.append([cell.cluster.replace("_", " "), cell.model, *shown, off, over])
    rows.insert(1, ["---", "---", *["---:"] * (len(rows[0]) - 2)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _line(name: str, *columns: str) -> str:
    return f"  {name:<18}" + "".join(f"{column:>12}" for column in columns)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"
