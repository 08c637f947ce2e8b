"""The smallest changes after which a plan fits, each tried by solving again.

A change of a number is at its smallest: one item, one stage, or one step of the last digit written
less does not do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from planner.feasibility import Feasibility
from planner.limits import ENDLESS_BYTES, Limit, LimitKind, named
from planner.smallest_change import Size, largest, least_size, most_size, smallest
from profiler.errors import Change
from profiler.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    """A change, and what it makes of the question."""

    change: Change
    lifted: tuple[Limit, ...] = ()
    memory: Mapping[str, int] = field(default_factory=dict)
    fields: Mapping[str, object] = field(default_factory=dict)


def smallest_changes(question: Feasibility, limits: Sequence[Limit]) -> tuple[Change, ...] | None:
    """The smallest changes of these limits that make a plan fit together; None if none do.

    Of several, each is the smallest when those before it are made and the others are lifted.
    """
    made: list[_Tried] = []
    for at, limit in enumerate(limits):
        tried = _Search(question, made, limits[at + 1 :]).change(limit)
        if tried is None:
            return None
        made.append(tried)
    return tuple(tried.change for tried in made)


class _Search:
    """The smallest change of one limit, beside others that are changed or lifted already."""

    def __init__(
        self, question: Feasibility, made: Sequence[_Tried], lifted: Sequence[Limit]
    ) -> None:
        self.question = question
        self.lifted = (*lifted, *(limit for tried in made for limit in tried.lifted))
        self.memory = {d: size for tried in made for d, size in tried.memory.items()}
        self.fields = {name: x for tried in made for name, x in tried.fields.items()}

    def change(self, limit: Limit) -> _Tried | None:
        """The smallest change of ``limit`` after which a plan fits, or None."""
        numbers: Mapping[LimitKind, Callable[[Limit], _Tried | None]] = {
            LimitKind.MAX_STAGES: self._more_stages,
            LimitKind.MICROBATCH_SIZE: self._smaller_microbatch,
            LimitKind.BATCH_SIZE: self._fewer_items,
            LimitKind.MAX_BYTES: self._higher_cap,
            LimitKind.RESERVE_BYTES: self._less_reserve,
            LimitKind.MEMORY: self._more_memory,
        }
        if limit.kind in numbers:
            return numbers[limit.kind](limit)
        if not self._fits(lifted=(limit,)):
            return None
        return _Tried(change=_change(limit, _removal(limit)), lifted=(limit,))

    def _fits(
        self,
        *,
        lifted: Sequence[Limit] = (),
        memory: Mapping[str, int] | None = None,
        fields: Mapping[str, object] | None = None,
    ) -> bool:
        return bool(
            self.question.has_plan(
                lifted=(*self.lifted, *lifted),
                memory={**self.memory, **(memory or {})},
                **{**self.fields, **(fields or {})},
            )
        )

    def _more_stages(self, limit: Limit) -> _Tried | None:
        now = limit.now or 1
        most = len(self.question.cluster.device)
        count = smallest(now + 1, most, lambda n: self._fits(fields={"max_stages": n}))
        if count is None:
            return None
        text = f"raise max_stages from {now} to {count}"
        return _Tried(change=_change(limit, text, count), fields={"max_stages": count})

    def _smaller_microbatch(self, limit: Limit) -> _Tried | None:
        now = limit.now or 1
        size = largest(1, now - 1, lambda n: self._fits(fields={"microbatch_size": n}))
        if size is None:
            return None
        text = f"lower microbatch_size from {now} to {size} or less"
        return _Tried(change=_change(limit, text, size), fields={"microbatch_size": size})

    def _fewer_items(self, limit: Limit) -> _Tried | None:
        now = limit.now or 1
        asked = self.question.request.microbatch_size
        free = any(x.kind is LimitKind.MICROBATCH_SIZE for x in self.lifted)

        def fields(batch: int) -> dict[str, object]:
            size = None if asked is None or free else min(asked, batch)
            return {"batch_size": batch, "microbatch_size": size}

        batch = largest(1, now - 1, lambda n: self._fits(fields=fields(n)))
        if batch is None:
            return None
        text = f"lower batch_size from {now} to {batch} or less"
        return _Tried(change=_change(limit, text, batch), fields=fields(batch))

    def _higher_cap(self, limit: Limit) -> _Tried | None:
        device, now = limit.subject, limit.now or 0
        caps = self.question.request.max_bytes
        has = self.memory.get(device, self.question.cluster.device[device].usable_bytes)

        def fields(size: int) -> dict[str, object]:
            before = self.fields.get("max_bytes", caps)
            assert isinstance(before, Mapping)
            return {"max_bytes": {**before, device: size}}

        size = least_size(has, lambda n: n > now and self._fits(fields=fields(n)))
        if size is None:
            return None
        text = f"raise max_bytes of {device} from {format_bytes(now)} to {size.text}"
        return _Tried(change=_change(limit, text, size.num_bytes), fields=fields(size.num_bytes))

    def _less_reserve(self, limit: Limit) -> _Tried | None:
        now = limit.now or 0
        size = most_size(now, lambda n: self._fits(fields={"reserve_bytes": n}))
        if size is None:
            return None
        source = "" if self.question.request.reserve_bytes is not None else " as profiled"
        text = f"lower reserve_bytes from {format_bytes(now)}{source} to {size.text} or less"
        return _Tried(
            change=_change(limit, text, size.num_bytes), fields={"reserve_bytes": size.num_bytes}
        )

    def _more_memory(self, limit: Limit) -> _Tried | None:
        """More on one device of a class, else on each of them."""
        now = limit.now or 0
        has = format_bytes(self.question.base.capacity_bytes(limit.subject))
        for devices in dict.fromkeys(((limit.subject,), limit.devices)):
            extra = self._least_more(devices, now)
            if extra is not None:
                who = devices[0] if len(devices) == 1 else f"each of {named(devices)}"
                text = f"give {who} another {extra.text} (a plan may use {has} of it)"
                size = now + extra.num_bytes
                return _Tried(
                    change=_change(limit, text, size), memory=dict.fromkeys(devices, size)
                )
        return None

    def _least_more(self, devices: Sequence[str], now: int) -> Size | None:
        """What each of these devices needs on top of ``now`` bytes, if that is enough."""

        def enough(extra: int) -> bool:
            return self._fits(memory=dict.fromkeys(devices, now + extra))

        return least_size(ENDLESS_BYTES - now, enough)


def _change(limit: Limit, text: str, becomes: int | None = None) -> Change:
    return Change(
        limit=limit.kind.value, subject=limit.subject, text=text, now=limit.now, becomes=becomes
    )


def _removal(limit: Limit) -> str:
    match limit.kind:
        case LimitKind.PIN:
            return f"remove the {limit.text}"
        case LimitKind.FORBID:
            what, _, device = limit.text.removeprefix("forbid of ").rpartition(" on ")
            return f"allow {what} on {device} (remove the forbid)"
        case LimitKind.KEEP_TOGETHER:
            return f"let {limit.subject} be split (remove it from keep_together)"
        case _:
            return f"allow {limit.subject} in splits"
