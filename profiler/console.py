"""What every command shares: the result on stdout, everything else on stderr, errors as one line.

``commands`` builds the typer application of a package; ``executor.cli`` mounts them. It is the only
place where an error of ours becomes a message and an exit code; a traceback means a bug of ours.
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Any

import typer
from typer.core import TyperGroup

from profiler.documents import write_atomically
from profiler.errors import ApportionError

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells count."""

STDOUT = "-"
"""As the path of an output: standard output."""


class Format(StrEnum):
    """How a command prints its result."""

    TEXT = "text"
    JSON = "json"


class _Commands(TyperGroup):
    """Runs a command; an error that we raised on purpose ends it with its message and code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ApportionError as error:
            note(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            note("interrupted")
            raise typer.Exit(INTERRUPTED) from error


def commands(help_text: str) -> typer.Typer:
    """An empty application; its commands may raise any ApportionError."""
    return typer.Typer(
        cls=_Commands,
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        # Plain help and plain usage errors: no boxes, nothing to load.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def note(message: str) -> None:
    """Print ``message`` on stderr: progress, warnings, errors; never the result."""
    typer.echo(message, err=True)


def write_result(text: str) -> None:
    """Print the result of a command on stdout."""
    typer.echo(text, nl=not text.endswith("\n"))


def write_json(data: object) -> None:
    """Print the result of a command on stdout as JSON."""
    write_result(json.dumps(data, indent=1, allow_nan=False))


def write_file(path: str, text: str) -> None:
    """Put ``text`` into the file ``path``, whole or not at all; ``-`` is stdout.

    Raises:
        InvalidInputError: the path cannot be written.
    """
    if path == STDOUT:
        write_result(text)
        sys.stdout.flush()
    else:
        write_atomically(path, text)
