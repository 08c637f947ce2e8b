"""Grouped bars as an SVG picture, for results of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#1f6f8b", "#c9a227", "#99a88c", "#b5651d", "#7d6b7d", "#4f6d7a", "#a63d40", "#60695c")
WIDTH, LABEL, BAR, GAP = 900, 250, 11, 14


def bars_svg(title: str, groups: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """One group of horizontal bars a label; a dashed line at 1."""
    series = list(dict.fromkeys(name for _, bars in groups for name in bars))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(series)}
    largest = max((value for _, bars in groups for value in bars.values()), default=1.0)
    scale = (WIDTH - LABEL - 70) / max(largest, 1.0)
    parts, y = [], 70
    for label, bars in groups:
        middle = y + BAR * len(bars) / 2 + 4
        parts.append(_text(LABEL - 10, middle, label, 'text-anchor="end"'))
        for name, value in bars.items():
            long = value * scale
            parts.append(_box(LABEL, y, long, BAR - 2, colour[name]))
            parts.append(_text(LABEL + long + 4, y + BAR - 3, f"{value:.2f}", 'class="small"'))
            y += BAR
        y += GAP
    legend, x = [], 16
    for name in series:
        legend.append(_box(x, 40, 10, 10, colour[name]))
        legend.append(_text(x + 14, 49, name, 'class="small"'))
        x += 30 + 6 * len(name)
    line = LABEL + scale
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" '
        f'viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="12">\n'
        "<style>.small{font-size:10px}</style>\n"
        f'<rect width="{WIDTH}" height="{y}" fill="white"/>\n'
        f'<text x="16" y="24" font-size="16">{escape(title)}</text>\n'
        + "\n".join([*legend, *parts])
        + f'\n<line x1="{line:.1f}" x2="{line:.1f}" y1="60" y2="{y - GAP}" stroke="#333" '
        'stroke-dasharray="4 3"/>\n</svg>\n'
    )


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.0f}" {style}>{escape(text)}</text>'


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{height}" fill="{colour}"/>'
