"""References to models that cannot be right: what the answer says."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiler.errors import InvalidInputError
from profiler.sources import load_model


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "typed_wrong.py").write_text("len(1)\n")
    (tmp_path / "returns_nothing.py").write_text("def make():\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("ref", "answer"),
    [
        ("returns_nothing.py:make", r"names a file: .* in an import, returns_nothing:make"),
        ("./returns_nothing.py:make", r"names a file: .* in an import, returns_nothing:make"),
        ("nets/small.py:make", r"names a file: .* in an import, nets\.small:make"),
        ("nets/small:make", r"names a file: .* in an import, nets\.small:make"),
        ("not_there:make", r"cannot import 'not_there' .* looked up in the current directory"),
        ("typed_wrong:make", r"importing 'typed_wrong' failed: TypeError: object of type 'int'"),
        ("returns_nothing:other", r"returns_nothing has no 'other'"),
        ("returns_nothing:make", r"returned .*; it must return \(module, example inputs\)"),
        ("nothing", r"'nothing' is not a model: give package\.module:factory"),
    ],
)
def test_a_wrong_reference_is_answered_with_what_to_write(ref: str, answer: str) -> None:
    with pytest.raises(InvalidInputError, match=answer):
        load_model(ref)
