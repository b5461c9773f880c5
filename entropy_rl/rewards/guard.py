r"""Are two parsed answers the same? math-verify compares expressions, and this module what it gets wrong.

math-verify rounds numbers to 6 decimals and expressions to 15 digits, takes ordered pairs for sets, and accepts an
equation if one of its sides agrees. Here:

- numbers are compared by value: exactly, or to 6 significant digits if one of them is a decimal, which may have been
  rounded. An integer is not rounded: a decimal for it may differ by 5e-7, the noise of a computation;
- sets, lists, tuples and intervals are compared element by element, and a set is no tuple;
- of two equations or inequalities with one variable alone on the left, the right sides are compared;
- if math-verify says that two expressions are equal, they must also be equal in numbers, at two points.

math-verify's maintainers mean an inequality to be right for an interval only if the right answer is the inequality
(huggingface/Math-Verify#10), and a list without brackets to be right for a set or, in its order, for a tuple
(a comment in math_verify/grader.py). Both are kept.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import sympy
from latex2sympy2_extended.logic import And
from latex2sympy2_extended.sets import FiniteSet as ParsedSet
from math_verify import grader as math_verify
from sympy.core.relational import Relational

from entropy_rl.rewards.sizes import TooLarge, check_size

_DIGITS = 6  # significant, of decimals
_INTEGER_NOISE = 5e-7
_BOUNDS = (sympy.Lt, sympy.Le, sympy.Gt, sympy.Ge)
_ROUGHLY = 0.02  # of a step of the working, which may be rounded
_POINTS = ((0.731, 0.519, 1.137), (1.913, 0.277, 2.371))  # of the variables, in turn; powers of them are irrational


def same(gold: Any, given: Any, bare: bool = False) -> bool:
    """Whether two parsed answers mean the same.

    Args:
        gold: the right answer, as latex2sympy parses it.
        given: the answer to judge.
        bare: one of the two is a list without brackets, which also agrees with a tuple in the same order.
    """
    if _is_untrue(given):
        return False
    gold, given = _without_left_sides(gold, given)
    gold, given = _elements_alone(gold, given)
    if isinstance(given, sympy.Set) and not isinstance(given, sympy.FiniteSet):
        found = solutions(gold) if isinstance(gold, (Relational, And, sympy.FiniteSet)) else None
        gold = gold if found is None else found
    if isinstance(gold, (sympy.FiniteSet, sympy.Tuple, sympy.Interval)) and isinstance(
        given, (sympy.FiniteSet, sympy.Tuple, sympy.Interval)
    ):
        return _same_container(gold, given, bare)
    if isinstance(gold, sympy.MatrixBase) and isinstance(given, sympy.MatrixBase):
        return gold.shape == given.shape and all(map(same, gold.flat(), given.flat()))
    if isinstance(gold, (Relational, And)) and isinstance(given, (Relational, And)):
        return _same_relation(gold, given)
    if isinstance(gold, sympy.Union) and isinstance(given, sympy.Union) and len(gold.args) == len(given.args):
        return _matched(gold.args, given.args) or _verified(gold, given)
    gold, given = _imaginary(gold), _imaginary(given)
    if _is_number(gold) and _is_number(given):
        return same_number(gold, given)
    if _has_decimals(gold, given) and (coefficients := _coefficients(gold, given)):
        return all(itertools.starmap(same_number, coefficients))
    return _agree_in_numbers(gold, given) and _verified(gold, given)  # in this order: the second may take minutes


def solutions(relations: Any) -> Any:
    """The set of numbers for which an inequality, or one of several that exclude each other, holds; None for others.

    x<2, x>3 can only mean "or". Of x>2, x<3 the comma may mean "and".
    """
    parts = relations.args if isinstance(relations, sympy.FiniteSet) else (relations,)
    if not all(map(math_verify.is_relation, parts)) or len(relations.free_symbols) != 1:
        return None
    sets = [math_verify.unwrap_fcs(relation).as_set() for relation in parts]
    disjoint = all(a.intersect(b) is sympy.S.EmptySet for a, b in itertools.combinations(sets, 2))
    return sympy.Union(*sets) if disjoint else None


def same_number(gold: Any, given: Any) -> bool:
    """Whether two expressions without variables have the same value, to the digits that the module's page names."""
    gold, given = _computed(gold), _computed(given)
    if gold.is_Rational and given.is_Rational:
        return bool(gold == given)
    if not (_is_finite(gold) and _is_finite(given)):
        return bool(gold == given) and gold is not sympy.nan and gold is not sympy.zoo
    parts = [part.evalf(20) for part in _real_and_imaginary(sympy.Add(gold, -given))]
    if not all(part.is_Float or part.is_zero for part in parts):
        return False
    if not _has_decimals(gold, given):
        # A difference that cannot be told from 0 with 100 digits comes back with a precision of 1 bit.
        return all(part.is_zero or part._prec == 1 for part in parts)
    difference = sympy.sqrt(sum(part**2 for part in parts))
    size = sympy.Abs(gold).evalf(20)
    if size.is_zero:
        return bool(difference.is_zero)
    tolerance = 0.5 * sympy.Float(10) ** (int(sympy.floor(sympy.log(size, 10).evalf(20))) - _DIGITS + 1)
    if gold.is_Integer:
        tolerance = min(tolerance, _INTEGER_NOISE)
    return bool(difference <= tolerance)


