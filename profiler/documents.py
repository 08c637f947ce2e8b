"""Documents on disk: strict schema, YAML and JSON, fingerprints, versions, atomic writes.

Every file that apportion writes or reads as a document is a :class:`Document`. Loading never
constructs foreign objects, refuses unknown keys, duplicate keys and YAML aliases, and reports the
path of the offending field. People write YAML (cluster, request, plan), machines write JSON
(profile, report); the loader goes by suffix.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
)

from profiler.errors import InvalidInputError
from profiler.units import parse_bytes, parse_bytes_per_s, parse_seconds
from profiler.yamltext import bounded_integer, dump_yaml, parse_yaml

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def _quantity(parse: Any) -> Any:
    """A validator that takes a number or text with a unit."""

    def validate(value: object) -> object:
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            try:
                return parse(value)
            except InvalidInputError as error:
                raise ValueError(str(error)) from error
        return value

    return BeforeValidator(validate)


def _text_or(kind: str, example: str) -> WithJsonSchema:
    """What the published schema says of a quantity: a number, or text with a unit."""
    form = {"anyOf": [{"type": kind}, {"type": "string"}], "examples": [example]}
    return WithJsonSchema(form, mode="validation")


Bytes = Annotated[int, _quantity(parse_bytes), _text_or("integer", "24GiB")]
BytesPerSecond = Annotated[float, _quantity(parse_bytes_per_s), _text_or("number", "1Gbit/s")]
Seconds = Annotated[float, _quantity(parse_seconds), _text_or("number", "150us")]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


Estimated = Annotated[float, PlainSerializer(_rounded, return_type=float)]
"""A float written with five significant digits: evidence, never an input of a computation."""


class Record(BaseModel):
    """Base of every value inside a document: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def canonical(self) -> str:
        """The same text for equal values on every machine: sorted keys, no spaces.

        Fields at their defaults are left out, so that a field that a later release adds does not
        change the digest of what was written before.
        """
        return canonical_json(self.model_dump(mode="json", exclude_defaults=True))

    def replaced(self, **changes: object) -> Self:
        """A copy with other values in some fields, validated anew.

        ``model_copy`` does not validate, and takes over what was derived from the old values.
        """
        own = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate({**own, **changes})

    def content_digest(self) -> str:
        """``sha256:`` and 32 hex digits over :meth:`canonical`."""
        return digest(self.canonical())


