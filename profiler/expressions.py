"""Sizes that depend on the batch: integer expressions such as ``"24*batch"``.

A captured dim that is not a constant is kept as text over named symbols (``batch``, or a dynamic
length). Text is what goes into documents and what reviewers read; this module is the only one that
computes with it, and it never calls ``eval``.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from functools import lru_cache

from profiler.errors import InvalidInputError

BATCH = "batch"
"""Name of the symbol that counts items."""

Size = int | str
"""A dim: a number, or an expression over symbols."""

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: _divide(a, b),
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
    ast.Pow: lambda a, b: a**b,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "Max": max,
    "Min": min,
    "FloorDiv": lambda a, b: a // b,
    "CleanDiv": lambda a, b: a // b,
    "CeilDiv": lambda a, b: -(-a // b),
    "Mod": lambda a, b: a % b,
    "PythonMod": lambda a, b: a % b,
    "Abs": abs,
    "floor": math.floor,
    "ceiling": math.ceil,
    "CeilToInt": math.ceil,
    "FloorToInt": math.floor,
    "TruncToInt": math.trunc,
    "IntTrueDiv": lambda a, b: _divide(a, b),
    "ToFloat": float,
}


def _divide(a: float, b: float) -> float:
    # Whole results stay whole numbers: floats lose digits beyond 2**53.
    return a // b if isinstance(a, int) and isinstance(b, int) and a % b == 0 else a / b


def evaluate(size: Size, symbols: Mapping[str, int]) -> int:
    """The value of ``size`` with every symbol replaced.

    Raises:
        InvalidInputError: an unknown symbol, or something that is not integer arithmetic.

    >>> evaluate("24*batch", {"batch": 3}), evaluate(7, {})
    (72, 7)
    """
    if isinstance(size, int):
        return size
    try:
        value = _value(_parse(size), size, symbols)
        whole = int(value)
    except (ArithmeticError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, InvalidInputError):
            raise
        # An endless or complex number, a function with too few arguments, too many brackets.
        raise InvalidInputError(f"size {size[:80]!r} cannot be computed: {error}") from error
    if value != whole or (isinstance(value, float) and abs(value) > 2**53):
        raise InvalidInputError(f"size {size!r} is not a whole number at {dict(symbols)}: {value}")
    return whole


def symbols_of(size: Size) -> frozenset[str]:
    """Names of the symbols that ``size`` depends on.

    >>> sorted(symbols_of("batch*length + 1"))
    ['batch', 'length']
    """
    if isinstance(size, int):
        return frozenset()
    tree = _parse(size)
    called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    return frozenset(
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in called
    )


def rows_per_item(size: Size, symbols: Mapping[str, int] | None = None) -> int | None:
    """``k`` when ``size`` is ``k * batch``, that is when items are equal runs of ``k`` rows.

    Symbols other than ``batch`` take the values given.

    >>> rows_per_item("batch"), rows_per_item("24*batch"), rows_per_item("batch + 1")
    (1, 24, None)
    >>> rows_per_item("batch*length", {"length": 7})
    7
    """
    if isinstance(size, int) or BATCH not in symbols_of(size):
        return None
    try:
        factor, *others = (
            evaluate(size, {**(symbols or {}), BATCH: n}) for n in (1, 2, 3, 5, 7, 64)
        )
    except InvalidInputError:
        return None
    linear = all(value == factor * n for value, n in zip(others, (2, 3, 5, 7, 64), strict=True))
    return factor if linear and factor >= 1 else None


@lru_cache(maxsize=4096)
def _parse(text: str) -> ast.expr:
    if len(text) > 2000:
        raise InvalidInputError(f"size expression of {len(text)} characters; at most 2000 are read")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidInputError(f"not a size expression: {text!r}") from error


def _value(node: ast.expr, text: str, symbols: Mapping[str, int]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.Name(id=name):
            if name not in symbols:
                raise InvalidInputError(
                    f"size {text!r} needs a value for {name!r}; known: {sorted(symbols)}"
                )
            return symbols[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, text, symbols)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            a, b = _value(left, text, symbols), _value(right, text, symbols)
            if isinstance(op, ast.Pow) and (abs(b) > 8 or abs(a) > 2**40):
                raise InvalidInputError(f"size {text!r} grows without measure")
            return _BINARY[type(op)](a, b)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(a, text, symbols) for a in args))
        case _:
            raise InvalidInputError(f"not a size expression: {text!r}")
