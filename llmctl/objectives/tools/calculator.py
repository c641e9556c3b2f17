"""A calculator: exact arithmetic on one expression, in bounded time and memory."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Final

LONGEST = 1000  # characters of an expression
MOST_BITS = 4096  # of a number above and below the line: its digits are fewer than Python refuses to print
DIGITS = 12  # of a result that is no whole number

Binary = Callable[[Fraction, Fraction], Fraction | int]
OPERATORS: Final[dict[type[ast.operator], Binary]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
FUNCTIONS: Final[dict[str, Callable[..., Fraction | int]]] = {"abs": abs, "min": min, "max": max}


def calculate(expression: str) -> str:
    """The value of an expression of numbers, + - * / // % **, parentheses, abs, min, max, round and sqrt.

    Raises:
        ValueError: it is none, or its value cannot be had; the text says why.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has more than {LONGEST} characters")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
        return str(value.numerator) if value.denominator == 1 else f"{float(value):.{DIGITS}g}"
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except OverflowError:
        raise ValueError("the value is too large") from None
    except (SyntaxError, UnicodeError, RecursionError, MemoryError):
        raise ValueError("this is no arithmetic expression") from None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(int() | float() as number) if not isinstance(number, bool) and math.isfinite(number):
            return _bounded(Fraction(str(number)))  # 0.1 is a tenth
        case ast.UnaryOp(ast.USub(), of):
            return -_value(of)
        case ast.UnaryOp(ast.UAdd(), of):
            return _value(of)
        case ast.BinOp(left, ast.Pow(), right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left, sign, right) if type(sign) in OPERATORS:
            return _bounded(Fraction(OPERATORS[type(sign)](_value(left), _value(right))))
        case ast.Call(ast.Name(name), arguments, []) if arguments:
            return _called(name, [_value(one) for one in arguments])
    raise ValueError("this is no arithmetic expression of numbers, + - * / // % **, parentheses and known functions")


def _called(name: str, given: list[Fraction]) -> Fraction:
    if name in FUNCTIONS and (len(given) == 1) == (name == "abs"):
        return Fraction(FUNCTIONS[name](*given))
    if name == "sqrt" and len(given) == 1:
        return _root(given[0])
    if name == "round" and len(given) == 1:
        return Fraction(round(given[0]))
    if name == "round" and len(given) == 2 and given[1].denominator == 1 and abs(given[1]) <= DIGITS:
        return round(given[0], int(given[1]))
    raise ValueError(f"no function {name[:20]!r} takes {len(given)} numbers of this kind")


def _root(of: Fraction) -> Fraction:
    """Exact where it is a fraction."""
    if of < 0:
        raise ValueError("a negative number has no root")
    above, below = math.isqrt(of.numerator), math.isqrt(of.denominator)
    if above * above == of.numerator and below * below == of.denominator:
        return Fraction(above, below)
    return Fraction(math.sqrt(of))


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    """Refused before it is worked out where it would be too large."""
    if exponent.denominator != 1:
        root = float(base) ** float(exponent)
        if isinstance(root, complex):
            raise ValueError("a negative number has no such power")
        return Fraction(root)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits > 1 and bits * abs(exponent) > MOST_BITS:
        raise ValueError("the value is too large")
    return Fraction(base ** int(exponent))


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise ValueError("the value is too large")
    return value
