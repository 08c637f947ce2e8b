"""Model directories as ``save_pretrained`` writes them, one per model of the zoo and process."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from tests.support import zoo

_HELD: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def checkpoint(name: str) -> Path:
    """The directory of a Hugging Face model of the zoo; not to be changed (copy it first)."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    module, _ = zoo.HUGGING_FACE[name]()
    held = tempfile.TemporaryDirectory(prefix=f"zoo-{name}-")
    _HELD.append(held)
    module.save_pretrained(held.name)
    return Path(held.name)