def _real_and_imaginary(number: Any) -> Sequence[Any]:
    return (number,) if number.is_extended_real else number.expand(complex=True).as_real_imag()


def is_undefined(expression: Any) -> bool:
    """Whether an expression without variables has no value: 1/0, infinity minus infinity."""
    return _is_number(expression) and _computed(expression).has(sympy.zoo, sympy.nan)


def _imaginary(expression: Any) -> Any:
    """The expression with the imaginary unit in place of a variable i, as the grammar reads it."""
    if isinstance(expression, sympy.Expr) and any(symbol.name == "i" for symbol in expression.free_symbols):
        return expression.xreplace({s: sympy.I for s in expression.free_symbols if s.name == "i"})
    return expression


def _is_number(expression: Any) -> bool:
    return isinstance(expression, sympy.Expr) and not expression.free_symbols and bool(expression.is_number)


def _is_finite(number: Any) -> bool:
    return not number.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)


def _computed(number: Any) -> Any:
    check_size(number)
    return number.doit() if not number.is_Number else number


def _without_left_sides(gold: Any, given: Any) -> tuple[Any, Any]:
    """x=5 for 5 and 5 for x=5: the right sides, as math-verify takes them; of two equations, both stay whole."""
    gold_equal, given_equal = math_verify.is_equation(gold), math_verify.is_equation(given)
    if given_equal and not gold_equal and not isinstance(gold, (Relational, And)):
        given = math_verify.take_last_relation(given).rhs
    elif gold_equal and not given_equal and math_verify.is_assignment_relation(gold):
        gold = math_verify.take_last_relation(gold).rhs
    return gold, given


def _is_untrue(given: Any) -> bool:
    """Whether one of the equations of an answer, such as the first of A = 2·4 = 10, is between different numbers."""
    parts = _parts(given) if isinstance(given, (sympy.Eq, And)) else []
    sides = [(p.lhs, p.rhs) for p in parts if isinstance(p, sympy.Eq) and _is_number(p.lhs) and _is_number(p.rhs)]
    for left, right in sides:
        if not same_number(left, right) and not (_has_decimals(left, right) and _nearly(left, right)):
            return True
    return False


def _nearly(left: Any, right: Any) -> bool:
    """Whether two numbers differ by rounding, as in 1/3 = 0.33."""
    return bool(sympy.Abs((left - right).evalf(20)) <= _ROUGHLY * sympy.Abs(left.evalf(20)))


def _elements_alone(gold: Any, given: Any) -> tuple[Any, Any]:
    r"""5 for \{5\}; and matrices computed."""
    containers = (sympy.Set, sympy.Tuple, Relational, And)
    if isinstance(gold, sympy.FiniteSet) and len(gold) == 1 and not isinstance(given, containers):
        gold = gold.args[0]
    elif isinstance(given, sympy.FiniteSet) and len(given) == 1 and not isinstance(gold, containers):
        given = given.args[0]
    return tuple(side.doit() if isinstance(side, sympy.MatrixExpr) else side for side in (gold, given))


def _same_container(gold: Any, given: Any, bare: bool) -> bool:
    if isinstance(gold, sympy.Interval) and isinstance(given, sympy.Interval):
        ends = (gold.left_open, gold.right_open) == (given.left_open, given.right_open)
        return bool(ends) and same(gold.start, given.start) and same(gold.end, given.end)
    sets = isinstance(gold, sympy.FiniteSet), isinstance(given, sympy.FiniteSet)
    if all(sets) and _several_variables(gold) == _several_variables(given):
        return _matched(gold.args, given.args)
    if any(sets) and not bare:
        return False
    left, right = _in_order(gold), _in_order(given)
    return left is not None and right is not None and len(left) == len(right) and all(map(same, left, right))


def _several_variables(elements: Any) -> bool:
    """Whether the elements are x=1, y=2, values of different variables: for 1, 2 without names the order counts."""
    names = [_name(part.lhs) for part in elements.args if isinstance(part, sympy.Eq) and _is_alone(part.lhs)]
    return len(set(names)) > 1


def _in_order(container: Any) -> Sequence[Any] | None:
    """The elements as they were written, or by the names of their variables; None for an interval that is not open."""
    if isinstance(container, sympy.Interval):
        return (container.start, container.end) if container.is_open else None
    elements = container._unsorted_args if isinstance(container, ParsedSet) else container.args
    if _several_variables(container):
        elements = sorted(elements, key=lambda part: _name(part.lhs) if isinstance(part, sympy.Eq) else "")
    return elements


