"""Evaluates the sizes of a graph's values, which torch.export writes as Python expressions.

4*((width + PythonMod(-width, 8))//8)     width padded to a multiple of 8, in patches of 8
TruncToInt(0.75*ToFloat(width))           width scaled by 0.75
2*CeilToInt(IntTrueDiv(width, 2))         width rounded up to an even number
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "CeilDiv": lambda number, divisor: -(-number // divisor),
    "CeilToInt": math.ceil,
    "CleanDiv": operator.floordiv,
    "Eq": operator.eq,
    "FloatPow": operator.pow,
    "FloatTrueDiv": operator.truediv,
    "FloorDiv": operator.floordiv,
    "FloorToInt": math.floor,
    "Identity": lambda number: number,
    "IntTrueDiv": operator.truediv,
    "Max": max,
    "Min": min,
    "Mod": operator.mod,
    "ModularIndexing": lambda number, divisor, modulus: number // divisor % modulus,
    "Ne": operator.ne,
    "PowByNatural": operator.pow,
    "PythonMod": operator.mod,
    "RoundToInt": round,
    "ToFloat": float,
    "TruncToFloat": lambda number: float(math.trunc(number)),
    "TruncToInt": math.trunc,
    "Where": lambda condition, first, second: first if condition else second,
    "floor": math.floor,
    "max": max,
    "min": min,
    "sqrt": math.sqrt,
}


def evaluate_size(text: str, sizes: Mapping[str, int]) -> int | None:
    """Returns the value of a size, or None if a name or function of it is unknown.

    Args:
        text: the name of a dimension, or an expression of such names.
        sizes: size of each dimension, by its name.
    """
    if text in sizes:
        return sizes[text]
    try:
        value = _value(ast.parse(text, mode="eval").body, sizes)
    except (ArithmeticError, KeyError, SyntaxError, TypeError, ValueError):
        return None
    return int(value) if value == int(value) else None


def _value(node: ast.expr, sizes: Mapping[str, int]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name):
            return sizes[name]
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](_value(operand, sizes))
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _OPERATORS[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.Call(func=ast.Name(id=name), args=args):
            return _FUNCTIONS[name](*(_value(arg, sizes) for arg in args))
    raise ValueError(f"no expression of a size: {ast.dump(node)}")
