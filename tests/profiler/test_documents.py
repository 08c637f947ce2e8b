from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from profiler.documents import (
    Bytes,
    Document,
    Estimated,
    Record,
    canonical_json,
    read_text,
    require_writable,
    write_atomically,
)
from profiler.errors import InvalidInputError
from profiler.yamltext import MAX_DEPTH, dump_yaml, parse_yaml


class Part(Record):
    name: str
    size: Bytes = 0


class Toy(Document):
    kind: Literal["Toy"] = "Toy"
    format_version: str = "1.0"
    number: int = 0
    ratio: float = 0.0
    rounded: Estimated = 0.0
    parts: tuple[Part, ...] = ()
    note: str | None = None


HEAD = "kind: Toy\nformat_version: '1.0'\n"
JSON_HEAD = '"kind": "Toy", "format_version": "1.0"'


def refused(text: str, *, is_json: bool = False) -> str:
    with pytest.raises(InvalidInputError) as caught:
        Toy.parse(text, name="toy.yaml", is_json=is_json)
    return str(caught.value)


class TestSchema:
    """What a document may hold."""

    def test_unknown_keys_are_refused_with_their_path(self) -> None:
        assert "nmber: unknown key" in refused(HEAD + "nmber: 1\n")
        assert "parts.1.sze: unknown key" in refused(
            HEAD + "parts: [{name: a}, {name: b, sze: 1}]\n"
        )

    def test_values_are_not_bent_to_fit(self) -> None:
        assert "number" in refused(HEAD + "number: '1'\n")
        assert "number" in refused(HEAD + "number: true\n")
        assert "number" in refused(HEAD + "number: 1.0\n")
        assert "parts.0.name" in refused(HEAD + "parts: [{name: 5}]\n")

    def test_missing_keys_are_named(self) -> None:
        assert "parts.0.name: Field required" in refused(HEAD + "parts: [{}]\n")

    def test_many_problems_are_cut(self) -> None:
        text = HEAD + "".join(f"x{i}: 1\n" for i in range(20))
        assert "and 12 more" in refused(text)

    def test_another_kind_is_refused(self) -> None:
        assert "its kind is 'Plan'" in refused("kind: Plan\n")
        assert "its kind is not given as text" in refused("kind: [Toy]\n")

    def test_a_newer_major_version_is_refused_and_a_minor_one_read(self) -> None:
        assert "format_version '2.0'" in refused("kind: Toy\nformat_version: '2.0'\n")
        assert "no version" in refused("kind: Toy\nformat_version: 1.0\n")
        assert Toy.parse("kind: Toy\nformat_version: '1.9'\n", name="x").format_version == "1.9"

    def test_sizes_take_units(self) -> None:
        assert Toy.parse(HEAD + "parts: [{name: a, size: 2KiB}]\n", name="x").parts[0].size == 2048
        assert "not a size" in refused(HEAD + "parts: [{name: a, size: 2Kib}]\n")
        assert "beyond every memory" in refused(HEAD + "parts: [{name: a, size: 1e300GiB}]\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("number: !!python/object/apply:os.system ['true']\n", "tags (!name) are not read"),
        ("number: !!int '1'\n", "tags (!name) are not read"),
        ("parts: &a []\nnote: *a\n", "aliases (*name) are not read"),
        ("number: 1\nnumber: 2\n", "key 'number' appears twice"),
        ("parts:\n- name: a\n  name: b\n", "key 'name' appears twice"),
        ("1: 2\n", "key 1 is not text"),
        ("? [a]\n: b\n", "a key must be text"),
        ("parts: " + "[" * 1_000_000, f"nested deeper than {MAX_DEPTH}"),
        ("parts:\n" + "\n".join(" " * i + "- " for i in range(1, 500)), "nested deeper"),
        ("number: " + "9" * 4000 + "\n", "does not fit into 64 bits"),
        ("number: " + "9" * 5000 + "\n", "not valid YAML"),
        ("number: 9223372036854775808\n", "does not fit into 64 bits"),
        ("ratio: .nan\n", "ratio"),
        ("ratio: .inf\n", "ratio"),
        ("parts: [{name: a\n", "not valid YAML, or it is cut short"),
        ("note: \x07\n", "not valid YAML"),
        ("---\nkind: Toy\n", "second document"),
    ],
)
def test_hostile_yaml_is_refused(text: str, message: str) -> None:
    assert message in refused(HEAD + text)


def test_an_alias_bomb_costs_nothing() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    assert "aliases" in refused(HEAD + "\n".join(lines))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'{{{JSON_HEAD}, "number": 1, "number": 2}}', "key 'number' appears twice"),
        (f'{{{JSON_HEAD}, "parts": {"[" * 100_000}', "recursion"),
        (f'{{{JSON_HEAD}, "parts": {"[" * 500}{"]" * 500}}}', "recursion"),
        (f'{{{JSON_HEAD}, "ratio": NaN}}', "finite"),
        (f'{{{JSON_HEAD}, "ratio": 1e999}}', "finite"),
        (f'{{{JSON_HEAD}, "number": {"9" * 5000}}}', "does not fit into 64 bits"),
        (f'{{{JSON_HEAD}, "number": -9223372036854775809}}', "does not fit into 64 bits"),
        (f'{{{JSON_HEAD}, "note": "\\ud800"}}', "not valid"),
        (f"{{{JSON_HEAD}", "not JSON, or it is cut short"),
        ("[]", "no mapping at the top"),
        ("", "not JSON, or it is cut short"),
    ],
)
def test_hostile_json_is_refused(text: str, message: str) -> None:
    assert message in refused(text, is_json=True)


