"""When links are measured."""

from __future__ import annotations

from enum import StrEnum


class LinkPolicy(StrEnum):
    """Where the cluster lacks measured ones and several hosts are there; anyway; not at all."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"
