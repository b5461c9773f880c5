"""Is a number that is written in a few characters too large to be computed?"""

import math
from typing import Any

import sympy

_GROWING = (sympy.Pow, sympy.exp, sympy.factorial, sympy.binomial)
_MAX_TERMS = 1e5  # of a product
_MAX_LOG10 = 1e5  # a larger number takes minutes to write out


class TooLarge(ValueError):
    """A number in an answer has too many digits to be computed."""


def check_size(expression: Any) -> None:
    r"""Raises `TooLarge` if computing the expression would take minutes: 10^{10^{10}}, \prod_{k=1}^{10^8} k."""
    if isinstance(expression, (sympy.Basic, sympy.MatrixBase)):
        for part in sympy.preorder_traversal(expression):
            if isinstance(part, _GROWING) and _log10(part) > _MAX_LOG10:
                raise TooLarge(f"a number of more than {_MAX_LOG10:.0e} digits")
            if isinstance(part, sympy.Product) and len(part.limits[0]) == 3 and _terms(part) > _MAX_TERMS:
                raise TooLarge(f"a product of more than {_MAX_TERMS:.0e} terms")


def _terms(part: Any) -> float:
    """How many terms a product with numbers for ends has; 0 for others."""
    _, first, last = part.limits[0]
    count = last - first
    return float(count) if count.is_Number and count.is_finite else 0.0


def _log10(part: Any) -> float:
    """About log10 |part|; infinite for what is too large, 0 for what has variables or cannot be computed."""
    if part.free_symbols:
        return 0.0
    try:
        if part.is_Number:
            return abs(math.log10(abs(part))) if part.is_finite and part != 0 else 0.0
        if isinstance(part, sympy.exp):
            part = sympy.Pow(sympy.Integer(3), part.args[0], evaluate=False)
        if isinstance(part, sympy.Pow):
            exponent = _log10(part.exp)
            if exponent > 12:
                return math.inf
            return max(_log10(part.base), 0.1) * 10**exponent if part.base not in (0, 1, -1) else 0.0
        if isinstance(part, sympy.binomial):
            above, below = part.args
            chosen = sympy.Min(below, above - below)
            return float(chosen) * max(_log10(above), 1.0) if chosen.is_Number else math.inf
        if isinstance(part, sympy.factorial):
            argument = _log10(part.args[0])
            if argument > 12:
                return math.inf
            n = 10**argument
            return n * (argument - math.log10(math.e)) + 0.5 * math.log10(2 * math.pi * n)  # Stirling's formula
        return sum(map(_log10, part.args))
    except (OverflowError, ValueError, TypeError):
        return math.inf
