"""Reads a formula without running it.

sympy's `parse_expr` turns a text into Python code and evaluates that. Here the code is built by sympy as well, so the
same texts can be read, and then only arithmetic, symbols and the functions of `_NAMES` are computed from its syntax
tree. Attributes, indices, comprehensions and texts in quotes are errors.
"""

import ast
import functools
import operator
import re
import types
from collections.abc import Callable, Mapping
from typing import Any

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}
# fmt: off
_NAMES = [
    "E", "I", "pi", "oo", "Integer", "Rational", "Float", "Symbol", "Function", "Abs", "Max", "Min", "sign",
    "floor", "ceiling", "factorial", "factorial2", "binomial", "Integral", "exp", "log", "ln", "sqrt", "cbrt", "root",
    "erf", "gamma", "re", "im", "arg", "conjugate", "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan",
    "acot", "asec", "acsc", "atan2", "sinh", "cosh", "tanh", "coth", "sech", "csch", "asinh", "acosh", "atanh",
    "acoth", "asech", "acsch",
]
# fmt: on
_DIGITS = re.compile(r"[0-9.]+([eE][+-]?[0-9]+)?")


def parse(text: str, local_dict: Mapping[str, Any] | None = None) -> Any:
    """The sympy expression of a formula, as `sympy.parse_expr` gives it.

    Args:
        text: for example "2*x**2 + sin(x)/3!".
        local_dict: the values of some names; others, if they are not sympy's functions, are symbols.

    Raises:
        ValueError: If there is anything in it but arithmetic, symbols and functions.
        SyntaxError: If it is not a formula.
        tokenize.TokenError: The same.
        TypeError: If something in it cannot be computed, such as x ^ 2.
    """
    from sympy.parsing.sympy_parser import standard_transformations, stringify_expr

    local = dict(local_dict or {})
    names = _names()
    code = stringify_expr(text, local, dict(names), standard_transformations)
    return _value(ast.parse(code.strip(), mode="eval").body, {**names, **local})


def arithmetic(text: str) -> Any:
    """The number that Python's arithmetic gives.

    >>> arithmetic("(0xff + 1) << 2")
    1024

    Args:
        text: numbers, operators and parentheses.

    Raises:
        ValueError: If there is anything else in it.
        SyntaxError: If it is not a formula.
    """
    return _value(ast.parse(text.strip(), mode="eval").body, {})


@functools.cache
def _names() -> dict[str, Any]:
    import sympy

    names = {name: getattr(sympy, name) for name in _NAMES}
    return names | {"abs": sympy.Abs, "max": sympy.Max, "min": sympy.Min}


def _value(node: ast.AST, names: Mapping[str, Any]) -> Any:
    """The value of a syntax tree: a number or a sympy expression, never a function or a text."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.Name(id=name) if name in names and not isinstance(names[name], type | types.FunctionType):
            return names[name]
        case ast.UnaryOp(op=op, operand=inner) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(inner, names))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, names), _value(right, names))
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str() as text)]) if text.isidentifier():
            return names["Symbol"](text)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str() as text)]) if _DIGITS.fullmatch(text):
            return names["Float"](text)
        case ast.Call(func=function, args=arguments, keywords=[]):
            return _function(function, names)(*(_value(argument, names) for argument in arguments))
    raise _unreadable(node)


def _function(node: ast.AST, names: Mapping[str, Any]) -> Callable[..., Any]:
    match node:
        case ast.Name(id=name) if isinstance(names.get(name), type | types.FunctionType):
            return names[name]
        case ast.Call(func=ast.Name(id="Function"), args=[ast.Constant(value=str() as text)]) if text.isidentifier():
            return names["Function"](text)  # unknown, such as f in f(x)
    raise _unreadable(node)


def _unreadable(node: ast.AST) -> ValueError:
    return ValueError(f"{ast.unparse(node)[:80]!r} is not a number, a symbol, arithmetic or a known function")
