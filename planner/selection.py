"""Short names for many layers: ``model.layers.0..16`` instead of seventeen lines.

A selector is a layer's name, a dotted prefix of layers' names (everything below that module), or
either with ``a..b`` as its last number (both ends included). ``fold`` writes the shortest list of
selectors for a set of layers, ``expand`` reads it back; for every model,
``expand(fold(some), all) == some``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from profiler.errors import InvalidInputError

_RANGE = re.compile(r"^(?P<head>.*?)(?P<first>\d+)\.\.(?P<last>\d+)$")


def matches(selector: str, name: str) -> bool:
    """Whether the layer ``name`` is, or lies below, what a selector without range names."""
    return name == selector or name.startswith(selector + ".")


def expand(selectors: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    """The layers that the selectors name, in the order of ``names``; repeats stay repeated.

    Raises:
        InvalidInputError: a selector names no layer.

    >>> expand(["h.0..1", "head"], ["emb", "h.0", "h.1.attn", "h.1.mlp", "h.2", "head"])
    ('h.0', 'h.1.attn', 'h.1.mlp', 'head')
    """
    position = {name: i for i, name in enumerate(names)}
    found: list[str] = []
    for selector in selectors:
        hit = [name for single in _singles(selector) for name in names if matches(single, name)]
        if not hit:
            raise InvalidInputError(f"no layer is called {selector!r}; {_hint(selector, names)}")
        found.extend(hit)
    return tuple(sorted(found, key=position.__getitem__))


def _singles(selector: str) -> list[str]:
    match = _RANGE.match(selector)
    if match is None:
        return [selector]
    first, last = int(match["first"]), int(match["last"])
    if first > last:
        raise InvalidInputError(f"selector {selector!r} runs backwards: {first} > {last}")
    if last - first > 1_000_000:
        raise InvalidInputError(f"selector {selector!r} spans {last - first + 1} numbers")
    return [f"{match['head']}{number}" for number in range(first, last + 1)]


def _hint(selector: str, names: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(selector, names, n=3, cutoff=0.5)
    return (
        f"close names: {', '.join(close)}"
        if close
        else f"the first layers are {', '.join(names[:3])}"
    )


def fold(chosen: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    """The shortest selectors for ``chosen`` among all layer ``names``, in their order.

    >>> names = ["emb", "h.0", "h.1.attn", "h.1.mlp", "h.2", "head"]
    >>> fold(["h.0", "h.1.attn", "h.1.mlp", "head"], names)
    ('h.0..1', 'head')
    """
    wanted = set(chosen)
    whole: dict[str, list[bool]] = {}
    for name in names:
        for prefix in _prefixes(name):
            whole.setdefault(prefix, []).append(name in wanted)
    folded: list[str] = []
    for name in names:
        if name not in wanted:
            continue
        prefix = next((p for p in _prefixes(name) if all(whole[p])), name)
        if not folded or folded[-1] != prefix:
            if prefix in folded:
                continue
            folded.append(prefix)
    return _join_runs(folded)


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts) + 1)]


def _join_runs(selectors: Sequence[str]) -> tuple[str, ...]:
    joined: list[str] = []
    run: tuple[str, int, int] | None = None

    def flush() -> None:
        if run is not None:
            head, first, last = run
            joined.append(f"{head}{first}" if first == last else f"{head}{first}..{last}")

    for selector in selectors:
        head, dot, tail = selector.rpartition(".")
        number = int(tail) if tail.isdigit() and str(int(tail)) == tail else None
        if number is None:
            flush()
            run = None
            joined.append(selector)
        elif run is not None and run[0] == head + dot and run[2] + 1 == number:
            run = (run[0], run[1], number)
        else:
            flush()
            run = (head + dot, number, number)
    flush()
    return tuple(joined)
