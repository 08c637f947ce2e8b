from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import InvalidInputError
from profiler.expressions import evaluate, rows_per_item, symbols_of


@pytest.mark.parametrize(
    ("size", "value"),
    [
        (7, 7),
        ("24*batch", 72),
        ("batch*length + 1", 31),
        ("length//3", 3),
        ("FloorDiv(length, 3) + CeilDiv(length, 3)", 7),
        ("-batch + 8", 5),
        ("batch**2", 9),
        ("Max(batch, length) - Min(batch, length)", 7),
        ("IntTrueDiv(length, 4) * 2", 5),
        ("(length - 1) / batch", 3),
        ("Mod(length, batch)", 1),
        ("floor(length / 4)", 2),
    ],
)
def test_values(size: int | str, value: int) -> None:
    assert evaluate(size, {"batch": 3, "length": 10}) == value


@pytest.mark.parametrize(
    "size",
    [
        "rows",  # unknown symbol
        "batch / 2",  # not whole
        "__import__('os').system('true')",
        "batch.bit_length()",
        "(lambda: 1)()",
        "[1][0]",
        "open",
        "'a'",
        "True",
        "batch if 1 else 2",
        "Max()",
        "floor(1, 2)",
        "floor(a=1)",
        "1 / 0",
        "batch % 0",
        "9**9**9",
        "(-8)**(1/2)",  # complex
        "1e308 * 1e308",  # endless
        "1e308 * 1e308 - 1e308 * 1e308",  # not a number
        "(" * 900 + "1" + ")" * 900,
        "-" * 1500 + "1",
        "1+" * 999 + "1+",
        "x" * 3000,
        "",
        "a b",
        "\0",
        "batch" + "*batch" * 240 + "/ 7",
    ],
)
def test_what_is_no_size_is_refused(size: str) -> None:
    with pytest.raises(InvalidInputError):
        evaluate(size, {"batch": 3})


def test_symbols_are_names_that_are_not_called() -> None:
    assert symbols_of("Max(batch, 2*length)") == {"batch", "length"}
    assert symbols_of(5) == frozenset()


@pytest.mark.parametrize(
    ("size", "rows"),
    [
        ("batch", 1),
        ("24*batch", 24),
        ("batch*24 // 2", 12),
        (24, None),
        ("batch + 1", None),
        ("batch**2", None),
        ("batch*length", None),
        ("batch // 2", None),
        ("0*batch", None),
    ],
)
def test_rows_of_an_item(size: int | str, rows: int | None) -> None:
    assert rows_per_item(size) == rows


def test_rows_of_an_item_at_other_symbols() -> None:
    assert rows_per_item("batch*length", {"batch": 2, "length": 5}) == 5


@given(st.text(alphabet="batch0123456789+-*/%(), .", max_size=30))
def test_any_text_gives_a_number_or_our_error(text: str) -> None:
    with contextlib.suppress(InvalidInputError):
        assert isinstance(evaluate(text, {"batch": 3}), int)


@given(st.integers(1, 1000), st.integers(0, 50), st.integers(1, 1000))
def test_arithmetic_agrees_with_python(a: int, b: int, batch: int) -> None:
    assert evaluate(f"{a}*batch + {b}", {"batch": batch}) == a * batch + b
