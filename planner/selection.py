"""Short names for many layers: ``model.layers.0..16`` instead of seventeen lines.

A selector is a dotted prefix of layers' names (everything below that module; a whole name is its
own prefix), or one with ``a..b`` as its last number (both ends included), or ``=name`` for exactly
that layer, which is needed where a layer's name is also a prefix of others. ``fold`` writes the
shortest list of selectors for a set of layers, ``expand`` reads it back; for every model,
``expand(fold(some, names), names)`` is ``some`` in the order of ``names``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from profiler.errors import InvalidInputError

_RANGE = re.compile(r"(?P<head>.*?)(?P<first>[0-9]+)\.\.(?P<last>[0-9]+)")
_NUMBERED = re.compile(r"(?P<head>.*?)(?P<number>0|[1-9][0-9]{0,8})")
_EXACT = "="
_MOST_SPELLED = 10_000  # of a range, whose ends may be any numbers
_MAX_LENGTH = 1000  # of a prefix; an exact name may be longer


def expand(selectors: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    """The layers that the selectors name, in the order of ``names``; repeats stay repeated.

    Raises:
        InvalidInputError: a selector names no layer, or its range runs backwards.

    >>> expand(["h.0..1", "head"], ["emb", "h.0", "h.1.attn", "h.1.mlp", "h.2", "head"])
    ('h.0', 'h.1.attn', 'h.1.mlp', 'head')
    """
    return tuple(names[i] for i in sorted(LayerIndex(names).positions(selectors)))


class LayerIndex:
    """Finds the layers below a prefix without looking at all of them; built once for many uses."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._below: dict[str, list[int]] = {}
        self._exact = {name: i for i, name in enumerate(self.names)}
        self._numbers: dict[str, set[int]] = {}
        for i, name in enumerate(self.names):
            for prefix in _prefixes(name):
                self._below.setdefault(prefix, []).append(i)
        for prefix in self._below:
            if match := _NUMBERED.fullmatch(prefix):
                self._numbers.setdefault(match["head"], set()).add(int(match["number"]))

    def positions(self, selectors: Iterable[str]) -> list[int]:
        """Positions of the layers that the selectors name, selector by selector.

        Raises:
            InvalidInputError: a selector names no layer, or its range runs backwards.
        """
        return [i for selector in selectors for i in self._found(selector)]

    def _found(self, selector: str) -> list[int]:
        if selector.startswith(_EXACT):
            found = [self._exact[selector[1:]]] if selector[1:] in self._exact else []
        elif len(selector) > _MAX_LENGTH:
            found = []
        elif match := _RANGE.fullmatch(selector):
            found = self._in_range(selector, match)
        else:
            found = self._below.get(selector, [])
        if not found:
            raise InvalidInputError(
                f"no layer is called {selector[:80]!r}; {_hint(selector, self.names)}"
            )
        return found

    def _in_range(self, selector: str, match: re.Match[str]) -> list[int]:
        if max(len(match["first"]), len(match["last"])) > 9:
            raise InvalidInputError(f"selector {selector[:80]!r} has numbers beyond nine digits")
        head, first, last = match["head"], int(match["first"]), int(match["last"])
        if first > last:
            raise InvalidInputError(f"selector {selector!r} runs backwards: {first} > {last}")
        present = sorted(n for n in self._numbers.get(head, ()) if first <= n <= last)
        return [i for number in present for i in self._below[f"{head}{number}"]]


def spelled(selectors: Iterable[str]) -> tuple[str, ...]:
    """What selectors name as far as they alone tell: modules, ranges number by number.

    >>> spelled(["h.0..2", "=h.3", "head"])
    ('h.0', 'h.1', 'h.2', '=h.3', 'head')
    """
    found: list[str] = []
    for selector in selectors:
        match = None if selector.startswith(_EXACT) else _RANGE.fullmatch(selector[:_MAX_LENGTH])
        if match is None or max(len(match["first"]), len(match["last"])) > 9:
            found.append(selector)
            continue
        first, last = int(match["first"]), int(match["last"])
        numbers = range(first, min(last + 1, first + _MOST_SPELLED))
        found += [f"{match['head']}{number}" for number in numbers]
    return tuple(found)


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts) + 1)]


def _hint(selector: str, names: Sequence[str]) -> str:
    import difflib

    module = selector.rstrip("*").rstrip(".")
    if selector.endswith("*") and any(module in _prefixes(name) for name in names):
        return f"the name of a module takes all layers in it: {module}"
    close = difflib.get_close_matches(selector[:200], names, n=3, cutoff=0.5)
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
    unwanted_below = {prefix for name in names if name not in wanted for prefix in _prefixes(name)}
    folded: dict[str, None] = {}
    for name in names:
        if name in wanted:
            whole = (p for p in _prefixes(name) if p not in unwanted_below and _is_plain(p))
            folded.setdefault(next(whole, _EXACT + name))
    return _join_runs(tuple(folded))


def _is_plain(prefix: str) -> bool:
    """Whether ``prefix`` written as a selector means that prefix and nothing else."""
    if not 0 < len(prefix) <= _MAX_LENGTH or prefix.startswith(_EXACT):
        return False
    return not _RANGE.fullmatch(prefix)


def _join_runs(selectors: Sequence[str]) -> tuple[str, ...]:
    joined: list[str] = []
    run: tuple[str, int, int] | None = None

    def flush() -> None:
        if run is not None:
            head, first, last = run
            joined.append(f"{head}{first}" if first == last else f"{head}{first}..{last}")

    for selector in selectors:
        match = None if selector.startswith(_EXACT) else _NUMBERED.fullmatch(selector)
        number = int(match["number"]) if match else -1
        if match is None or not (match["head"] == "" or match["head"].endswith(".")):
            flush()
            run = None
            joined.append(selector)
        elif run is not None and run[0] == match["head"] and run[2] + 1 == number:
            run = (run[0], run[1], number)
        else:
            flush()
            run = (match["head"], number, number)
    flush()
    return tuple(joined)
