"""Places for stages: options with copies, and what it takes to move a tensor between two of them.

A model that names slots instead of devices has no symmetry between equal devices except that
between copies of one slot, which an order among them removes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.figures import Figures
from planner.options import Option, find_options, place
from planner.problem import PlanningProblem
from planner.slices import RegionUnits, exchanged, joins_s, slice_times

ROOT = "root"
"""What a rank on the root's device is called, in any slot."""

MAX_MOVES = 40_000
"""Rough number of (tensor, slot, slot) combinations; groups beyond it are left out."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one stage; ``copy`` tells places on equal devices apart."""

    option: Option
    copy: int

    @property
    def waits(self) -> bool:
        """Whether a stage here handles the whole batch at once."""
        return self.option.whole_batch


@dataclass(frozen=True, slots=True)
class Message:
    """One tensor's piece from rank ``source`` of a slot to rank ``target`` of another.

    ``send_s`` and ``receive_s`` are the parts of ``seconds`` during which its source and its target
    cannot compute; ``wire`` names what it travels on; ``count`` messages are sent a batch.
    """

    source: int
    target: int
    seconds: float
    send_s: float
    receive_s: float
    wire: str
    count: int


class Slots:
    """The slots of a problem and the messages between them."""

    def __init__(self, problem: PlanningProblem, figures: Figures) -> None:
        self.problem, self.figures = problem, figures
        found = find_options(problem, figures)
        singles = [o for o in found.options if not o.is_group]
        if problem.num_microbatches == 1:
            # One run a batch either way: a stage waits for the batch if one of its layers does.
            singles = [o for o in singles if not o.whole_batch] or singles
        slots = [slot for option in singles for slot in self._copies(option)]
        moves = max(1, len(problem.graph.tensors))
        groups = [option for option in found.options if option.is_group]
        self.ways: list[Option] = []
        for option in groups:
            copies = list(self._copies(option))
            if (len(slots) + len(copies)) ** 2 * moves > MAX_MOVES:
                break
            slots += copies
            self.ways.append(option)
        self.left_out = len(self.ways) < len(groups)
        self.tensor_left_out = any(option.is_tensor for option in groups[len(self.ways) :])
        self.slots = tuple(slots)
        self._messages: dict[tuple[str, int | None, int | None], tuple[Message, ...]] = {}

    def describe(self) -> str:
        """The part of the search space that the slots stand for."""
        if not self.ways:
            missing = "tensor" if self.tensor_left_out else "batch"
            return "each on one device" + f" ({missing} splits were left out)" * self.left_out
        some = "the smallest " if self.left_out else ""
        tensor = [option.is_tensor for option in self.ways]
        split = (
            "by tensor" if all(tensor) else "by batch or by tensor" if any(tensor) else "by batch"
        )
        lacking = self.tensor_left_out and not any(tensor)
        return (
            f"each on one device or split {split} in {some}{len(self.ways)} ways"
            + " (tensor splits were left out)" * lacking
        )

    def runs(self, s: int) -> int:
        """How often a batch a stage in slot ``s`` runs."""
        return 1 if self.slots[s].waits else self.problem.num_microbatches

    def at_once(self, message: Message, s: int) -> int:
        """Such messages that one run of slot ``s`` comprises."""
        return message.count // self.runs(s)

    def messages(self, tensor: str, source: int | None, target: int | None) -> tuple[Message, ...]:
        """What moves a tensor between two slots; ``None`` is the model's input or output."""
        key = (tensor, source, target)
        if key not in self._messages:
            self._messages[key] = tuple(self._find(tensor, source, target))
        return self._messages[key]

    def names(self, s: int) -> list[str]:
        """A name of its own for each rank of slot ``s``."""
        return [name for _, name, *_ in self._ends(s, self.problem.microbatch)]

    def joining(self, s: int, slices: RegionUnits) -> Iterator[tuple[str, float]]:
        """Wire and seconds of every message of the joins of a region that slot ``s`` divides."""
        items = self.problem.microbatch
        (devices,) = place(self.problem, [self.slots[s].option])
        named = dict(zip(devices, self.names(s), strict=True))
        for source, target, seconds in exchanged(self.figures, slices, devices, items):
            link = self.problem.links[source, target]
            yield link.shares or f"{named[source]} -> {named[target]}", seconds

    def divided_s(self, s: int, slices: RegionUnits) -> float:
        """Seconds of the slowest slice of a region that slot ``s`` divides, and of its joins."""
        items = self.problem.microbatch
        (devices,) = place(self.problem, [self.slots[s].option])
        slowest = max(slice_times(self.figures, slices, devices, items))
        return slowest + joins_s(self.figures, slices, devices, items)

    def _copies(self, option: Option) -> Iterator[Slot]:
        counts = option.counts(len(self.problem.classes))
        most = min(
            len(members) // n for members, n in zip(self.problem.classes, counts, strict=True) if n
        )
        for copy in range(min(most, self.problem.max_stages)):
            yield Slot(option, copy)

    def _find(self, tensor: str, source: int | None, target: int | None) -> Iterator[Message]:
        problem = self.problem
        whole = all(self.slots[s].waits for s in (source, target) if s is not None)
        items = problem.batch if whole else problem.microbatch
        count = 1 if whole else problem.num_microbatches
        cut = problem.graph.tensor[tensor].in_parts
        senders, receivers = self._ends(source, items), self._ends(target, items)
        if not cut or (source is not None and self.slots[source].option.is_tensor):
            senders = senders[:1]
        for a, (device_a, name_a, start, stop) in enumerate(senders):
            for b, (device_b, name_b, first, last) in enumerate(receivers):
                held = min(stop, last) - max(start, first) if cut else items
                if held <= 0 or name_a == name_b:
                    continue
                if device_a == device_b:  # two of one class: any other of it stands for the second
                    device_b = problem.classes[problem.class_of[device_a]][1]
                link = problem.links[device_a, device_b]
                seconds = link.transfer_time_s(self.figures.tensor_bytes(tensor, held))
                yield Message(
                    source=a,
                    target=b,
                    seconds=seconds,
                    send_s=link.send_occupancy * seconds,
                    receive_s=link.receive_occupancy * seconds,
                    wire=link.shares or f"{name_a} -> {name_b}",
                    count=count,
                )

    def _ends(self, s: int | None, items: int) -> list[tuple[str, str, int, int]]:
        """A device, a name of its own, and the interval of items, for each rank of a slot."""
        root = self.problem.cluster.root
        if s is None:
            return [(root, ROOT, 0, items)]
        slot = self.slots[s]
        ends, start = [], 0
        for r, (c, share) in enumerate(slot.option.members):
            device = self.problem.classes[c][0]
            name = ROOT if device == root else f"{s}.{r}"
            stop = items if slot.waits else start + share
            ends.append((device, name, start, stop))
            start = 0 if slot.option.is_tensor else stop  # all its ranks have everything
        return ends


def together_possible(problem: PlanningProblem, slots: Sequence[Slot], s: int, t: int) -> bool:
    """Whether two slots can be in use at once."""
    sizes = [len(members) for members in problem.classes]
    one, other = (slots[x].option.counts(len(sizes)) for x in (s, t))
    return all(a + b <= n for a, b, n in zip(one, other, sizes, strict=True))