def _matched(gold: Sequence[Any], given: Sequence[Any]) -> bool:
    """Whether each element of one is an element of the other, one to one."""
    if len(gold) != len(given):
        return False
    left = list(given)
    for element in gold:
        index = next((i for i, other in enumerate(left) if same(element, other)), None)
        if index is None:
            return False
        del left[index]
    return True


def _same_relation(gold: Any, given: Any) -> bool:
    if isinstance(gold, And) or isinstance(given, And):
        ours, theirs = _parts(gold), _parts(given)
        if len(ours) == 1 and isinstance(theirs[0], _BOUNDS) and theirs[0].free_symbols == gold.free_symbols:
            return bool((found := solutions(given)) is not None and found == solutions(gold))  # -1<x<1 for |x|<1
        if len(ours) != len(theirs):
            # a = b = 5 is an assignment with a step between
            return (
                math_verify.is_assignment_relation(gold)
                and _verified(gold, given)
                and same(ours[-1].rhs, theirs[-1].rhs)
            )
        return all(map(_same_relation, ours, theirs)) or all(map(_same_relation, ours, theirs[::-1]))
    for turned in (given, given.reversed):
        if type(gold) is type(turned) and _is_alone(gold.lhs) and _is_alone(turned.lhs):
            return _name(gold.lhs) == _name(turned.lhs) and same(gold.rhs, turned.rhs)
    if not _are_expressions(gold, given):
        return _verified(gold, given) and same(gold.lhs, given.lhs) and same(gold.rhs, given.rhs)
    # Where x=2 is right, 2x=4 is not: it may be the question.
    if isinstance(gold, sympy.Eq) and isinstance(given, sympy.Eq) and not _is_alone(gold.lhs):
        return _proportional(gold, given) or (_verified(gold, given) and not _has_decimals(gold, given))
    return _verified(gold, given) and (_proportional(gold, given) or not _has_decimals(gold, given))


def _parts(relation: Any) -> list[Any]:
    return list(relation._unsorted_args) if isinstance(relation, And) else [relation]


def _is_alone(side: Any) -> bool:
    """A variable or f(x): what an equation gives the value of."""
    return side.is_Symbol or isinstance(side, (sympy.Tuple, sympy.core.function.AppliedUndef))


def _name(side: Any) -> str:
    return str(side).lower()


def _are_expressions(gold: Any, given: Any) -> bool:
    return all(isinstance(side, sympy.Expr) for side in (gold.lhs, gold.rhs, given.lhs, given.rhs))


def _proportional(gold: Any, given: Any) -> bool:
    """Whether the two relations' differences of sides have the same ratio at two points."""
    values = [(_at(gold.lhs - gold.rhs, point), _at(given.lhs - given.rhs, point)) for point in _POINTS]
    if any(pair[0] is None or pair[1] is None for pair in values):
        return False
    (a, b), (c, d) = values
    return a != 0 and b != 0 and _close(a * d, b * c, gold, given)


def _coefficients(gold: Any, given: Any) -> list[tuple[Any, Any]]:
    """The pairs of coefficients of two sums with the same terms, such as 0.5x+1 and x/2+1; empty for others."""
    if not (isinstance(gold, sympy.Expr) and isinstance(given, sympy.Expr)):
        return []
    ours, theirs = ({str(k): v for k, v in sympy.expand(e).as_coefficients_dict().items()} for e in (gold, given))
    return [(ours[term], theirs[term]) for term in ours] if ours.keys() == theirs.keys() else []


def _has_decimals(*expressions: Any) -> bool:
    return any(expression.has(sympy.Float) for expression in expressions)


def _verified(gold: Any, given: Any) -> bool:
    return bool(math_verify.verify(gold, given, timeout_seconds=None))


def _agree_in_numbers(gold: Any, given: Any) -> bool:
    """Whether two expressions that math-verify takes for equal have equal values; True if they have no values."""
    if not (isinstance(gold, sympy.Expr) and isinstance(given, sympy.Expr)):
        return True
    if gold.is_Symbol or given.is_Symbol:
        return True  # compared by name
    for point in _POINTS:
        left, right = _at(gold, point), _at(given, point)
        if left is not None and right is not None and not _close(left, right, gold, given):
            return False
    return True


def _at(expression: Any, point: Sequence[float]) -> Any:
    """The value of an expression at a point, to 40 digits; None if it has none."""
    names = sorted({_name(symbol) for symbol in expression.free_symbols})
    values = dict(zip(names, itertools.cycle(point)))
    try:
        value = expression.subs({s: sympy.Rational(str(values[_name(s)])) for s in expression.free_symbols})
        check_size(value)
        value = value.doit().evalf(40)
    except TooLarge:
        raise
    except Exception:  # sympy's many: what cannot be evaluated is math-verify's to judge
        return None
    return value if value.is_number and value.is_finite else None


def _close(left: Any, right: Any, *expressions: Any) -> bool:
    digits = _DIGITS if _has_decimals(*expressions) else 30
    return bool(sympy.Abs(left - right) <= sympy.Abs(left) * sympy.Float(10) ** -digits)