def test_every_cut_of_a_document_is_refused_or_says_less() -> None:
    text = Toy(number=3, parts=(Part(name="a"), Part(name="b"))).to_text(as_json=True)
    for end in range(len(text) - 2):
        refused(text[:end], is_json=True)


NAMES = st.text(min_size=1, max_size=12)


@given(
    st.builds(
        Toy,
        number=st.integers(-(2**63) + 1, 2**63 - 1),
        ratio=st.floats(allow_nan=False, allow_infinity=False),
        parts=st.lists(st.builds(Part, name=NAMES, size=st.integers(0, 2**62)), max_size=3).map(
            tuple
        ),
        note=st.one_of(st.none(), NAMES),
    ),
    st.booleans(),
)
def test_what_is_written_is_read_back(toy: Toy, as_json: bool) -> None:
    text = toy.to_text(as_json=as_json)
    assert Toy.parse(text, name="toy", is_json=as_json) == toy


@given(st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-9, 9), NAMES),
                    lambda x: st.one_of(st.lists(x, max_size=3),
                                        st.dictionaries(NAMES, x, max_size=3)),
                    max_leaves=12))  # fmt: skip
def test_yaml_means_what_the_library_says(data: object) -> None:
    text = dump_yaml(data)
    assert parse_yaml(text, "x") == yaml.safe_load(text) == data


def test_words_that_yaml_takes_for_other_things_stay_words() -> None:
    text = HEAD + "parts: [{name: 2026-11-22}, {name: 'no'}, {name: 12e45678x}]\n"
    assert [p.name for p in Toy.parse(text, name="x").parts] == ["2026-11-22", "no", "12e45678x"]
    assert "parts.0.name" in refused(HEAD + "parts: [{name: no}]\n")  # a bare no is false


class TestDigest:
    """Equal content, equal digest, wherever it was written."""

    def test_form_does_not_matter(self) -> None:
        toy = Toy(number=1, parts=(Part(name="a", size=2048),))
        again = Toy.parse(HEAD + "parts: [{size: 2KiB, name: a}]\nnumber: 1\n", name="x")
        assert again.content_digest() == toy.content_digest()

    def test_any_change_shows(self) -> None:
        digests = {Toy(number=n, note=t).content_digest() for n in (0, 1) for t in (None, "a")}
        assert len(digests) == 4

    def test_estimates_are_digested_as_written(self) -> None:
        assert Toy(rounded=1 / 3).content_digest() == Toy(rounded=0.33333).content_digest()

    def test_canonical_text_is_sorted_ascii(self) -> None:
        assert canonical_json({"b": 1, "a": "\u00e4"}) == '{"a":"\\u00e4","b":1}'


class TestFiles:
    """Reading and writing."""

    def test_form_follows_the_suffix(self, tmp_path: Path) -> None:
        for name in ("toy.yaml", "toy.json"):
            Toy(number=7).dump(tmp_path / name)
            assert Toy.load(tmp_path / name).number == 7
        assert (tmp_path / "toy.json").read_text().startswith("{")

    def test_a_missing_file_a_directory_and_no_text_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
        for path, message in (
            (tmp_path / "none.yaml", "there is no file"),
            (tmp_path, "is a directory"),
            (tmp_path / "binary.yaml", "cannot read"),
            (tmp_path / "a\0b", "cannot read"),
            (tmp_path / ("x" * 300), "cannot read"),
        ):
            with pytest.raises(InvalidInputError, match=message):
                read_text(path)

    def test_a_directory_or_no_directory_cannot_be_written(self, tmp_path: Path) -> None:
        for path, message in (
            (tmp_path, "is a directory"),
            (tmp_path / "none" / "x.yaml", "there is no directory"),
            (tmp_path / ("x" * 300), "cannot write"),
        ):
            with pytest.raises(InvalidInputError, match=message):
                write_atomically(path, "x")
        assert list(tmp_path.iterdir()) == []

    def test_checking_writes_nothing(self, tmp_path: Path) -> None:
        assert require_writable(tmp_path / "x.yaml") == tmp_path / "x.yaml"
        assert list(tmp_path.iterdir()) == []

    def test_a_failed_write_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "x.yaml"
        file.write_text("old")

        def full_disk(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full_disk)
        with pytest.raises(InvalidInputError, match="No space left"):
            write_atomically(file, "new")
        assert file.read_text() == "old"
        assert list(tmp_path.iterdir()) == [file]

    def test_mode_and_link_are_kept(self, tmp_path: Path) -> None:
        file, link = tmp_path / "x.yaml", tmp_path / "link.yaml"
        file.write_text("old")
        file.chmod(0o640)
        link.symlink_to(file)
        write_atomically(link, "new")
        assert link.is_symlink()
        assert file.read_text() == "new"
        assert stat.S_IMODE(file.stat().st_mode) == 0o640

    def test_a_new_file_gets_the_usual_mode(self, tmp_path: Path) -> None:
        old = os.umask(0o027)
        try:
            write_atomically(tmp_path / "x.yaml", "x")
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "x.yaml").stat().st_mode) == 0o640

    def test_what_is_not_a_file_is_written_to_and_stays(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        try:
            write_atomically(pipe, "through")
            assert os.read(reader, 100) == b"through"
        finally:
            os.close(reader)
        assert stat.S_ISFIFO(pipe.stat().st_mode)