class Document(Record):
    """A file with a ``kind`` and a ``format_version``; subclasses set both as fields."""

    suffixes: ClassVar[tuple[str, ...]] = (".yaml", ".yml", ".json")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The document in ``path`` (YAML or JSON by suffix).

        Raises:
            InvalidInputError: unreadable, not this kind of document, a newer major version, an
                unknown or missing key, a value of the wrong type; the message names the field.
        """
        file = Path(path)
        return cls.parse(read_text(file), name=str(file), is_json=file.suffix == ".json")

    @classmethod
    def parse(cls, text: str, *, name: str, is_json: bool = False) -> Self:
        """The document in ``text``; ``name`` is used in messages.

        Raises:
            InvalidInputError: as for :meth:`load`.
        """
        return cls.from_data(parse_data(text, name=name, is_json=is_json), name=name)

    @classmethod
    def from_data(cls, data: Mapping[str, object], *, name: str) -> Self:
        """The document that plain data stands for; ``name`` is used in messages.

        Raises:
            InvalidInputError: as for :meth:`load`.
        """
        cls._check_header(data, name)
        try:
            # JSON mode keeps strictness for numbers while lists may become tuples.
            return cls.model_validate_json(json.dumps(data))
        except ValidationError as error:
            raise InvalidInputError(describe(error, name)) from error
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInputError(f"{name}: {error}") from error

    @classmethod
    def _check_header(cls, data: Mapping[str, object], name: str) -> None:
        kind = cls.model_fields["kind"].default
        if data.get("kind") != kind:
            theirs = data.get("kind")
            shown = repr(theirs[:80]) if isinstance(theirs, str) else "not given as text"
            raise InvalidInputError(f"{name} is not a {kind}: its kind is {shown}")
        ours = str(cls.model_fields["format_version"].default)
        theirs = data.get("format_version")
        if not isinstance(theirs, str) or theirs.split(".")[0] != ours.split(".")[0]:
            stated = f"format_version {theirs[:80]!r}" if isinstance(theirs, str) else "no version"
            raise InvalidInputError(
                f"{name} has {stated}; this apportion reads {ours!r} "
                f"(major {ours.split('.')[0]}): write it again with the matching release"
            )

    def to_text(self, *, as_json: bool) -> str:
        """The file's text: YAML with short records on one line, or indented JSON."""
        data = self.model_dump(mode="json", exclude_none=True)
        if as_json:
            return json.dumps(data, indent=1, allow_nan=False) + "\n"
        return dump_yaml(data)

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path`` atomically, in the form its suffix asks for.

        Raises:
            InvalidInputError: the path cannot be written.
        """
        file = Path(path)
        write_atomically(file, self.to_text(as_json=file.suffix == ".json"))


def load_data(path: str | os.PathLike[str]) -> dict[str, object]:
    """The data in a file (YAML or JSON by suffix), before any document's schema.

    Raises:
        InvalidInputError: unreadable, or no mapping at the top.
    """
    file = Path(path)
    return parse_data(read_text(file), name=str(file), is_json=file.suffix == ".json")


def parse_data(text: str, *, name: str, is_json: bool) -> dict[str, object]:
    """The data in ``text``; ``name`` is used in messages.

    Raises:
        InvalidInputError: neither YAML nor JSON, or no mapping at the top.
    """
    data = _parse_json(text, name) if is_json else parse_yaml(text, name)
    if not isinstance(data, dict):
        raise InvalidInputError(f"{name} is not a document: it holds no mapping at the top")
    return data


def canonical_json(data: object) -> str:
    """One text for equal data: sorted keys, no spaces, ASCII."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(text: str) -> str:
    """``sha256:`` and the first 32 hex digits (128 bits) of the digest of ``text``."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:32]


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        InvalidInputError: missing, a directory, not UTF-8, or not permitted.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InvalidInputError(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise InvalidInputError(f"{path} is a directory; a file is needed here") from error
    except (OSError, ValueError) as error:  # a ValueError: not UTF-8, or a NUL in the name
        raise InvalidInputError(f"cannot read {path}: {error}") from error


def require_writable(path: str | os.PathLike[str]) -> Path:
    """``path``, after checking that a file can be put there; nothing is written.

    Raises:
        InvalidInputError: it is a directory, or its directory is missing or closed.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise InvalidInputError(f"{file} is a directory; give the name of a file to write")
        parent = file.parent
        if not parent.is_dir():
            raise InvalidInputError(
                f"cannot write {file}: there is no directory {parent}; create it first"
            )
    except OSError as error:  # a name that is too long, a loop of links
        raise InvalidInputError(f"cannot write {file}: {error}") from error
    if not os.access(parent, os.W_OK):
        raise InvalidInputError(f"cannot write {file}: directory {parent} is not writable")
    return file


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Replace ``path`` by ``content`` in one step; readers see the old file or the new one.

    A symbolic link stays one; its target is replaced. What is not a file (a pipe, ``/dev/null``)
    is written to, never replaced.

    Raises:
        InvalidInputError: the path cannot be written; no partial file is left behind.
    """
    file = Path(os.path.realpath(require_writable(path)))
    data = content.encode() if isinstance(content, str) else content
    try:
        if file.exists() and not file.is_file():
            file.write_bytes(data)
            return
        handle, temporary = tempfile.mkstemp(prefix=".apportion-", dir=file.parent)
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error}") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        mode = file.stat().st_mode & 0o777 if file.exists() else 0o666 & ~_umask()
        Path(temporary).chmod(mode)
        Path(temporary).replace(file)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InvalidInputError(f"cannot write {path}: {error}") from error
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def describe(error: ValidationError, name: str) -> str:
    """What is wrong with a document, one line a field, at most eight lines."""
    lines = []
    for item in error.errors(include_url=False)[:8]:
        where = ".".join(str(part) for part in item["loc"]) or "document"
        got = item.get("input")
        shown = f" (got {str(got)[:60]!r})" if isinstance(got, (str, int, float)) else ""
        message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"]
        lines.append(f"  {where}: {message}{shown}")
    more = error.error_count() - len(lines)
    if more > 0:
        lines.append(f"  and {more} more")
    return f"{name} is not valid:\n" + "\n".join(lines)


def _parse_json(text: str, name: str) -> object:
    def refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            (repeated, _), *_ = Counter(key for key, _ in pairs).most_common(1)
            raise InvalidInputError(f"{name}: key {repeated[:80]!r} appears twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=refuse_duplicates, parse_int=bounded_integer)
    except InvalidInputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{name} is not JSON, or it is cut short: {error}") from error
