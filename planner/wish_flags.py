"""How the flags of ``plan`` and ``what-if`` become a request: their values and what they mean.

All raise ``InvalidInputError`` for text that cannot be read; it names the flag.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.errors import InvalidInputError

if TYPE_CHECKING:
    from planner.planfile import Plan
    from planner.request import PlanRequest
    from profiler.profile import Profile


class Goal(StrEnum):
    """What to make small: the time between batches, that of one batch, the devices, their price."""

    THROUGHPUT = "throughput"
    LATENCY = "latency"
    DEVICES = "devices"
    PRICE = "price"


class Division(StrEnum):
    """A way to divide the work that the planner may use."""

    LAYERS = "layers"
    BATCH = "batch"
    TENSOR = "tensor"
    PIPELINES = "pipelines"


class Receiver(StrEnum):
    """Who has the answer in the end."""

    ROOT = "root"
    ALL = "all"
    SCATTERED = "scattered"


def merged_request(
    path: Path | None, wishes: Mapping[str, object], profile: Profile, used: Plan | None
) -> PlanRequest:
    """The request of the file, or that of the plan in use, with the flags over it."""
    from planner.request import PlanRequest
    from profiler.documents import load_data

    data: dict[str, object] = {"kind": "PlanRequest", "format_version": "1.0"}
    if path is not None:
        data = load_data(path)
    elif used is not None:
        data = used.inputs.request.model_dump(mode="json", exclude_none=True)
    given = {name: value for name, value in wishes.items() if value is not None}
    limits = given.pop("limits", None)
    if isinstance(limits, dict):
        before = data.get("limits")
        given["limits"] = {**(before if isinstance(before, dict) else {}), **limits}
    data = {**data, **given}
    data.setdefault("batch_size", max(profile.batch_sizes, default=1))
    return PlanRequest.from_data(data, name="the request" if path is None else str(path))


def fraction_of(text: str, flag: str) -> float:
    """A part from ``2%`` or ``0.02``."""
    number = text.strip()
    try:
        return float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError as error:
        raise InvalidInputError(f"{flag} {text!r}: write a part such as 2% or 0.02") from error


def pair_of(text: str, flag: str, first: str, second: str) -> dict[str, object]:
    """``LEFT=RIGHT`` of a flag by the names of its two parts."""
    left, _, right = text.rpartition("=")
    if not left or not right:
        raise InvalidInputError(f"{flag} {text!r}: write {first.upper()}={second.upper()}")
    return {first: left, second: right}


def forbid_of(text: str) -> dict[str, object]:
    """A forbid from ``DEVICE`` or ``LAYERS=DEVICE``."""
    if "=" not in text:
        return {"device": text}
    return pair_of(text, "--forbid", "layers", "device")


def prices_of(texts: list[str]) -> dict[str, object]:
    """Prices an hour by device or type, from ``NAME=PRICE`` each."""
    found: dict[str, object] = {}
    for text in texts:
        pair = pair_of(text, "--price", "type", "price")
        try:
            found[str(pair["type"])] = float(str(pair["price"]))
        except ValueError as error:
            raise InvalidInputError(f"--price {text!r}: write a number, as 1.20") from error
    return found


def sizes_of(texts: list[str]) -> dict[str, object]:
    """Sizes by device, from ``DEVICE=SIZE`` each."""
    pairs = [pair_of(text, "--max-memory", "device", "size") for text in texts]
    return {str(pair["device"]): pair["size"] for pair in pairs}
