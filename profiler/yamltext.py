"""YAML for documents: plain data in, short records on one line out.

Data is built from the parser's events, not by the library's loader: no tags and so no foreign
objects, no aliases (a few lines of which can mean gigabytes), no duplicate keys, no recursion that
deep nesting could exhaust, and several times faster on large files.
"""

from __future__ import annotations

from typing import Any

import yaml

from profiler.errors import InvalidInputError

MAX_BYTES = 64 * 2**20
"""Larger YAML is refused: no document that people write comes near it."""

MAX_DEPTH = 64
"""Deeper nesting is refused; our documents have about ten levels."""

MAX_INTEGER = 2**63 - 1
"""Larger whole numbers (of either sign) are refused: no figure of ours needs them."""

_Plain = None | bool | int | float | str


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Resolves plain scalars; a timestamp stays text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Never writes aliases, so that a plan reads top to bottom."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  (signature is PyYAML's)
        return True


def dump_yaml(data: object) -> str:
    """``data`` as YAML in its own order, records that fit on one line on one line."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100))


def parse_yaml(text: str, name: str) -> object:
    """The data in ``text``: mappings with text keys, lists, and plain scalars.

    Raises:
        InvalidInputError: not YAML, or YAML with tags, aliases, duplicate keys, other keys than
            text, deep nesting, or more than one document.
    """
    if len(text) > MAX_BYTES:
        raise InvalidInputError(f"{name} is {len(text)} bytes long; at most {MAX_BYTES} are read")
    loader = _Loader(text)
    try:
        return _Builder(loader, name).build()
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"{name} is not valid YAML, or it is cut short: {error}") from error
    finally:
        loader.dispose()


def bounded_integer(text: str) -> int:
    """The whole number in ``text``.

    Raises:
        InvalidInputError: it does not fit into 64 bits.
    """
    value = int(text) if len(text) < 30 else MAX_INTEGER + 1
    if abs(value) > MAX_INTEGER:
        raise InvalidInputError(f"number {text[:40]} does not fit into 64 bits")
    return value


class _Builder:
    """Turns events into data. ``_open`` holds the containers around the present one."""

    def __init__(self, loader: Any, name: str) -> None:
        self._loader, self._name = loader, name
        self._scalars: dict[tuple[str, bool], _Plain] = {}
        self._open: list[tuple[Any, str | None]] = []
        self._into: Any = None
        self._key: str | None = None
        self._root: object = None

    def build(self) -> object:
        documents = 0
        while (event := self._loader.get_event()) is not None:
            kind = type(event)
            if kind is yaml.ScalarEvent:
                self._put(self._scalar(event), event)
            elif kind is yaml.SequenceStartEvent or kind is yaml.MappingStartEvent:
                self._start(event, [] if kind is yaml.SequenceStartEvent else {})
            elif kind is yaml.SequenceEndEvent or kind is yaml.MappingEndEvent:
                value = self._into
                self._into, self._key = self._open.pop()
                self._put(value, event)
            elif kind is yaml.AliasEvent:
                self._refuse("aliases (*name) are not read; write the value out", event)
            elif kind is yaml.DocumentStartEvent:
                documents += 1
                if documents > 1:
                    self._refuse("there is a second document", event)
        return self._root

    def _start(self, event: Any, container: Any) -> None:
        if event.tag is not None:
            self._refuse("tags (!name) are not read", event)
        if isinstance(self._into, dict) and self._key is None:
            self._refuse("a key must be text", event)
        if len(self._open) >= MAX_DEPTH:
            self._refuse(f"nested deeper than {MAX_DEPTH} levels", event)
        self._open.append((self._into, self._key))
        self._into, self._key = container, None

    def _put(self, value: Any, event: Any) -> None:
        if self._into is None:
            self._root = value
        elif isinstance(self._into, list):
            self._into.append(value)
        elif self._key is None:
            if not isinstance(value, str):
                self._refuse(f"key {value!r} is not text", event)
            if value in self._into:
                self._refuse(f"key {value[:80]!r} appears twice", event)
            self._key = value
        else:
            self._into[self._key] = value
            self._key = None

    def _scalar(self, event: Any) -> _Plain:
        if event.tag is not None:
            self._refuse("tags (!name) are not read", event)
        known = (event.value, event.implicit[0])
        if known not in self._scalars:
            tag = self._loader.resolve(yaml.ScalarNode, event.value, event.implicit)
            value = self._loader.construct_object(yaml.ScalarNode(tag, event.value))
            if isinstance(value, int) and abs(value) > MAX_INTEGER:
                self._refuse(f"number {event.value[:40]} does not fit into 64 bits", event)
            self._scalars[known] = value
        return self._scalars[known]

    def _refuse(self, reason: str, event: Any) -> None:
        mark = event.start_mark
        raise InvalidInputError(
            f"{self._name}, line {mark.line + 1}, column {mark.column + 1}: {reason}"
        )
