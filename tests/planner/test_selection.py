from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.selection import expand, fold
from profiler.errors import InvalidInputError

PART = st.sampled_from(["h", "0", "1", "2", "3", "10", "11", "01", "attn", "h1", "x9", ""])
NAME = st.lists(PART, min_size=1, max_size=4).map(".".join)
ODD = st.text(alphabet="ab=.0123\u00b2\n ", min_size=1, max_size=8)
NAMES = st.lists(st.one_of(NAME, ODD), min_size=1, max_size=30, unique=True)


@given(NAMES, st.data())
def test_expand_reads_back_what_fold_wrote(names: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(names)))
    in_order = tuple(name for name in names if name in chosen)
    assert expand(fold(chosen, names), names) == in_order


@given(NAMES)
def test_two_halves_folded_apart_hold_every_layer_once(names: list[str]) -> None:
    half = len(names) // 2
    both = [*fold(names[:half], names), *fold(names[half:], names)]
    assert expand(both, names) == tuple(names)


def test_runs_become_ranges_and_whole_modules_their_name() -> None:
    names = ["emb", *(f"h.{i}.{part}" for i in range(12) for part in ("attn", "mlp")), "head"]
    assert fold(names, names) == ("emb", "h", "head")
    assert fold(names[:-1][:17], names) == ("emb", "h.0..7")
    assert fold(names[:18], names) == ("emb", "h.0..7", "h.8.attn")


def test_a_layer_above_others_is_named_exactly() -> None:
    # h.0 is a layer of its own (the residual add of the block) and a prefix of two more.
    names = ["h.0.attn", "h.0.mlp", "h.0", "h.1.attn", "h.1"]
    assert fold(["h.0"], names) == ("=h.0",)
    assert expand(["=h.0"], names) == ("h.0",)
    assert expand(["h.0"], names) == ("h.0.attn", "h.0.mlp", "h.0")


def test_repeats_stay_repeated() -> None:
    assert expand(["a", "a"], ["a", "b"]) == ("a", "a")


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("h.9", "no layer is called 'h.9'"),
        ("h.3..1", "runs backwards"),
        ("h.0..99999999999999999999", "beyond nine digits"),
        ("=h", "no layer is called '=h'"),
        ("h.*", "the name of a module takes all layers in it: h"),
        ("", "no layer is called ''"),
        ("1" * 100_000, "no layer is called '111"),
    ],
)
def test_a_selector_that_names_nothing_is_refused(selector: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        expand([selector], ["h.0", "h.1", "h.2"])


def test_an_enormous_range_costs_nothing() -> None:
    names = [f"h.{i}" for i in range(1000)]
    started = time.perf_counter()
    assert len(expand(["h.0..999999999"], names)) == 1000
    assert time.perf_counter() - started < 1.0
