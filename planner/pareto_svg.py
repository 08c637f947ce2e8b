"""A front as an SVG picture: latency across, throughput up, a line for each number of devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from planner.frontfile import FrontPoint, ParetoFront
from planner.screen import rate
from profiler.units import format_seconds

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 440, 70, 150, 40, 50
COLOURS = (
    "#1f6f8b",
    "#c1440e",
    "#5a7d2b",
    "#7a4e9f",
    "#b8860b",
    "#2f4f4f",
    "#a0305a",
    "#3b5bdb",
)


def draw(front: ParetoFront) -> str:
    """The text of the SVG file; hollow points are not proved."""
    points = front.points
    across = _scale([p.latency_s for p in points], LEFT, WIDTH - RIGHT)
    up = _scale([p.items_per_s for p in points], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(_title(front))}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(_title(front))}</text>',
        *_axes(points, across, up),
    ]
    numbers = sorted({p.devices for p in points})
    for at, devices in enumerate(numbers):
        own = sorted((p for p in points if p.devices == devices), key=lambda p: p.latency_s)
        colour = COLOURS[at % len(COLOURS)]
        parts += _line(own, across, up, colour)
        y = TOP + 10 + 20 * at
        if y < HEIGHT - BOTTOM:
            parts.append(
                f'<circle cx="{WIDTH - RIGHT + 20}" cy="{y}" r="5" fill="{colour}"/>'
                f'<text x="{WIDTH - RIGHT + 32}" y="{y + 4}">{devices} '
                f"device{'' if devices == 1 else 's'}</text>"
            )
    if not all(p.proved for p in points):
        parts.append(
            f'<circle cx="{WIDTH - RIGHT + 20}" cy="{HEIGHT - BOTTOM - 6}" r="5" fill="white" '
            f'stroke="#444"/><text x="{WIDTH - RIGHT + 32}" y="{HEIGHT - BOTTOM - 2}">'
            "not proved</text>"
        )
    return "\n".join([*parts, "</svg>\n"])


def _title(front: ParetoFront) -> str:
    model, request = front.inputs.model, front.inputs.request
    return f"{model.ref[:50]}, batches of {request.batch_size}"


def _line(
    points: Sequence[FrontPoint],
    across: Callable[[float], float],
    up: Callable[[float], float],
    colour: str,
) -> Iterator[str]:
    """Steps between the points of one number of devices: what a latency limit gives."""
    steps = ""
    for point in points:
        x, y = across(point.latency_s), up(point.items_per_s)
        steps += f"M{x:.1f} {y:.1f}" if not steps else f"H{x:.1f}V{y:.1f}"
    yield f'<path d="{steps}" fill="none" stroke="{colour}" stroke-opacity="0.5"/>'
    for point in points:
        x, y = across(point.latency_s), up(point.items_per_s)
        fill = colour if point.proved else "white"
        what = (
            f"{point.number}: {point.devices} devices, latency {format_seconds(point.latency_s)}, "
            f"{rate(point.items_per_s)} items/s"
        )
        yield (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="{colour}">'
            f"<title>{escape(what)}</title></circle>"
            f'<text x="{x + 7:.1f}" y="{y + 12:.1f}" font-size="10">{point.number}</text>'
        )


def _axes(
    points: Sequence[FrontPoint],
    across: Callable[[float], float],
    up: Callable[[float], float],
) -> Iterator[str]:
    for tick in _ticks([p.latency_s for p in points]):
        x = across(tick)
        yield (
            f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>'
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
            f"{format_seconds(tick)}</text>"
        )
    for tick in _ticks([p.items_per_s for p in points]):
        y = up(tick)
        yield (
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{rate(tick)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield (
        f'<text x="{middle:.0f}" y="{HEIGHT - 12}" text-anchor="middle">latency of one batch '
        "(lower is better)</text>"
        f'<text transform="translate(16,{(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" '
        'text-anchor="middle">items/s (higher is better)</text>'
    )


def _scale(values: Sequence[float], start: float, stop: float) -> Callable[[float], float]:
    """A logarithmic scale with room at both ends."""
    low, high = math.log(max(min(values), 1e-300)), math.log(max(*values, 1e-300))
    room = max(0.05 * (high - low), 0.02)
    low, high = low - room, high + room

    def position(value: float) -> float:
        share = (math.log(max(value, 1e-300)) - low) / (high - low)
        return start + share * (stop - start)

    return position


def _ticks(values: Sequence[float]) -> list[float]:
    """Between three and about eight round values within the range."""
    low, high = min(values), max(values)
    if not 0 < low < high < math.inf:
        return [low]
    found: list[float] = []
    for steps in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)):
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        found = [
            step * 10.0**power
            for power in range(first, last + 1)
            for step in steps
            if low <= step * 10.0**power <= high
        ]
        if len(found) >= 3:
            return found
    # A narrow range: evenly between its ends.
    return [low + i * (high - low) / 3 for i in range(4)]
